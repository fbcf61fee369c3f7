"""Objectives of the parts: dense part logits, a model's own part loss, and the scores of a detector's queries.

Letters: N images, C classes, Q queries, P parts (label P is background), H W pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from part_robust.attacks import class_losses, part_losses
from part_robust.attacks.attackable import AttackInputs, ScoresParts
from part_robust.attacks.base_objective import AttackObjective


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
        term: "class" for the part loss's class term alone, "box" for everything else of it, "" for all of it.
    """

    joint: bool = False
    fixed: bool = False
    term: str = ""

    needs_parts = True

    @property
    def needs_class(self) -> bool:
        return self.joint

    @property
    def needs_term(self) -> str:
        return self.term

    def forward(self, inputs: AttackInputs) -> Callable[[Tensor], Any]:
        options: dict[str, Any] = {"joint": self.joint, "fixed": self.fixed}
        if self.term:
            options["term"] = self.term
        return inputs.model.part_loss_view(inputs.batched_inputs, inputs.images, inputs.padding, **options)

    def attackable(self, inputs: AttackInputs) -> Tensor:
        return torch.ones_like(inputs.labelled) if self.joint else inputs.labelled

    def nothing_to_attack(self, outputs: Any, targets: Any, loss: Tensor) -> Tensor:
        return loss == 0  # an image without ground-truth parts


class HidingObjective(AttackObjective):
    """A loss of score margins (N, Q) of a detector's queries. It ends where no part counts as found any more."""

    needs_parts = True

    @property
    def needs_term(self) -> str:
        return "scores"

    def forward(self, inputs: AttackInputs) -> Callable[[Tensor], Any]:
        model: ScoresParts = inputs.model
        return functools.partial(model.part_score_margins, padding=inputs.padding)

    def attackable(self, inputs: AttackInputs) -> Tensor:
        return inputs.labelled

    def nothing_to_attack(self, outputs: Any, targets: Any, loss: Tensor) -> Tensor:
        return part_losses.all_hidden(outputs)

    def finished(self, margin_score: Tensor, success: Tensor) -> Tensor:
        return success


def given_loss(outputs: tuple[Tensor | None, Tensor], labels: Tensor) -> Tensor:
    """The model's own loss."""
    return outputs[1]


def class_is_wrong(outputs: tuple[Tensor | None, Tensor], labels: Tensor) -> Tensor:
    """Return misclassifications, bool (N,), all False for detectors, whose outputs have no class logits."""
    logits = outputs[0]
    return torch.zeros_like(labels, dtype=torch.bool) if logits is None else class_losses.misclassified(logits, labels)


def scores_hidden(margins: Tensor, labels: Tensor) -> Tensor:
    """Return the loss (N,) of score margins (N, Q) that is largest where no part is found."""
    return part_losses.hidden_scores(margins)


def nothing_found(margins: Tensor, labels: Tensor) -> Tensor:
    """Return bool (N,), whether no part counts as found."""
    return part_losses.all_hidden(margins)
