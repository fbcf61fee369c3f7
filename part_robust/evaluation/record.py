"""The record of an evaluation: all its numbers, computed from the finished batches.

Its fields: docs/evaluation.md. Letters: N images, C classes, P parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluators

from part_robust.attacks import Attack
from part_robust.evaluation.attack_rows import attack_rows, labelled_pixels
from part_robust.evaluation.batch_arrays import Merged
from part_robust.evaluation.breakdown import by_class, by_part, by_size, clean_to_attacked, pixel_share, share
from part_robust.evaluation.eps_curve import curve_attack_name
from part_robust.evaluation.greedy_miou import greedy_worst_miou
from part_robust.evaluation.local import LocalTier
from part_robust.evaluation.local_record import describe_local, local_arrays, local_warnings
from part_robust.evaluation.lost_parts import box_parts, count_lost_parts
from part_robust.evaluation.named_arrays import AttackArrays, ClassArrays, CurveArrays, PixelArrays, TierArrays
from part_robust.evaluation.pictures import choose_pictures
from part_robust.evaluation.plan import Plan
from part_robust.evaluation.rounds import executed_attacks
from part_robust.evaluation.rounds_record import cost_names, describe_rounds, flags_of_sample, result_names
from part_robust.evaluation.tiers import Tier
from part_robust.evaluation.unions import describe_unions, union_flags
from part_robust.utils.files import replacing

Results = dict[str, dict[str, float]]


def image_list_sha256(image_ids: Sequence[int]) -> str:
    """Hash of which images were evaluated, in any order."""
    return hashlib.sha256("\n".join(map(str, sorted(image_ids))).encode()).hexdigest()


def metrics_of(plan: Plan, merged: Merged, evaluators: DatasetEvaluators) -> Results:
    """`{"classification": {...}, "classification_<row>": {...}, ...}` of every row of the plan."""
    results: Results = {}
    for row in plan.rows():
        suffix = "" if row == "clean" else f"_{row}"
        for task, metrics in merged.score(row, evaluators).items():
            results[f"{task}{suffix}"] = metrics
    return results


def describe_evaluation(plan: Plan, merged: Merged, results: Results, device: str) -> dict[str, Any]:
    """Everything but what checks add and files hold.

    Args:
        plan: of the evaluation.
        merged: what came out.
        results: of `metrics_of`.
        device: its name.
    """
    image, headline = merged.image, find_headline(plan, merged)
    costs = {name: merged.cost(name) for name in cost_names(plan, merged)}
    rest = merged.cost("evaluation")
    record: dict[str, Any] = {
        "num_images": len(merged),
        "image_list_sha256": image_list_sha256(image.image_id.tolist()),
        "classes": list(plan.class_names),
        "parts": list(plan.part_names),
        "headline": headline.name if headline else None,
        "eps": headline.threat_model.eps if headline else None,
        "norm": headline.threat_model.norm if headline else None,
        "seeds": {name: attack.seed for name, attack in plan.attacks().items()},
        "seconds": rest.seconds,
        "device": device,
        "forwards": rest.forwards + sum(cost.forwards for cost in costs.values()),
        "backwards": sum(cost.backwards for cost in costs.values()),
        "clean": None,
        "worst_case": None,
        "tiers": {tier.name: _tier(tier, plan, merged) for tier in plan.tiers},
        "attack_matrix": _attack_matrix(plan, results),
        "eps_curve": [{"eps": eps, **share(merged.read(CurveArrays, f"{eps:g}").curve)} for eps in sorted(plan.curve)],
        "convergence": _convergence(plan, merged),
        "per_class": [],
        "per_part": _per_part(plan, merged, headline),
        "by_size": [],
        "clean_to_attacked": None,
        "fab_distances": _distances(plan, merged),
    }
    if merged.find(ClassArrays, "clean") is not None:
        clean = right(merged, "clean")
        record["clean"] = share(clean)
        robust = holds(merged, headline) if headline else None
        record["per_class"] = by_class(image.label, clean, robust, plan.class_names)
        record["by_size"] = by_size(image.object_share, clean, robust)
        if headline:
            record["worst_case"] = share(_right_under_everything(plan, merged, headline))
            attacked = merged.read(ClassArrays, headline.name).prediction
            matrix = clean_to_attacked(image.label[clean], attacked[clean], len(plan.class_names))
            record["clean_to_attacked"] = matrix.tolist()
        if plan.unions:
            by_name = {tier.name: tier for tier in plan.tiers}
            record["unions"] = describe_unions(plan.unions, lambda name: holds(merged, by_name[name]))
        for tier in plan.tiers:
            if isinstance(tier, LocalTier):
                record["local"] = describe_local(tier, plan.part_names, merged)
    elif image.pixels is not None:
        record["clean"] = pixel_share(merged.read(PixelArrays, "clean").pixels_right, image.pixels)
    return record


def find_headline(plan: Plan, merged: Merged) -> Tier | None:
    """Return the tier whose accuracy is the headline; None without any.

    It is the first one. Attacks of ATTACK.EVAL are in no order of strength: of these it is the one that leaves the
    least, attacks on the class before those on the parts.
    """
    if not all(tier.kind == "full" and tier.is_single_attack for tier in plan.tiers):
        return plan.first

    def left(tier: Tier) -> tuple[bool, int]:
        if tier.measures_class:
            return False, int(right(merged, tier.name).sum())
        return True, int(merged.read(PixelArrays, tier.name).pixels_right.sum())

    return min(plan.tiers, key=left, default=None)


def right(merged: Merged, row: str) -> np.ndarray:
    """Return bool (N,), whether the class is right on a row's images."""
    return merged.right(row)


