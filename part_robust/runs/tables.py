"""Tables of what the runs of a table or a suite have come to, written again after each of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from part_robust.runs.experiment import finished_record, matrix
from part_robust.runs.suites import Run
from part_robust.runs.thesis_numbers import THESIS
from part_robust.runs.thesis_tables import lines, markdown, to_csv
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


class Tables:
    """Tables of finished runs: one of each name in TABLES with all numbers, and those of the thesis."""

    def __init__(self, runs: Sequence[Run], folder: Path, name: str, of_thesis: bool = False) -> None:
        """Set which tables are written, and where.

        Args:
            runs: whose records are shown.
            folder: to write in.
            name: of the Markdown file and, of a single table, of its CSV file.
            of_thesis: also in the layout of the thesis.
        """
        self.runs = runs
        self.folder = folder
        self.name = name
        self.of_thesis = of_thesis
        # (leaf config, training) -> record; what is finished stays so.
        self.records: dict[tuple[str, str], dict] = {}

    @property
    def markdown(self) -> Path:
        """The Markdown file."""
        return self.folder / f"{self.name}.md"

    def write(self) -> None:
        """Reads what has been finished since, and writes all files anew. An interrupted suite has tables, too."""
        for run in self.runs:
            key = (run.leaf, run.cells[2])
            if key not in self.records:
                record = finished_record(run.phase)
                if record is not None:
                    self.records[key] = record
        if not self.records:
            return
        sections = self._of_thesis() if self.of_thesis else []
        for table in dict.fromkeys(run.table for run in self.runs):
            found = [
                (run, self.records[run.leaf, run.cells[2]])
                for run in self.runs
                if run.table == table and (run.leaf, run.cells[2]) in self.records
            ]
            if not found:
                continue
            rows, titles = all_numbers(found)
            text = tabulate(rows, titles, tablefmt="github", floatfmt=".1f", missingval="-")
            footnotes = dict.fromkeys(note for run, record in found for note in notes(run.cells, record))
            section = "\n".join([text, "", *(f"- {note}" for note in footnotes), ""])
            sections.append(f"## All runs of {table}\n\n{section}" if self.of_thesis else section)
            self._save(f"{table if self.of_thesis else self.name}.csv", comma_separated(rows, titles))
        self._save(self.markdown.name, "\n".join(sections))

    def _of_thesis(self) -> list[str]:
        (data,) = {run.phase.config_file.split("/")[1] for run in self.runs}
        sections = []
        for table in THESIS:
            stand_in = DATA[data] if data != table.data else ""
            if stand_in and data != "part_shapes":
                continue
            found = lines(table, self.records, stand_in=bool(stand_in))
            if found:
                sections.append(markdown(table, found, stand_in, DATA[table.data]))
                self._save(f"table_{table.number}.csv", to_csv(table, found, stand_in))
        return sections

    def _save(self, name: str, text: str) -> None:
        write_text(self.folder / name, text)


def all_numbers(found: Sequence[tuple[Run, Mapping]]) -> tuple[list[list], list[str]]:
    """Return rows and titles: each metric on clean images and under each attack or tier of any record.

    Columns that no row has a number for are left out.
    """
    attacks = list(dict.fromkeys(row["attack"] for _, record in found for row in matrix(record)))
    rows = [[*run.cells, *numbers(record, attacks)] for run, record in found]
    titles = [*CELLS, *(f"{metric}, {attack}" for metric in METRICS for attack in attacks)]
    keep = [i for i in range(len(titles)) if any(row[i] is not None for row in rows)]
    return [[row[i] for i in keep] for row in rows], [titles[i] for i in keep]


def numbers(record: Mapping, attacks: Sequence[str]) -> list[float | None]:
    """Each metric under each of `attacks` ("clean" for none); None where a model has no such number."""
    (tasks,) = record["results"].values()
    # In a tier the class is right if no attack broke it, whatever it is on the final images.
    accuracy = {row["attack"]: row["accuracy"] for row in matrix(record)}

    def cell(task: str, metric: str, attack: str) -> float | None:
        if task == "classification":
            return accuracy.get(attack)
        return tasks.get(task if attack == "clean" else f"{task}_{attack}", {}).get(metric)

    return [cell(task, metric, attack) for task, metric in METRICS.values() for attack in attacks]


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
    lines += [f"{', '.join(cells)}: {sentence}" for sentence in record["warnings"].get(dataset, ())]
    return lines
