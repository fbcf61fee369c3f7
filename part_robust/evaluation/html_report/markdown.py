"""A report as Markdown: all its text and tables. Pictures and plots are in the HTML page."""

from __future__ import annotations

from part_robust.evaluation.html_report.blocks import Block, Code, Report, Section, Table, Text, Tiles
from part_robust.utils.markdown import escape


def render_markdown(report: Report) -> str:
    lines = [f"# {escape(report.title)}", ""]
    if report.subtitle:
        lines += [escape(report.subtitle), ""]
    several = len([name for name, _ in report.parts if name]) > 1
    for name, sections in report.parts:
        if name:
            lines += [f"## {escape(name)}", ""]
        for section in sections:
            lines += _section(section, "###" if name or several else "##")
    return "\n".join(lines).rstrip() + "\n"


def _section(section: Section, level: str) -> list[str]:
    lines = [line for block in section.blocks for line in _block(block)]
    return [f"{level} {escape(section.title)}", "", *lines] if lines else []


def _block(block: Block) -> list[str]:
    if isinstance(block, Text):
        return [f"**{escape(block.text)}**" if block.tone == "bad" else escape(block.text), ""]
    if isinstance(block, Tiles):
        rows = [[tile.label, tile.value, tile.detail] for tile in block.tiles]
        return _table(Table("", ["", "value", "detail"], rows))
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Code) and not block.summary:
        return [*_fenced(block.text), ""]
    if isinstance(block, Code):
        return [f"<details><summary>{escape(block.summary)}</summary>", "", *_fenced(block.text), "", "</details>", ""]
    return []


def _table(table: Table) -> list[str]:
    lines = [f"{escape(table.caption)}:", ""] if table.caption else []
    lines.append("| " + " | ".join(escape(column) for column in table.columns) + " |")
    lines.append("|" + "|".join("---:" if table.is_numeric(i) else "---" for i in range(len(table.columns))) + "|")
    lines += ["| " + " | ".join(escape(cell) for cell in row) + " |" for row in table.rows]
    return [*lines, ""]


def _fenced(text: str) -> list[str]:
    """A fence longer than any in the text."""
    fence = "```"
    while fence in text:
        fence += "`"
    return [fence, text.rstrip(), fence]
