"""Pixel loss of dense part segmenters.

Letters: N images, P parts (label P is background), H W pixels.
"""

from __future__ import annotations

import torch
from detectron2.utils import comm
from torch import Tensor
from torch.nn import functional as F


def global_mean_weight(count: Tensor, least: float | Tensor = 1.0) -> Tensor:
    """1 / (mean of `count` over the processes), with a total of at least `least`, that of one element.

    Sums divided by it and averaged over processes (as DistributedDataParallel does with gradients) are the mean over
    all that was counted, however it is spread over the processes.
    """
    count = count.detach().float()
    world = comm.get_world_size()
    if world > 1:
        count = count.clone()
        torch.distributed.all_reduce(count)
        count = count / world
    # The floor must be one element of the whole job, or a lone pixel's weight would depend on the process count.
    return 1.0 / count.clamp(min=least / world)


def part_cross_entropy(logits: Tensor, target: Tensor, ignore_label: int) -> Tensor:
    """Mean cross-entropy over labelled pixels; ignored pixels enter neither numerator nor denominator.

    Args:
        logits: (N, P + 1, H, W).
        target: int64 (N, H, W), 0..P, or `ignore_label`.
        ignore_label: label of pixels that count nowhere.

    Returns:
        Scalar; zero, with zero gradient, when every pixel is ignored.
    """
    summed = F.cross_entropy(logits.float(), target, ignore_index=ignore_label, reduction="sum")
    return summed * global_mean_weight((target != ignore_label).sum())


def image_cross_entropy(logits: Tensor, target: Tensor, ignore_label: int) -> Tensor:
    """Return the mean cross-entropy (N,) over the labelled pixels of each image for itself, 0 where there are none.

    Arguments are those of `part_cross_entropy`.
    """
    summed = F.cross_entropy(logits.float(), target, ignore_index=ignore_label, reduction="none").flatten(1).sum(dim=1)
    return summed / (target != ignore_label).flatten(1).sum(dim=1).clamp(min=1)
