"""N-FGSM (de Jorge et al., 2022): one step from a point of much noise, cheap enough for every training batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode

from part_robust.attacks.arguments import shared_arguments
from part_robust.attacks.base import ATTACK_REGISTRY, Attack
from part_robust.attacks.noise import uniform
from part_robust.attacks.problem import Problem, gradient, score
from part_robust.attacks.state import State
from part_robust.attacks.threat_model import ThreatModel


@ATTACK_REGISTRY.register()
class NFGSM(Attack):
    """Uniform noise of `noise` * eps, then one step of eps along the sign of the gradient there.

    The result is not brought back into the ball around the image, only into the pixel range: the clipping of other
    single-step attacks makes training overfit to them. It is an attack for training, not for evaluation.

    Attributes:
        eps: radius that the training is for, L-inf, 0..255 units. `threat_model`, which every result is verified
            against, has the radius of the largest change, (noise + 1) * eps.
    """

    keeps_best = False

    def __init__(self, *, eps: float, noise: float, **shared: Any) -> None:
        """Build the attack for a radius.

        Args:
            eps: see above; also the length of the step.
            noise: largest change of a pixel before the step, in units of eps; the paper's k.
            **shared: see `Attack`, without threat model, steps and restarts.

        Raises:
            ValueError: negative noise.
        """
        if noise < 0:
            raise ValueError(f"NOISE must not be negative, got {noise}")
        threat_model = ThreatModel(norm="linf", eps=(noise + 1.0) * eps)
        super().__init__(threat_model=threat_model, steps=1, offer_original=False, **shared)
        self.eps = eps
        self.noise = noise

    @classmethod
    def default_config(cls) -> CfgNode:
        node = super().default_config()
        # Largest change of a pixel by the noise before the step, in units of EPS. The step is EPS long.
        node.NOISE = 2.0
        return node

    @classmethod
    def from_config(cls, node: Mapping) -> NFGSM:
        """Build the attack from its config node.

        Raises:
            ValueError: a value that only other attacks have.
        """
        if node["NORM"] != "linf":
            raise ValueError(f"NORM of NFGSM must be 'linf', got {node['NORM']!r}")
        if node["RESTARTS"] != 1 or node["EARLY_STOP"]:
            raise ValueError("RESTARTS must be 1 and EARLY_STOP False for NFGSM, which takes one step")
        shared = shared_arguments(node)
        for name in ("threat_model", "steps", "restarts"):
            shared.pop(name)
        return cls(eps=node["EPS"], noise=node["NOISE"], **shared)

    def start(self, problem: Problem, restart: int) -> State:
        shift = (2.0 * uniform(problem.keys, problem.images.shape[1:]) - 1.0) * (self.noise * self.eps * problem.scale)
        # The published step goes out from the noisy image as it is; pixels are clipped once, at the end.
        return State(**State.initial_fields(problem.restrict(problem.images + shift)))

    def step(self, problem: Problem, state: State, step: int, scored: bool) -> None:
        grad, found = gradient(problem, self.objective, state.x, scored=False)
        state.loss = found.loss
        state.record_gradient(grad, found)
        moved = state.x + self.eps * problem.scale * grad.sign()
        state.x = problem.restrict(moved.clamp(problem.threat_model.low, problem.threat_model.high))

    def finish(self, problem: Problem, state: State) -> None:
        state.update_best(state.x, score(problem, self.objective, state.x))

    def describe(self) -> dict:
        return super().describe() | {"training_eps": self.eps, "noise": self.noise}


def training_radius(attack: Attack) -> float:
    """Radius that an attack trains for, 0..255 units: which may be smaller than the largest change that it makes."""
    return attack.eps if isinstance(attack, NFGSM) else attack.threat_model.eps
