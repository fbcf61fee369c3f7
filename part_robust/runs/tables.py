"""Tables of what the runs of a table or a suite have come to, written again after each of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from part_robust.data.controls import labels_of
from part_robust.runs.measured import matrix
from part_robust.runs.run import Run
from part_robust.runs.seeds import BySeed, difference_table, mean_table, missing, spread_cells, spread_titles, spreads
from part_robust.runs.suites import BASELINE
from part_robust.runs.thesis.numbers import THESIS
from part_robust.runs.thesis.tables import lines, markdown, to_csv
from part_robust.utils.files import write_text

CELLS = ("model", "supervision", "training")
METRICS = {
    "acc.": ("classification", "accuracy"),
    "pixel acc.": ("part_seg", "pixel_accuracy"),
    "AP": ("part_box", "AP"),
    "AP50": ("part_box", "AP50"),
    "mask AP": ("part_mask", "AP"),
}
# Words for what the builtin data are called in configs.
DATA = {"part_shapes": "PartShapes", "part_imagenet": "PartImageNet", "paco": "PACO"}

Cells = tuple[str, ...]
RecordsOfSeeds = Mapping[int | None, Mapping]


class Tables:
    """Tables of finished runs: one of each name in TABLES with all numbers, and those of the thesis."""

    def __init__(self, runs: Sequence[Run], folder: Path, name: str, of_thesis: bool = False) -> None:
        """Set which tables are written, and where.

        Args:
            runs: whose records are shown; those of several seeds as their mean and deviation.
            folder: to write in.
            name: of the Markdown file and, of a single table, of its CSV file.
            of_thesis: also in the layout of the thesis.
        """
        self.runs = runs
        self.folder = folder
        self.name = name
        self.of_thesis = of_thesis
        # Seed -> (leaf config, training) -> record; what is finished stays so.
        self.records: dict[int | None, dict[tuple[str, str], dict]] = {run.seed: {} for run in runs}

    @property
    def markdown(self) -> Path:
        """The Markdown file."""
        return self.folder / f"{self.name}.md"

    def write(self) -> None:
        """Reads what has been finished since, and writes all files anew. An interrupted suite has tables, too."""
        for run in self.runs:
            key, records = (run.leaf, run.cells[2]), self.records[run.seed]
            if key not in records:
                record = run.record()
                if record is not None:
                    records[key] = record
        if not any(self.records.values()):
            return
        sections = self._of_thesis() if self.of_thesis else []
        for table in dict.fromkeys(run.table for run in self.runs):
            every: dict[Cells, dict[int | None, Mapping]] = {run.cells: {} for run in self.runs if run.table == table}
            for run in self.runs:
                record = self.records[run.seed].get((run.leaf, run.cells[2]))
                if run.table == table and record is not None:
                    every[run.cells][run.seed] = record
            if found := {cells: each for cells, each in every.items() if each}:
                section = self._section(found, table if self.of_thesis else self.name)
                sections.append(f"## All runs of {table}\n\n{section}" if self.of_thesis else section)
        write_text(self.markdown, "\n".join(sections))

    def _section(self, found: Mapping[Cells, RecordsOfSeeds], name: str) -> str:
        """Return the table of all numbers with its notes, and write it as the CSV file `name`."""
        titles = all_titles([record for each in found.values() for record in each.values()])
        rows = {cells: by_seed(each, titles) for cells, each in found.items()}
        footnotes = []
        for cells, each in found.items():
            for seed, record in each.items():
                footnotes += notes(cells if seed is None else (*cells, f"seed {seed}"), record)
            footnotes += missing(", ".join(cells), each, list(self.records))
        if list(self.records) == [None]:
            plain = [[*cells, *each[None]] for cells, each in rows.items()]
            text = tabulate(plain, [*CELLS, *titles], tablefmt="github", floatfmt=".1f", missingval="-")
            self._save(name, plain, titles)
        else:
            text = self._over_seeds(rows, titles, name)
        return "\n".join([text, "", *(f"- {note}" for note in dict.fromkeys(footnotes)), ""])

    def _over_seeds(self, rows: Mapping[Cells, BySeed], titles: Sequence[str], name: str) -> str:
        """Return the tables of means and of differences, and write both as CSV files."""
        text = mean_table(CELLS, titles, rows, list(self.records))
        self._save(
            name, [[*cells, *spread_cells(spreads(each))] for cells, each in rows.items()], spread_titles(titles)
        )
        compared = {}
        for cells, each in rows.items():
            reference = self._baseline(cells[2], titles) or next(row for row in rows.items() if row[0][2] == cells[2])
            if reference[0] != cells:
                compared[cells] = (", ".join(reference[0]), each, reference[1])
        if compared:
            differing, plain = difference_table(CELLS, titles, compared)
            text += f"\n\n{differing}"
            self._save(f"{name}_differences", plain, ["less", *spread_titles(titles)])
        return text

    def _baseline(self, training: str, titles: Sequence[str]) -> tuple[Cells, BySeed] | None:
        """Return the row of the model without parts, which may be in another table; None without a record."""
        for run in self.runs:
            if run.leaf in BASELINE and run.cells[2] == training:
                key = (run.leaf, training)
                records = {seed: found[key] for seed, found in self.records.items() if key in found}
                if records:
                    return run.cells, by_seed(records, titles)
        return None

    def _of_thesis(self) -> list[str]:
        (data,) = {run.config_file.split("/")[1] for run in self.runs}
        sections = []
        for table in THESIS:
            stand_in = DATA[data] if data != table.data else ""
            if stand_in and data != "part_shapes":
                continue
            found = lines(table, self.records, stand_in=bool(stand_in))
            if found:
                sections.append(markdown(table, found, stand_in, DATA[table.data], list(self.records)))
                path = self.folder / f"table_{table.number}.csv"
                write_text(path, to_csv(table, found, stand_in, list(self.records)))
        return sections

    def _save(self, name: str, rows: Sequence[Sequence], titles: Sequence[str]) -> None:
        write_text(self.folder / f"{name}.csv", comma_separated(rows, [*CELLS, *titles]))


def by_seed(records: RecordsOfSeeds, titles: Sequence[str]) -> dict[int | None, list[float | None]]:
    """Return the numbers of a row in each seed, in the order of the columns."""
    return {seed: [numbers(record).get(title) for title in titles] for seed, record in records.items()}


def all_titles(records: Sequence[Mapping]) -> list[str]:
    """Return the columns: each metric on clean images and under each attack or tier, where any record has a number."""
    attacks = list(dict.fromkeys(row["attack"] for record in records for row in matrix(record)))
    known = {title for record in records for title in numbers(record)}
    titles = [f"{metric}, {attack}" for metric in METRICS for attack in attacks]
    return [title for title in titles if title in known]


def numbers(record: Mapping) -> dict[str, float]:
    """Return each metric on clean images ("acc., clean") and under each attack or tier, where there is a number."""
    (tasks,) = record["results"].values()
    # In a tier the class is right if no attack broke it, whatever it is on the final images.
    accuracy = {row["attack"]: row["accuracy"] for row in matrix(record)}
    found = {}
    for title, (task, metric) in METRICS.items():
        for attack in accuracy:
            if task == "classification":
                value = accuracy[attack]
            else:
                value = tasks.get(task if attack == "clean" else f"{task}_{attack}", {}).get(metric)
            if value is not None:
                found[f"{title}, {attack}"] = value
    return found


def comma_separated(rows: Sequence[Sequence], titles: Sequence[str]) -> str:
    """Return a table as the text of a CSV file."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(titles)
    writer.writerows([[_plain(cell) for cell in row] for row in rows])
    return file.getvalue()


