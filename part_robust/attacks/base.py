"""What every attack shares: the call, restarts, zero gradients, verification, building from config.

Letters: N images of (3, H, W), RGB, 0..255.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from detectron2.utils.logger import log_every_n_seconds
from detectron2.utils.registry import Registry
from torch import Tensor

from part_robust.attacks import noise
from part_robust.attacks.objective import Objective, better
from part_robust.attacks.threat_model import ThreatModel

logger = logging.getLogger(__name__)

ATTACK_REGISTRY = Registry("ATTACK")
ATTACK_REGISTRY.__doc__ = """
Attacks by the name the config gives them. A class is built by `from_config(node)`, a mapping with the keys of
`ATTACK.TRAIN` in part_robust/config.py, of which any may be missing.
"""

Forward = Callable[[Tensor], Any]


class AttackError(RuntimeError):
    """The attack cannot run on this model."""


@dataclass
class Problem:
    """One batch under attack.

    Attributes:
        forward: differentiable, images (N, 3, H, W) -> outputs for the objective.
        images: the originals.
        targets: for the objective.
        movable: float (N, 1, H, W), 0 on padding that must stay as it is; None where all pixels may move.
        threat_model: with the radius in force (it may be warming up).
        scale: factor on the radius and so on step sizes, 0..1.
    """

    forward: Forward
    images: Tensor
    targets: Any
    movable: Tensor | None
    threat_model: ThreatModel
    scale: float

    def random_start(self, keys: Tensor) -> Tensor:
        return self.restrict(self.threat_model.random_start(self.images, keys))

    def project(self, adversarial: Tensor) -> Tensor:
        return self.restrict(self.threat_model.project(adversarial, self.images))

    def restrict(self, adversarial: Tensor) -> Tensor:
        """Puts the padding back."""
        if self.movable is None:
            return adversarial
        return self.images + (adversarial - self.images) * self.movable


@dataclass
class Run:
    """Result of one restart. `loss` and `fooled` (N,) belong to `images`; None where nobody needs to know."""

    images: Tensor
    zero_gradient: Tensor
    loss: Tensor | None = None
    fooled: Tensor | None = None


@dataclass
class AttackResult:
    """Attributes:
    images: (N, 3, H, W), allowed by the threat model (verified).
    zero_gradient: bool (N,), images whose gradient was zero at every step of every restart: the attack was blind
        there and the result says nothing about robustness.
    """

    images: Tensor
    zero_gradient: Tensor


class Attack(ABC):
    """Maximises an objective inside a threat model."""

    def __init__(
        self,
        *,
        threat_model: ThreatModel,
        objective: Objective,
        restarts: int = 1,
        seed: int = 0,
        offer_original: bool = False,
    ) -> None:
        """
        Args:
            threat_model: norm, radius, pixel range.
            objective: what to maximise.
            restarts: independent runs; the worst result per image is kept.
            seed: of the random numbers.
            offer_original: the image itself competes with the runs' results, so that an image which the model gets
                wrong stays wrong; costs one forward pass.

        Raises:
            ValueError: less than one restart.
        """
        if restarts < 1:
            raise ValueError(f"an attack needs at least 1 restart, got {restarts}")
        self.threat_model = threat_model
        self.objective = objective
        self.restarts = restarts
        self.seed = seed
        self.offer_original = offer_original
        # Factor on the radius, set by the eps warm-up of training.
        self.scale = 1.0
        # Follow the gradient that a model cuts in training; see `attack_view`.
        self.full_gradient = True

    @classmethod
    @abstractmethod
    def from_config(cls, node: Mapping) -> Attack:
        """Builds the attack from the keys of ATTACK.TRAIN; missing ones take the constructor's defaults."""

    @abstractmethod
    def run(self, problem: Problem, keys: Tensor, scored: bool) -> Run:
        """One restart. `keys` int64 (N,) for random numbers; with `scored` the run reports `loss` and `fooled`."""

    @final
    def __call__(
        self,
        forward: Forward,
        images: Tensor,
        targets: Any,
        *,
        keys: Tensor,
        padding: Tensor | None = None,
    ) -> AttackResult:
        """Attacks one batch. The model behind `forward` should be inside `attack_view`.

        Args:
            forward: differentiable, (N, 3, H, W) -> outputs the objective understands, class logits above all.
            images: float (N, 3, H, W), 0..255.
            targets: labels (N,), or what the objective takes.
            keys: int64 (N,), what random starts depend on besides the seed; image ids make results the same for any
                batch size and order.
            padding: bool (N, H, W), True on pixels that must not move.

        Raises:
            AttackError: the outputs do not depend on the images.
            ThreatModelViolation: the attack has a bug.
        """
        images = images.detach().clone()  # also leaves inference mode
        problem = Problem(
            forward=forward,
            images=images,
            targets=targets,
            movable=None if padding is None else (~padding)[:, None].to(images.dtype),
            threat_model=self.threat_model.scaled(self.scale),
            scale=self.scale,
        )
        keys = keys.to(images.device)
        best: Run | None = None
        if self.offer_original:
            loss, fooled = score(problem, self.objective, images)
            best = Run(images=images, zero_gradient=torch.ones_like(fooled), loss=loss, fooled=fooled)
        scored = self.restarts > 1 or self.offer_original
        for restart in range(self.restarts):
            run = self.run(problem, noise.make_keys(self.seed, keys, restart), scored=scored)
            best = run if best is None else _worst_of(best, run)
        assert best is not None
        problem.threat_model.verify(best.images, images)
        blind = int(best.zero_gradient.sum()) if self.threat_model.eps > 0 and self.scale > 0 else 0
        if blind:
            log_every_n_seconds(
                logging.WARNING,
                f"{type(self).__name__}: {blind} of {len(images)} images got an all-zero gradient at every step; "
                "their result says nothing about robustness (saturated or detached logits?)",
                n=60,
                name=logger.name,
            )
        return AttackResult(images=best.images, zero_gradient=best.zero_gradient)

    def describe(self) -> dict:
        """Everything a reader needs to repeat the attack, for reports."""
        return {
            "attack": type(self).__name__,
            "objective": self.objective.name,
            "threat_model": self.threat_model.describe(),
            "restarts": self.restarts,
            "seed": self.seed,
            "full_gradient": self.full_gradient,
        }


