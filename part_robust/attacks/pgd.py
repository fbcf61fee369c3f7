"""Projected gradient descent (Madry et al., 2018); one step from the image itself is FGSM (Goodfellow et al., 2015)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from part_robust.attacks.base import ATTACK_REGISTRY, Attack, Problem, Run, gradient, score
from part_robust.attacks.objective import Objective, better, get_objective
from part_robust.attacks.threat_model import ThreatModel


@ATTACK_REGISTRY.register()
class PGD(Attack):
    """Steps of fixed length along the steepest ascent, projected back after each."""

    def __init__(
        self,
        *,
        threat_model: ThreatModel,
        objective: Objective,
        steps: int = 10,
        step_size: float = 1.0,
        random_start: bool = True,
        restarts: int = 1,
        keep: str = "last",
        seed: int = 0,
    ) -> None:
        """
        Args:
            threat_model: norm, radius, pixel range.
            objective: what to maximise.
            steps: number of steps, 0 or more.
            step_size: length of a step in the norm, 0..255 units.
            random_start: start uniformly in the ball instead of at the image.
            restarts: independent runs; the worst result per image is kept. Useless without `random_start`.
            keep: "last" iterate of each run, or the "best" one for the attacker, the image itself included, which costs
                one or two more forward passes.
            seed: of the random starts.

        Raises:
            ValueError: a value is impossible.
        """
        # Without a random start the first iterate is the image already.
        offer_original = keep == "best" and random_start
        super().__init__(
            threat_model=threat_model,
            objective=objective,
            restarts=restarts,
            seed=seed,
            offer_original=offer_original,
        )
        if steps < 0 or step_size < 0:
            raise ValueError(f"STEPS and STEP_SIZE must not be negative, are {steps} and {step_size}")
        if keep not in ("last", "best"):
            raise ValueError(f"KEEP must be 'last' or 'best', is {keep!r}")
        if restarts > 1 and not random_start:
            raise ValueError("RESTARTS > 1 without RANDOM_START repeats the same run")
        self.steps = steps
        self.step_size = step_size
        self.starts_randomly = random_start
        self.keep = keep

    @classmethod
    def from_config(cls, node: Mapping) -> PGD:
        return cls(
            threat_model=ThreatModel(norm=node.get("NORM", "linf"), eps=node.get("EPS", 8.0)),
            objective=get_objective(node.get("OBJECTIVE", "cross_entropy")),
            steps=node.get("STEPS", 10),
            step_size=node.get("STEP_SIZE", 1.0),
            random_start=node.get("RANDOM_START", True),
            restarts=node.get("RESTARTS", 1),
            keep=node.get("KEEP", "last"),
            seed=node.get("SEED", 0),
        )

    def run(self, problem: Problem, keys: Tensor, scored: bool) -> Run:
        x = problem.random_start(keys) if self.starts_randomly else problem.images
        length = self.step_size * problem.scale
        # Without steps the run is random noise, which needs no gradient.
        blind = torch.full((len(x),), self.steps > 0, device=x.device)
        best: Run | None = None
        for _ in range(self.steps):
            slope, loss, fooled = gradient(problem, self.objective, x)
            if self.keep == "best":
                best = _update(best, x, blind, loss, fooled)
            # Stays on the device: one look at it after the loop, none per step.
            blind = blind & (slope == 0).flatten(1).all(dim=1)
            x = problem.project(x + length * problem.threat_model.ascent_direction(slope))
        if self.keep == "best" or scored:
            loss, fooled = score(problem, self.objective, x)
            best = _update(best, x, blind, loss, fooled)
            best.zero_gradient = blind
            return best
        return Run(images=x, zero_gradient=blind)

    def describe(self) -> dict:
        return super().describe() | {
            "steps": self.steps,
            "step_size": self.step_size,
            "random_start": self.starts_randomly,
            "keep": self.keep,
        }


def _update(best: Run | None, x: Tensor, blind: Tensor, loss: Tensor, fooled: Tensor) -> Run:
    if best is None:
        return Run(images=x, zero_gradient=blind, loss=loss, fooled=fooled)
    assert best.loss is not None and best.fooled is not None
    take = better(loss, fooled, best.loss, best.fooled)
    return Run(
        images=torch.where(take.view(-1, 1, 1, 1), x, best.images),
        zero_gradient=blind,
        loss=torch.where(take, loss, best.loss),
        fooled=torch.where(take, fooled, best.fooled),
    )
