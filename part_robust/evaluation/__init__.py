"""Evaluation on clean and on attacked images."""

from part_robust.evaluation.build import build_evaluator
from part_robust.evaluation.classification import ClassificationEvaluator
from part_robust.evaluation.part_detection import PartDetectionEvaluator
from part_robust.evaluation.part_segmentation import PartSegmentationEvaluator
from part_robust.evaluation.robustness import AttackedModel, evaluate_under_attacks

__all__ = [
    "AttackedModel",
    "ClassificationEvaluator",
    "PartDetectionEvaluator",
    "PartSegmentationEvaluator",
    "build_evaluator",
    "evaluate_under_attacks",
]
