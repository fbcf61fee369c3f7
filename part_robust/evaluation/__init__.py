"""Evaluation on clean and on attacked images."""

from part_robust.evaluation.build import build_evaluator
from part_robust.evaluation.classification import ClassificationEvaluator
from part_robust.evaluation.part_detection import PartDetectionEvaluator
from part_robust.evaluation.part_segmentation import PartSegmentationEvaluator

__all__ = [
    "ClassificationEvaluator",
    "PartDetectionEvaluator",
    "PartSegmentationEvaluator",
    "build_evaluator",
]
