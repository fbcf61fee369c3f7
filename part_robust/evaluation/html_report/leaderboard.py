"""Many records side by side, by what is left of them under the standard attacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from part_robust.evaluation.checks import errors, from_record, reportable
from part_robust.evaluation.checks.record import class_tiers
from part_robust.evaluation.html_report.blocks import MISSING, Report, Section, Table, Text, interval, number
from part_robust.evaluation.html_report.schema import evaluations, threat_words

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """One model on one data set; accuracies are {accuracy, interval} or None."""

    model: str
    parameters: int | None
    pretraining: str
    threat: str
    images: int
    clean: Result | None
    thesis: Result | None
    standard: Result | None
    lowest: Result | None
    lowest_name: str
    problem: str

    def order(self) -> tuple:
        """Unreliable ones last, then those never attacked by the standard set, then the most robust first."""
        missing = -1.0
        accuracies = [result["accuracy"] if result else missing for result in (self.standard, self.lowest, self.clean)]
        return (bool(self.problem), *(-accuracy for accuracy in accuracies), self.model)


def build_leaderboard(records: Sequence[tuple[Path, Mapping[str, Any]]]) -> Report:
    """
    Args:
        records: paths and what is in them; models without a class head are left out.
    """
    entries: dict[str, list[Entry]] = {}
    for path, record in records:
        for dataset, E in evaluations(record).items():
            if (entry := entry_of(path, record, E)) is not None:
                entries.setdefault(dataset, []).append(entry)
    note = Text(
        "Sorted by accuracy under the standard set of attacks; models without it follow, by the lowest accuracy that "
        "any class attack has left. Intervals are Wilson's, 95 %. Two models compare by McNemar's test on the same "
        "images, not by overlapping intervals. Unreliable results stand last, with the reason."
    )
    sections = [Section(dataset, [_table(rows)]) for dataset, rows in sorted(entries.items())]
    return Report("Leaderboard", f"{len(records)} records", [("", [Section("How to read it", [note]), *sections])])


def entry_of(path: Path, record: Mapping[str, Any], E: Mapping[str, Any]) -> Entry | None:
    """One data set of a record; None for a model without a class head."""
    tiers = {name: values["robust"] for name, values in class_tiers(E).items() if values.get("robust")}
    matrix = [
        row
        for row in E.get("attack_matrix") or ()
        if row.get("accuracy") is not None and row.get("head") and row["attack"] not in tiers
    ]
    attacked: dict[str, Result] = {**{row["attack"]: row for row in matrix}, **tiers}
    if E.get("headline_result"):
        attacked[E["headline"]] = E["headline_result"]
    if not attacked and not (E.get("attack_matrix") and E["attack_matrix"][0].get("accuracy") is not None):
        return None
    lowest = min(attacked, key=lambda name: attacked[name]["accuracy"], default="")
    checks = from_record(E.get("checks") or [])
    problem = "; ".join(f"{check.id} {check.sentence}" for check in errors(checks))
    if not problem and (record.get("unreliable") or E.get("reportable") is False):
        problem = "marked unreliable in its record"
    assert reportable(checks) or problem
    return Entry(
        model=str(record.get("name") or path.resolve().parent.name),
        parameters=record.get("parameters"),
        pretraining=str(record.get("pretraining") or ""),
        threat=threat_words(E),
        images=E.get("num_images") or 0,
        clean=E.get("clean"),
        thesis=tiers.get("thesis") or _thesis(E, record.get("attacks") or {}, attacked),
        standard=tiers.get("standard"),
        lowest=attacked.get(lowest),
        lowest_name=lowest,
        problem=problem,
    )


def _thesis(E: Mapping[str, Any], attacks: Mapping[str, Any], attacked: Mapping[str, Result]) -> Result | None:
    """Accuracy under the thesis's attack, by what the attack was and not by its name."""
    wanted = {"attack": "PGD", "objective": "cross_entropy", "steps": 100, "restarts": 5}
    for name, values in attacks.items():
        if name in attacked and all(values.get(key) == value for key, value in wanted.items()):
            return attacked[name]
    return None


def _table(entries: Sequence[Entry]) -> Table:
    entries = sorted(entries, key=Entry.order)
    optional = {
        "parameters": [number(entry.parameters) for entry in entries],
        "pre-training": [entry.pretraining or MISSING for entry in entries],
    }
    shown = {name: cells for name, cells in optional.items() if any(cell != MISSING for cell in cells)}
    columns = ["model", *shown, "threat model", "images", "clean %", "thesis PGD %", "standard %", "95 % interval"]
    columns += ["lowest %", "by", "note"]
    rows = []
    for index, entry in enumerate(entries):
        numbers = [number(result["accuracy"] if result else None) for result in (entry.clean, entry.thesis)]
        rows.append(
            [
                entry.model,
                *(cells[index] for cells in shown.values()),
                entry.threat or MISSING,
                number(entry.images),
                *numbers,
                number(entry.standard["accuracy"] if entry.standard else None),
                interval(entry.standard.get("interval") if entry.standard else None),
                number(entry.lowest["accuracy"] if entry.lowest else None),
                entry.lowest_name or MISSING,
                f"unreliable: {entry.problem}" if entry.problem else MISSING,
            ]
        )
    tones = ["bad" if entry.problem else "" for entry in entries]
    caption = "Right under each set of attacks, the most robust first"
    return Table(caption, columns, rows, tones=tones, tone_column=len(columns) - 1)
