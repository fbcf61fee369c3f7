"""The leaderboard: many records side by side, sorted by accuracy under the standard attacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from part_robust.evaluation.checks import errors, from_record, reportable
from part_robust.evaluation.checks.record import class_tiers
from part_robust.evaluation.report.content import Cell, Page, Part, Section, Table, Text, make_table
from part_robust.evaluation.report.records import evaluations, threat_model_text

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """One model on one data set; results are {accuracy, interval} or None, `problem` is why they are unreliable.

    `bound` is that of the record's tier bounded. `passes` are forward and backward passes for each image,
    `minutes` those of all processes together; both are of the whole evaluation.
    `several` are the results under several threat models (TEST.THREATS) by tier, and under all of them by union.
    """

    model: str
    parameters: int | None
    pretraining: str
    threat: str
    images: int
    clean: Result | None
    thesis: Result | None
    standard: Result | None
    bounded: Result | None
    bound: Mapping[str, Any] | None
    lowest: Result | None
    lowest_name: str
    problem: str
    passes: float | None = None
    minutes: float | None = None
    several: Mapping[str, Result] = field(default_factory=dict)

    def order(self) -> tuple:
        """Return the sort key: the most robust under the standard set, then those without it, then unreliable ones.

        Among the latter those under several threat models come first, by the standard set under all of them.
        """
        results = (self.standard, self.several.get("standard_union"), self.lowest, self.clean)
        accuracies = [-result["accuracy"] if result else 1.0 for result in results]
        return (bool(self.problem), *accuracies, self.model)


def build_leaderboard(records: Sequence[tuple[Path, Mapping[str, Any]]]) -> Page:
    """Return the page of several records.

    Args:
        records: paths and what is in them; models without a class head are left out.
    """
    entries: dict[str, list[Entry]] = {}
    for path, record in records:
        for dataset, evaluation in evaluations(record).items():
            if (entry := entry_of(path, record, evaluation)) is not None:
                entries.setdefault(dataset, []).append(entry)
    note = Text(
        "Sorted by accuracy under the standard set of attacks; models without it follow, by their lowest accuracy "
        "under any class attack. Tier bounded runs its expensive attacks on a sample; with 95 % confidence its number "
        "would be lower by so many points at most if they ran on all images. A union counts images that are right "
        "under all threat models before it. Passes, forward and backward, and minutes are those of the whole "
        "evaluation. Intervals are Wilson's, 95 %. Compare two models by McNemar's test on the same images, not by "
        "overlapping intervals. Unreliable results come last, with the reason."
    )
    sections = [Section(dataset, tables=[_table(rows)]) for dataset, rows in sorted(entries.items())]
    how = Section("How to read it", texts=[note])
    return Page("Leaderboard", f"{len(records)} records", [Part("", [how, *sections])])


def entry_of(path: Path, record: Mapping[str, Any], evaluation: Mapping[str, Any]) -> Entry | None:
    """Return one data set of a record in numbers, None for a model without a class head."""
    # An attacker with a mask is another one than those whose numbers are compared here.
    masked = {name for name, values in class_tiers(evaluation).items() if "regions" in values}
    scored = {name: values.get("robust") for name, values in class_tiers(evaluation).items() if name not in masked}
    tiers = {name: robust for name, robust in scored.items() if robust}
    matrix = [
        row
        for row in evaluation.get("attack_matrix") or ()
        if row.get("accuracy") is not None and row.get("head") and row["attack"] not in (*tiers, *masked)
    ]
    attacked: dict[str, Result] = {**{row["attack"]: row for row in matrix}, **tiers}
    if evaluation.get("headline_result"):
        attacked[evaluation["headline"]] = evaluation["headline_result"]
    if not attacked and not (
        evaluation.get("attack_matrix") and evaluation["attack_matrix"][0].get("accuracy") is not None
    ):
        return None
    lowest = min(attacked, key=lambda name: attacked[name]["accuracy"], default="")
    checks = from_record(evaluation.get("checks") or [])
    problem = "; ".join(f"{check.id} {check.sentence}" for check in errors(checks))
    if not problem and (record.get("unreliable") or evaluation.get("reportable") is False):
        problem = "marked unreliable in its record"
    assert reportable(checks) or problem
    return Entry(
        model=str(record.get("name") or path.resolve().parent.name),
        parameters=record.get("parameters"),
        pretraining=str(record.get("pretraining") or ""),
        threat=_threats(evaluation),
        images=evaluation.get("num_images") or 0,
        clean=evaluation.get("clean"),
        thesis=tiers.get("thesis") or _thesis(evaluation, record.get("attacks") or {}, attacked),
        standard=tiers.get("standard"),
        bounded=tiers.get("bounded"),
        bound=((evaluation.get("tiers") or {}).get("bounded") or {}).get("bound"),
        lowest=attacked.get(lowest),
        lowest_name=lowest,
        problem=problem,
        passes=_passes(evaluation),
        minutes=evaluation["seconds"] / 60 if evaluation.get("seconds") else None,
        several=_several(evaluation, tiers),
    )


def _several(evaluation: Mapping[str, Any], tiers: Mapping[str, Result]) -> dict[str, Result]:
    found: dict[str, Result] = {}
    for name, union in (evaluation.get("unions") or {}).items():
        found |= {tier: tiers[tier] for tier in union["tiers"] if tier in tiers}
        found[name] = union["robust"]
    return found


def _threats(evaluation: Mapping[str, Any]) -> str:
    """Return the threat models of an evaluation, mostly one."""
    tiers = [name for union in (evaluation.get("unions") or {}).values() for name in union["tiers"]]
    several = [threat_model_text((evaluation.get("tiers") or {}).get(name) or {}) for name in tiers]
    return ", ".join(dict.fromkeys(several)) or threat_model_text(evaluation)


def _passes(evaluation: Mapping[str, Any]) -> float | None:
    forwards, backwards, images = (evaluation.get(key) for key in ("forwards", "backwards", "num_images"))
    return (forwards + backwards) / images if images and forwards is not None and backwards is not None else None


def _thesis(evaluation: Mapping[str, Any], attacks: Mapping[str, Any], attacked: Mapping[str, Result]) -> Result | None:
    """Return the accuracy under the thesis's attack, by what the attack was and not by its name."""
    wanted = {"attack": "PGD", "objective": "cross_entropy", "steps": 100, "restarts": 5}
    for name, values in attacks.items():
        if name in attacked and all(values.get(key) == value for key, value in wanted.items()):
            return attacked[name]
    return None


def _table(entries: Sequence[Entry]) -> Table:
    several = list(dict.fromkeys(name for entry in entries for name in entry.several))
    rows = [
        {
            "model": entry.model,
            "parameters": entry.parameters,
            "pre-training": entry.pretraining,
            "threat model": entry.threat,
            "images": entry.images,
            "clean %": accuracy(entry.clean),
            "thesis PGD %": accuracy(entry.thesis),
            "standard %": accuracy(entry.standard),
            "95 % interval": (entry.standard or {}).get("interval"),
            "bounded %": accuracy(entry.bounded),
            "at most lower by": (entry.bound or {}).get("points"),
            **{f"{name} %": accuracy(entry.several.get(name)) for name in several},
            "lowest %": accuracy(entry.lowest),
            "by": entry.lowest_name,
            "passes an image": entry.passes,
            "minutes": entry.minutes,
            "note": Cell(f"unreliable: {entry.problem}", "bad") if entry.problem else None,
        }
        for entry in sorted(entries, key=Entry.order)
    ]
    return make_table("Accuracy under each set of attacks, the most robust model first", rows)


def accuracy(result: Result | None) -> float | None:
    """Return the accuracy of a result in per cent, None without a result."""
    return result["accuracy"] if result else None
