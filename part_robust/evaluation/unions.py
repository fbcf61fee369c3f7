"""The worst case of each image over several threat models (TEST.THREATS): right under every one of them.

Letters: N images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from part_robust.evaluation.breakdown import share
from part_robust.evaluation.tiers import Tier

Unions = Mapping[str, Sequence[str]]


def describe_unions(unions: Unions, holds: Callable[[str], np.ndarray]) -> dict[str, Any]:
    """Return the record's `unions`.

    Args:
        unions: by name, the tiers of each, which differ in their threat model alone.
        holds: by a tier's name, bool (N,), whether the class is right under it.
    """
    return {name: _describe({tier: holds(tier) for tier in tiers}) for name, tiers in unions.items()}


def _describe(right: Mapping[str, np.ndarray]) -> dict[str, Any]:
    flags = np.stack(list(right.values()))
    # Broken under this threat model and right under all the others.
    alone = (~flags & (np.sum(~flags, axis=0) == 1)).sum(axis=1)
    return {
        "tiers": list(right),
        "robust": share(np.all(flags, axis=0)),
        "broken_by_one": {tier: int(count) for tier, count in zip(right, alone, strict=True)},
    }


def union_flags(unions: Unions, flags: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return `robust_<union>`, bool (N,), from the `robust_<tier>` of its tiers."""
    return {
        f"robust_{name}": np.all([flags[f"robust_{tier}"] for tier in tiers], axis=0) for name, tiers in unions.items()
    }


def one_tier_per_threat(tiers: Sequence[Tier]) -> list[Tier]:
    """Return the first tier on the class of each threat model."""
    found: dict[Any, Tier] = {}
    for tier in tiers:
        if tier.kind == "class":
            found.setdefault(tier.threat_model, tier)
    return list(found.values())
