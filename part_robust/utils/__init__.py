"""Tools that every part of the package may use; imports nothing of ours."""
