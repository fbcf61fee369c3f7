"""Uniform noise: the control that every attack must beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from part_robust.attacks.arguments import shared_arguments
from part_robust.attacks.base import ATTACK_REGISTRY, Attack
from part_robust.attacks.noise import make_keys
from part_robust.attacks.problem import Problem, score
from part_robust.attacks.state import State


@ATTACK_REGISTRY.register()
class RandomNoise(Attack):
    """The worst of `steps` points drawn uniformly from the ball; one forward pass each."""

    uses_gradient = False

    @classmethod
    def from_config(cls, node: Mapping) -> RandomNoise:
        return cls(**shared_arguments(node))

    def start(self, problem: Problem, restart: int) -> State:
        return State(**State.initial_fields(problem.images, zero_gradient=False))

    def step(self, problem: Problem, state: State, step: int, scored: bool) -> None:
        drawn = replace(problem, keys=make_keys(0, problem.keys, step))
        state.x = drawn.random_start()
        state.update_best(state.x, score(problem, self.objective, state.x))
