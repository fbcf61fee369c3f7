"""Old import path of `EotView`, named in records of earlier versions; checks are in part_robust.evaluation.checks."""

from part_robust.attacks.eot import EotView

__all__ = ["EotView"]
