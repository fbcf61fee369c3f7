"""The model and images under check, and attacks on them, each run once.

Letters: N images (3, H, W) of C classes, RGB, 0..255.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from part_robust.attacks.base import Attack
from part_robust.attacks.class_losses import class_margin
from part_robust.attacks.eot import EotView, select
from part_robust.attacks.objective import AttackObjective, get_objective
from part_robust.attacks.pgd import PGD
from part_robust.attacks.threat_model import ThreatModel

# Length of a step of the short and of the long attacks, in radii.
SHORT_STEP, LONG_STEP = 0.25, 0.1


@dataclass(frozen=True)
class CheckSettings:
    """Settings of the checks, which decide what they cost.

    Attributes:
        images: at most this many images are checked.
        directions: random directions for each image in the audit of the gradient; the quick one uses 2.
        steps: of the short attacks.
        long_steps: of the attack that is then doubled to see whether it has converged.
        restarts: of the attack that is compared with a single run.
        noise_draws: random perturbations that compete with the attack.
        eot_draws: forward passes averaged where a model turns out to be random.
        seed: of all random numbers.
    """

    images: int = 32
    directions: int = 8
    steps: int = 20
    long_steps: int = 100
    restarts: int = 5
    noise_draws: int = 100
    eot_draws: int = 10
    seed: int = 0

    @classmethod
    def from_config(cls, node: Mapping[str, Any]) -> CheckSettings:
        """Read the settings from the config's TEST.CHECKS."""
        return cls(**{name: node[name.upper()] for name in cls.__dataclass_fields__ if name.upper() in node})


@dataclass
class AttackRun:
    """Result of an attack.

    Attributes:
        images: (N, 3, H, W).
        fooled: bool (N,), `images` scored afresh.
        found_any: bool (N,), the attack met an allowed image that is misclassified, whether it returned it or not.
        reported: bool (N,), what the attack says about itself; None where it says nothing.
    """

    images: Tensor
    fooled: Tensor
    found_any: Tensor
    reported: Tensor | None

    @property
    def num_right(self) -> int:
        """Number of images that are still classified correctly."""
        return int((~self.fooled).sum())


class CheckContext:
    """A model as a callable, images, labels, and the threat model and loss of the attack whose numbers are checked."""

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        images: Tensor,
        labels: Tensor,
        attack: Attack,
        *,
        keys: Tensor | None = None,
        padding: Tensor | None = None,
        precise: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Set up a batch and the attack on it that is checked.

        Args:
            forward: differentiable, images (N, 3, H, W) -> class logits (N, C), inside `attack_mode`.
            images: float (N, 3, H, W).
            labels: int64 (N,).
            attack: the one whose numbers are checked.
            keys: int64 (N,), of random numbers; image ids.
            padding: bool (N, H, W), pixels that must not move.
            precise: the same model in float64, for the audit of its gradient.
        """
        self.forward = forward
        self.images = images.detach().clone()
        self.labels = labels
        self.attack = attack
        self.threat_model: ThreatModel = attack.threat_model
        self.keys = torch.arange(len(images), device=images.device) if keys is None else keys.to(images.device)
        self.padding = padding
        self.precise = precise
        self.objective = class_objective(attack)
        self.runs: dict[Any, AttackRun] = {}
        self.subsets: dict[tuple[int, ...], CheckContext] = {}

    def __len__(self) -> int:
        return len(self.images)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return class logits (N, C), without a gradient."""
        return self.forward(images)

    @functools.cached_property
    def clean_logits(self) -> Tensor:
        """Return the model's logits of `images`, float (N, C)."""
        return self.logits(self.images)

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return self.logits(self.images).shape[1]

    def fooled(self, images: Tensor) -> Tensor:
        """Return bool (N,), whether the class predicted on `images` (N, 3, H, W) is wrong."""
        return self.logits(images).argmax(dim=1) != self.labels

    def subset(self, index: Tensor) -> CheckContext:
        """The images at `index`, without the runs on the whole; equal indices give the same object."""
        rows = tuple(index.tolist())
        if rows not in self.subsets:
            self.subsets[rows] = CheckContext(
                select(self.forward, index),
                self.images[index],
                self.labels[index],
                self.attack,
                keys=self.keys[index],
                padding=None if self.padding is None else self.padding[index],
            )
        return self.subsets[rows]

    def run(self, attack: Attack) -> AttackRun:
        """Return the attack's result on these images; it is run once."""
        if attack not in self.runs:
            recording = RecordingModel(self.forward, self.images, self.labels, attack.threat_model)
            with torch.enable_grad():
                found = attack(recording, self.images, self.labels, keys=self.keys, padding=self.padding)
            images = found.images.detach()
            reported = getattr(found, "success", None)
            self.runs[attack] = AttackRun(images, self.fooled(images), recording.found_any, reported)
        return self.runs[attack]

    def pgd(
        self, steps: int, step: float, *, objective: AttackObjective | None = None, scale: float = 1.0
    ) -> AttackRun:
        """PGD from the image itself, the best iterate kept: with more steps of one size it never gets weaker.

        Args:
            steps: number of steps.
            step: length of a step, in radii.
            objective: what to maximise; None: the loss of the attack that is checked.
            scale: factor on the radius.
        """
        objective = self.objective if objective is None else objective
        name = (objective.name, steps, step, scale)
        if name not in self.runs:
            threat = self.threat_model.scaled(scale)
            attack = PGD(
                threat_model=threat,
                objective=objective,
                steps=steps,
                step_size=step * threat.eps,
                random_start=False,
                keep="best",
            )
            self.runs[name] = self.run(attack)
        return self.runs[name]

    def random_starts(self, steps: int, step: float, restarts: int = 1, seed: int = 0) -> AttackRun:
        """PGD from random points of the ball; images that are broken leave.

        Args:
            steps: of each run.
            step: length of a step, in radii.
            restarts: number of runs.
            seed: of the points.
        """
        name = ("random starts", steps, step, restarts, seed)
        if name not in self.runs:
            attack = PGD(
                threat_model=self.threat_model,
                objective=self.objective,
                steps=steps,
                step_size=step * self.threat_model.eps,
                restarts=restarts,
                seed=seed,
                keep="best",
                early_stop=True,
            )
            self.runs[name] = self.run(attack)
        return self.runs[name]

    def unbounded(self, steps: int) -> AttackRun:
        """PGD that may change every pixel to any value."""
        reach = self.threat_model.high - self.threat_model.low
        # Length of a change of every pixel by the whole range.
        reach *= self.images[0].numel() ** {"linf": 0.0, "l2": 0.5, "l1": 1.0}[self.threat_model.norm]
        free = replace(self.threat_model, eps=reach)
        attack = PGD(
            threat_model=free,
            objective=self.objective,
            steps=steps,
            step_size=reach / 20,
            random_start=False,
            keep="best",
        )
        return self.run(attack)