def gradient(problem: Problem, objective: Objective, adversarial: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Input gradient of the summed objective, and the outputs' `loss` and `fooled`, all (N, ...) and detached.

    Raises:
        AttackError: the outputs do not depend on the images.
    """
    adversarial = adversarial.detach().requires_grad_(True)
    outputs = problem.forward(adversarial)
    loss = objective.loss(outputs, problem.targets)
    if not loss.requires_grad:
        raise AttackError(
            "the model's outputs do not depend on the image (detached, or computed without gradient): "
            "no gradient attack can judge it"
        )
    (result,) = torch.autograd.grad(loss.sum(), adversarial, allow_unused=True)
    if result is None:
        raise AttackError("the model's outputs do not depend on the image: no gradient attack can judge it")
    if problem.movable is not None:
        result = result * problem.movable
    return result, loss.detach(), objective.fooled(outputs, problem.targets).detach()


@torch.no_grad()
def score(problem: Problem, objective: Objective, adversarial: Tensor) -> tuple[Tensor, Tensor]:
    """`loss` and `fooled` (N,) of images, without gradient."""
    outputs = problem.forward(adversarial)
    return objective.loss(outputs, problem.targets), objective.fooled(outputs, problem.targets)


def _worst_of(first: Run, second: Run) -> Run:
    assert first.loss is not None and first.fooled is not None
    assert second.loss is not None and second.fooled is not None
    take = better(second.loss, second.fooled, first.loss, first.fooled)
    return Run(
        images=torch.where(take.view(-1, 1, 1, 1), second.images, first.images),
        zero_gradient=first.zero_gradient & second.zero_gradient,
        loss=torch.where(take, second.loss, first.loss),
        fooled=torch.where(take, second.fooled, first.fooled),
    )


def build_attack(node: Mapping, **overrides: Any) -> Attack:
    """Builds an attack from a config node such as `cfg.ATTACK.SPECS.pgd20` or `cfg.ATTACK.TRAIN`.

    Args:
        node: mapping with NAME and any of the attack's keys (part_robust/config.py).
        **overrides: keys to change, as in `build_attack(node, EPS=4.0)`.

    Raises:
        KeyError: no attack of that name.
        ValueError: a value is impossible.
    """
    merged = {**dict(node), **overrides}
    attack = ATTACK_REGISTRY.get(merged.get("NAME", "PGD")).from_config(merged)
    attack.full_gradient = merged.get("FULL_GRADIENT", True)
    return attack
