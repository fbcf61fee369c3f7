"""The thesis's tables with our numbers beside its own: cells from records, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from part_robust.evaluation.statistics import Spread
from part_robust.runs.measured import Measured, measured
from part_robust.runs.seeds import BySeed, cell, difference_table, mean_words, missing, spread_cells, spreads
from part_robust.runs.thesis.numbers import METRICS, Row, Table

# Seed, None for the config's, -> (leaf config, "clean" or "adversarial") -> record.
Records = Mapping[int | None, Mapping[tuple[str, str], Mapping]]
Seeds = Sequence[int | None]
PART_SCORES = ("pixel_accuracy", "AP50", "AP")


@dataclass(frozen=True)
class Line:
    """A row of a table, filled.

    Attributes:
        cells: model, and the other columns before the numbers.
        values: ours of each seed, percent, for each column of numbers, or None.
        thesis: the thesis's, in the same form.
        notes: letters of footnotes.
    """

    cells: tuple[str, ...]
    values: BySeed
    thesis: list[float | None]
    notes: str

    @property
    def seeds(self) -> BySeed:
        """The values of the seeds that have any."""
        return {seed: row for seed, row in self.values.items() if any(value is not None for value in row)}

    @property
    def ours(self) -> list[float | None]:
        """Mean of our numbers over the seeds, for each column."""
        return [each.mean if each else None for each in spreads(self.values)]


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
        records: of runs that are done.
        stand_in: the records are of other data.
    """
    found = []
    for row in table.rows:
        cells = row.cells[:1] if stand_in and len(table.heads) == 4 else row.cells
        candidates = [
            Line(
                cells,
                {seed: _ours(table, row, leaf, of_seed) for seed, of_seed in records.items()},
                corrected(table, row),
                row.notes,
            )
            for leaf in row.leaves
        ]
        line = max(candidates, key=lambda line: -1.0 if line.ours[-1] is None else line.ours[-1])
        if line.seeds or not stand_in:
            found.append(line)
    if stand_in and len(found) < 2:
        return []
    return found if any(line.seeds for line in found) else []


def _ours(table: Table, row: Row, leaf: str, records: Mapping[tuple[str, str], Mapping]) -> list[float | None]:
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


def _cell(ours: Spread | None, count: int, thesis: float | None) -> str:
    """Return a cell such as "54.2 (54.7)"; "" where there is nothing."""
    if ours is None and thesis is None:
        return ""
    return f"{cell(ours, count)} ({'-' if thesis is None else f'{thesis:.1f}'})"


def markdown(table: Table, found: Sequence[Line], stand_in: str = "", data: str = "", seeds: Seeds = (None,)) -> str:
    """A section: title, table with "ours (thesis)" in each cell, footnotes.

    Args:
        table: of the thesis.
        found: of `lines`, at least one.
        stand_in: name of the other data that ours are of; "" for the thesis's.
        data: name of the thesis's data.
        seeds: what ours are the mean of; there are their deviations and differences then.
    """
    several = list(seeds) != [None]
    rows = []
    for line in found:
        name = line.cells[0] + (f" [{', '.join(line.notes)}]" if line.notes else "")
        count = len(line.seeds)
        counted = [count if count == len(seeds) else f"{count} of {len(seeds)}"] if several else []
        numbers = [_cell(ours, count, thesis) for ours, thesis in zip(spreads(line.values), line.thesis, strict=True)]
        rows.append([name, *line.cells[1:], *counted, *numbers])
    titles = [*heads(table, found), *(["seeds"] if several else []), *columns(table)]
    text = [f"## Table {table.number}: {table.caption}", ""]
    if stand_in:
        text += [
            f"**Stand-in.** Ours are small models on {stand_in}, the thesis's (in brackets) on {data or table.data}: "
            "other data, models and training, so the two numbers of a cell do not compare.",
            "",
        ]
    else:
        text += ["Ours, and in brackets the thesis's.", ""]
    if several:
        text += [f"Ours: {mean_words(seeds)}.", ""]
    used = sorted({letter for line in found for letter in line.notes})
    text += [tabulate(rows, titles, tablefmt="github", disable_numparse=True), ""]
    differing = compared(table, found)
    if several and differing:
        text += [difference_table(heads(table, found), columns(table), differing)[0], ""]
    if used:
        text += [*(f"- [{letter}] {table.notes[letter]}" for letter in used), ""]
    if several:
        absent = [note for line in found if line.seeds for note in missing(", ".join(line.cells), line.seeds, seeds)]
        text += [*(f"- {note}" for note in absent), ""] if absent else []
    return "\n".join(text)


def compared(table: Table, found: Sequence[Line]) -> dict[tuple[str, ...], tuple[str, BySeed, BySeed]]:
    """Return the rows of `difference_table`: every row with a number against the first one."""
    first, *others = [line for line in found if line.seeds]
    return {line.cells: (", ".join(filter(None, first.cells)), line.seeds, first.seeds) for line in others}


def to_csv(table: Table, found: Sequence[Line], stand_in: str = "", seeds: Seeds = (None,)) -> str:
    """The same with a column of ours and one of the thesis's for each number; footnotes in the last column.

    With seeds, ours are three: mean, sample standard deviation and number of seeds.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    ours = f"ours on {stand_in}" if stand_in else "ours"
    several = list(seeds) != [None]
    whose = [f"{ours}, mean", f"{ours}, sample sd", f"{ours}, n", "thesis"] if several else [ours, "thesis"]
    numbers = [f"{title} ({each})" for title in columns(table) for each in whose]
    writer.writerow([*heads(table, found), *numbers, "notes"])
    for line in found:
        over = spread_cells(spreads(line.values)) if several else line.ours
        width = len(whose) - 1
        groups = [[*over[width * i : width * (i + 1)], thesis] for i, thesis in enumerate(line.thesis)]
        cells = ["" if value is None else f"{value:.2f}".rstrip("0").rstrip(".") for group in groups for value in group]
        writer.writerow([*line.cells, *cells, " ".join(table.notes[letter] for letter in line.notes)])
    return file.getvalue()
