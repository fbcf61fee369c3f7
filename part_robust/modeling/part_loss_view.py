"""A model as attacks on its own part loss see it, alone or together with its class loss.

Letters: N images, C classes, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from part_robust.modeling.preprocess import training_targets
from part_robust.modeling.registry import PartOutput

if TYPE_CHECKING:
    from part_robust.modeling.part_classifier import PartClassifier


def part_loss_view(
    model: PartClassifier,
    batched_inputs: list[dict],
    images: Tensor,
    padding: Tensor | None,
    joint: bool,
    fixed: bool,
) -> Callable[[Tensor], tuple[Tensor | None, Tensor]]:
    """Return the function of images that an attack on the model's part loss maximises.

    Args:
        model: in eval mode.
        batched_inputs: with the true parts.
        images: (N, 3, H, W) before the attack.
        padding: bool (N, H, W), True on letterbox padding.
        joint: class and part loss, weighted as in training, instead of the part loss.
        fixed: keep the assignment of queries to true parts that `images` have; dense parts have none to keep.

    Returns:
        Images -> class logits (N, C), None unless `joint`, and the loss (N,), each image for itself.

    Raises:
        ValueError: the model has no such loss.
    """
    segmenter, head = model.segmenter, model.head
    image_losses, match = getattr(segmenter, "image_losses", None), getattr(segmenter, "match", None)
    if segmenter is None or image_losses is None or match is None:
        raise ValueError("attack objectives part_loss and joint need a model that learns parts: use cross_entropy")
    if joint and head is None:
        raise ValueError("attack objective joint needs a class head: use part_loss")
    learned = training_targets(batched_inputs, model.device, segmenter.target_fields, classes=joint)
    targets, labels = learned.parts, learned.labels

    def parts_of(images: Tensor) -> tuple[dict[str, Tensor], PartOutput]:
        features = model.backbone(model.normalize(images))
        return features, segmenter(features, images.shape[-2:], padding, targets)

    matching = None
    if fixed:
        with torch.no_grad():
            matching = match(parts_of(images)[1])

    def view(images: Tensor) -> tuple[Tensor | None, Tensor]:
        features, parts = parts_of(images)
        loss = image_losses(parts, matching)
        if head is None or labels is None:
            return None, loss
        logits = head(features, parts)
        class_loss = F.cross_entropy(logits.float(), labels, reduction="none")
        return logits, model.class_loss_weight * class_loss + model.part_loss_weight * loss

    return view