def holds(merged: Merged, tier: Tier) -> np.ndarray:
    """Return bool (N,), whether the class is right on a tier's images as scored last, and after each of its attacks."""
    return merged.still_right(tier.name) if tier.kind in ("class", "local") else right(merged, tier.name)


def _right_under_everything(plan: Plan, merged: Merged, headline: Tier) -> np.ndarray:
    """Return bool (N,), whether the class is right on the image and on every attacked image of it.

    These are all attacked images that the headline's threat model allows, with any objective of the attack; one with a
    mask allows its own alone.
    """
    result = right(merged, "clean")
    for tier in plan.tiers:
        if tier is headline or (tier.threat_model == headline.threat_model and headline.kind != "local"):
            rows = [tier.name, *(tier.attacks if tier.kind == "parts" else ())]
            for row in rows:
                result &= right(merged, row)
            for run in executed_attacks(tier, merged):
                fooled = merged.read(AttackArrays, run.arrays).fooled
                if fooled is not None:
                    result &= ~fooled
    return result


def _tier(tier: Tier, plan: Plan, merged: Merged) -> dict[str, Any]:
    image = merged.image
    record: dict[str, Any] = {
        "objective": tier.objective,
        "eps": tier.threat_model.eps,
        "norm": tier.threat_model.norm,
        **(
            {"regions": list(tier.regions), "patch_sides": list(tier.patch_sides)}
            if isinstance(tier, LocalTier)
            else {}
        ),
        "attacks": attack_rows(tier, merged),
        **describe_rounds(tier, merged),
    }
    if tier.measures_class:
        record["robust"] = share(holds(merged, tier))
        saved = merged.read(TierArrays, tier.name).prediction_8bit
        if saved is not None:
            record["robust_8bit"] = share(saved == image.label)
        return record
    record["robust"] = pixel_share(merged.read(PixelArrays, tier.name).pixels_right, labelled_pixels(merged))
    if tier.kind == "full":
        return record
    counts = [vars(merged.labels(row)) for row in ("clean", *tier.attacks)]
    miou, _ = greedy_worst_miou(counts, len(plan.part_names) + 1)
    record["mIoU"] = None if np.isnan(miou) else miou
    if clean := box_parts(merged.batches, "clean"):
        rows = {row: box_parts(merged.batches, row) for row in (tier.name, *tier.attacks)}
        record["lost_parts"] = [{"attack": row, **count_lost_parts(clean, found)} for row, found in rows.items()]
    return record


def _attack_matrix(plan: Plan, results: Results) -> list[dict[str, Any]]:
    """Every metric under every attack on the class, on the parts, or on both; a missing metric is None."""
    heads: dict[str, str | None] = {"clean": None}
    for tier in plan.tiers:
        heads[tier.name] = "class" if tier.measures_class else "part"
        if tier.kind == "parts" or tier.is_single_attack:
            heads |= {name: _attacked_head(attack) for name, attack in tier.attacks.items()}
    rows = []
    for row in plan.rows():
        suffix = "" if row == "clean" else f"_{row}"

        def metric(task: str, name: str, suffix: str = suffix) -> float | None:
            value = results.get(f"{task}{suffix}", {}).get(name)
            return None if value is None or np.isnan(value) else value

        rows.append(
            {
                "attack": row,
                "head": heads[row],
                "accuracy": metric("classification", "accuracy"),
                "pixel_accuracy": metric("part_seg", "pixel_accuracy"),
                "mIoU": metric("part_seg", "mIoU"),
                "AP": metric("part_box", "AP"),
                "AP50": metric("part_box", "AP50"),
            }
        )
    return rows


def _attacked_head(attack: Attack) -> str:
    if not attack.objective.needs_parts:
        return "class"
    return "joint" if attack.objective.needs_class else "part"


def _convergence(plan: Plan, merged: Merged) -> dict[str, list[float]]:
    """Mean loss at each step of the first run, by attack; images that left keep the last loss they had."""
    curves = {}
    for name, arrays in result_names(plan).items():
        cost = merged.cost(arrays)
        if cost.images and cost.history is not None:
            curves[name] = (cost.history / cost.images).tolist()
    return curves


