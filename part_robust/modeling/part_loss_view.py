"""A model as attacks on its own part loss see it, alone or together with its class loss.

Letters: N images, C classes, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from part_robust.modeling.preprocess import TrainingTargets
from part_robust.modeling.registry import ClassHead, PartSegmenter
from part_robust.structures import PartOutput


def part_loss_view(
    features: Callable[[Tensor], dict[str, Tensor]],
    segmenter: PartSegmenter,
    head: ClassHead | None,
    learned: TrainingTargets,
    images: Tensor,
    padding: Tensor | None,
    *,
    class_weight: float = 1.0,
    part_weight: float = 1.0,
    fixed: bool = False,
    term: str = "",
) -> Callable[[Tensor], tuple[Tensor | None, Tensor]]:
    """Return the function of images that an attack on the model's part loss maximises.

    Args:
        features: images (N, 3, H, W) -> backbone features, of a model in eval mode.
        segmenter: the model's.
        head: the model's, for class and part loss together; None for the part loss alone.
        learned: the true parts, and with a head the labels.
        images: (N, 3, H, W) before the attack.
        padding: bool (N, H, W), True on letterbox padding.
        class_weight: of the class loss, with a head.
        part_weight: of the part loss, with a head.
        fixed: keep the matching of queries and true parts that `images` have; dense parts have none to keep.
        term: one of the segmenter's `attack_terms`, for this term of the part loss alone; "" for all of it.

    Returns:
        Images -> class logits (N, C), None without a head, and the loss (N,), each image for itself.

    Raises:
        UserError: with `fixed` here, otherwise when it is called: the segmenter has no such loss.
    """
    targets, labels = learned.parts, learned.labels

    def parts_of(images: Tensor) -> tuple[dict[str, Tensor], PartOutput]:
        found = features(images)
        return found, segmenter(found, images.shape[-2:], padding, targets)

    matching = None
    if fixed:
        with torch.no_grad():
            matching = segmenter.match(parts_of(images)[1])

    def view(images: Tensor) -> tuple[Tensor | None, Tensor]:
        found, parts = parts_of(images)
        loss = segmenter.image_losses(parts, matching, term) if term else segmenter.image_losses(parts, matching)
        if head is None or labels is None:
            return None, loss
        logits = head(found, parts)
        class_loss = F.cross_entropy(logits.float(), labels, reduction="none")
        return logits, class_weight * class_loss + part_weight * loss

    return view
