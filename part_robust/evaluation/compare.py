"""Two evaluations of the same images against each other, image by image; or several seeds of each, pair by pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from part_robust.config import config_values
from part_robust.evaluation.record_schema import read_record
from part_robust.evaluation.statistics import Paired, compare_paired
from part_robust.utils.files import read_arrays


class NotComparable(ValueError):
    """The folders hold no two evaluations of the same thing."""


@dataclass(frozen=True)
class Evaluated:
    """An evaluation with tiers, of one data set.

    Attributes:
        folder: where it lies.
        evaluation: the record's `evaluation` of the data set.
        flags: arrays of its flags file, one entry per image.
        seed: SEED of its config; None where the record has none.
    """

    folder: Path
    evaluation: Mapping
    flags: Mapping[str, np.ndarray]
    seed: int | None = None


def load_evaluated(folder: str | Path, dataset: str | None = None) -> Evaluated:
    """Reads robustness.json and the flags beside it.

    Args:
        folder: OUTPUT_DIR of an evaluation.
        dataset: which one; None where there is a single one.

    Raises:
        NotComparable: there is no such evaluation.
    """
    folder = Path(folder)
    path = folder / "robustness.json"
    if not path.is_file():
        raise NotComparable(
            f"{path} does not exist: evaluate with tools/train_net.py --eval-only ... TEST.TIER standard"
        )
    record = read_record(path)
    evaluations = record.get("evaluation") or {}
    if not evaluations:
        raise NotComparable(f"{path} has no results by image: evaluate with TEST.TIER, such as TEST.TIER standard")
    if dataset is None and len(evaluations) > 1:
        raise NotComparable(f"{path} has several data sets, name one of {', '.join(evaluations)} with --dataset")
    dataset = dataset or next(iter(evaluations))
    if dataset not in evaluations:
        raise NotComparable(f"{path} has no data set {dataset}, only {', '.join(evaluations)}")
    name = (evaluations[dataset].get("files") or {}).get("flags")
    if not name:
        raise NotComparable(f"{path} names no file of flags for {dataset}: evaluate again")
    flags = folder / name
    if not flags.is_file():
        raise NotComparable(f"{flags} is missing; it belongs to {path}")
    arrays = read_arrays(flags, "flags of an evaluation")
    if not {"image_id", "label"} <= arrays.keys() or len({len(values) for values in arrays.values()}) > 1:
        raise NotComparable(f"{flags} must hold image_id, label and a flag for each image: evaluate again")
    if not len(arrays["image_id"]):
        raise NotComparable(f"{flags} is of 0 images: there is nothing to compare")
    seed = config_values(record.get("config") or "").get("SEED")
    return Evaluated(folder, evaluations[dataset], arrays, seed if isinstance(seed, int) and seed >= 0 else None)


def right_images(evaluated: Evaluated, tier: str) -> np.ndarray:
    """Return bool (N,), whether the class is right under a tier, or without attack for "clean".

    Raises:
        NotComparable: it was not evaluated, or does not judge classes.
    """
    key = "clean_correct" if tier == "clean" else f"robust_{tier}"
    if key not in evaluated.flags:
        known = [name.removeprefix("robust_") for name in evaluated.flags if name.startswith("robust_")]
        raise NotComparable(
            f"{evaluated.folder} has no class results of {tier!r}, only of {', '.join(known) or 'none'}"
        )
    return evaluated.flags[key].astype(bool)


def compare(first: Evaluated, second: Evaluated, tier: str) -> Paired:
    """The paired comparison under a tier, or on clean images for "clean".

    Raises:
        NotComparable: other images, other labels, or another threat model.
    """
    for one, other in ((first, second), (second, first)):
        missing = np.setdiff1d(one.flags["image_id"], other.flags["image_id"])
        if len(missing):
            raise NotComparable(
                f"{other.folder} lacks {len(missing)} images of {one.folder}, first {missing[0]}: "
                "only evaluations of the same images can be paired"
            )
    if not np.array_equal(first.flags["label"], second.flags["label"]):
        raise NotComparable(f"{first.folder} and {second.folder} have different labels for the same images")
    if tier != "clean":
        threats = [found for evaluated in (first, second) if (found := _threats(evaluated, tier))]
        if len(set(threats)) > 1:
            raise NotComparable(f"{tier}: the threat models differ, {threats[0]} and {threats[1]}")
    return compare_paired(right_images(first, tier), right_images(second, tier))


def _threats(evaluated: Evaluated, tier: str) -> str:
    """Return the threat model of a tier, or those of a union; "" where the record has neither."""
    tiers, unions = (evaluated.evaluation.get(name) or {} for name in ("tiers", "unions"))
    members = unions[tier]["tiers"] if tier in unions else [tier]
    found = {(tiers[name]["norm"], tiers[name]["eps"], _mask(tiers[name])) for name in members if name in tiers}
    return " and ".join(f"{norm} {eps:g}/255{mask}" for norm, eps, mask in sorted(found))


def _mask(tier: Mapping) -> str:
    """Return which regions an attacker with a mask may change; "" for others."""
    if "regions" not in tier:
        return ""
    sides = ", ".join(f"{side} px" for side in tier["patch_sides"])
    return f" inside {', '.join(tier['regions'])}" + (f" ({sides})" if sides else "")


@dataclass(frozen=True)
class Pairs:
    """Runs of two models, in pairs of one seed.

    Attributes:
        pairs: at least one.
        alone: evaluations without a partner.
        by_seed: SEED decides; else the order in which they were given.
    """

    pairs: list[tuple[Evaluated, Evaluated]]
    alone: list[Evaluated]
    by_seed: bool


def pair_seeds(first: Sequence[Evaluated], second: Sequence[Evaluated]) -> Pairs:
    """Pair the evaluations of one model with those of another that have the same SEED.

    Where an evaluation states no SEED, or two of one model state the same, the order decides.

    Raises:
        NotComparable: one side has an evaluation twice, or no SEED is on both; the order decides and the sides are of
            different length.
    """
    for side in (first, second):
        folders = [each.folder.resolve() for each in side]
        twice = next((folder for folder in folders if folders.count(folder) > 1), None)
        if twice is not None:
            raise NotComparable(f"each evaluation must be named once, got {twice} twice on one side")
    one, two = ({each.seed: each for each in side} for side in (first, second))
    if None not in {*one, *two} and len(one) == len(first) and len(two) == len(second):
        pairs = [(one[seed], two[seed]) for seed in one if seed in two]
        if not pairs:
            raise NotComparable(
                f"the evaluations must have a SEED in common, got {', '.join(map(str, one))} and "
                f"{', '.join(map(str, two))}: train and evaluate both models with the same seeds"
            )
        alone = [each for each in (*first, *second) if not (each.seed in one and each.seed in two)]
        return Pairs(pairs, alone, by_seed=True)
    if len(first) != len(second):
        raise NotComparable(
            f"{len(first)} and {len(second)} evaluations cannot be paired in their order, and their records do not "
            "have one SEED each: give equally many, in the order of the pairs"
        )
    return Pairs(list(zip(first, second, strict=True)), [], by_seed=False)
