"""Objectives: what an attack maximises, per image, and when it has won.

Letters: N images, C classes, P parts (label P is background), H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from part_robust.attacks import class_losses, part_losses
from part_robust.utils.errors import UserError


@dataclass
class Score:
    """Outputs of a model as an objective judges them, image by image.

    Attributes:
        loss: (N,), what the attack maximises.
        harm: (N,), how bad the outputs are for the model: what the best of several images is chosen by.
        fooled: bool (N,), the attack has won.
        idle: bool (N,), there is nothing to attack, so that a zero gradient is no finding; None: nowhere.
    """

    loss: Tensor
    harm: Tensor | None = None
    fooled: Tensor | None = None
    idle: Tensor | None = None


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
        harm: (outputs, targets) -> (N,), what the best of several images is chosen by; None: the loss.
        targeted: the loss takes a third argument, int64 (N,), the classes to aim at.
        scheduled: the loss takes a third argument, the share of the attack that is over, 0..1.
    """

    name: str
    reads: str
    loss: Callable[..., Tensor]
    fooled: Callable[[Any, Any], Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)
    harm: Callable[[Any, Any], Tensor] | None = None
    targeted: bool = False
    scheduled: bool = False

    def value(self, outputs: Any, targets: Any, progress: float = 1.0) -> Tensor:
        """The loss (N,). Targeted objectives take (labels, classes to aim at) as `targets`."""
        if self.reads == "class_logits":
            check_labels(outputs, targets[0] if self.targeted else targets)
        if self.targeted:
            return self.loss(outputs, *targets)
        return self.loss(outputs, targets, progress) if self.scheduled else self.loss(outputs, targets)

    def score(self, outputs: Any, targets: Any, loss: Tensor, judged: bool = True) -> Score:
        """The whole score of outputs whose `loss` is known; without `judged`, no harm and no verdict."""
        labels = targets[0] if self.targeted else targets
        idle = None
        if self.reads == "part_logits":
            idle = part_losses.nothing_right(outputs, labels)
        elif self.reads == "part_losses":
            idle = loss == 0  # an image without true parts
        if not judged:
            return Score(loss, idle=idle)
        harm = loss if self.harm is None else self.harm(outputs, labels)
        return Score(loss, harm, self.fooled(outputs, labels), idle)

    def score_originals(self, outputs: Any, targets: Any) -> Score:
        """Return the score of images that are not attacked yet, so that there is no class to aim at."""
        if not self.targeted:
            return self.score(outputs, targets, self.value(outputs, targets))
        assert self.harm is not None
        harm = self.harm(outputs, targets)
        return Score(harm, harm, self.fooled(outputs, targets))

    def finished(self, harm: Tensor, fooled: Tensor) -> Tensor:
        """Return bool (N,), whether nothing worse can happen to an image, so that it may leave.

        A class is wrong or not; parts get worse until no pixel is right; a detection can always get worse.
        """
        if self.reads == "class_logits":
            return fooled
        return harm >= 1.0 if self.reads == "part_logits" else torch.zeros_like(fooled)


def check_labels(logits: Any, labels: Any) -> None:
    """Looks at labels that are on the host: on another device this would make the host wait.

    Args:
        logits: (N, C).
        labels: int64 (N,); anything else is not looked at.

    Raises:
        UserError: a label is none of 0 .. C - 1.
    """
    if not isinstance(labels, Tensor) or labels.device.type != "cpu" or labels.ndim != 1 or not len(labels):
        return
    low, high = (int(value) for value in labels.aminmax())
    if low < 0 or high >= logits.shape[1]:
        raise UserError(
            f"labels must be 0..{logits.shape[1] - 1} for a model of {logits.shape[1]} classes, got {low}..{high}"
        )


def given_loss(outputs: tuple[Tensor | None, Tensor], labels: Tensor) -> Tensor:
    """The model's own loss."""
    return outputs[1]


def class_is_wrong(outputs: tuple[Tensor | None, Tensor], labels: Tensor) -> Tensor:
    """False where there are no class logits: a detection is never plainly wrong."""
    logits = outputs[0]
    return torch.zeros_like(labels, dtype=torch.bool) if logits is None else class_losses.misclassified(logits, labels)


def _parts(name: str, loss: Callable[..., Tensor], scheduled: bool = False) -> Objective:
    return Objective(
        name, "part_logits", loss, part_losses.most_pixels_wrong, harm=part_losses.wrong_pixels, scheduled=scheduled
    )


def _aimed(name: str, loss: Callable[..., Tensor]) -> Objective:
    """The worst over the targets is chosen by the margin, which means the same for all of them."""
    return Objective(
        name, "class_logits", loss, class_losses.misclassified, harm=class_losses.class_margin, targeted=True
    )


OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective("cross_entropy", "class_logits", class_losses.class_cross_entropy, class_losses.misclassified),
        Objective("margin", "class_logits", class_losses.class_margin, class_losses.misclassified),
        Objective("dlr", "class_logits", class_losses.class_logits_ratio, class_losses.misclassified),
        _aimed("targeted_margin", class_losses.targeted_margin),
        _aimed("targeted_dlr", class_losses.targeted_logits_ratio),
        _parts("pixel_cross_entropy", part_losses.pixel_cross_entropy),
        _parts("masked_cross_entropy", part_losses.masked_cross_entropy),
        _parts("balanced_cross_entropy", part_losses.balanced_cross_entropy),
        _parts("jensen_shannon", part_losses.jensen_shannon),
        _parts("segpgd", part_losses.seg_pgd, scheduled=True),
        _parts("cospgd", part_losses.cos_pgd),
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
    """Return the objective of a name.

    Raises:
        ValueError: no such objective; lists those there are.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"unknown attack objective {name!r}: choose one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def better(harm: Tensor, fooled: Tensor, best_harm: Tensor, best_fooled: Tensor) -> Tensor:
    """Return bool (N,), whether the new result is worse for the model; success counts more than any harm."""
    return (fooled & ~best_fooled) | ((fooled == best_fooled) & (harm > best_harm)) | torch.isnan(best_harm)
