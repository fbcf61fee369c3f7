"""Part models: importing this registers the meta-architecture, the segmenters and the heads."""

from part_robust.modeling import backbone, timm_backbone  # noqa: F401  (registration)
from part_robust.modeling.external import head  # noqa: F401  (registration)
from part_robust.modeling.heads import (  # noqa: F401
    bounding_box,
    downsampled,
    linear,
    pixel,
    query,
    sequential,
    two_headed,
)
from part_robust.modeling.part_classifier import PartClassifier
from part_robust.modeling.registry import (
    CLASS_HEAD_REGISTRY,
    PART_SEGMENTER_REGISTRY,
    ClassHead,
    PartSegmenter,
)
from part_robust.modeling.segmenters import deeplab, dino, mask_dino, smp_deeplab  # noqa: F401  (registration)
from part_robust.structures import PartOutput, PartTargets

__all__ = [
    "CLASS_HEAD_REGISTRY",
    "PART_SEGMENTER_REGISTRY",
    "ClassHead",
    "PartClassifier",
    "PartOutput",
    "PartSegmenter",
    "PartTargets",
]
