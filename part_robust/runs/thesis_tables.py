"""The thesis's tables with our numbers beside its own: cells from records, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from part_robust.runs.experiment import Measured, measured
from part_robust.runs.thesis_numbers import METRICS, Row, Table

Records = Mapping[tuple[str, str], Mapping]
PART_SCORES = ("pixel_accuracy", "AP50", "AP")


@dataclass(frozen=True)
class Line:
    """A row of a table, filled. `ours` and `thesis` have one value, percent, for each column of numbers, or None."""

    cells: tuple[str, ...]
    ours: list[float | None]
    thesis: list[float | None]
    notes: str


def corrected(table: Table, row: Row) -> list[float | None]:
    """The thesis's numbers, percent, without its slips (see the footnotes); None where it has none."""
    groups = [[None if word == "-" else float(word) for word in group.split()] for group in row.printed.split("|")]
    change = groups.pop() if table.change else []
    values = [dict(zip(table.metrics, group, strict=True)) for group in groups]
    for group in values:
        ap, ap50 = group.get("AP"), group.get("AP50")
        if ap is not None and ap50 is not None:
            # 0.568 * 100 is 56.8 and a bit.
            group["AP"], group["AP50"] = (round(value, 1) for value in sorted((100 * ap, 100 * ap50)))
    if table.number == "2.3" and "c" in row.notes:
        clean, attacked = values[1], values[2]
        for metric in PART_SCORES:
            clean[metric], attacked[metric] = attacked[metric], clean[metric]
    return [*(group[metric] for group in values for metric in table.metrics), *change]


def lines(table: Table, records: Records, stand_in: bool) -> list[Line]:
    """Return the rows of a table. Those of a stand-in need a record, and are at least two, as a table compares them.

    Args:
        table: of the thesis.
        records: (leaf config, "clean" or "adversarial") -> record.
        stand_in: the records are of other data.
    """
    found = []
    for row in table.rows:
        candidates = [_ours(table, row, leaf, records) for leaf in row.leaves]
        ours = max(candidates, key=lambda values: -1.0 if values[-1] is None else values[-1])
        if stand_in and all(value is None for value in ours):
            continue
        cells = row.cells[:1] if stand_in and len(table.heads) == 4 else row.cells
        found.append(Line(cells, ours, corrected(table, row), row.notes))
    if stand_in and len(found) < 2:
        return []
    return found if any(value is not None for line in found for value in line.ours) else []


def _ours(table: Table, row: Row, leaf: str, records: Records) -> list[float | None]:
    values: list[float | None] = []
    for group in table.groups:
        record = records.get((leaf + group.variant, group.training))
        found = measured(record, row.attack) if record else Measured()
        source = found.attacked if group.attacked else found.clean
        values += [source.get(metric) for metric in table.metrics]
    if table.change:
        first, second = values[len(table.metrics) - 1], values[-1]
        values.append(None if first is None or second is None else second - first)
    return values


def columns(table: Table) -> list[str]:
    """Titles of the columns of numbers."""
    titles = [f"{group.title}: {METRICS[metric]}" for group in table.groups for metric in table.metrics]
    return [*titles, "change in acc."] if table.change else titles


def heads(table: Table, found: Sequence[Line]) -> tuple[str, ...]:
    """Return the heads of the columns before the numbers."""
    return table.heads[: len(found[0].cells)]


def _cell(ours: float | None, thesis: float | None) -> str:
    """Return a cell such as "54.2 (54.7)"; "-" where there is nothing."""
    if ours is None and thesis is None:
        return ""
    return f"{'-' if ours is None else f'{ours:.1f}'} ({'-' if thesis is None else f'{thesis:.1f}'})"


def markdown(table: Table, found: Sequence[Line], stand_in: str = "", data: str = "") -> str:
    """A section: title, table with "ours (thesis)" in each cell, footnotes.

    Args:
        table: of the thesis.
        found: of `lines`, at least one.
        stand_in: name of the other data that ours are of; "" for the thesis's.
        data: name of the thesis's data.
    """
    rows = []
    for line in found:
        name = line.cells[0] + (f" [{', '.join(line.notes)}]" if line.notes else "")
        rows.append([name, *line.cells[1:], *map(_cell, line.ours, line.thesis)])
    titles = [*heads(table, found), *columns(table)]
    text = [f"## Table {table.number}: {table.caption}", ""]
    if stand_in:
        text += [
            f"**Stand-in.** Ours are small models on {stand_in}, the thesis's (in brackets) on {data or table.data}: "
            "other data, models and training, so the two numbers of a cell do not compare.",
            "",
        ]
    else:
        text += ["Ours, and in brackets the thesis's.", ""]
    used = sorted({letter for line in found for letter in line.notes})
    text += [tabulate(rows, titles, tablefmt="github", disable_numparse=True), ""]
    if used:
        text += [*(f"- [{letter}] {table.notes[letter]}" for letter in used), ""]
    return "\n".join(text)


def to_csv(table: Table, found: Sequence[Line], stand_in: str = "") -> str:
    """The same with a column of ours and one of the thesis's for each number; footnotes in the last column."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    ours = f"ours on {stand_in}" if stand_in else "ours"
    numbers = [f"{title} ({whose})" for title in columns(table) for whose in (ours, "thesis")]
    writer.writerow([*heads(table, found), *numbers, "notes"])
    for line in found:
        pairs = zip(line.ours, line.thesis, strict=True)
        cells = ["" if value is None else f"{value:.2f}".rstrip("0").rstrip(".") for pair in pairs for value in pair]
        writer.writerow([*line.cells, *cells, " ".join(table.notes[letter] for letter in line.notes)])
    return file.getvalue()