class RecordingModel:
    """Passes images on to the model and records the images for which one was ever misclassified."""

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        images: Tensor,
        labels: Tensor,
        threat_model: ThreatModel,
        rows: Tensor | None = None,
        found_any: Tensor | None = None,
    ) -> None:
        """`rows` int64 (M,) and `found_any` bool (N,) are those of the whole batch that this one is a part of."""
        self.forward = forward
        self.images = images
        self.labels = labels
        self.threat_model = threat_model
        self.rows = torch.arange(len(images), device=images.device) if rows is None else rows
        self.found_any = torch.zeros_like(labels, dtype=torch.bool) if found_any is None else found_any

    def __call__(self, images: Tensor) -> Tensor:
        logits = self.forward(images)
        if len(images) == len(self.labels):
            with torch.no_grad():
                # Attacks that look for the smallest perturbation also try points outside the ball.
                near = self.threat_model.distance(images, self.images) <= self.threat_model.eps + 1e-3
                self.found_any[self.rows] |= near & (logits.argmax(dim=1) != self.labels)
        return logits

    def select(self, index: Tensor) -> RecordingModel:
        """Return the same for the images at `index`, int64 (M,)."""
        forward = select(self.forward, index)
        rows = self.rows[index]
        return RecordingModel(forward, self.images[index], self.labels[index], self.threat_model, rows, self.found_any)


def class_objective(attack: Attack) -> AttackObjective:
    """The attack's loss where it is one of class logits and labels alone, the margin otherwise."""
    return attack.objective if attack.objective.of_class_labels else get_objective("margin")


def relative_margins(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) right logit minus the best wrong one over the spread of the image's logits; negative where misclassified."""
    spread = (logits.amax(dim=1) - logits.amin(dim=1)).clamp(min=1e-30)
    return -class_margin(logits, labels) / spread


def more_than(count: int, total: int, points: float) -> bool:
    """More than `points` per cent of the images, and more than one: of few images, one is chance."""
    return count > 1 and 100.0 * count > points * total


def percent(count: int, total: int) -> float:
    """Per cent."""
    return 100.0 * count / max(total, 1)


def in_expectation(context: CheckContext, draws: int) -> CheckContext:
    """The same with the model's outputs averaged."""
    forward: Callable[[Tensor], Tensor] = EotView(context.forward, draws)
    return CheckContext(
        forward,
        context.images,
        context.labels,
        context.attack,
        keys=context.keys,
        padding=context.padding,
        precise=context.precise,
    )


def judged_attack(attack: Attack) -> Attack:
    """Return the attack itself, or for an attack on parts, PGD on the class in its ball."""
    if not attack.objective.needs_parts:
        return attack
    eps = attack.threat_model.eps
    return PGD(
        threat_model=attack.threat_model,
        objective=class_objective(attack),
        steps=20,
        step_size=eps / 4,
        keep="best",
    )
