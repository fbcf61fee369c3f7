"""Radii of Auto-PGD's stages: pairs (factor on eps, share of the steps), the last factor 1."""

from __future__ import annotations

from collections.abc import Sequence

Schedule = tuple[tuple[float, float], ...]

ONE_RADIUS: Schedule = ((1.0, 1.0),)
# l1-APGD (Croce and Hein, 2021).
L1_SCHEDULE: Schedule = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))


def default_schedule(norm: str, steps: int) -> Schedule:
    """Return the published schedule of a norm; fewer steps than stages have one radius."""
    return L1_SCHEDULE if norm == "l1" and steps >= len(L1_SCHEDULE) else ONE_RADIUS


def checked_schedule(schedule: Sequence[Sequence[float]]) -> Schedule:
    """Return a schedule as tuples of floats.

    Raises:
        ValueError: it is none.
    """
    stages = tuple((float(factor), float(share)) for factor, share in schedule)
    factors, shares = zip(*stages, strict=True)
    if factors[-1] != 1.0 or min(factors) <= 0 or min(shares) <= 0 or abs(sum(shares) - 1.0) > 1e-6:
        raise ValueError(
            "RADIUS_SCHEDULE must be pairs (factor on EPS, share of the steps), the last factor 1 and the sum of the "
            f"shares 1, got {schedule}"
        )
    return stages
