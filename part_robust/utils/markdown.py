"""Names from data and folders as dead text in Markdown: no link, image, HTML or border of a table comes of them."""

from __future__ import annotations

import html
import re

_LIVE = (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), *((character, f"\\{character}") for character in "\\|`"))
# Where a link, a reference or its definition ends; brackets by themselves, as of intervals, are plain text.
_LINK = re.compile(r"\](?=[(\[:])")
# What GitHub makes links of by itself. An invisible space inside ends that, where an escape would not.
_BARE_LINK = re.compile(r"(?<=:)(?=//)|(?<=\bwww)(?=\.)|(?<=\w)(?=@)", re.IGNORECASE)
_INVISIBLE = "&#8203;"

# Characters that begin emphasis, code, cells, links or headings. An interval such as [30.7, 36.0] stays as it is unless
# something that makes it a link follows.
MARKUP = re.compile(r"(\[[\d.]+, [\d.]+\](?![(\[:]))|[\\`*_|#\[\]]")
# GitHub's own: strikethrough, formulas, and addresses that become links. No backslash helps there in every reader.
GITHUB = re.compile(r"[~$]|(?<=:)//|(?<=www)\.")
# What begins a list, or a line across the page, at the beginning of a paragraph.
LIST = re.compile(r"^(\d*)([-+.)])(?=[\s-])")


def dead_text(text: str) -> str:
    """Return text in one line without links, images, HTML, code and table borders.

    `*` and `_` stay as they are, so that it is readable in a terminal, too.
    """
    for character, safe in _LIVE:
        text = text.replace(character, safe)
    text = _LINK.sub(r"\\]", text)
    return " ".join(_BARE_LINK.sub(_INVISIBLE, text).split())


def escape(text: str) -> str:
    """Return text that a Markdown file shows as it is, on one line."""
    text = html.escape(" ".join(text.split()), quote=False)
    text = MARKUP.sub(lambda found: found[1] or "\\" + found[0], text)
    text = GITHUB.sub(lambda found: "".join(f"&#{ord(character)};" for character in found[0]), text)
    return LIST.sub(r"\1\\\2", text)
