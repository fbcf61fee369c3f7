"""Checks of local attacks: the gradient and the attacks inside the object, where no other pixel may move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from part_robust.evaluation.checks.catalogue import CATALOGUE, ModelEvidence
from part_robust.evaluation.checks.context import CheckContext, CheckSettings
from part_robust.evaluation.checks.model import ClassForward, double_precision
from part_robust.evaluation.checks.result import CheckResult, merge_checks
from part_robust.evaluation.local import LocalTier
from part_robust.evaluation.regions import labelled_regions

# Those that say something about an attack with a mask. C12 does not: a region need not suffice to break an image.
CHEAP, AUDIT = ("C6", "C7"), ("C8", "C9", "C13", "C16")


def check_object(
    view: Any, items: Sequence[dict], tier: LocalTier, num_parts: int, audit: bool, settings: CheckSettings
) -> list[CheckResult]:
    """C6 and C7 and, in the audit, C8, C9, C13 and C16, of the tier's first attack with gradients, inside the object.

    Args:
        view: the model, inside `attack_mode`.
        items: the mapper's dicts; images without labelled parts are left out.
        tier: of the evaluation.
        num_parts: P.
        audit: run the expensive checks, too.
        settings: what they may cost.

    Returns:
        No result where no image has an object, or the tier no attack with gradients.
    """
    attack = next((attack for attack in tier.attacks.values() if attack.uses_gradient), None)
    device = next(view.parameters()).device
    group = next(labelled_regions(items, num_parts, ("object",), device), None)
    if attack is None or group is None:
        return []
    chosen = [items[row] for row in group.rows.tolist()]
    images, padding = view.preprocess(chosen)
    outside = ~group.masks[0][:, 0] if padding is None else padding | ~group.masks[0][:, 0]
    context = CheckContext(
        ClassForward(view, padding),
        images,
        torch.tensor([item["class_id"] for item in chosen], device=images.device),
        attack,
        keys=torch.tensor([item["image_id"] for item in chosen]),
        padding=outside,
        precise=double_precision(view, images, padding),
    )
    black_box = next((attack for attack in tier.attacks.values() if not attack.uses_gradient), None)
    evidence = ModelEvidence(context, settings, black_box=black_box)
    with torch.enable_grad():
        results = [result for id in CHEAP for result in CATALOGUE[id].on_model(evidence)]
        if audit:
            results += [result for id in AUDIT for result in CATALOGUE[id].on_model(evidence, audit=True)]
    return merge_checks(
        replace(result, sentence=f"tier {tier.name}, inside the object: {result.sentence}") for result in results
    )
