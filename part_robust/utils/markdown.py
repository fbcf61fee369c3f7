"""Text of users, such as names of classes, as text in Markdown: no link, image, HTML or table comes of it."""

from __future__ import annotations

import html
import re

# Characters that begin emphasis, code, cells, links or headings. An interval such as [30.7, 36.0] stays as it is unless
# something that makes it a link follows.
_MARKUP = re.compile(r"(\[[\d.]+, [\d.]+\](?![(\[:]))|[\\`*_|#\[\]]")
# GitHub's own: strikethrough, formulas, and addresses that become links. No backslash helps there in every reader.
_GITHUB = re.compile(r"[~$]|(?<=:)//|(?<=www)\.", re.IGNORECASE)
# What begins a list, or a line across the page, at the beginning of a paragraph.
_LIST = re.compile(r"^(\d*)([-+.)])(?=[\s-])")


def escape(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    text = html.escape(" ".join(text.split()), quote=False)
    text = _MARKUP.sub(lambda found: found[1] or "\\" + found[0], text)
    text = _GITHUB.sub(lambda found: "".join(f"&#{ord(character)};" for character in found[0]), text)
    return _LIST.sub(r"\1\\\2", text)
