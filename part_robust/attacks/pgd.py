"""Projected gradient descent (Madry et al., 2018); one step from the image itself is FGSM (Goodfellow et al., 2015)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode

from part_robust.attacks.arguments import shared_arguments
from part_robust.attacks.base import ATTACK_REGISTRY, Attack
from part_robust.attacks.problem import Problem, gradient, score
from part_robust.attacks.state import State


@ATTACK_REGISTRY.register()
class PGD(Attack):
    """Steps of fixed length along the steepest ascent, projected back after each."""

    least_steps = 0

    def __init__(
        self, *, steps: int, step_size: float, random_start: bool = True, keep: str = "last", **shared: Any
    ) -> None:
        """Build the attack from its steps.

        Args:
            steps: number of steps, 0 or more.
            step_size: length of a step in the norm, 0..255 units.
            random_start: start uniformly in the ball instead of at the image.
            keep: "last" iterate of each run, or the "best" one for the attacker, the image itself included, which costs
                one or two more forward passes.
            **shared: see `Attack`. Restarts are useless without `random_start`, early stopping needs the best iterate.

        Raises:
            ValueError: a value is impossible.
        """
        if keep not in ("last", "best"):
            raise ValueError(f"KEEP must be 'last' or 'best', got {keep!r}")
        # Without a random start the first iterate is the image already.
        super().__init__(steps=steps, **{"offer_original": keep == "best" and random_start, **shared})
        if step_size < 0:
            raise ValueError(f"STEP_SIZE must not be negative, got {step_size}")
        if self.restarts > 1 and not random_start:
            raise ValueError("RESTARTS > 1 without RANDOM_START repeats the same run")
        if self.early_stop and keep == "last":
            raise ValueError(f"KEEP must be 'best' with EARLY_STOP, got {keep!r}")
        self.step_size = step_size
        self.starts_randomly = random_start
        self.keep = keep
        self.keeps_best = keep == "best"

    @classmethod
    def default_config(cls) -> CfgNode:
        node = super().default_config()
        # Step size in the norm, 0..255 units.
        node.STEP_SIZE = 1.0
        # Start uniformly in the ball instead of at the image.
        node.RANDOM_START = True
        # Which iterate of a run counts, "last" (the thesis) or "best" (the worst for the model along the path, the
        # image itself included, so that attacked accuracy is never above clean accuracy). All other attacks keep the
        # best.
        node.KEEP = "last"
        return node

    @classmethod
    def from_config(cls, node: Mapping) -> PGD:
        return cls(
            step_size=node["STEP_SIZE"],
            random_start=node["RANDOM_START"],
            keep=node["KEEP"],
            **shared_arguments(node),
        )

    def start(self, problem: Problem, restart: int) -> State:
        # Without steps the run is random noise, which needs no gradient.
        x = problem.random_start() if self.starts_randomly else problem.images
        return State(**State.initial_fields(x, zero_gradient=self.steps > 0))

    def step(self, problem: Problem, state: State, step: int, scored: bool) -> None:
        grad, found = gradient(problem, self.objective, state.x, step / self.steps, scored=self.keeps_best)
        if self.keeps_best:
            state.update_best(state.x, found)
        state.loss = found.loss
        state.record_gradient(grad, found)
        state.x = problem.project(problem.threat_model.ascent_step(state.x, grad, self.step_size * problem.scale))

    def finish(self, problem: Problem, state: State) -> None:
        state.update_best(state.x, score(problem, self.objective, state.x))

    def describe(self) -> dict:
        return super().describe() | {
            "step_size": self.step_size,
            "random_start": self.starts_randomly,
            "keep": self.keep,
        }
