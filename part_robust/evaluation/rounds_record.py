"""The record's words and numbers of rounds: restarts that ran, and the bound of a tier that samples.

Letters: N images, M of them stood before the sample, n of these were drawn, x of these fell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from part_robust.evaluation.merged import Merged
from part_robust.evaluation.named_arrays import AttackArrays
from part_robust.evaluation.plan import Plan
from part_robust.evaluation.rounds import CONFIDENCE, ORDER_SEED, executed_attacks, sequential_sample
from part_robust.evaluation.tiers import Tier


def cost_names(plan: Plan, merged: Merged) -> list[str]:
    """Return the names of everything that has a cost of its own: attacks of the first pass, and those of rounds."""
    runs = [run.arrays for tier in plan.tiers for run in executed_attacks(tier, merged)]
    return list(dict.fromkeys([*plan.attacks(), *runs]))


def result_names(plan: Plan) -> dict[str, str]:
    """Return, of every attack, the name of its arrays; of one that runs on samples alone, those of its tier's."""
    found = {name: name for name in plan.attacks()}
    in_full = {name for tier in plan.tiers for name in tier.first_pass}
    for tier in plan.tiers:
        sampled = tier.rounds.sampled if tier.rounds else ()
        found |= {name: f"{tier.name}.{name}" for name in sampled if name not in in_full}
    return found


def describe_rounds(tier: Tier, merged: Merged) -> dict[str, Any]:
    """Return the record's `restarts` and `bound` of a tier; empty for one without rounds."""
    if tier.rounds is None:
        return {}
    record: dict[str, Any] = {}
    if tier.rounds.restart_gain:
        broke = [merged.broken_in(done) for done in merged.rounds if done.tier == tier.name and done.restart]
        record["restarts"] = {"number": len(broke), "broke": broke, "gain": tier.rounds.restart_gain}
        if tier.rounds.added:
            record["restarts"]["added"] = tier.rounds.describe()["added_first"]
    if tier.rounds.sampled:
        record["bound"] = _describe_bound(tier, merged)
    return record


def _describe_bound(tier: Tier, merged: Merged) -> dict[str, Any]:
    """Return how many more images would fall at most if the sampled attacks ran on all of them, and how that is known.

    `points` and `images` are beside those that fell in the sample, which count as broken.
    """
    assert tier.rounds
    sample, _, drawn, fallen = sequential_sample(tier, merged)
    images = sample.at_most_more(drawn, fallen)
    still_right = int(merged.still_right(tier.name).sum())
    return {
        "points": 100.0 * images / len(merged),
        "images": images,
        # No more can fall than are left.
        "confidence": 100.0 if images == sample.population - drawn else 100.0 * CONFIDENCE,
        "asked_for": tier.rounds.bound,
        "attacks": list(tier.rounds.sampled),
        "stood": sample.population,
        "drawn": drawn,
        "fell": fallen,
        "at_least": 100.0 * max(still_right - images, 0) / len(merged),
        "order_seed": ORDER_SEED,
    }


def flags_of_sample(tier: Tier, merged: Merged) -> dict[str, np.ndarray]:
    """Return bool (N,): images in a tier's sample, and those that each sampled attack broke, there or elsewhere."""
    if tier.rounds is None or not tier.rounds.sampled:
        return {}
    _, ids, drawn, _ = sequential_sample(tier, merged)
    flags = {f"sampled_{tier.name}": np.isin(merged.image.image_id, ids[:drawn])}
    for name in tier.rounds.sampled:
        # Another tier may run the attack on all images.
        found = [merged.read(AttackArrays, arrays).fooled for arrays in (name, f"{tier.name}.{name}")]
        none = np.zeros(len(merged), dtype=bool)
        flags[f"fooled_{name}"] = np.logical_or.reduce([none, *(fooled for fooled in found if fooled is not None)])
    return flags


def bound_text(tier: Mapping[str, Any]) -> str:
    """Return the bound of a tier of the record in words, such as for a reader of its number; "" without one."""
    bound = tier.get("bound")
    if not bound:
        return ""
    attacks = " and ".join(bound["attacks"])
    if not bound["images"]:
        return f"and no more would fall if {attacks} ran on all images"
    sure = f"with {bound['confidence']:.0f} % confidence" if bound["confidence"] < 100 else "for certain"
    return f"and {sure} at most {bound['points']:.1f} points more would fall if {attacks} ran on all images"
