"""Records as runs of suites leave them, without an evaluation."""

from __future__ import annotations


def accuracies(clean: float, attacked: float, pixels: float | None = None) -> dict:
    """A record of PartShapes without tiers."""
    tasks = {
        "classification": {"accuracy": clean, "num_images": 10.0},
        "classification_pgd20": {"accuracy": attacked, "num_images": 10.0},
    }
    if pixels is not None:
        tasks |= {"part_seg": {"pixel_accuracy": pixels}, "part_box": {"AP": 20.0, "AP50": 40.0}}
    return {
        "results": {"data": tasks},
        "attacks": {"pgd20": {"steps": 20, "objective": "cross_entropy"}},
        "warnings": {"data": ["beware"]},
    }
