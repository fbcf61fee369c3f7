"""Rows of tables over runs that differ in their seed: mean, deviation, and differences of two rows paired by seed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from tabulate import tabulate

from part_robust.evaluation.statistics import Spread, spread

# SEED, or None for the config's, -> one number for each column, None where there is none.
BySeed = Mapping[int | None, Sequence[float | None]]


def spreads(values: BySeed) -> list[Spread | None]:
    """Return each column's spread over the seeds that have a number; None where none has one."""
    columns = ([value for value in column if value is not None] for column in zip(*values.values(), strict=True))
    return [spread(column) if column else None for column in columns]


def differences(values: BySeed, reference: BySeed) -> list[Spread | None]:
    """Return each column's difference from another row, over the seeds that both have."""
    paired = {
        seed: [None if a is None or b is None else a - b for a, b in zip(row, reference[seed], strict=True)]
        for seed, row in values.items()
        if seed in reference
    }
    return spreads(paired) if paired else [None] * len(next(iter(values.values())))


def cell(found: Spread | None, count: int, sign: str = "") -> str:
    """Return "54.2 ± 0.8", with its own number of seeds where that is not the row's; "-" for nothing.

    Args:
        found: of one cell.
        count: seeds of the row.
        sign: "+" for differences.
    """
    if found is None:
        return "-"
    deviation = "" if found.deviation is None else f" ± {found.deviation:.1f}"
    return f"{found.mean:{sign}.1f}{deviation}" + ("" if found.count == count else f" (n = {found.count})")


def missing(name: str, found: Collection[int | None], wanted: Sequence[int | None]) -> list[str]:
    """Return a sentence about the seeds whose result a row lacks; none where it has all."""
    absent = [str(seed) for seed in wanted if seed not in found]
    return [f"{name}: no result of seed {', '.join(absent)}, so n = {len(found)}"] if absent else []


def mean_table(
    heads: Sequence[str], titles: Sequence[str], rows: Mapping[tuple[str, ...], BySeed], wanted: Sequence[int | None]
) -> str:
    """Return the means and deviations of rows as Markdown, with how many of the wanted seeds each has.

    Args:
        heads: titles of a row's first cells.
        titles: of the columns of numbers.
        rows: first cells -> numbers.
        wanted: all seeds.
    """
    shown = []
    for cells, values in rows.items():
        count = str(len(values)) if len(values) == len(wanted) else f"{len(values)} of {len(wanted)}"
        shown.append([*cells, count, *(cell(each, len(values)) for each in spreads(values))])
    text = tabulate(shown, [*heads, "seeds", *titles], tablefmt="github", disable_numparse=True)
    lead = mean_words(wanted)
    return f"{lead[0].upper()}{lead[1:]}.\n\n{text}"


def mean_words(wanted: Sequence[int | None]) -> str:
    """Return what the cells of such a table are."""
    return f"mean ± sample standard deviation over seeds {', '.join(map(str, wanted))}"


def difference_table(
    heads: Sequence[str], titles: Sequence[str], rows: Mapping[tuple[str, ...], tuple[str, BySeed, BySeed]]
) -> tuple[str, list[list]]:
    """Return the differences of rows from their references as Markdown, and as rows of numbers.

    Args:
        heads: titles of a row's first cells.
        titles: of the columns of numbers.
        rows: first cells -> name of the reference, numbers, and those of the reference.

    Returns:
        The text; and first cells, reference, and of each column mean, deviation and count.
    """
    shown, plain = [], []
    for cells, (name, values, reference) in rows.items():
        found = differences(values, reference)
        count = len(values.keys() & reference.keys())
        shown.append([*cells, name, count, *(cell(each, count, "+") for each in found)])
        plain.append([*cells, name, *spread_cells(found)])
    text = tabulate(shown, [*heads, "less", "n", *titles], tablefmt="github", disable_numparse=True)
    lead = "Differences paired by seed, mean ± sample standard deviation over n seeds (row - `less`)."
    return f"{lead}\n\n{text}", plain


def spread_cells(found: Sequence[Spread | None]) -> list[float | None]:
    """Return mean, deviation and count of each, for a file."""
    return [value for each in found for value in ((each.mean, each.deviation, each.count) if each else (None,) * 3)]


def spread_titles(titles: Sequence[str]) -> list[str]:
    """Return the titles of `spread_cells`."""
    return [f"{title}{which}" for title in titles for which in (" (mean)", " (sample sd)", " (n)")]
