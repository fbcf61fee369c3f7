"""The losses of Mask DINO, from the config."""

from __future__ import annotations

from detectron2.config import CfgNode

from part_robust.losses.mask_losses import DenseMaskLoss, PointMaskLoss
from part_robust.losses.matcher import HungarianMatcher
from part_robust.losses.set_criterion import SetCriterion
from part_robust.modeling.segmenters.query_segmenter import LOSS_SCALES, validate_option

CLASS_LOSSES = ("cross_entropy", "focal")
MASK_LOSSES = ("dense", "points")


def build_criterion(node: CfgNode) -> SetCriterion:
    """The losses that MODEL.MASK_DINO describes.

    Raises:
        ValueError: an unknown CLASS_LOSS, MASK_LOSS or LOSS_SCALE.
    """
    validate_option("MASK_DINO.CLASS_LOSS", node.CLASS_LOSS, CLASS_LOSSES)
    validate_option("MASK_DINO.MASK_LOSS", node.MASK_LOSS, MASK_LOSSES)
    validate_option("MASK_DINO.LOSS_SCALE", node.LOSS_SCALE, LOSS_SCALES)
    mask_loss: DenseMaskLoss | PointMaskLoss = DenseMaskLoss()
    if node.MASK_LOSS == "points":
        mask_loss = PointMaskLoss(
            num_points=node.NUM_POINTS,
            oversample=node.POINT_OVERSAMPLE,
            importance=node.POINT_IMPORTANCE,
            seed=node.POINT_SEED,
        )
    return SetCriterion(
        matcher=HungarianMatcher(
            class_cost=node.MATCH_CLASS_COST,
            box_cost=node.MATCH_BOX_COST,
            giou_cost=node.MATCH_GIOU_COST,
            mask_cost=node.MATCH_MASK_COST,
            dice_cost=node.MATCH_DICE_COST,
        ),
        class_weight=node.CLASS_WEIGHT,
        box_weight=node.BOX_WEIGHT,
        giou_weight=node.GIOU_WEIGHT,
        mask_weight=node.MASK_WEIGHT,
        dice_weight=node.DICE_WEIGHT,
        mask_loss=mask_loss,
        no_object_weight=node.NO_OBJECT_WEIGHT if node.CLASS_LOSS == "cross_entropy" else None,
        sum_sets=node.LOSS_SCALE == "thesis",
    )
