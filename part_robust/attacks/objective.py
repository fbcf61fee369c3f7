"""Objectives: what an attack maximises, per image, and when it succeeds.

Letters: N images, C classes, P parts (label P is background), H W pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from part_robust.attacks import class_losses, part_losses
from part_robust.attacks.attackable import AttackInputs
from part_robust.utils.errors import UserError
from part_robust.utils.renamed import renamed


@dataclass
class Score:
    """Loss and success of an attack, image by image.

    Attributes:
        loss: (N,), what the attack maximises.
        margin_score: (N,), by which the worst of several images is chosen: the logit margin, or another measure that is
            higher where the outputs are worse for the model.
        success: bool (N,), the attack succeeds.
        nothing_to_attack: bool (N,), the image has nothing to attack, so a zero gradient is expected; None: no such
            image.
    """

    loss: Tensor
    margin_score: Tensor | None = None
    success: Tensor | None = None
    nothing_to_attack: Tensor | None = None

    # Names of earlier versions.
    harm = renamed("margin_score")
    fooled = renamed("success")
    idle = renamed("nothing_to_attack")


@dataclass(frozen=True)
class AttackObjective:
    """A loss to maximise. Subclasses define which outputs of the model it reads, and its targets.

    Attributes:
        name: its name in the config.
        loss: (outputs, targets) -> (N,), larger is worse for the model.
        success: (outputs, targets) -> bool (N,), True where the model is wrong.
        margin_score: (outputs, targets) -> (N,), see `Score`; None: the loss.
        scheduled: the loss takes a third argument, the share of the steps taken so far, 0..1.
        targeted: the loss takes a third argument, int64 (N,), the target classes.
        needs_parts: it is a loss of the parts.
        needs_pixels: it reads part logits of every pixel.
        zero_at_start: its gradient is zero at the image itself, so that an attack must start elsewhere.
    """

    name: str
    loss: Callable[..., Tensor]
    success: Callable[[Any, Any], Tensor]
    margin_score: Callable[[Any, Any], Tensor] | None = None
    scheduled: bool = False

    targeted: ClassVar[bool] = False
    needs_parts: ClassVar[bool] = False
    needs_pixels: ClassVar[bool] = False
    zero_at_start: ClassVar[bool] = False

    # Names of earlier versions.
    harm = renamed("margin_score")
    fooled = renamed("success")

    @property
    def needs_class(self) -> bool:
        """Whether it reads class logits."""
        return False

    @property
    def of_class_labels(self) -> bool:
        """Whether class logits and labels alone give the loss, at any time of the attack."""
        return False

    def forward(self, inputs: AttackInputs) -> Callable[[Tensor], Any]:
        """Return the function from images (N, 3, H, W) to the outputs that the objective reads, differentiable."""
        raise NotImplementedError

    def targets(self, inputs: AttackInputs) -> Tensor:
        """Return the targets of the outputs, labels (N,) by default; on the host or on the model's device."""
        return inputs.labels

    def attackable(self, inputs: AttackInputs) -> Tensor | None:
        """Return bool (N,), on the host, False for images without labels for the objective; None: all have some."""
        return None

    def nothing_to_attack(self, outputs: Any, targets: Any, loss: Tensor) -> Tensor | None:
        """Return bool (N,), images where a zero gradient is expected; None: no such image."""
        return None

    def finished(self, margin_score: Tensor, success: Tensor) -> Tensor:
        """Return bool (N,), whether the result of an image cannot get worse, so that it may be removed."""
        return torch.zeros_like(success)

    def value(self, outputs: Any, targets: Any, progress: float = 1.0) -> Tensor:
        """The loss (N,). Targeted objectives take (labels, target classes) as `targets`."""
        return self.loss(outputs, targets, progress) if self.scheduled else self.loss(outputs, targets)

    def score(self, outputs: Any, targets: Any, loss: Tensor, scored: bool = True) -> Score:
        """Return the score of outputs whose `loss` is known; without `scored`, `loss` and `nothing_to_attack` alone."""
        nothing = self.nothing_to_attack(outputs, targets, loss)
        if not scored:
            return Score(loss, nothing_to_attack=nothing)
        margin_score = loss if self.margin_score is None else self.margin_score(outputs, targets)
        return Score(loss, margin_score, self.success(outputs, targets), nothing)

    def score_originals(self, outputs: Any, targets: Any) -> Score:
        """Return the score of the images before the attack, without target classes."""
        return self.score(outputs, targets, self.value(outputs, targets))


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


class PixelObjective(AttackObjective):
    """A loss of part logits (N, P + 1, H, W) and label maps (N, H, W), where labels above P count nowhere.

    Results can get worse until no pixel is right.
    """

    needs_parts = True
    needs_pixels = True

    def forward(self, inputs: AttackInputs) -> Callable[[Tensor], Any]:
        return functools.partial(inputs.model.part_logits, padding=inputs.padding)

    def targets(self, inputs: AttackInputs) -> Tensor:
        return inputs.label_maps

    def attackable(self, inputs: AttackInputs) -> Tensor:
        return inputs.labelled

    def nothing_to_attack(self, outputs: Any, targets: Any, loss: Tensor) -> Tensor:
        return part_losses.nothing_right(outputs, targets)

    def finished(self, margin_score: Tensor, success: Tensor) -> Tensor:
        return margin_score >= 1.0


@dataclass(frozen=True)
class PartLossObjective(AttackObjective):
    """The model's own loss (N,), the second of its outputs after class logits (N, C) or None. It can always get worse.

    Attributes:
        joint: class and part loss, instead of the part loss.
        fixed: keep the matching of queries and ground-truth parts of the images before the attack.
    """

    joint: bool = False
    fixed: bool = False

    needs_parts = True

    @property
    def needs_class(self) -> bool:
        return self.joint

    def forward(self, inputs: AttackInputs) -> Callable[[Tensor], Any]:
        return inputs.model.part_loss_view(
            inputs.batched_inputs, inputs.images, inputs.padding, joint=self.joint, fixed=self.fixed
        )

    def attackable(self, inputs: AttackInputs) -> Tensor:
        return torch.ones_like(inputs.labelled) if self.joint else inputs.labelled

    def nothing_to_attack(self, outputs: Any, targets: Any, loss: Tensor) -> Tensor:
        return loss == 0  # an image without ground-truth parts


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


def given_loss(outputs: tuple[Tensor | None, Tensor], labels: Tensor) -> Tensor:
    """The model's own loss."""
    return outputs[1]


def class_is_wrong(outputs: tuple[Tensor | None, Tensor], labels: Tensor) -> Tensor:
    """Return misclassifications, bool (N,), all False for detectors, whose outputs have no class logits."""
    logits = outputs[0]
    return torch.zeros_like(labels, dtype=torch.bool) if logits is None else class_losses.misclassified(logits, labels)


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
        _pixels("segpgd", part_losses.seg_pgd, scheduled=True),
        _pixels("cospgd", part_losses.cos_pgd),
        *(
            PartLossObjective(
                name + suffix, given_loss, class_is_wrong, joint=name == "joint", fixed=suffix == "_fixed"
            )
            for name in ("part_loss", "joint")
            for suffix in ("", "_fixed")
        ),
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
