"""The record's rows of a tier's attacks, in the order in which they ran.

Letters: N images.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from part_robust.evaluation.breakdown import percent
from part_robust.evaluation.merged import Merged
from part_robust.evaluation.named_arrays import AttackArrays, PixelArrays, TierArrays
from part_robust.evaluation.rounds import Executed, executed_attacks
from part_robust.evaluation.tiers import Tier


def attack_rows(tier: Tier, merged: Merged) -> list[dict[str, Any]]:
    """Return the record's `attacks` of a tier."""
    return [
        {
            "name": run.name,
            **({"restart": run.restart} if run.restart else {}),
            "backend": run.attack.backend,
            **_accuracies(tier, index, run, merged),
            "forwards": merged.cost(run.arrays).forwards,
            "backwards": merged.cost(run.arrays).backwards,
            "seconds": merged.cost(run.arrays).seconds,
        }
        for index, run in enumerate(executed_attacks(tier, merged))
    ]


def labelled_pixels(merged: Merged) -> np.ndarray:
    """Return int64 (N,), the labelled pixels of the images of a model that predicts parts."""
    pixels = merged.image.pixels
    assert pixels is not None, "the model predicts no parts"
    return pixels


def _accuracies(tier: Tier, index: int, run: Executed, merged: Merged) -> dict[str, Any]:
    """Percent after the first attacks of a tier and after one alone, where that is known of all images."""
    name, broken_by = run.arrays, merged.read(TierArrays, tier.name).broken_by
    attack = merged.read(AttackArrays, name)
    done = np.zeros(len(merged), dtype=bool) if attack.done is None else attack.done
    if not tier.measures_class:
        # A tier of kind full is one attack, with which nothing competes.
        rows = [tier.name] if tier.kind == "full" else ["clean", *list(tier.attacks)[: index + 1]]
        pixels = labelled_pixels(merged)
        worst = np.min([merged.read(PixelArrays, row).pixels_right for row in rows], axis=0)
        return {
            "attacked_images": int(done.sum()),
            "accuracy_alone": percent(merged.read(PixelArrays, rows[-1]).pixels_right.sum(), pixels.sum()),
            "accuracy_after": percent(worst.sum(), pixels.sum()),
        }
    before = np.ones(len(merged), dtype=bool) if tier.kind == "full" else merged.right("clean")
    after = before & ~((broken_by >= 0) & (broken_by <= index))
    if run.restart or run.sampled:
        return {
            "attacked_images": int(done.sum()),
            "accuracy_alone": None,
            "accuracy_after": percent(after.sum(), len(merged)),
        }
    assert attack.fooled is not None
    attacked = before if tier.kind == "full" else before & ((broken_by < 0) | (broken_by >= index))
    if tier.kind == "local":  # every region of an image is attacked, whether another one broke it or not
        attacked = done
    # What was skipped because an earlier attack broke it is unknown of this one.
    alone = percent((before & ~attack.fooled).sum(), len(merged)) if done[before].all() else None
    return {
        "attacked_images": int(attacked.sum()),
        "accuracy_alone": alone,
        "accuracy_after": percent(after.sum(), len(merged)),
    }
