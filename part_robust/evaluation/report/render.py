"""Renders pages by the two templates of this package, one for HTML and one for Markdown, which escape all text."""

from __future__ import annotations

import functools
import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from part_robust.evaluation.report.content import MISSING, Page
from part_robust.utils.markdown import escape


def render_html(page: Page) -> str:
    """Return a complete document that needs nothing else: no script, no address, plots and pictures inline."""
    return _environment(False).get_template("page.html.jinja").render(page=page)


def render_markdown(page: Page) -> str:
    """Return all text and tables of a page; plots and pictures are in the HTML page only."""
    return _environment(True).get_template("page.md.jinja").render(page=page)


def escape_markdown(value: Any) -> Any:
    """Return text that Markdown shows as it is, on one line; what a template marks as safe is left alone."""
    if hasattr(value, "__html__"):
        return value
    return escape(str(value))


def fenced(text: str) -> str:
    """Return a code block, its fence longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return "\n".join((fence, text.rstrip(), fence))


@functools.cache
def _environment(markdown: bool) -> Environment:
    """Return an environment that escapes every value a template prints, for its language."""
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
