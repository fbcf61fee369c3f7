"""What an attack maximises, per image, and when it has won.

Letters: N images, C classes, P parts (label P is background), H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Objective:
    """A loss to maximise.

    Attributes:
        name: its name in the config.
        reads: what `outputs` are: "class_logits" (N, C) with labels (N,) as targets, or "part_logits" (N, P + 1, H, W)
            with label maps (N, H, W), where labels above P count nowhere; "part_losses" is a pair of class logits
            (N, C) or None, and the loss to maximise (N,), with labels (N,).
        loss: (outputs, targets) -> (N,), larger is worse for the model.
        fooled: (outputs, targets) -> bool (N,), True where the model is wrong.
        options: of the model's view that gives the outputs.
    """

    name: str
    reads: str
    loss: Callable[[Any, Any], Tensor]
    fooled: Callable[[Any, Any], Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)


def class_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of class logits (N, C) and labels (N,), in float32."""
    return F.cross_entropy(logits.float(), labels, reduction="none")


def class_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Best wrong logit minus the right one (Carlini and Wagner, 2017); unlike cross-entropy it never saturates."""
    logits = logits.float()
    right = logits.gather(1, labels[:, None])[:, 0]
    wrong = logits.scatter(1, labels[:, None], float("-inf")).amax(dim=1)
    return wrong - right


def misclassified(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.argmax(dim=1) != labels


def pixel_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean pixel cross-entropy of each image over its labelled pixels; 0 where there are none."""
    counts = labels < logits.shape[1]
    loss = F.cross_entropy(logits.float(), labels.where(counts, -100), ignore_index=-100, reduction="none")
    return loss.flatten(1).sum(dim=1) / counts.flatten(1).sum(dim=1).clamp(min=1)


def most_pixels_wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """True where less than half of the labelled pixels are right."""
    counts = (labels < logits.shape[1]).flatten(1)
    right = ((logits.argmax(dim=1) == labels).flatten(1) & counts).sum(dim=1)
    return 2 * right < counts.sum(dim=1)


def given_loss(outputs: tuple[Tensor | None, Tensor], labels: Tensor) -> Tensor:
    """The model's own loss."""
    return outputs[1]


def class_is_wrong(outputs: tuple[Tensor | None, Tensor], labels: Tensor) -> Tensor:
    """False where there are no class logits: a detection is never plainly wrong."""
    logits = outputs[0]
    return torch.zeros_like(labels, dtype=torch.bool) if logits is None else misclassified(logits, labels)


OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective("cross_entropy", "class_logits", class_cross_entropy, misclassified),
        Objective("margin", "class_logits", class_margin, misclassified),
        Objective("pixel_cross_entropy", "part_logits", pixel_cross_entropy, most_pixels_wrong),
        *(
            Objective(
                name + suffix,
                "part_losses",
                given_loss,
                class_is_wrong,
                {"joint": name == "joint", "fixed": bool(suffix)},
            )
            for name in ("part_loss", "joint")
            for suffix in ("", "_fixed")
        ),
    )
}


def get_objective(name: str) -> Objective:
    """Raises:
    ValueError: no such objective; lists those there are.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"unknown attack objective {name!r}: choose one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def better(loss: Tensor, fooled: Tensor, best_loss: Tensor, best_fooled: Tensor) -> Tensor:
    """bool (N,): the new result is worse for the model. Being fooled beats any loss."""
    return (fooled & ~best_fooled) | ((fooled == best_fooled) & (loss > best_loss)) | torch.isnan(best_loss)
