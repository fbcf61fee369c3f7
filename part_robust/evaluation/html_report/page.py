"""A report as one HTML page that needs nothing else: no script, no address, plots and pictures inline."""

from __future__ import annotations

from html import escape

from part_robust.evaluation.html_report.blocks import (
    MISSING,
    Block,
    Card,
    Code,
    Figure,
    Report,
    Section,
    Sheet,
    Table,
    Text,
    Tiles,
)
from part_robust.evaluation.html_report.style import CSS

# Cells with more letters than this may wrap, those with longer words must.
PROSE, LONG_WORD = 40, 32
# Cells up to this stay on one line.
SHORT = 24


def render_html(report: Report) -> str:
    """A complete document."""
    headings: list[tuple[str, str]] = []
    body = []
    for index, (name, sections) in enumerate(report.parts):
        if name:
            body.append(f'<h2 id="part-{index}">{escape(name)}</h2>')
            headings.append((f"part-{index}", name))
        for place, section in enumerate(sections):
            anchor = f"section-{index}-{place}"
            headings.append((anchor, section.title))
            body.append(_section(section, anchor, "h3" if name else "h2"))
    links = "".join(f'<li><a href="#{anchor}">{escape(title)}</a></li>' for anchor, title in headings)
    subtitle = f'<p class="subtitle">{escape(report.subtitle)}</p>' if report.subtitle else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.title)}</title>\n<style>\n{CSS}\n</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(report.title)}</h1>{subtitle}"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>\n<main>\n'
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _section(section: Section, anchor: str, tag: str) -> str:
    blocks = "\n".join(_block(block, f"{anchor}-{place}") for place, block in enumerate(section.blocks))
    if section.wide:
        blocks = f'<div class="wide">\n{blocks}\n</div>'
    heading = f'<{tag} id="{anchor}">{escape(section.title)}</{tag}>'
    return f'<section aria-labelledby="{anchor}">{heading}\n{blocks}\n</section>'


def _block(block: Block, anchor: str) -> str:
    if isinstance(block, Text):
        return f'<p class="say {block.tone}">{escape(block.text)}</p>'
    if isinstance(block, Tiles):
        tiles = "".join(
            f'<div class="tile"><div class="label">{escape(tile.label)}</div>'
            f'<div class="value">{escape(tile.value)}</div><div class="detail">{escape(tile.detail)}</div></div>'
            for tile in block.tiles
        )
        return f'<div class="tiles">{tiles}</div>'
    if isinstance(block, Table):
        return _table(block, anchor)
    if isinstance(block, Figure):
        svg = block.svg.replace("<svg", f'<svg role="img" aria-label="{escape(block.title)}"', 1)
        return (
            f"<figure>{svg}<figcaption><strong>{escape(block.title)}.</strong> "
            f"{escape(block.description)}</figcaption></figure>"
        )
    if isinstance(block, Sheet):
        return _sheet(block)
    assert isinstance(block, Code)
    return f"<details><summary>{escape(block.summary)}</summary><pre>{escape(block.text)}</pre></details>"


def _table(table: Table, anchor: str) -> str:
    kinds = [_kind(table, column) for column in range(len(table.columns))]
    # Long sentences side by side do not fit a telephone: there the cells of a row stand below each other.
    stack = "prose" in kinds or "long" in kinds
    row_role = _attributes(role="row" if stack else "")
    head = "".join(
        f'<th scope="col"{_attributes(kind if kind == "number" else "", role="columnheader" if stack else "")}>'
        f"{escape(name)}</th>"
        for name, kind in zip(table.columns, kinds, strict=True)
    )
    body = []
    for index, row in enumerate(table.rows):
        role = "rowheader" if stack else ""
        short = "short" if len(row[0]) <= SHORT else ""
        cells = [f'<th scope="row"{_attributes(short, role=role)}>{escape(row[0])}</th>']
        for column, cell in enumerate(row[1:], start=1):
            tone = table.tones[index] if table.tones and column == table.tone_column else ""
            names = f"{kinds[column]} {tone} {'empty' if stack and cell == MISSING else ''}"
            shade = table.shades[index][column] if table.shades else 0.0
            style = f"background: rgba(var(--shade), {0.75 * shade:.2f})" if shade > 0.005 else ""
            label, role = (table.columns[column], "cell") if stack else ("", "")
            attributes = _attributes(names, style=style, role=role, **{"data-label": label})
            cells.append(f"<td{attributes}>{escape(cell)}</td>")
        body.append(f"<tr{row_role}>{''.join(cells)}</tr>")
    table_attributes = _attributes("stack" if stack else "", role="table" if stack else "")
    # The caption stands outside, or it would scroll away with a wide table.
    return (
        f'<figure class="table"><figcaption id="{anchor}">{escape(table.caption)}</figcaption>'
        f'<div class="scroll" role="region" tabindex="0" aria-labelledby="{anchor}">'
        f'<table{table_attributes} aria-labelledby="{anchor}">'
        f"<thead><tr{row_role}>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div></figure>"
    )


def _kind(table: Table, column: int) -> str:
    if table.is_numeric(column):
        return "number"
    cells = [row[column] for row in table.rows if row[column] != MISSING]
    if any(len(word) > LONG_WORD for cell in cells for word in cell.split()):
        return "long"
    if any(len(cell) > PROSE for cell in cells):
        return "prose"
    return "short" if all(len(cell) <= SHORT for cell in cells) else ""


def _attributes(classes: str = "", **values: str) -> str:
    """HTML attributes with a leading space; empty ones are left out."""
    values = {"class": " ".join(classes.split()), **values}
    return "".join(f' {name}="{escape(value)}"' for name, value in values.items() if value)


def _sheet(sheet: Sheet) -> str:
    legend = "".join(
        f'<li><span style="background: {color}"></span>{escape(part)}</li>' for color, part in sheet.legend
    )
    legend = f'<ul class="legend" aria-label="Colours of the parts">{legend}</ul>' if legend else ""
    return f'<p class="note">{escape(sheet.note)}</p>{legend}' + "\n".join(_card(card) for card in sheet.cards)


def _card(card: Card) -> str:
    photos = " photos" if any(panel.source.startswith("data:image/jpeg") for panel in card.panels) else ""
    panels = "".join(
        f'<figure><img src="{panel.source}" alt="{escape(f"{card.title}, {panel.caption}")}" loading="lazy">'
        f"<figcaption>{escape(panel.caption)}</figcaption></figure>"
        for panel in card.panels
    )
    lines = "".join(f"<p>{escape(line)}</p>" for line in card.lines)
    panels = f'<div class="panels{photos}">{panels}</div>'
    return f'<div class="card {card.tone}"><h4>{escape(card.title)}</h4>{panels}{lines}</div>'
