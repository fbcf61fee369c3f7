"""Errors whose message is a sentence for the user."""


class UserError(ValueError):
    """Something that the user can fix. The message names the key or file and the remedy; no traceback is needed."""
