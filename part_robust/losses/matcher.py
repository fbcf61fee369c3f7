"""Bipartite matching of predictions to ground-truth parts (Carion et al., 2020), of least cost.

Letters: T sets of predictions (decoder layers), N images, Q queries, K part classes, G true parts (padded).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from part_robust.layers.box_ops import cxcywh_to_xyxy, pairwise_generalized_iou
from part_robust.structures import Matching, PartBoxes
from part_robust.utils.transfer import to_device


def pad_part_boxes(
    labels: Sequence[Tensor], boxes: Sequence[Tensor], known: Tensor, complete: Tensor | None = None
) -> PartBoxes:
    """Pads per-image labels (G_n,) and boxes (G_n, 4); images that are not `known` have no present parts."""
    counts = torch.tensor([len(own) for own in labels], device=known.device)
    padded = pad_sequence(list(labels), batch_first=True)
    present = torch.arange(padded.shape[1], device=known.device) < counts[:, None]
    return PartBoxes(
        labels=padded,
        boxes=pad_sequence(list(boxes), batch_first=True),
        present=present & known[:, None],
        known=known,
        complete=known if complete is None else known & complete,
    )


class HungarianMatcher:
    """Costs of all sets and images in one go; only the assignment itself runs image by image, on the CPU."""

    def __init__(
        self,
        *,
        class_cost: float = 2.0,
        box_cost: float = 5.0,
        giou_cost: float = 2.0,
        mask_cost: float = 0.0,
        dice_cost: float = 0.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        """Set the costs of a pair.

        Args:
            class_cost: weight of the focal cost; of the published softmax models too.
            box_cost: weight of the L1 distance of cxcywh.
            giou_cost: weight of the negative generalised IoU.
            mask_cost: weight of the cross-entropy of masks.
            dice_cost: weight of the dice loss of masks.
            alpha: of the focal cost.
            gamma: of the focal cost.
        """
        self.class_cost, self.box_cost, self.giou_cost = class_cost, box_cost, giou_cost
        self.mask_cost, self.dice_cost = mask_cost, dice_cost
        self.alpha, self.gamma = alpha, gamma

    @torch.no_grad()
    def cost(self, logits: Tensor, boxes: Tensor, targets: PartBoxes) -> Tensor:
        """Logits (T, N, Q, K) and boxes (T, N, Q, 4) -> (T, N, Q, G)."""
        probability = logits.float().sigmoid()
        positive = -self.alpha * (1 - probability) ** self.gamma * (probability + 1e-8).log()
        negative = -(1 - self.alpha) * probability**self.gamma * (1 - probability + 1e-8).log()
        label = targets.labels[None, :, None].expand(*logits.shape[:-1], -1)
        classes = (positive - negative).gather(-1, label)
        distance = (boxes.float()[..., :, None, :] - targets.boxes[:, None]).abs().sum(dim=-1)
        overlap = pairwise_generalized_iou(cxcywh_to_xyxy(boxes.float()), cxcywh_to_xyxy(targets.boxes))
        return self.class_cost * classes + self.box_cost * distance - self.giou_cost * overlap

    def __call__(
        self,
        logits: Tensor,
        boxes: Tensor,
        targets: PartBoxes,
        masks: tuple[Tensor, Tensor] | None = None,
        kept: Tensor | None = None,
    ) -> Matching:
        """Return the matching of least cost.

        Args:
            logits: (T, N, Q, K).
            boxes: (T, N, Q, 4) cxcywh.
            targets: G may exceed Q: then the parts that cost most stay without a query.
            masks: cross-entropy and dice loss of masks, (T, N, Q, G) each.
            kept: bool (T, N, Q, G), pairs that come before all others, at any cost.

        Returns:
            A matching in any case: where predictions are not finite numbers, so is the loss of any matching, and the
            caller deals with that.
        """
        cost = self.cost(logits, boxes, targets)
        if masks is not None:
            cost = cost + self.mask_cost * masks[0] + self.dice_cost * masks[1]
        if kept is not None:
            cost = cost.double() - 1e6 * kept  # far more than any cost
        # One copy to the host, which waits, and one back, which does not: -1 for parts without a query.
        costs = cost.nan_to_num(nan=0.0).cpu().numpy()
        sets, images, _, true = costs.shape
        query = np.full((sets, images, true), -1)
        for number, image_costs in enumerate(costs):
            for image, count in enumerate(targets.count()):
                rows, columns = linear_sum_assignment(image_costs[image, :, :count])
                query[number, image, columns] = rows
        found = to_device({"query": torch.from_numpy(query)}, logits.device)["query"]
        return Matching(found.clamp(min=0), found >= 0)
