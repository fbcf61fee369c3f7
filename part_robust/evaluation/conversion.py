"""What a model predicts about parts, as label maps or as boxes, whichever of the two it predicts itself.

Letters: P parts (label P is background), H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from detectron2.structures import Instances
from torch import Tensor

from part_robust.layers.mask_box import boxes_to_sem_seg, masks_to_boxes, most_probable


def predicted_labels(output: Mapping, num_parts: int, size: tuple[int, int]) -> Tensor:
    """Label map int64 (H, W), 0..P, of one image.

    Args:
        output: the model's, with `sem_seg` (P + 1, H, W), or with `instances` alone, which are painted as the thesis
            does it (`boxes_to_sem_seg`).
        num_parts: P.
        size: (H, W).
    """
    if "sem_seg" in output:
        return output["sem_seg"].argmax(dim=0)
    found = output["instances"]
    return boxes_to_sem_seg(found.pred_boxes.tensor, found.scores, found.pred_classes, num_parts, size)


def predicted_boxes(outputs: Sequence[Mapping], num_parts: int) -> list[Instances]:
    """pred_boxes, scores and pred_classes of each image: the model's `instances`, or the connected components of its
    `sem_seg` logits (P + 1, H, W), all of one size (`masks_to_boxes`)."""
    if not outputs or "instances" in outputs[0]:
        return [output["instances"] for output in outputs]
    labels, probabilities = zip(*(most_probable(output["sem_seg"]) for output in outputs), strict=True)
    return masks_to_boxes(torch.stack(labels), torch.stack(probabilities), num_parts)
