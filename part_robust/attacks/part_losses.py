"""Losses of parts, per image, larger is worse for the model, and the rule by which an attack succeeds.

Letters: N images, Q queries, P parts (label P is background), H W pixels. Dense logits (N, P + 1, H, W), labels int64
(N, H, W); labels above P count nowhere, neither above nor below a fraction bar. Losses of dense logits are means over
an image's labelled pixels, 0 where there are none.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# Of `soft_wrong_pixels`: of 10 and 30, and of factors 1 and 3 on the margin itself, the one that took most on 16 images
# of an adversarially trained DeepLab segmenter.
SHARPNESS = 30.0


def pixel_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy."""
    return _mean(_cross_entropy(logits, labels), labels, logits)


def masked_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the pixels that are still right (SEA: Croce, Singh and Hein, 2023).

    Pixels that are wrong already have no gradient.
    """
    return _mean(_cross_entropy(logits, labels) * _right(logits, labels), labels, logits)


def balanced_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Masked cross-entropy in which each label of an image has the same weight, however many pixels it has (SEA).

    Small parts count as much as the background, as in the mean IoU.
    """
    channels = logits.shape[1]
    counted = labels < channels
    flat = labels.where(counted, channels).flatten(1)
    areas = torch.zeros(len(labels), channels + 1, device=labels.device)
    areas.scatter_add_(1, flat, torch.ones_like(flat, dtype=areas.dtype))
    present = (areas[:, :channels] > 0).sum(dim=1).clamp(min=1)
    share = counted.flatten(1).sum(dim=1) / present
    weight = (share[:, None] / areas.clamp(min=1)).gather(1, flat).view_as(labels)
    return _mean(weight * _cross_entropy(logits, labels) * _right(logits, labels), labels, logits)


def jensen_shannon(logits: Tensor, labels: Tensor) -> Tensor:
    """Jensen-Shannon divergence between the softmax and the one-hot label (SEA).

    With p the probability of the label it is (2 ln 2 + p ln p - (1 + p) ln(1 + p)) / 2, at most ln 2: the
    gradient of pixels that are surely wrong, or surely right, is small.
    """
    log_p = -_cross_entropy(logits, labels)
    p = log_p.exp()
    return _mean((2 * math.log(2) + p * log_p - (1 + p) * torch.log1p(p)) / 2, labels, logits)


def seg_pgd(logits: Tensor, labels: Tensor, progress: float) -> Tensor:
    """SegPGD (Gu et al., 2022): pixels that are right weigh 1 - l, wrong ones l, and l grows from 0 to 1/2.

    Args:
        logits: (N, P + 1, H, W).
        labels: (N, H, W).
        progress: (t - 1) / T in step t of T.
    """
    share = progress / 2
    weight = torch.where(_right(logits, labels), 1 - share, share)
    return _mean(weight * _cross_entropy(logits, labels), labels, logits)


def cos_pgd(logits: Tensor, labels: Tensor) -> Tensor:
    """CosPGD (Agnihotri, Jung and Keuper, 2024): a pixel's weight is the cosine of its softmax and its one-hot label.

    There is no gradient through the weight.
    """
    with torch.no_grad():
        p = logits.float().softmax(dim=1)
        right = p.gather(1, labels.where(labels < logits.shape[1], 0)[:, None])[:, 0]
        cosine = right / p.norm(dim=1)
    return _mean(cosine * _cross_entropy(logits, labels), labels, logits)


def soft_wrong_pixels(logits: Tensor, labels: Tensor) -> Tensor:
    """Sigmoid of the margin, best wrong logit minus the right one: a smooth share of wrong pixels, 0..1.

    Pixels near the decision boundary have the gradient; those that are surely wrong, or surely right, have little.
    Margins are in units of the image's mean absolute margin over `SHARPNESS`, so no factor of the logits changes the
    loss. There is no gradient through the unit.
    """
    logits = logits.float()
    label = labels.where(labels < logits.shape[1], 0)[:, None]
    margins = logits.scatter(1, label, float("-inf")).amax(dim=1) - logits.gather(1, label)[:, 0]
    unit = _mean(margins.detach().abs(), labels, logits).clamp(min=1e-12) / SHARPNESS
    return _mean(torch.sigmoid(margins / unit[:, None, None]), labels, logits)


def wrong_pixels(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of the labelled pixels that are wrong, 0..1.

    The worst of several images is chosen by it, as losses only approximate it.
    """
    return _mean((~_right(logits, labels)).float(), labels, logits)


def most_pixels_wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """Return bool (N,), whether less than half of the labelled pixels are right."""
    counted = (labels < logits.shape[1]).flatten(1)
    right = (_right(logits, labels).flatten(1) & counted).sum(dim=1)
    return 2 * right < counted.sum(dim=1)


def nothing_right(logits: Tensor, labels: Tensor) -> Tensor:
    """Return bool (N,), whether no labelled pixel is right, as where none is labelled: there is nothing to attack."""
    return ~_right(logits, labels).flatten(1).any(dim=1)


def hidden_scores(margins: Tensor) -> Tensor:
    """Return minus the mean softplus (N,) of score margins (N, Q): queries far below the threshold hardly count."""
    return -F.softplus(margins).mean(dim=1)


def all_hidden(margins: Tensor) -> Tensor:
    """Return bool (N,), whether no score margin (N, Q) is positive, so that no part counts as found."""
    return (margins < 0).all(dim=1)


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.argmax(dim=1) == labels


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(N, H, W), in float32; 0 where the label counts nowhere."""
    counted = labels < logits.shape[1]
    return F.cross_entropy(logits.float(), labels.where(counted, -100), ignore_index=-100, reduction="none")


def _mean(values: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
    counted = labels < logits.shape[1]
    return (values * counted).flatten(1).sum(dim=1) / counted.flatten(1).sum(dim=1).clamp(min=1)
