"""Losses of a set of predicted parts against the true ones (Carion et al., 2020; Zhang et al., 2023).

Letters: T sets of predictions (decoder layers), N images, Q queries, K part classes, G true parts (padded).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from part_robust.layers.box_ops import cxcywh_to_xyxy
from part_robust.losses.matcher import HungarianMatcher, Matching, PartBoxes
from part_robust.losses.part_segmentation import global_mean_weight


@dataclass
class PredictedParts:
    """Predictions of T sets: logits (T, N, Q, K) and boxes (T, N, Q, 4) cxcywh."""

    logits: Tensor
    boxes: Tensor


class SetCriterion:
    """Focal loss of all class logits; L1 and generalised IoU of matched boxes; unweighted sums per image come first,
    so that one image's loss can be told from its neighbours'."""

    def __init__(
        self,
        *,
        matcher: HungarianMatcher,
        class_weight: float = 1.0,
        box_weight: float = 5.0,
        giou_weight: float = 2.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        """
        Args:
            matcher: assigns predictions to true parts.
            class_weight: of the focal loss.
            box_weight: of the L1 loss.
            giou_weight: of 1 - generalised IoU.
            alpha: of the focal loss.
            gamma: of the focal loss.
        """
        self.matcher = matcher
        self.weights = {"class": class_weight, "box": box_weight, "giou": giou_weight}
        self.alpha, self.gamma = alpha, gamma

    def sums(
        self,
        predictions: PredictedParts,
        targets: PartBoxes,
        matching: Matching | None = None,
        counted: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Loss terms, summed over the queries of each set and image.

        Args:
            predictions: of T sets.
            targets: of the N images.
            matching: given, or found by the matcher.
            counted: bool (N, Q), queries that exist; all by default.

        Returns:
            "class", "box", "giou" -> (T, N); zero for images that are not `known`.
        """
        if matching is None:
            matching = self.matcher(predictions.logits, predictions.boxes, targets)
        logits, boxes = predictions.logits.float(), predictions.boxes.float()
        # Row Q takes what is not matched, and is cut off.
        query = matching.query.where(matching.matched, logits.shape[2])
        wanted = logits.new_zeros(*logits.shape[:2], logits.shape[2] + 1, logits.shape[3])
        label = F.one_hot(targets.labels, logits.shape[3]).to(logits.dtype).expand(len(logits), -1, -1, -1)
        wanted = wanted.scatter(2, query[..., None].expand_as(label), label)[:, :, :-1]
        focal = sigmoid_focal_loss(logits, wanted, self.alpha, self.gamma).sum(dim=-1)
        # Where parts may be missing, only predictions that have found one are right or wrong.
        judged = targets.complete[:, None] | (wanted.sum(dim=-1) > 0)
        if counted is not None:
            judged = judged & counted
        own = boxes.gather(2, matching.query[..., None].expand(-1, -1, -1, 4))
        true = targets.boxes.to(boxes.dtype).expand_as(own)
        distance = (own - true).abs().sum(dim=-1)
        overlap = generalized_box_iou_loss(cxcywh_to_xyxy(own), cxcywh_to_xyxy(true), eps=1e-6)
        return {
            "class": focal.where(judged & targets.known[:, None], 0.0).sum(dim=-1),
            "box": distance.where(matching.matched, 0.0).sum(dim=-1),
            "giou": overlap.where(matching.matched, 0.0).sum(dim=-1),
        }

    def batch_losses(
        self, sums: Mapping[str, Tensor], targets: PartBoxes, groups: int = 1, prefix: str = "loss_part_"
    ) -> dict[str, Tensor]:
        """Weighted scalars: mean over the T sets, over the true parts of the whole batch and all processes.

        Args:
            sums: of `sums`.
            targets: of the same images.
            groups: how often each true part was asked for (denoising groups).
            prefix: of the names.
        """
        scale = global_mean_weight(targets.present.sum()) / groups
        return {prefix + name: self.weights[name] * scale * value.sum(dim=1).mean() for name, value in sums.items()}

    def image_losses(self, sums: Mapping[str, Tensor], targets: PartBoxes) -> Tensor:
        """Weighted total (N,), mean over the T sets and the true parts of the image itself: what attacks maximise."""
        total = torch.stack([self.weights[name] * value for name, value in sums.items()]).sum(dim=0).mean(dim=0)
        return total / targets.present.sum(dim=1).clamp(min=1)
