"""Blocks of a report, before it becomes Markdown or HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

MISSING = "-"


@dataclass(frozen=True)
class Text:
    """A paragraph; `tone` is "", "good", "warning" or "bad"."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """A table of a report.

    Attributes:
        caption: what the table shows, with units.
        columns: their heads.
        rows: cells as text; the first cell names the row.
        shades: by row and column 0..1, how strongly a cell is coloured; empty for none.
        tones: for each row "", "good", "warning" or "bad"; empty for none.
        tone_column: which cell of a row shows its tone.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    shades: Sequence[Sequence[float]] = ()
    tones: Sequence[str] = ()
    tone_column: int = 2

    def is_numeric(self, column: int) -> bool:
        """Return whether a column is aligned at the right."""
        cells = [row[column] for row in self.rows]
        return column > 0 and all(re.fullmatch(r"-|[-+]?[\d.,]+( ?%)?|\[[^\]]*\]", cell) for cell in cells)


@dataclass(frozen=True)
class Figure:
    """A figure of a report.

    Attributes:
        svg: inline, without size.
        title: what it shows.
        description: what a reader without eyes on it should know.
    """

    svg: str
    title: str
    description: str


@dataclass(frozen=True)
class Picture:
    """`source` is a data URI."""

    source: str
    caption: str


@dataclass(frozen=True)
class Card:
    """One image of the contact sheet: panels, and what the model says before and after."""

    title: str
    tone: str
    panels: Sequence[Picture]
    lines: Sequence[str]


@dataclass(frozen=True)
class Sheet:
    """The contact sheet; `legend` holds (colour, part)."""

    note: str
    cards: Sequence[Card]
    legend: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Tile:
    """One number in large type."""

    label: str
    value: str
    detail: str


@dataclass(frozen=True)
class Tiles:
    """Numbers in large type, side by side."""

    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Code:
    """Text in fixed width behind a line that opens it; in Markdown in the open where `summary` is ""."""

    summary: str
    text: str


Block = Text | Table | Figure | Sheet | Tiles | Code


@dataclass(frozen=True)
class Section:
    """`wide` holds figures and tables side by side where there is room."""

    title: str
    blocks: Sequence[Block]
    wide: bool = False


@dataclass(frozen=True)
class Report:
    """A report, in any form.

    Attributes:
        title: of the page.
        subtitle: one line under it.
        parts: for each data set its name and sections; "" for those of all.
    """

    title: str
    subtitle: str
    parts: Sequence[tuple[str, Sequence[Section]]] = field(default_factory=list)


def number(value: float | int | None, digits: int = 1) -> str:
    """`digits` decimals; whole numbers with thousands marked; "-" for nothing."""
    if value is None or value != value:
        return MISSING
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.{digits}f}"


def interval(values: Sequence[float] | None) -> str:
    """Return an interval with one decimal, such as "[12.3, 45.6]"; "-" for nothing."""
    return f"[{values[0]:.1f}, {values[1]:.1f}]" if values else MISSING
