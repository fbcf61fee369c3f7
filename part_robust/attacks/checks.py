"""Keeps the import that records of earlier versions recommend; the checks are in part_robust.evaluation.checks."""

from part_robust.attacks.eot import EotView

__all__ = ["EotView"]