def _plain(cell: str | float | None) -> str | float:
    """Return a cell for a file, without the noise of binary fractions (67.80000000000001)."""
    if cell is None:
        return ""
    return round(cell, 4) if isinstance(cell, float) else cell


def attack_words(settings: Mapping) -> str:
    """Return the text of an attack: "PGD on cross_entropy, linf 8/255, 20 steps of 2/255, random start, best iterate".

    The record has the rest.
    """
    words = [f"{settings.get('attack', 'attack')} on {settings.get('objective', 'an unknown loss')}"]
    if threat := settings.get("threat_model"):
        words.append(f"{threat['norm']} {threat['eps']:g}/255")
    if "steps" in settings:
        length = f" of {settings['step_size']:g}/255" if "step_size" in settings else ""
        words.append(f"{settings['steps']} steps{length}")
    if settings.get("restarts", 1) > 1:
        words.append(f"{settings['restarts']} restarts")
    if settings.get("random_start"):
        words.append("random start")
    if "keep" in settings:
        words.append(f"{settings['keep']} iterate")
    if not settings.get("full_gradient", True):
        words.append("cut gradient")
    return ", ".join(words)


def notes(cells: Sequence[str], record: Mapping) -> list[str]:
    """Return what must be known beside a row's numbers: images, attack, warnings."""
    ((dataset, tasks),) = record["results"].items()
    images = int(next(iter(tasks.values()))["num_images"])
    lines = [
        f"Percent, {images} images of {dataset}; {attack}: {attack_words(settings)}"
        for attack, settings in record["attacks"].items()
    ]
    if (labels := labels_of(dataset)) != "parts":
        lines.append(
            f"{', '.join(cells)}: part scores are of INPUT.PART_LABELS {labels}, so they compare with no other row"
        )
    lines += [f"{', '.join(cells)}: {sentence}" for sentence in record["warnings"].get(dataset, ())]
    return lines
