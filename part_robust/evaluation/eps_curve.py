"""Robust accuracy against the radius: which images fall when the attacker may do more.

Letters: N images of (3, H, W), RGB, 0..255.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from part_robust.attacks import Attack
from part_robust.evaluation.attacked_batch import AttackedBatch, margins
from part_robust.evaluation.tiers import Tier, TierResult


def run_curve(
    attacks: Mapping[float, Attack], batch: AttackedBatch, results: Mapping[Tier, TierResult]
) -> dict[float, Tensor]:
    """Return {eps: bool (N,), the class is still right} of every image.

    Once wrong means wrong at every larger eps.

    Each radius starts where the next smaller one ended, and attacks only the images that are still right. What a tier
    has broken inside a radius is broken at that radius and all larger ones, so the curve never lies above the headline.

    Args:
        attacks: by their eps; 0 needs none and means the clean images.
        batch: with class logits.
        results: of the tiers that ran before.
    """
    clean = torch.stack([output["class_logits"] for output in batch.clean])
    remaining = ~margins(clean, batch.labels)[1]
    curve: dict[float, Tensor] = {}
    starts = None
    for eps in sorted(attacks):
        remaining = remaining & ~_broken_by_tiers(eps, attacks[eps].threat_model.norm, batch, results)
        rows = remaining.nonzero()[:, 0]
        if eps > 0 and len(rows):
            outcome = batch.attack(curve_attack_name(eps), attacks[eps], remaining, starts)
            fooled = margins(batch.class_logits(outcome.images, rows), batch.labels[rows])[1]
            remaining = remaining.index_put((rows[fooled],), torch.zeros_like(fooled[:1]))
            starts = outcome.images
        curve[eps] = remaining
    return curve


def curve_attack_name(eps: float) -> str:
    """Return the name under which the attack of a point of the curve is recorded."""
    return f"eps_curve_{eps:g}"


def _broken_by_tiers(eps: float, norm: str, batch: AttackedBatch, results: Mapping[Tier, TierResult]) -> Tensor:
    broken = torch.zeros_like(batch.labels, dtype=torch.bool)
    for tier, result in results.items():
        # The thesis's protocol may turn wrong images right, so "right" there is no evidence, but "wrong" is.
        if tier.threat_model.norm == norm and tier.threat_model.eps <= eps:
            logits = torch.stack([output["class_logits"] for output in result.outputs])
            broken |= margins(logits, batch.labels)[1]
    return broken
