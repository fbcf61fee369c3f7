"""Names from data and folders as dead text in Markdown: no link, image, HTML or border of a table comes of them."""

from __future__ import annotations

import re

_LIVE = (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), *((character, f"\\{character}") for character in "\\|`"))
# Where a link, a reference or its definition ends; brackets by themselves, as of intervals, are plain text.
_LINK = re.compile(r"\](?=[(\[:])")
_EMPHASIS = "*_~$"
# What GitHub makes links of by itself. An invisible space inside ends that, where an escape would not.
_BARE_LINK = re.compile(r"(?<=:)(?=//)|(?<=\bwww)(?=\.)|(?<=\w)(?=@)", re.IGNORECASE)
_INVISIBLE = "&#8203;"


def dead_text(text: str) -> str:
    """Text in one line without links, images, HTML, code and table borders; `*` and `_` stay readable in a terminal."""
    for character, safe in _LIVE:
        text = text.replace(character, safe)
    text = _LINK.sub(r"\\]", text)
    return " ".join(_BARE_LINK.sub(_INVISIBLE, text).split())


def escape(text: str) -> str:
    """`dead_text` without emphasis and formulas, too: for a Markdown file."""
    text = dead_text(text)
    for character in _EMPHASIS:
        text = text.replace(character, f"\\{character}")
    return text
