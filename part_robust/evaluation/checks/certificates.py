"""C22: certified radii of the smoothed model against what was counted on images inside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from part_robust.evaluation.certificate_trials import trial_p_value
from part_robust.evaluation.checks.result import FAIL, PASS, SKIPPED, Finding

# A sound evaluation fails with this probability at most.
LEVEL = 1e-3


def check_certificates(E: Mapping[str, Any]) -> Finding | None:
    """C22: no trial has fewer votes than its radius implies, and the certified accuracy falls with the radius."""
    smoothing = E.get("smoothing")
    if not smoothing:
        return None
    curve = sorted(smoothing.get("certified") or (), key=lambda point: point["eps"])
    rising = next((b["eps"] for a, b in zip(curve, curve[1:], strict=False) if b["correct"] > a["correct"]), None)
    if rising is None:
        too_far = (point for point in curve if point["correct"] and point["eps"] >= smoothing["largest_radius"])
        rising = next((point["eps"] for point in too_far), None)
    if rising is not None:
        return Finding(
            FAIL, f"certified accuracy at radius {rising:g} is larger than {smoothing['samples']} draws allow"
        )
    trials = smoothing.get("trials") or ()
    if not trials:
        return Finding(SKIPPED, "no image has a certified radius that could be tried")
    p_values = [trial_p_value(trial, smoothing["sigma"]) * len(trials) for trial in trials]
    worst = min(range(len(trials)), key=lambda index: p_values[index])
    refuted = sum(p_value < LEVEL for p_value in p_values)
    if refuted:
        trial = trials[worst]
        return Finding(
            FAIL,
            f"{refuted} of {len(trials)} trials refute a radius; image {trial['image_id']} had its class in "
            f"{trial['count']} of {trial['samples']} draws of the vote, and in {trial['votes']} of {trial['draws']} "
            f"fresh ones at distance {trial['distance']:.1f} of 255 levels",
            p_values[worst],
        )
    images = len({trial["image_id"] for trial in trials})
    return Finding(PASS, f"attacks inside the radii of {images} images refute none", min(p_values[worst], 1.0))
