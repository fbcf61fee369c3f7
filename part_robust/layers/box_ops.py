"""Boxes in 0..1 and their logits.

Letters: N images, Q predicted and G true boxes of an image. Boxes are cxcywh unless said otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_convert


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) centre and size -> (..., 4) corners."""
    return box_convert(boxes, "cxcywh", "xyxy")


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) corners -> (..., 4) centre and size."""
    return box_convert(boxes, "xyxy", "cxcywh")


def inverse_sigmoid(x: Tensor, eps: float = 1e-3) -> Tensor:
    """log(x / (1 - x)) of values in 0..1, numerator and denominator at least `eps` each.

    DINO's eps is 1e-3, Mask DINO's 1e-5. `torch.logit` clamps x itself, which gives other values near 0 and 1.
    """
    x = x.clamp(0.0, 1.0)
    return x.clamp(min=eps).log() - (1.0 - x).clamp(min=eps).log()


def paired_generalized_iou(first: Tensor, second: Tensor, eps: float = 1e-6) -> Tensor:
    """Generalised IoU (Rezatofighi et al., 2019) of boxes in the same place of both arguments.

    The values and gradients of `torchvision.ops.generalized_box_iou_loss`, without its boolean index, for which the
    host waits.

    Args:
        first: (..., 4) xyxy.
        second: (..., 4) xyxy.
        eps: added to both denominators, so that degenerate boxes give finite values.

    Returns:
        (...), -1..1.
    """
    inner = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
    outer = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])
    # Products of two numbers written out: the gradient of `prod` looks for zeros, for which the host waits as well.
    intersection = (inner[..., 0] * inner[..., 1]).where((inner > 0).all(dim=-1), 0.0)
    sides_1, sides_2 = (boxes[..., 2:] - boxes[..., :2] for boxes in (first, second))
    union = sides_1[..., 0] * sides_1[..., 1] + sides_2[..., 0] * sides_2[..., 1] - intersection
    hull = outer[..., 0] * outer[..., 1]
    return intersection / (union + eps) - (hull - union) / (hull + eps)


def pairwise_generalized_iou(first: Tensor, second: Tensor, eps: float = 1e-6) -> Tensor:
    """Generalised IoU (Rezatofighi et al., 2019) of every pair, for batches of boxes.

    Args:
        first: (..., Q, 4) xyxy.
        second: (..., G, 4) xyxy, the same leading dimensions or some to broadcast with.
        eps: added to both denominators, so that degenerate boxes give finite values.

    Returns:
        (..., Q, G), -1..1.
    """
    first, second = first[..., :, None, :], second[..., None, :, :]
    inner = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
    outer = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])
    intersection = inner.clamp(min=0).prod(dim=-1)
    hull = outer.clamp(min=0).prod(dim=-1)
    union = (first[..., 2:] - first[..., :2]).prod(dim=-1) + (second[..., 2:] - second[..., :2]).prod(dim=-1)
    union = union - intersection
    return intersection / (union + eps) - (hull - union) / (hull + eps)
