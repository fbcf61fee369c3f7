"""Pages as HTML and Markdown, by the two templates of this package; both escape all text by themselves."""

from __future__ import annotations

import functools
import html
import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from part_robust.evaluation.report.content import MISSING, Page

# Characters that begin emphasis, code, cells, links or headings. An interval such as [30.7, 36.0] stays as it is unless
# something that makes it a link follows.
MARKUP = re.compile(r"(\[[\d.]+, [\d.]+\](?![(\[:]))|[\\`*_|#\[\]]")
# GitHub's own: strikethrough, formulas, and addresses that become links. No backslash helps there in every reader.
GITHUB = re.compile(r"[~$]|(?<=:)//|(?<=www)\.")
# What begins a list, or a line across the page, at the beginning of a paragraph.
LIST = re.compile(r"^(\d*)([-+.)])(?=[\s-])")


def render_html(page: Page) -> str:
    """A complete document that needs nothing else: no script, no address, plots and pictures inline."""
    return _environment(False).get_template("page.html.jinja").render(page=page)


def render_markdown(page: Page) -> str:
    """All text and tables of a page; plots and pictures are in the HTML page only."""
    return _environment(True).get_template("page.md.jinja").render(page=page)


def escape_markdown(value: Any) -> Any:
    """Text that Markdown shows as it is, on one line; what a template marks as safe is left alone."""
    if hasattr(value, "__html__"):
        return value
    text = html.escape(" ".join(str(value).split()), quote=False)
    text = MARKUP.sub(lambda found: found[1] or "\\" + found[0], text)
    text = GITHUB.sub(lambda found: "".join(f"&#{ord(character)};" for character in found[0]), text)
    return LIST.sub(r"\1\\\2", text)


def fenced(text: str) -> str:
    """A code block, its fence longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return "\n".join((fence, text.rstrip(), fence))


@functools.cache
def _environment(markdown: bool) -> Environment:
    """Every value that a template prints goes through the escape of its language."""
    environment = Environment(
        loader=PackageLoader("part_robust.evaluation.report"),
        autoescape=not markdown,
        finalize=escape_markdown if markdown else None,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["fenced"] = fenced
    environment.globals["MISSING"] = MISSING
    return environment