def _per_part(plan: Plan, merged: Merged, headline: Tier | None) -> list[dict]:
    if merged.image.pixels is None:
        return []
    tier = next((tier for tier in plan.tiers if not tier.measures_class), headline)
    attacked = vars(merged.labels(tier.name)) if tier else None
    return by_part(vars(merged.labels("clean")), attacked, [*plan.part_names, "background"])


def _distances(plan: Plan, merged: Merged) -> list[float]:
    """Smallest perturbations that were found, ascending, from the first attack that looks for them."""
    for name in result_names(plan).values():
        if (found := merged.read(AttackArrays, name).distance) is not None:
            return np.sort(found[np.isfinite(found)]).tolist()
    return []


def plan_warnings(plan: Plan, merged: Merged) -> list[str]:
    """Return what a reader of the numbers must know about the plan."""
    sentences = []
    official = [name for name, attack in plan.attacks().items() if attack.backend == "autoattack"]
    if official:
        sentences.append(
            f"{', '.join(official)}: run by pyautoattack, not by our attacks. Its results may depend on batch size, "
            "order and number of processes; an image that it does not break comes back as it was, so the parts look "
            "better under it than under ours"
        )
    local = {name for tier in plan.tiers if tier.kind == "local" for name in tier.attacks}
    attacks = plan.attacks()
    for name, arrays in result_names(plan).items():
        attack, cost = attacks[name], merged.cost(arrays)
        if cost.zero_gradient and attack.uses_gradient:
            what = "regions of images" if name in local else "images"
            sentences.append(
                f"{name}: {cost.zero_gradient} of {cost.images} {what} had an all-zero gradient at every step; "
                "a failed attack on them is not evidence of robustness, and robust accuracy is overestimated"
            )
    for tier in plan.tiers:
        if tier.kind in ("class", "local"):
            right_again = int((right(merged, tier.name) & (merged.read(TierArrays, tier.name).broken_by >= 0)).sum())
            if right_again:
                sentences.append(
                    f"{tier.name}: {right_again} images that an attack had broken were right when scored again; "
                    "they lie on the class boundary, or the model is not deterministic. They count as broken"
                )
        if isinstance(tier, LocalTier):
            sentences += local_warnings(describe_local(tier, plan.part_names, merged))
        if any(attack.threat_model.eps == 0 for attack in tier.attacks.values()):
            sentences.append(f"{tier.name}: eps is 0, so these are clean results")
    return sentences


def flags_of(plan: Plan, merged: Merged) -> dict[str, np.ndarray]:
    """The arrays of flags_<dataset>.npz, one entry per image, ascending image ids."""
    image, clean = merged.image, merged.find(ClassArrays, "clean")
    flags = {"image_id": image.image_id, "label": image.label, "object_share": image.object_share}
    if clean is not None:
        flags["clean_prediction"] = clean.prediction
        flags["clean_correct"] = right(merged, "clean")
        headline = find_headline(plan, merged)
        if headline:
            flags["attacked_prediction"] = merged.read(ClassArrays, headline.name).prediction
        for tier in plan.tiers:
            # In a tier on parts the flag is not a result: its attacks have other objectives.
            prefix = "robust" if tier.measures_class else "class_right"
            flags[f"{prefix}_{tier.name}"] = holds(merged, tier)
            flags[f"margin_{tier.name}"] = merged.read(ClassArrays, tier.name).margin
            flags[f"broken_by_{tier.name}"] = merged.read(TierArrays, tier.name).broken_by
            for name in tier.first_pass:
                fooled = merged.read(AttackArrays, name).fooled
                assert fooled is not None
                flags[f"fooled_{name}"] = fooled
            flags |= flags_of_sample(tier, merged)
        flags |= union_flags(plan.unions, flags)
    for eps in plan.curve:
        flags[f"robust_{curve_attack_name(eps)}"] = merged.read(CurveArrays, f"{eps:g}").curve
    if image.pixels is not None:
        flags["pixels"] = image.pixels
        for row in plan.rows():
            flags[f"pixels_right_{row}"] = merged.read(PixelArrays, row).pixels_right
    return flags


def write_files(folder: Path, dataset: str, plan: Plan, merged: Merged, adversarials: Path) -> dict[str, str | None]:
    """Writes the npz files beside the record, each whole or not at all; returns their names relative to `folder`."""
    files: dict[str, str | None] = {"flags": f"flags_{dataset}.npz", "adversarials": None, "pictures": None}
    _save(folder / str(files["flags"]), flags_of(plan, merged))
    if plan.save_adversarials:
        files["adversarials"] = f"{adversarials.relative_to(folder)}/"
    for tier in plan.tiers:
        if isinstance(tier, LocalTier):
            files["local"] = f"local_{dataset}.npz"
            _save(folder / str(files["local"]), local_arrays(tier, plan.part_names, merged))
    pictures = choose_pictures(merged.pictures())
    if pictures:
        files["pictures"] = f"pictures_{dataset}.npz"
        _save(folder / str(files["pictures"]), pictures)
    return files


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # no array is called allow_pickle
