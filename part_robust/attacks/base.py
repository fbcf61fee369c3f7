"""The part that all attacks share: the call, the loop over restarts, targets and steps, and building from config.

Letters: N images of (3, H, W), RGB, 0..255; T classes to aim at; S steps.
"""

from __future__ import annotations

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
from part_robust.attacks.objective import AttackObjective, Score, get_objective
from part_robust.attacks.problem import Forward, PlainForward, Problem
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

    # Attacks without gradients cannot be blind.
    uses_gradient = True
    least_steps = 1
    # Runs begin at a random point of the ball, not at the image.
    starts_randomly = True
    # A run returns the worst image it met, so it knows whether the model is fooled.
    keeps_best = True
    # Whose code attacks, in the words of TEST.BACKEND.
    backend = "own"
    # Fewer classes than these have no such loss.
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
        """Build the part that all attacks share.

        Args:
            threat_model: norm, radius, pixel range.
            objective: what to maximise.
            steps: of each run.
            restarts: independent runs; the worst result per image is kept.
            seed: of the random numbers.
            offer_original: the image itself competes with the runs' results, so that an image which the model gets
                wrong stays wrong; costs one forward pass. Objectives that aim at classes need that pass anyway.
            early_stop: images for which nothing worse can happen (`AttackObjective.finished`) leave the batch: those
                whose class is wrong. Flags are the same as without, images the worst so far instead of the worst there
                is.
            compact_every: steps between two looks at who may leave, which cost a host-device exchange each.
            targets: how to choose the classes that targeted objectives aim at, one run for each.
            record_history: fill `AttackResult.history`.

        Raises:
            ValueError: a value is impossible.
        """
        if restarts < 1:
            raise ValueError(f"an attack needs at least 1 restart, got {restarts}")
        if steps < self.least_steps:
            raise ValueError(f"{type(self).__name__} needs STEPS of at least {self.least_steps}, got {steps}")
        if compact_every < 1:
            raise ValueError(f"COMPACT_EVERY must be at least 1, is {compact_every}")
        if objective.targeted and targets is None:
            raise ValueError(f"{type(self).__name__} aims at no class: objective {objective.name!r} needs APGD")
        self.threat_model = threat_model
        self.objective = objective
        self.steps = steps
        self.restarts = restarts
        self.seed = seed
        self.offer_original = offer_original
        self.early_stop = early_stop
        self.compact_every = compact_every
        self.targets = targets if objective.targeted else None
        self.record_history = record_history
        self.scale = 1.0
        # Follow the gradient that a model cuts in training; see `attack_view`.
        self.full_gradient = True
        # Gradients past a detector's choice of object queries; see `OpenQueries`.
        self.query_factor = 1

    @classmethod
    @abstractmethod
    def from_config(cls, node: Mapping) -> Attack:
        """Build the attack from a node that has every key of `default_config`."""

    @classmethod
    def default_config(cls) -> CfgNode:
        """Return the keys of the attack's config node, with their defaults.

        A subclass adds its own keys to what its parent returns. They can then be set in ATTACK.SPECS and ATTACK.TRAIN,
        and are checked against the type of their default.
        """
        node = CfgNode()
        # Name in ATTACK_REGISTRY: "PGD", "APGD", "FAB", "Square", "RandomNoise", or "NFGSM" for training.
        node.NAME = cls.__name__
        # What the attack maximises, a name of attacks/objective.py. Class logits: "cross_entropy", "margin", "dlr", and
        # for APGD "targeted_margin" and "targeted_dlr". Dense parts: "pixel_cross_entropy", "masked_cross_entropy",
        # "balanced_cross_entropy", "jensen_shannon", "segpgd", "cospgd". Detectors: "part_loss" (matched anew at every
        # step), "part_loss_fixed" (matched on the image before the attack), or "joint" and "joint_fixed": class and
        # part loss as in training. These four take dense parts too, with their pixel loss. FAB has a loss of its own
        # and ignores this.
        node.OBJECTIVE = "cross_entropy"
        # Threat model: "linf" or "l2", radius in 0..255 units (an L2 radius of 3.0 in 0..1 units is 765.0).
        node.NORM = "linf"
        node.EPS = 8.0
        # Steps of a run: gradient steps, queries of Square, samples of RandomNoise.
        node.STEPS = 10
        # Independent runs; the worst result of each image is kept.
        node.RESTARTS = 1
        # Random numbers depend on this seed, the image id, the restart and the target only.
        node.SEED = 0
        # Follow the whole gradient, also where a model cuts it in training (boxes between DINO's decoder layers). False
        # repeats the published evaluation, which overestimates robustness.
        node.FULL_GRADIENT = True
        # Detectors that read the class from object queries, which are chosen among the image's pixels: take the
        # gradient of so many times the queries, or of all pixels, while outputs stay the model's own. Otherwise pixels
        # that are not chosen get no gradient. 1: the model's own; 4 as in check C21, at one forward pass more for each
        # step.
        node.QUERY_FACTOR = 1
        # Images for which nothing worse can happen leave the batch: those whose class is wrong (of part objectives,
        # those without a right pixel). Flags are the same as without. PGD needs KEEP best for it. COMPACT_EVERY: steps
        # between two looks at the batch.
        node.EARLY_STOP = False
        node.COMPACT_EVERY = 10
        # Keep the loss of every step, for convergence plots and checks.
        node.RECORD_HISTORY = False
        return node

    def start(self, problem: Problem, restart: int) -> State:
        """Return the state in which a run begins; `problem.keys` are those of the run."""
        raise NotImplementedError(f"{type(self).__name__} has neither `start` and `step` nor a `search` of its own")

    def step(self, problem: Problem, state: State, step: int, scored: bool) -> None:
        """One step, in place. With `scored`, `state.best` must be right after the last step and `finish`."""
        raise NotImplementedError(f"{type(self).__name__} has neither `start` and `step` nor a `search` of its own")

    def finish(self, problem: Problem, state: State) -> None:  # noqa: B027 (most have nothing left to do)
        """Complete a scored run after its last step."""

    def outcome(self, state: State) -> Run:
        """Result of a scored run."""
        return Run(images=state.best, zero_gradient=state.blind, harm=state.best_harm, fooled=state.best_fooled)

    def outcome_of_originals(self, problem: Problem, found: Score) -> Run:
        """The images themselves as a result."""
        assert found.harm is not None and found.fooled is not None
        blind = torch.full_like(found.fooled, self.uses_gradient)
        if self.early_stop:
            blind &= ~self.objective.finished(found.harm, found.fooled)  # these leave before the first step
        return Run(images=problem.images.clone(), zero_gradient=blind, harm=found.harm, fooled=found.fooled)

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
    ) -> AttackResult:
        """Attacks one batch. The model behind `forward` should be inside `attack_view`.

        Args:
            forward: differentiable, (N, 3, H, W) -> outputs the objective understands, class logits above all. What
                knows something about each image must be a `Forward`; any other callable is taken for the model.
            images: float (N, 3, H, W), 0..255.
            targets: labels (N,), or what the objective takes.
            keys: int64 (N,), what random starts depend on besides the seed; image ids make results the same for any
                batch size and order.
            padding: bool (N, H, W), True on pixels that must not move.
            scored: report `fooled` in any case, at the cost of a forward pass where it is not known anyway.
            starts: (N, 3, H, W), where attacks that start at a random point begin their first restart instead, such as
                the result at a smaller radius.
            attackable: bool (N,), False for images that the objective says nothing of (parts without labels), where a
                gradient of zero is as it should be; all by default.

        Raises:
            AttackError: the outputs do not depend on the images.
            UserError: pixels are outside of the threat model's range; labels (on the CPU) are no classes of the model.
            ThreatModelViolation: the attack has a bug.
        """
        images = images.detach().clone()  # also leaves inference mode
        problem = Problem(
            forward=forward if isinstance(forward, Forward) else PlainForward(forward),
            images=images,
            targets=targets,
            keys=keys.to(images.device),
            movable=None if padding is None else (~padding)[:, None].to(images.dtype),
            threat_model=self.threat_model.scaled(self.scale),
            scale=self.scale,
            rows=torch.arange(len(images), device=images.device),
            starts=starts,
        )
        scored = scored or self.keeps_best or self.restarts > 1
        history: list[Tensor] = []
        best, standing = self._originals(problem)
        best = self.search(standing, best, scored, history)
        zero_gradient = best.zero_gradient
        if attackable is not None:
            zero_gradient = zero_gradient & attackable.to(zero_gradient.device)
        # The only wait for the device in an attack without early stopping.
        flags = to_host(
            {
                "allowed": problem.threat_model.allowed(best.images, images),
                "zero_gradient": zero_gradient,
                "low": images.amin(),
                "high": images.amax(),
            }
        )
        check_pixels(float(flags["low"]), float(flags["high"]), problem.threat_model)
        if not flags["allowed"].all():
            problem.threat_model.verify(best.images, images)
        number = int(flags["zero_gradient"].sum())
        if number and self.uses_gradient and problem.threat_model.eps > 0:
            self._warn_of_zero_gradient(number, len(images))
        return AttackResult(
            images=best.images,
            zero_gradient=zero_gradient,
            num_zero_gradient=number,
            fooled=best.fooled,
            forwards=problem.counts.forwards,
            backwards=problem.counts.backwards,
            history=torch.stack(history) if history else None,
            distance=best.distance,
        )

    def search(self, problem: Problem, best: Run | None, scored: bool, history: list[Tensor]) -> Run:
        """All runs, for each restart and each class to aim at.

        Args:
            problem: the images that are attacked.
            best: what is known of the whole batch before; None where nothing is, and `problem` is the whole batch.
            scored: runs must know whether the model is fooled.
            history: takes the losses of each step.

        Returns:
            The worst of all, of the whole batch.
        """
        batch = len(problem) if best is None else len(best.images)
        for restart in range(self.restarts):
            for aim in range(1 if problem.aims is None else problem.aims.shape[1]):
                if not len(problem):
                    break
                run = self._run(self._prepared(problem, restart, aim), restart, scored, history, batch)
                best = run if best is None else worst_of(best, run, problem.rows)
                problem = self._standing(problem, best)
        assert best is not None
        return best

    def _originals(self, problem: Problem) -> tuple[Run | None, Problem]:
        """The images as a first result, and those that remain to be attacked, with the classes to aim at."""
        if self.targets is None and not self.offer_original:
            return None, problem
        with torch.no_grad():
            outputs = problem.ask(problem.images)
            best = self.outcome_of_originals(problem, self.objective.score_originals(outputs, problem.targets))
        standing = self._standing(problem, best)
        if self.targets is not None and len(standing):
            standing = replace(standing, aims=self.targets.choose(standing, outputs[standing.rows]))
        return best, standing

    def _standing(self, problem: Problem, best: Run) -> Problem:
        if not self.early_stop:
            return problem
        assert best.harm is not None and best.fooled is not None
        index = (~self.objective.finished(best.harm, best.fooled)[problem.rows]).nonzero()[:, 0]
        return problem if len(index) == len(problem) else problem.select(index)

    def _prepared(self, problem: Problem, restart: int, aim: int) -> Problem:
        """Return the problem with the keys and the target of one run."""
        if restart > 0:
            problem = replace(problem, starts=None)
        if problem.aims is None:
            return replace(problem, keys=noise.make_keys(self.seed, problem.keys, restart))
        keys = noise.make_keys(self.seed, problem.keys, restart, aim)
        return replace(problem, keys=keys, targets=(problem.targets, problem.aims[:, aim]), aims=None)

    def _run(self, problem: Problem, restart: int, scored: bool, history: list[Tensor], batch: int) -> Run:
        """All steps of one run, whose images may leave on the way."""
        state = self.start(problem, restart)
        place = torch.arange(len(problem), device=problem.images.device)
        whole: Run | None = None
        for step in range(self.steps):
            self.step(problem, state, step, scored)
            if self.record_history:
                history.append(torch.full((batch,), float("nan"), device=place.device))
                history[-1][problem.rows] = state.loss
            if self.early_stop and (step + 1) % self.compact_every == 0 and step + 1 < self.steps:
                index = (~self.objective.finished(state.best_harm, state.best_fooled)).nonzero()[:, 0]
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
            return Run(images=state.x, zero_gradient=state.blind)
        self.finish(problem, state)
        if whole is None:
            return self.outcome(state)
        whole.put(place, self.outcome(state))
        return whole

    def _warn_of_zero_gradient(self, number: int, images: int) -> None:
        log_every_n_seconds(
            logging.WARNING,
            f"{type(self).__name__}: {number} of {images} images got an all-zero gradient at every "
            "step; their result says nothing about robustness (saturated or detached logits?)",
            n=60,
            name=logger.name,
        )

    def describe(self) -> dict:
        """Everything a reader needs to repeat the attack, for reports."""
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


def shared_arguments(node: Mapping) -> dict[str, Any]:
    """Return the constructor's arguments that all attacks read from the config alike."""
    return {
        "threat_model": ThreatModel(norm=node["NORM"], eps=node["EPS"]),
        "objective": get_objective(node["OBJECTIVE"]),
        "steps": node["STEPS"],
        "restarts": node["RESTARTS"],
        "seed": node["SEED"],
        "early_stop": node["EARLY_STOP"],
        "compact_every": node["COMPACT_EVERY"],
        "record_history": node["RECORD_HISTORY"],
    }
