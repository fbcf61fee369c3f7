"""N-FGSM (de Jorge et al., 2022): one step from a point of much noise, cheap enough for every training batch."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from part_robust.attacks import noise
from part_robust.attacks.base import ATTACK_REGISTRY, Attack, Problem, Run, gradient, score
from part_robust.attacks.objective import Objective, get_objective
from part_robust.attacks.threat_model import ThreatModel


@ATTACK_REGISTRY.register()
class NFGSM(Attack):
    """Uniform noise of `noise` * eps, then one step of eps along the sign of the gradient there.

    The result is not brought back into the ball around the image, only into the pixel range: the clipping of other
    single-step attacks is what lets a training overfit to them. It is an attack for training, not for evaluation.

    Attributes:
        eps: radius that the training is for, L-inf, 0..255 units. `threat_model`, which every result is verified
            against, has the radius that can be reached, (noise + 1) * eps.
    """

    def __init__(self, *, eps: float = 8.0, objective: Objective, noise: float = 2.0, seed: int = 0) -> None:
        """
        Args:
            eps: see above; also the length of the step.
            objective: what to maximise.
            noise: largest change of a pixel before the step, in units of eps; the paper's k.
            seed: of the noise.

        Raises:
            ValueError: negative noise.
        """
        if noise < 0:
            raise ValueError(f"NOISE must not be negative, is {noise}")
        super().__init__(
            threat_model=ThreatModel(norm="linf", eps=(noise + 1.0) * eps), objective=objective, restarts=1, seed=seed
        )
        self.eps = eps
        self.noise = noise

    @classmethod
    def from_config(cls, node: Mapping) -> NFGSM:
        if node.get("NORM", "linf") != "linf":
            raise ValueError(f"NFGSM is an attack in the L-inf norm, NORM is {node['NORM']!r}")
        if node.get("RESTARTS", 1) != 1:
            raise ValueError("NFGSM has no restarts: set RESTARTS 1")
        return cls(
            eps=node.get("EPS", 8.0),
            objective=get_objective(node.get("OBJECTIVE", "cross_entropy")),
            noise=node.get("NOISE", 2.0),
            seed=node.get("SEED", 0),
        )

    def run(self, problem: Problem, keys: Tensor, scored: bool) -> Run:
        shape = problem.images.shape[1:]
        start = (2.0 * noise.uniform(keys, shape) - 1.0) * (self.noise * self.eps * problem.scale)
        # The published step goes out from the noisy image as it is; pixels are clipped once, at the end.
        start = problem.restrict(problem.images + start)
        slope, _, _ = gradient(problem, self.objective, start)
        result = start + self.eps * problem.scale * slope.sign()
        result = problem.restrict(result.clamp(problem.threat_model.low, problem.threat_model.high))
        blind = (slope == 0).flatten(1).all(dim=1)
        if not scored:
            return Run(images=result, zero_gradient=blind)
        loss, fooled = score(problem, self.objective, result)
        return Run(images=result, zero_gradient=blind, loss=loss, fooled=fooled)

    def describe(self) -> dict:
        return super().describe() | {"training_eps": self.eps, "noise": self.noise, "steps": 1}


def training_radius(attack: Attack) -> float:
    """Radius that an attack trains for, 0..255 units: not always the largest change that it makes."""
    return attack.eps if isinstance(attack, NFGSM) else attack.threat_model.eps
