"""The interface of objectives: what an attack maximises, per image, and when it succeeds.

Letters: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from part_robust.attacks.attackable import AttackInputs
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
    def needs_term(self) -> str:
        """The term of a detector's part loss that it reads, one of `PartSegmenter.attack_terms`; "" for none."""
        return ""

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
