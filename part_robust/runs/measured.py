"""The numbers of one record that tables show: clean, under one attack, and the least of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from part_robust.evaluation.checks.record import class_tiers
from part_robust.evaluation.report import evaluations


@dataclass(frozen=True)
class Measured:
    """One model's numbers, percent, by metric ("accuracy", "pixel_accuracy", "mIoU", "AP", "AP50").

    They are absent or None where a model has no such metric.

    Attributes:
        clean: on clean images.
        attacked: all on the same attacked images.
        attack: what attacked them; "" for nothing.
    """

    clean: Mapping[str, float | None] = field(default_factory=dict)
    attacked: Mapping[str, float | None] = field(default_factory=dict)
    attack: str = ""


def matrix(record: Mapping) -> list[dict]:
    """Every metric on clean images and under each attack or tier, of a record with one data set.

    Rows are {"attack", "head", metrics}, the first one of "clean" images; `head` is the head under attack. Class
    accuracies of tiers are those of the worst case per image.
    """
    (E,) = evaluations(record).values()
    tiers = class_tiers(E)
    rows = [dict(row) for row in E["attack_matrix"]]
    for row in rows:
        if row["attack"] in tiers:
            row["accuracy"] = tiers[row["attack"]]["robust"]["accuracy"]
    return rows


def measured(record: Mapping, attack: str = "") -> Measured:
    """Return the numbers of a record on clean images and under one attack.

    Args:
        record: of one data set, with or without tiers.
        attack: name of an attack or a tier; "" for the one that leaves the least of what the model is for: of the class
            accuracy among attacks on the class, or without a class head of the pixel accuracy.
    """
    clean, *attacked = matrix(record)
    if attack:
        attacked = [row for row in attacked if row["attack"] == attack]
    metric = "pixel_accuracy" if clean["accuracy"] is None else "accuracy"
    candidates = [row for row in attacked if row[metric] is not None]
    if metric == "accuracy" and not attack:
        # An attack on the parts says nothing about how robust the class is.
        candidates = [row for row in candidates if row["head"] == "class"]
    worst = min(candidates, key=lambda row: row[metric], default=None)
    return Measured(clean, worst or {}, worst["attack"] if worst else "")


def headline_numbers(record: Mapping) -> dict[str, float | None]:
    """Return clean and attacked class accuracy and pixel accuracy, percent, of a record with one data set.

    Attacked values are the smallest: of the class over attacks on the class, of the pixels over all attacks. The record
    may have tiers or not.
    """
    clean, *attacked = matrix(record)

    def least(metric: str, rows: Sequence[Mapping]) -> float | None:
        return min((row[metric] for row in rows if row[metric] is not None), default=None)

    return {
        "clean accuracy": clean["accuracy"],
        "robust accuracy": least("accuracy", [row for row in attacked if row["head"] == "class"]),
        "clean pixel accuracy": clean["pixel_accuracy"],
        "attacked pixel accuracy": least("pixel_accuracy", attacked),
    }
