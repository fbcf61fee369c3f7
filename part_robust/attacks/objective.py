"""Objectives of the class, and all objectives by name.

Letters: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from part_robust.attacks import class_losses, part_losses
from part_robust.attacks.attackable import AttackInputs
from part_robust.attacks.base_objective import AttackObjective as AttackObjective
from part_robust.attacks.base_objective import Score as Score
from part_robust.attacks.part_objectives import (
    HidingObjective,
    PartLossObjective,
    PixelObjective,
    class_is_wrong,
    given_loss,
    nothing_found,
    scores_hidden,
)
from part_robust.utils.errors import UserError


class ClassObjective(AttackObjective):
    """A loss of class logits (N, C) and labels (N,). An image whose class is wrong may be removed."""

    @property
    def needs_class(self) -> bool:
        return True

    @property
    def of_class_labels(self) -> bool:
        return not self.scheduled and not self.targeted

    def forward(self, inputs: AttackInputs) -> Callable[[Tensor], Any]:
        return inputs.class_forward()

    def finished(self, margin_score: Tensor, success: Tensor) -> Tensor:
        return success

    def value(self, outputs: Any, targets: Any, progress: float = 1.0) -> Tensor:
        check_labels(outputs, targets)
        return super().value(outputs, targets, progress)


class TargetedObjective(ClassObjective):
    """A loss of class logits (N, C), labels (N,) and target classes (N,).

    The worst result over these is chosen by `margin_score`, which must mean the same for all of them.
    """

    targeted = True

    def value(self, outputs: Any, targets: Any, progress: float = 1.0) -> Tensor:
        check_labels(outputs, targets[0])
        return self.loss(outputs, *targets)

    def score(self, outputs: Any, targets: Any, loss: Tensor, scored: bool = True) -> Score:
        return super().score(outputs, targets[0], loss, scored)

    def score_originals(self, outputs: Any, targets: Any) -> Score:
        assert self.margin_score is not None
        margin_score = self.margin_score(outputs, targets)
        return Score(margin_score, margin_score, self.success(outputs, targets))


def Objective(
    name: str,
    reads: str,
    loss: Callable[..., Tensor],
    fooled: Callable[[Any, Any], Tensor],
    options: Mapping[str, Any] | None = None,
    harm: Callable[[Any, Any], Tensor] | None = None,
    targeted: bool = False,
    scheduled: bool = False,
) -> AttackObjective:
    """Build an objective from what it reads: the interface before there was a class for each; to be removed.

    Args:
        name: its name in the config.
        reads: "class_logits" for a `ClassObjective` or `TargetedObjective`, "part_logits" for a `PixelObjective`,
            "part_losses" for a `PartLossObjective`.
        loss: see `AttackObjective`.
        fooled: `success` of `AttackObjective`.
        options: `joint` and `fixed` of a `PartLossObjective`.
        harm: `margin_score` of `AttackObjective`.
        targeted: see `AttackObjective`.
        scheduled: see `AttackObjective`.

    Raises:
        ValueError: no such kind of output.
    """
    kinds = {
        "class_logits": TargetedObjective if targeted else ClassObjective,
        "part_logits": PixelObjective,
        "part_losses": PartLossObjective,
    }
    if reads not in kinds:
        raise ValueError(f"reads must be one of {', '.join(kinds)}, got {reads!r}")
    return kinds[reads](name, loss, fooled, harm, scheduled, **(options or {}))


def check_labels(logits: Any, labels: Any) -> None:
    """Check labels that are on the host; on another device this would make the host wait.

    Args:
        logits: (N, C).
        labels: int64 (N,); anything else is not checked.

    Raises:
        UserError: a label is not in 0 .. C - 1.
    """
    if not isinstance(labels, Tensor) or labels.device.type != "cpu" or labels.ndim != 1 or not len(labels):
        return
    low, high = (int(value) for value in labels.aminmax())
    if low < 0 or high >= logits.shape[1]:
        raise UserError(
            f"labels must be 0..{logits.shape[1] - 1} for a model of {logits.shape[1]} classes, got {low}..{high}"
        )


def _pixels(name: str, loss: Callable[..., Tensor], scheduled: bool = False) -> PixelObjective:
    return PixelObjective(name, loss, part_losses.most_pixels_wrong, part_losses.wrong_pixels, scheduled)


def _class(name: str, loss: Callable[..., Tensor]) -> ClassObjective:
    return ClassObjective(name, loss, class_losses.misclassified)


def _targeted(name: str, loss: Callable[..., Tensor]) -> TargetedObjective:
    return TargetedObjective(name, loss, class_losses.misclassified, class_losses.class_margin)


OBJECTIVES: dict[str, AttackObjective] = {
    objective.name: objective
    for objective in (
        _class("cross_entropy", class_losses.class_cross_entropy),
        _class("margin", class_losses.class_margin),
        _class("dlr", class_losses.class_logits_ratio),
        _targeted("targeted_margin", class_losses.targeted_margin),
        _targeted("targeted_dlr", class_losses.targeted_logits_ratio),
        _pixels("pixel_cross_entropy", part_losses.pixel_cross_entropy),
        _pixels("masked_cross_entropy", part_losses.masked_cross_entropy),
        _pixels("balanced_cross_entropy", part_losses.balanced_cross_entropy),
        _pixels("jensen_shannon", part_losses.jensen_shannon),
        _pixels("soft_wrong_pixels", part_losses.soft_wrong_pixels),
        _pixels("segpgd", part_losses.seg_pgd, scheduled=True),
        _pixels("cospgd", part_losses.cos_pgd),
        *(
            PartLossObjective(
                name + suffix, given_loss, class_is_wrong, joint=name == "joint", fixed=suffix == "_fixed"
            )
            for name in ("part_loss", "joint")
            for suffix in ("", "_fixed")
        ),
        *(
            PartLossObjective(
                f"part_{term}_loss{suffix}", given_loss, class_is_wrong, fixed=suffix == "_fixed", term=term
            )
            for term in ("class", "box")
            for suffix in ("", "_fixed")
        ),
        HidingObjective("hide_parts", scores_hidden, nothing_found),
    )
}


def get_objective(name: str | AttackObjective) -> AttackObjective:
    """The objective of a name; an objective itself is returned as it is.

    Raises:
        ValueError: no such objective; the message lists all.
    """
    if isinstance(name, AttackObjective):
        return name
    if name not in OBJECTIVES:
        raise ValueError(f"OBJECTIVE must be one of {', '.join(OBJECTIVES)}, got {name!r}")
    return OBJECTIVES[name]


def better(margin_score: Tensor, success: Tensor, best_score: Tensor, best_success: Tensor) -> Tensor:
    """Return bool (N,), whether the new result is worse for the model; success comes before the margin score."""
    return (
        (success & ~best_success) | ((success == best_success) & (margin_score > best_score)) | torch.isnan(best_score)
    )
