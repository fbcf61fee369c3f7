"""One batch under attack: what is attacked, how the model is asked, and how often it was.

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


class AttackError(UserError, RuntimeError):
    """The attack cannot run on this model."""


@runtime_checkable
class Forward(Protocol):
    """Differentiable, images (N, 3, H, W) -> outputs for the objective, of a batch that may shrink.

    Padding, true parts and whatever else belongs to the images is inside, so a subset of the images needs a subset of
    it: `select`.
    """

    def __call__(self, images: Tensor) -> Any: ...

    def select(self, index: Tensor) -> Forward:
        """The same for the images at `index`, int64 (M,)."""
        ...


class PlainForward:
    """A callable that knows nothing about single images, as the model itself is."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        self.function = function

    def __call__(self, images: Tensor) -> Any:
        return self.function(images)

    def select(self, index: Tensor) -> PlainForward:
        """Return itself, as the function knows nothing about single images."""
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
        forward: the model.
        images: the originals.
        targets: for the objective.
        keys: int64 (N,), of the random numbers.
        movable: float (N, 1, H, W), 0 on padding that must stay as it is; None where all pixels may move.
        threat_model: with the radius in force (it may be warming up).
        scale: factor on the radius and so on step sizes, 0..1.
        rows: int64 (N,), where the images stand in the whole batch, some of which may have left.
        aims: int64 (N, T), the classes that targeted objectives aim at, one run for each, the most promising first.
        counts: shared by all subsets.
        starts: (N, 3, H, W), where a run begins instead of a random point; None for a random one.
    """

    forward: Forward
    images: Tensor
    targets: Any
    keys: Tensor
    movable: Tensor | None
    threat_model: ThreatModel
    scale: float
    rows: Tensor
    aims: Tensor | None = None
    counts: Counts = field(default_factory=Counts)
    starts: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def select(self, index: Tensor) -> Problem:
        """The images at `index`, int64 (M,), alone."""
        names = ("images", "targets", "keys", "movable", "rows", "aims", "starts")
        chosen = {name: select(getattr(self, name), index) for name in names}
        return replace(self, forward=self.forward.select(index), **chosen)

    def random_start(self) -> Tensor:
        """A random allowed point of each image, or the nearest allowed one to where the run is told to begin."""
        if self.starts is not None:
            return self.project(self.starts)
        return self.restrict(self.threat_model.random_start(self.images, self.keys))

    def project(self, adversarial: Tensor) -> Tensor:
        """Return the allowed images (N, 3, H, W) that are nearest to `adversarial`."""
        return self.restrict(self.threat_model.project(adversarial, self.images))

    def ask(self, images: Tensor) -> Any:
        """Outputs of the model for the objective; counted."""
        # One question may be several passes (`OpenQueries`).
        self.counts.forwards += len(images) * getattr(self.forward, "passes", 1)
        return self.forward(images)

    def restrict(self, adversarial: Tensor) -> Tensor:
        """Puts the padding back."""
        if self.movable is None:
            return adversarial
        return self.images + (adversarial - self.images) * self.movable


def gradient(
    problem: Problem, objective: AttackObjective, adversarial: Tensor, progress: float = 1.0, judged: bool = True
) -> tuple[Tensor, Score]:
    """Input gradient (N, 3, H, W) of the summed objective, and the score of the outputs, detached.

    Args:
        problem: the batch.
        objective: what to maximise.
        adversarial: where, (N, 3, H, W).
        progress: share of the attack that is over, for objectives that change on the way.
        judged: without, the score has neither harm nor verdict.

    Raises:
        AttackError: the outputs do not depend on the images.
    """
    adversarial = adversarial.detach().requires_grad_(True)
    outputs = problem.ask(adversarial)
    loss = objective.value(outputs, problem.targets, progress)
    if not loss.requires_grad:
        raise AttackError(
            "the model's outputs do not depend on the image (detached, or computed without gradient): "
            "no gradient attack can judge it"
        )
    problem.counts.backwards += len(adversarial)
    (result,) = torch.autograd.grad(loss.sum(), adversarial, allow_unused=True)
    if result is None:
        raise AttackError("the model's outputs do not depend on the image: no gradient attack can judge it")
    if problem.movable is not None:
        result = result * problem.movable
    with torch.no_grad():
        return result, objective.score(outputs, problem.targets, loss.detach(), judged=judged)


@torch.no_grad()
def score(problem: Problem, objective: AttackObjective, adversarial: Tensor, progress: float = 1.0) -> Score:
    """Return the objective's score of images, without gradient."""
    outputs = problem.ask(adversarial)
    return objective.score(outputs, problem.targets, objective.value(outputs, problem.targets, progress))
