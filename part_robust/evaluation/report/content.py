"""The content of a page as plain data, which the templates beside this file turn into HTML and Markdown.

A tone is "", "good", "warning" or "bad"; of a text also "note". All text is plain: the templates escape it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

MISSING = "-"
# Letters: a cell up to SHORT stays on one line, one above PROSE may wrap, a word above LONG_WORD must be broken.
SHORT, PROSE, LONG_WORD = 24, 40, 32


class Text(NamedTuple):
    """A paragraph."""

    text: str
    tone: str = ""


class Tile(NamedTuple):
    """One number in large type, with its name above and a detail below."""

    label: str
    value: str
    detail: str


class Figure(NamedTuple):
    """A plot.

    `svg` is an <svg> element without a size, the only field that is markup; `description` is a text of what it shows.
    """

    svg: str
    title: str
    description: str


class Picture(NamedTuple):
    """An image as a data URI."""

    source: str
    caption: str


class Example(NamedTuple):
    """One image of the data set, clean and attacked, and what the model predicts for it.

    `enlarged` pictures have so few pixels that each is to be seen.
    """

    title: str
    tone: str
    pictures: Sequence[Picture]
    lines: Sequence[str]
    enlarged: bool


class Code(NamedTuple):
    """Text in fixed width, hidden behind its summary unless that is ""."""

    summary: str
    text: str


class Cell(NamedTuple):
    """Text of a table's cell; `shade`, 0..1, is how strongly it is coloured."""

    text: str
    tone: str = ""
    shade: float = 0.0


@dataclass(frozen=True)
class Table:
    """Rows of one cell for each column; the first cell names the row. Without rows it is not shown."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    @property
    def kinds(self) -> list[str]:
        """The layout of each column: "number", "short", "prose", "long" (words that must be broken) or ""."""
        return [_kind([row[column].text for row in self.rows], column) for column in range(len(self.columns))]


@dataclass(frozen=True)
class Section:
    """Everything under one heading, shown in the order of the fields. Without content it is not shown.

    `legend` holds the (colour, part) of the examples; `wide` puts figures and tables side by side where there is room.
    """

    title: str
    texts: Sequence[Text] = ()
    tiles: Sequence[Tile] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    legend: Sequence[tuple[str, str]] = ()
    examples: Sequence[Example] = ()
    code: Code | None = None
    wide: bool = False

    @property
    def has_words(self) -> bool:
        """Whether there is anything to read without the pictures."""
        return not self.examples and bool(
            self.texts or self.tiles or self.code or any(table.rows for table in self.tables)
        )

    def __bool__(self) -> bool:
        return bool(self.has_words or self.figures or self.examples)


@dataclass(frozen=True)
class Part:
    """The sections of one data set; `name` is "" for those that belong to the whole page."""

    name: str
    sections: Sequence[Section]


@dataclass(frozen=True)
class Page:
    """A page; `subtitle` is one line below the title, or ""."""

    title: str
    subtitle: str
    parts: Sequence[Part]


def make_table(caption: str, rows: Iterable[Mapping[str, Any]], digits: int = 1) -> Table:
    """Make a table of rows {column: value}, without the columns in which no row has a value.

    Args:
        caption: what the table shows, with units.
        rows: all with the same columns in the same order; values of `to_text`, or cells.
        digits: decimals of floats.
    """
    cells = [
        {name: value if isinstance(value, Cell) else Cell(to_text(value, digits)) for name, value in row.items()}
        for row in rows
    ]
    names = list(cells[0]) if cells else []
    kept = [name for name in names if name == names[0] or any(row[name].text != MISSING for row in cells)]
    return Table(caption, kept, [[row[name] for name in kept] for row in cells])


def select(rows: Iterable[Mapping[str, Any]] | None, columns: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return rows for `make_table` from entries of a record, by {column: key}; a key may be missing."""
    return [{name: row.get(key) for name, key in columns.items()} for row in rows or ()]


def to_text(value: Any, digits: int = 1) -> str:
    """Return a value as text: floats with `digits` decimals, whole numbers with thousands marked, pairs as an interval.

    Nothing (None, "", an empty list, not a number) is "-".
    """
    if value is None or value != value or value == "" or value == []:
        return MISSING
    if isinstance(value, (list, tuple)):
        return f"[{value[0]:.1f}, {value[1]:.1f}]"
    if isinstance(value, float):
        return f"{value:.{digits}f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _kind(cells: Sequence[str], column: int) -> str:
    if column > 0 and all(re.fullmatch(r"-|[-+]?[\d.,]+( ?%)?|\[[^\]]*\]", cell) for cell in cells):
        return "number"
    if any(len(word) > LONG_WORD for cell in cells for word in cell.split()):
        return "long"
    if any(len(cell) > PROSE for cell in cells):
        return "prose"
    return "short" if all(len(cell) <= SHORT for cell in cells) else ""
