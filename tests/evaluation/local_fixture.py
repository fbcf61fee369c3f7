"""A tier of local attacks for the small model of `tier_fixture`, and images with every kind of labels."""

from __future__ import annotations

import torch

from part_robust.evaluation.local import LocalTier
from part_robust.evaluation.pictures import picture_sample
from tests.evaluation.tier_fixture import PARTS, SIZE, SmallPartModel, attack, make_items, make_plan

RADIUS = 30.0


def local_tier(**values) -> LocalTier:
    attacks = {
        "ce_local": attack(eps=RADIUS),
        "square_local": attack("margin", "Square", eps=RADIUS, STEPS=15),
    }
    defaults = {"attacks": attacks, "patch_sides": (3,), "patch_positions": 3}
    return LocalTier("local", "local", **{**defaults, **values})


def local_plan(items, **values):
    sample = picture_sample([item["image_id"] for item in items])
    return make_plan(tiers=[make_plan().tiers[0], local_tier(**values)], sample=sample, curve={})


def some_items():
    """Those of the fixture; the last but one has incomplete labels, the last has complete ones and no part."""
    items = make_items(SmallPartModel())
    items[-2] = {**items[-2], "part_supervision": "partial"}
    items[-2]["sem_seg"] = torch.where(items[-2]["sem_seg"] == 0, 0, 255)
    items[-1] = {**items[-1], "sem_seg": torch.full((SIZE, SIZE), len(PARTS))}
    return items
