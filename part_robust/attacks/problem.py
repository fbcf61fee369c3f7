"""One batch under attack: images, targets, model, and the number of forward and backward passes.

Letters: N images of (3, H, W), RGB, 0..255.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from part_robust.attacks.objective import AttackObjective, Score
from part_robust.attacks.state import select
from part_robust.attacks.threat_model import ThreatModel
from part_robust.utils.errors import UserError
from part_robust.utils.renamed import renamed


class AttackError(UserError, RuntimeError):
    """The attack cannot run on this model."""


@runtime_checkable
class Forward(Protocol):
    """Differentiable, images (N, 3, H, W) -> outputs for the objective, of a batch that may shrink.

    It holds padding, ground truth and all other data of the images, so a subset of the images needs a subset of it:
    `select`.
    """

    def __call__(self, images: Tensor) -> Any: ...

    def select(self, index: Tensor) -> Forward:
        """The same for the images at `index`, int64 (M,)."""
        ...


class PlainForward:
    """A callable that holds no data of single images, such as the model itself."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        self.function = function

    def __call__(self, images: Tensor) -> Any:
        return self.function(images)

    def select(self, index: Tensor) -> PlainForward:
        """Return itself, as the function holds no data of single images."""
        return self


@dataclass
class Counts:
    """Images sent through the model, forward and backward: a batch of 4 for 3 steps counts 12."""

    forwards: int = 0
    backwards: int = 0


@dataclass
class Problem:
    """One batch under attack.

    Attributes:
        model: images -> outputs.
        images: the originals.
        targets: for the objective.
        keys: int64 (N,), of the random numbers.
        perturbable: float (N, 1, H, W), 0 on pixels that must not change, as padding and all outside of the attacker's
            mask; None: all pixels may change.
        threat_model: with the radius in force (it may be warming up).
        scale: factor on the radius and so on step sizes, 0..1.
        rows: int64 (N,), row of each image in the whole batch, from which images may have been removed.
        target_classes: int64 (N, T), of targeted objectives, one run for each, the most promising first.
        counts: shared by all subsets.
        starts: (N, 3, H, W), start of a run; None for a random one.
        mask: bool (N, 1, H, W), `perturbable` of an attacker with a mask, who spends the radius inside it; None: the
            attacker has none.
    """

    model: Forward
    images: Tensor
    targets: Any
    keys: Tensor
    perturbable: Tensor | None
    threat_model: ThreatModel
    scale: float
    rows: Tensor
    target_classes: Tensor | None = None
    counts: Counts = field(default_factory=Counts)
    starts: Tensor | None = None
    mask: Tensor | None = None

    # Names of earlier versions.
    movable = renamed("perturbable")
    aims = renamed("target_classes")
    ask = renamed("forward")

    def __len__(self) -> int:
        return len(self.images)

    def select(self, index: Tensor) -> Problem:
        """The images at `index`, int64 (M,), alone."""
        names = ("images", "targets", "keys", "perturbable", "rows", "target_classes", "starts", "mask")
        chosen = {name: select(getattr(self, name), index) for name in names}
        return replace(self, model=self.model.select(index), **chosen)

    def random_start(self) -> Tensor:
        """A random allowed point of each image, or the allowed point that is nearest to `starts`."""
        if self.starts is not None:
            return self.project(self.starts)
        mask = self.mask
        if mask is None and self.perturbable is not None and self.threat_model.norm == "l1":
            mask = self.perturbable > 0  # the range of padding would cut off most of the radius
        return self.restrict(self.threat_model.random_start(self.images, self.keys, mask))

    def project(self, adversarial: Tensor) -> Tensor:
        """Return the allowed images (N, 3, H, W) that are nearest to `adversarial`."""
        if self.threat_model.norm == "l1":
            # A change that is undone afterwards must not use up the radius.
            adversarial = self.restrict(adversarial)
        return self.restrict(self.threat_model.project(adversarial, self.images))

    def forward(self, images: Tensor) -> Any:
        """Return the outputs of the model for the objective, and count the forward passes."""
        # One call may be several passes (`ExpandedQueries`).
        self.counts.forwards += len(images) * getattr(self.model, "passes", 1)
        return self.model(images)

    def restrict(self, adversarial: Tensor) -> Tensor:
        """Undo changes of pixels that must not change."""
        if self.perturbable is None:
            return adversarial
        return self.images + (adversarial - self.images) * self.perturbable


def gradient(
    problem: Problem,
    objective: AttackObjective,
    adversarial: Tensor,
    progress: float = 1.0,
    scored: bool = True,
    judged: bool | None = None,
) -> tuple[Tensor, Score]:
    """Input gradient (N, 3, H, W) of the summed objective, and the score of the outputs, detached.

    Args:
        problem: the batch.
        objective: what to maximise.
        adversarial: where, (N, 3, H, W).
        progress: share of the steps taken so far, 0..1, for objectives that depend on it.
        scored: compute `Score.margin_score` and `Score.success`, too.
        judged: old name of `scored`.

    Raises:
        AttackError: the outputs do not depend on the images.
    """
    scored = scored if judged is None else judged
    adversarial = adversarial.detach().requires_grad_(True)
    outputs = problem.forward(adversarial)
    loss = objective.value(outputs, problem.targets, progress)
    if not loss.requires_grad:
        raise AttackError(
            "the model's outputs do not depend on the image (detached, or computed without gradient): "
            "no gradient attack can evaluate it"
        )
    problem.counts.backwards += len(adversarial)
    (result,) = torch.autograd.grad(loss.sum(), adversarial, allow_unused=True)
    if result is None:
        raise AttackError("the model's outputs do not depend on the image: no gradient attack can evaluate it")
    if problem.perturbable is not None:
        result = result * problem.perturbable
    with torch.no_grad():
        return result, objective.score(outputs, problem.targets, loss.detach(), scored=scored)


@torch.no_grad()
def score(problem: Problem, objective: AttackObjective, adversarial: Tensor, progress: float = 1.0) -> Score:
    """Return the objective's score of images, without gradient."""
    outputs = problem.forward(adversarial)
    return objective.score(outputs, problem.targets, objective.value(outputs, problem.targets, progress))


def perturbable_pixels(
    images: Tensor, padding: Tensor | None, mask: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Return `Problem.perturbable` and `Problem.mask`.

    Raises:
        ValueError: the mask has another shape than one channel of the images.
    """
    free = None if padding is None else (~padding)[:, None]
    if mask is None:
        return None if free is None else free.to(images.dtype), None
    if mask.shape != images[:, :1].shape:
        raise ValueError(f"mask must be of shape {tuple(images[:, :1].shape)}, got {tuple(mask.shape)}")
    mask = mask.to(images.device) != 0
    if free is not None:
        mask = mask & free
    return mask.to(images.dtype), mask
