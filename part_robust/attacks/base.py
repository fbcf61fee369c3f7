"""The part that all attacks share: the call, the loop over restarts, targets and steps, and building from config.

Letters: N images of (3, H, W), RGB, 0..255; T target classes; S steps.
"""

from __future__ import annotations

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, final

import torch
from detectron2.config import CfgNode
from detectron2.utils.logger import log_every_n_seconds
from detectron2.utils.registry import Registry
from torch import Tensor

from part_robust.attacks import noise
from part_robust.attacks.arguments import shared_arguments as shared_arguments  # for users' attacks
from part_robust.attacks.arguments import shared_keys
from part_robust.attacks.objective import AttackObjective, Score
from part_robust.attacks.problem import Forward, PlainForward, Problem, perturbable_pixels
from part_robust.attacks.state import AttackResult, Run, State, worst_of
from part_robust.attacks.targets import TargetChoice
from part_robust.attacks.threat_model import ThreatModel, check_pixels
from part_robust.utils.transfer import to_host

logger = logging.getLogger(__name__)

ATTACK_REGISTRY = Registry("ATTACK")
ATTACK_REGISTRY.__doc__ = """
Attacks by the name the config gives them. A class states its keys and their defaults in `default_config()` and is built
by `from_config(node)`.
"""


class Attack(ABC):
    """Maximises an objective inside a threat model, in runs of equally many steps.

    Attributes:
        scale: factor on the radius, set by the eps warm-up of training.
    """

    # Attacks without gradients never report a zero gradient.
    uses_gradient = True
    least_steps = 1
    # Runs begin at a random point of the ball, not at the image.
    starts_randomly = True
    # A run returns its worst image, so it knows whether that is a success.
    keeps_best = True
    # Implementation of the attack, a value of TEST.BACKEND.
    backend = "own"
    # Smallest number of classes for which the loss is defined.
    least_classes = 2
    # Keys of the config node without a default, beside those of `default_config`.
    own_keys: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        threat_model: ThreatModel,
        objective: AttackObjective,
        steps: int,
        restarts: int = 1,
        seed: int = 0,
        offer_original: bool = True,
        early_stop: bool = False,
        compact_every: int = 10,
        targets: TargetChoice | None = None,
        record_history: bool = False,
    ) -> None:
        """Set what all attacks share.

        Args:
            threat_model: norm, radius, pixel range.
            objective: what to maximise.
            steps: of each run.
            restarts: independent runs; the worst result per image is kept.
            seed: of the random numbers.
            offer_original: the image itself competes with the runs' results, so that an image which the model gets
                wrong stays wrong; costs one forward pass. Targeted objectives need that pass anyway.
            early_stop: remove images whose result cannot get worse from the batch (`AttackObjective.finished`): those
                whose class is wrong. `success` is the same as without; images are the worst so far instead of the
                worst of all steps.
            compact_every: remove finished images every so many steps; each removal synchronises with the device.
            targets: how to choose the target classes of targeted objectives, one run for each.
            record_history: fill `AttackResult.history`.

        Raises:
            ValueError: a value is impossible.
        """
        if restarts < 1:
            raise ValueError(f"RESTARTS must be at least 1, got {restarts}")
        if steps < self.least_steps:
            raise ValueError(f"STEPS of {type(self).__name__} must be at least {self.least_steps}, got {steps}")
        if compact_every < 1:
            raise ValueError(f"COMPACT_EVERY must be at least 1, got {compact_every}")
        if objective.targeted and targets is None:
            raise ValueError(
                f"OBJECTIVE {objective.name!r} needs target classes; {type(self).__name__} has none. Use APGD"
            )
        self.threat_model = threat_model
        self.objective = objective
        self.steps = steps
        self.restarts = restarts
        # Index of the first run; see `at_restart`.
        self.first_restart = 0
        self.seed = seed
        self.offer_original = offer_original
        self.early_stop = early_stop
        self.compact_every = compact_every
        self.targets = targets if objective.targeted else None
        self.record_history = record_history
        self.scale = 1.0
        # Follow the gradient that a model detaches in training; see `attack_mode`.
        self.full_gradient = True
        # Gradients past a detector's choice of object queries; see `ExpandedQueries`.
        self.query_factor = 1

    @classmethod
    @abstractmethod
    def from_config(cls, node: Mapping) -> Attack:
        """Build the attack from a node that has every key of `default_config`."""

    @classmethod
    def default_config(cls) -> CfgNode:
        """Return the keys of the attack's config node, with their defaults.

        A subclass adds its own keys to what its parent returns. They can then be set in ATTACK.SPECS and ATTACK.TRAIN,
        and have the type of their default.
        """
        return shared_keys(cls.__name__)

    def start(self, problem: Problem, restart: int) -> State:
        """Return the state at the start of a run; `problem.keys` are those of the run."""
        raise NotImplementedError(f"{type(self).__name__} must define `start` and `step`, or `search`")

    def step(self, problem: Problem, state: State, step: int, scored: bool) -> None:
        """Take one step, in place. With `scored`, `state.best` must be right after the last step and `finish`."""
        raise NotImplementedError(f"{type(self).__name__} must define `start` and `step`, or `search`")

    def finish(self, problem: Problem, state: State) -> None:  # noqa: B027 (most attacks need none)
        """Complete a scored run after its last step."""

    def outcome(self, state: State) -> Run:
        """Return the result of a scored run."""
        return Run(state.best, state.zero_gradient, margin_score=state.best_score, success=state.best_success)

    def outcome_of_originals(self, problem: Problem, found: Score) -> Run:
        """Return the images themselves as a result."""
        assert found.margin_score is not None and found.success is not None
        zero_gradient = torch.full_like(found.success, self.uses_gradient)
        if self.early_stop:
            # These are removed before the first step.
            zero_gradient &= ~self.objective.finished(found.margin_score, found.success)
        return Run(problem.images.clone(), zero_gradient, margin_score=found.margin_score, success=found.success)

    @final
    def __call__(
        self,
        forward: Forward | Callable[[Tensor], Any],
        images: Tensor,
        targets: Any,
        *,
        keys: Tensor,
        padding: Tensor | None = None,
        scored: bool = False,
        starts: Tensor | None = None,
        attackable: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> AttackResult:
        """Attack one batch. The model behind `forward` should be inside `attack_mode`.

        Args:
            forward: differentiable, (N, 3, H, W) -> outputs that the objective takes, mostly class logits. A callable
                that holds data of each image must be a `Forward`; any other one is used as the model.
            images: float (N, 3, H, W), 0..255.
            targets: labels (N,), or the targets that the objective takes.
            keys: int64 (N,), seeds of the random starts, together with SEED; image ids make results the same for any
                batch size and order.
            padding: bool (N, H, W), True on pixels that must not change.
            scored: compute `success` in any case, at the cost of a forward pass where it is not known anyway.
            starts: (N, 3, H, W), replaces the random start of the first restart, for example by the result at a smaller
                radius.
            attackable: bool (N,), False for images without labels for the objective (of the parts), where a zero
                gradient is expected; all by default.
            mask: (N, 1, H, W), bool or a number that is 0 on pixels that the attacker must not change; None: all may
                change. An image whose mask is empty stays as it is.

        Raises:
            AttackError: the outputs do not depend on the images.
            ValueError: the mask has another shape.
            UserError: pixels are outside of the threat model's range; labels (on the CPU) are not classes of the model.
            ThreatModelViolation: the attack has a bug.
        """
        images = images.detach().clone()  # also leaves inference mode
        perturbable, mask = perturbable_pixels(images, padding, mask)
        problem = Problem(
            model=forward if isinstance(forward, Forward) else PlainForward(forward),
            images=images,
            targets=targets,
            keys=keys.to(images.device),
            perturbable=perturbable,
            threat_model=self.threat_model.scaled(self.scale),
            scale=self.scale,
            rows=torch.arange(len(images), device=images.device),
            starts=starts,
            mask=mask,
        )
        scored = scored or self.keeps_best or self.restarts > 1
        history: list[Tensor] = []
        best, remaining = self._originals(problem)
        best = self.search(remaining, best, scored, history)
        zero_gradient = best.zero_gradient
        if attackable is not None:
            zero_gradient = zero_gradient & attackable.to(zero_gradient.device)
        if mask is not None:
            zero_gradient = zero_gradient & mask.flatten(1).any(dim=1)
        # The only wait for the device in an attack without early stopping.
        flags = to_host(
            {
                "allowed": problem.threat_model.allowed(best.images, images, perturbable),
                "zero_gradient": zero_gradient,
                "attackable": torch.ones_like(zero_gradient) if attackable is None else attackable,
                "low": images.amin(),
                "high": images.amax(),
            }
        )
        check_pixels(float(flags["low"]), float(flags["high"]), problem.threat_model)
        if not flags["allowed"].all():
            problem.threat_model.verify(best.images, images, perturbable)
        number = int(flags["zero_gradient"].sum())
        if number and self.uses_gradient and problem.threat_model.eps > 0:
            self._warn_of_zero_gradient(number, len(images))
        return AttackResult(
            images=best.images,
            zero_gradient=zero_gradient,
            num_zero_gradient=number,
            num_attackable=int(flags["attackable"].sum()),
            success=best.success,
            forwards=problem.counts.forwards,
            backwards=problem.counts.backwards,
            history=torch.stack(history) if history else None,
            distance=best.distance,
        )

    def at_restart(self, restart: int) -> Attack:
        """Return the same attack with one run alone, that which RESTARTS = `restart` + 1 adds to RESTARTS = `restart`.

        Args:
            restart: index of the run, from 0.

        Raises:
            ValueError: the runs of the attack do not start at random, or it is not ours.
        """
        if not self.starts_randomly or self.backend != "own":
            raise ValueError(f"restart {restart} of {type(self).__name__} must have a random start of its own")
        one = copy.copy(self)
        one.restarts, one.first_restart = 1, restart
        return one

    def search(self, problem: Problem, best: Run | None, scored: bool, history: list[Tensor]) -> Run:
        """Run the attack for each restart and each target class.

        Args:
            problem: the images that are attacked.
            best: the result of the whole batch before the first run; None: there is none, and `problem` is the whole
                batch.
            scored: runs must compute whether they succeed.
            history: receives the losses of each step.

        Returns:
            The worst result of each image of the whole batch.
        """
        batch = len(problem) if best is None else len(best.images)
        for restart in range(self.first_restart, self.first_restart + self.restarts):
            for index in range(1 if problem.target_classes is None else problem.target_classes.shape[1]):
                if not len(problem):
                    break
                run = self._run(self._prepare_run(problem, restart, index), restart, scored, history, batch)
                best = run if best is None else worst_of(best, run, problem.rows)
                problem = self._remaining(problem, best)
        assert best is not None
        return best

    def _originals(self, problem: Problem) -> tuple[Run | None, Problem]:
        """Return the images as a first result, and those that remain to be attacked, with their target classes."""
        if self.targets is None and not self.offer_original:
            return None, problem
        with torch.no_grad():
            outputs = problem.forward(problem.images)
            best = self.outcome_of_originals(problem, self.objective.score_originals(outputs, problem.targets))
        remaining = self._remaining(problem, best)
        if self.targets is not None and len(remaining):
            remaining = replace(remaining, target_classes=self.targets.choose(remaining, outputs[remaining.rows]))
        return best, remaining

    def _remaining(self, problem: Problem, best: Run) -> Problem:
        if not self.early_stop:
            return problem
        assert best.margin_score is not None and best.success is not None
        index = (~self.objective.finished(best.margin_score, best.success)[problem.rows]).nonzero()[:, 0]
        return problem if len(index) == len(problem) else problem.select(index)

    def _prepare_run(self, problem: Problem, restart: int, index: int) -> Problem:
        """Return the problem with the keys and the target class of one run, the `index`-th."""
        if restart > 0:
            problem = replace(problem, starts=None)
        if problem.target_classes is None:
            return replace(problem, keys=noise.make_keys(self.seed, problem.keys, restart))
        keys = noise.make_keys(self.seed, problem.keys, restart, index)
        targets = (problem.targets, problem.target_classes[:, index])
        return replace(problem, keys=keys, targets=targets, target_classes=None)

    def _run(self, problem: Problem, restart: int, scored: bool, history: list[Tensor], batch: int) -> Run:
        """Take all steps of one run, and remove finished images on the way."""
        state = self.start(problem, restart)
        place = torch.arange(len(problem), device=problem.images.device)
        whole: Run | None = None
        for step in range(self.steps):
            self.step(problem, state, step, scored)
            if self.record_history:
                history.append(torch.full((batch,), float("nan"), device=place.device))
                history[-1][problem.rows] = state.loss
            if self.early_stop and (step + 1) % self.compact_every == 0 and step + 1 < self.steps:
                index = (~self.objective.finished(state.best_score, state.best_success)).nonzero()[:, 0]
                if len(index) == len(place):
                    continue
                if whole is None:
                    whole = self.outcome(state).copy()
                else:
                    whole.put(place, self.outcome(state))
                state, problem, place = state.select(index), problem.select(index), place[index]
                if not len(index):
                    return whole
        if not scored:
            return Run(images=state.x, zero_gradient=state.zero_gradient)
        self.finish(problem, state)
        if whole is None:
            return self.outcome(state)
        whole.put(place, self.outcome(state))
        return whole

    def _warn_of_zero_gradient(self, number: int, images: int) -> None:
        log_every_n_seconds(
            logging.WARNING,
            f"{type(self).__name__}: {number} of {images} images got an all-zero gradient at every "
            "step, so a failed attack on them is not evidence of robustness (saturated or detached logits?)",
            n=60,
            name=logger.name,
        )

    def describe(self) -> dict:
        """Return all settings of the attack, for records and reports."""
        return {
            "attack": type(self).__name__,
            "backend": self.backend,
            "objective": self.objective.name,
            "threat_model": self.threat_model.describe(),
            "steps": self.steps,
            "restarts": self.restarts,
            "seed": self.seed,
            "full_gradient": self.full_gradient,
            "offer_original": self.offer_original,
            "early_stop": self.early_stop,
            "compact_every": self.compact_every,
            **({} if self.query_factor == 1 else {"query_factor": self.query_factor}),
            **({} if self.targets is None else self.targets.describe()),
        }
