"""Losses of class logits, per image, larger is worse for the model, and the rule by which an attack succeeds.

Letters: N images, C classes. Logits (N, C), labels int64 (N,), target classes int64 (N,).
"""

from __future__ import annotations

import logging

from detectron2.utils.logger import log_first_n
from torch import Tensor
from torch.nn import functional as F

# Keeps the ratio finite where all logits are equal.
_TINY = 1e-12


def class_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, in float32."""
    return F.cross_entropy(logits.float(), labels, reduction="none")


def class_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Best wrong logit minus the right one (Carlini and Wagner, 2017); unlike cross-entropy it never saturates."""
    logits = logits.float()
    right = logits.gather(1, labels[:, None])[:, 0]
    wrong = logits.scatter(1, labels[:, None], float("-inf")).amax(dim=1)
    return wrong - right


def class_logits_ratio(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein, 2020, eq. 6): the margin over the gap of first and third logit.

    Neither a shift nor a factor of the logits changes it. Undefined below three classes, and with exactly three its
    denominator counts the smallest logit alone, so below four it is the margin.
    """
    if logits.shape[1] < 4:
        _log_margin("dlr", logits.shape[1])
        return class_margin(logits, labels)
    top = logits.float().topk(3, dim=1).values
    return class_margin(logits, labels) / (top[:, 0] - top[:, 2] + _TINY)


def targeted_margin(logits: Tensor, labels: Tensor, target_classes: Tensor) -> Tensor:
    """Logit of the target class minus the right one."""
    logits = logits.float()
    return (logits.gather(1, target_classes[:, None]) - logits.gather(1, labels[:, None]))[:, 0]


def targeted_logits_ratio(logits: Tensor, labels: Tensor, target_classes: Tensor) -> Tensor:
    """Targeted difference of logits ratio (Croce and Hein, 2020, eq. 7); below four classes the targeted margin."""
    if logits.shape[1] < 4:
        _log_margin("targeted_dlr", logits.shape[1])
        return targeted_margin(logits, labels, target_classes)
    top = logits.float().topk(4, dim=1).values
    return targeted_margin(logits, labels, target_classes) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + _TINY)


def misclassified(logits: Tensor, labels: Tensor) -> Tensor:
    """Return bool (N,), whether the predicted class is wrong."""
    return logits.argmax(dim=1) != labels


def _log_margin(name: str, classes: int) -> None:
    log_first_n(
        logging.INFO,
        f"objective {name!r} needs at least 4 classes, the model has {classes}: the margin is used instead",
        name=__name__,
        key="message",
    )
