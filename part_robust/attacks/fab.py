"""FAB, the fast adaptive boundary attack, targeted (Croce and Hein, 2020): the least change that changes the class.

Letters: N images of D = 3 H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor

from part_robust.attacks import l1
from part_robust.attacks.arguments import shared_arguments
from part_robust.attacks.base import ATTACK_REGISTRY, Attack
from part_robust.attacks.objective import Score, get_objective
from part_robust.attacks.problem import Problem, gradient, score
from part_robust.attacks.state import Run, State, where
from part_robust.attacks.targets import TargetChoice

NEWTON_ROUNDS = 16


@dataclass
class FabState(State):
    """`best` is the nearest image found that changes the class, inside eps or not; `best_score` is minus its distance.

    Attributes:
        originals: (N, 3, H, W).
        margin: (N,), of the originals: best wrong logit minus the right one.
        best_margin: (N,), of `best`.
    """

    originals: Tensor
    margin: Tensor
    best_margin: Tensor


@ATTACK_REGISTRY.register()
class FAB(Attack):
    """Steps onto the linearised class boundary, drawn to the original, a little beyond; and back from every success.

    After a success the paper steps back and evaluates the model again before it linearises. Here the boundary stays
    linearised at the success, just behind it, and only the projection starts from the point further back: one forward
    pass per step instead of two.

    eps does not change the search; it decides which of the images found are allowed, and so a success.
    """

    # The first run starts at the image.
    starts_randomly = False

    def __init__(
        self,
        *,
        steps: int,
        alpha_max: float,
        overshoot: float,
        backward: float,
        final_search: int,
        **shared: Any,
    ) -> None:
        """Build the attack from the settings of its paper.

        Args:
            steps: number of steps.
            alpha_max: largest weight of the step from the original against that from the iterate, 0..1.
            overshoot: length of the steps, relative to the way to the boundary; eta of the paper, 1 or more.
            backward: after a success, the share of the perturbation that is kept; beta of the paper, 0..1.
            final_search: forward passes that look for a nearer image between the original and the best.
            **shared: see `Attack`; restarts after the first start at random within half of eps.

        Raises:
            ValueError: a value is impossible.
        """
        super().__init__(steps=steps, objective=get_objective("targeted_margin"), **shared)
        if not 0.0 <= alpha_max <= 1.0 or not 0.0 <= backward <= 1.0 or overshoot < 1.0 or final_search < 0:
            raise ValueError(
                "FAB_ALPHA_MAX and FAB_BACKWARD must lie in 0..1, FAB_OVERSHOOT must be 1 or more and FAB_FINAL_SEARCH "
                f"0 or more; they are {alpha_max}, {backward}, {overshoot} and {final_search}"
            )
        self.alpha_max = alpha_max
        self.overshoot = overshoot
        self.backward = backward
        self.final_search = final_search

    @classmethod
    def default_config(cls) -> CfgNode:
        node = super().default_config()
        # Largest weight of the step from the original, length of steps relative to the way to the boundary, share of
        # the perturbation kept after a success (alpha_max, eta and beta of the paper), and forward passes of the search
        # for a nearer image in the end.
        node.FAB_ALPHA_MAX = 0.1
        node.FAB_OVERSHOOT = 1.05
        node.FAB_BACKWARD = 0.9
        node.FAB_FINAL_SEARCH = 3
        node.update(TargetChoice.default_config())
        return node

    @classmethod
    def from_config(cls, node: Mapping) -> FAB:
        shared = shared_arguments(node)
        del shared["objective"]  # the method is defined by the margin to each target class
        return cls(
            alpha_max=node["FAB_ALPHA_MAX"],
            overshoot=node["FAB_OVERSHOOT"],
            backward=node["FAB_BACKWARD"],
            final_search=node["FAB_FINAL_SEARCH"],
            targets=TargetChoice.from_config(node),
            **shared,
        )

    def start(self, problem: Problem, restart: int) -> State:
        x = problem.images
        if restart > 0:
            x = x + (problem.random_start() - x) / 2
        fields = State.initial_fields(x)
        fields["best"] = problem.images
        fields["best_score"] = torch.full_like(fields["loss"], float("-inf"))
        nothing = fields["loss"]
        return FabState(**fields, originals=problem.images, margin=nothing, best_margin=nothing)

    def step(self, problem: Problem, state: State, step: int, scored: bool) -> None:
        assert isinstance(state, FabState)
        grad, found = gradient(problem, self.objective, state.x)
        state.record_gradient(grad, found)
        self._update_nearest(problem, state, state.x, found)
        assert found.success is not None and found.margin_score is not None
        if step == 0:
            state.margin = found.margin_score  # that of the originals, or close to it after a random start
        images = problem.images
        back = where(found.success, images + self.backward * (state.x - images), state.x)
        # How far `loss` must grow along the linearisation to be zero.
        gap = -(found.loss + (grad * (back - state.x)).flatten(1).sum(dim=1))
        gap_original = -(found.loss + (grad * (images - state.x)).flatten(1).sum(dim=1))
        from_back = self._to_boundary(problem, back, grad, gap)
        from_original = self._to_boundary(problem, images, grad, gap_original)
        near = problem.threat_model.length(from_back)
        far = problem.threat_model.length(from_original)
        alpha = (near / (near + far).clamp(min=1e-12)).clamp(max=self.alpha_max).view(-1, 1, 1, 1)
        x = (1 - alpha) * (back + self.overshoot * from_back) + alpha * (images + self.overshoot * from_original)
        state.x = problem.restrict(x.clamp(problem.threat_model.low, problem.threat_model.high))

    def finish(self, problem: Problem, state: State) -> None:
        """Evaluate the last iterate, and search between the original and the best image for a nearer one."""
        assert isinstance(state, FabState)
        self._update_nearest(problem, state, state.x, score(problem, self.objective, state.x))
        known = torch.isfinite(state.best_score)
        right = torch.zeros_like(state.margin)  # share of the perturbation at which the model was still right
        right_margin = state.margin
        for _ in range(self.final_search):
            # Where the margin would be zero if it were linear in between, and a little further.
            share = right_margin / (right_margin - state.best_margin)
            share = torch.where(known & torch.isfinite(share), share.clamp(0, 1), 1.0)
            share = share + 0.02 * (1 - share)
            near_share = right + (1 - right) * share
            best = state.best
            x = problem.images + near_share.view(-1, 1, 1, 1) * (best - problem.images)
            found = score(problem, self.objective, x)
            assert found.success is not None and found.margin_score is not None
            self._update_nearest(problem, state, x, found)
            # Either x is the new best image, or the model is right at x.
            right = torch.where(found.success, right / near_share.clamp(min=1e-12), near_share)
            right_margin = torch.where(found.success, right_margin, found.margin_score)

    def outcome(self, state: State) -> Run:
        assert isinstance(state, FabState)
        return Run(
            images=where(state.best_success, state.best, state.originals),
            zero_gradient=state.zero_gradient,
            margin_score=state.best_score,
            success=state.best_success,
            distance=-state.best_score,
        )

    def outcome_of_originals(self, problem: Problem, found: Score) -> Run:
        run = super().outcome_of_originals(problem, found)
        assert run.success is not None
        run.distance = torch.where(run.success, 0.0, float("inf"))
        run.margin_score = -run.distance
        return run

    def _update_nearest(self, problem: Problem, state: FabState, x: Tensor, found: Score) -> None:
        assert found.success is not None and found.margin_score is not None
        distance = problem.threat_model.distance(x, problem.images)
        take = found.success & (distance < -state.best_score)
        state.loss = found.loss
        state.best = where(take, x, state.best)
        state.best_score = torch.where(take, -distance, state.best_score)
        state.best_margin = torch.where(take, found.margin_score, state.best_margin)
        state.best_success = -state.best_score <= problem.threat_model.eps

    def _to_boundary(self, problem: Problem, x: Tensor, grad: Tensor, gap: Tensor) -> Tensor:
        threat = problem.threat_model
        return shortest_change(x, grad, gap, threat.norm, threat.low, threat.high)

    def describe(self) -> dict:
        return super().describe() | {
            "alpha_max": self.alpha_max,
            "overshoot": self.overshoot,
            "backward": self.backward,
            "final_search": self.final_search,
        }


def shortest_change(x: Tensor, slope: Tensor, gap: Tensor, norm: str, low: float, high: float) -> Tensor:
    """Return the change of least norm that moves a linear function by `gap` and keeps all pixels in range.

    See section 2 of the paper. Where the range does not allow it, this is the change that comes closest.

    Each pixel goes in its own direction until its room is used up, at speed 1 ("linf") or |slope| ("l2"), so what the
    function gains by some moment is piecewise linear and concave in time. Newton's method from moment 0 never goes too
    far and quarters the product of what is missing and what is still gained per unit of time at each round, so 16 end
    at the precision of the numbers. There is no sorting of pixels, which would cost as much as the model. ("l1": one
    pixel after the other, sorted, as any other order costs norm.)

    Args:
        x: (N, 3, H, W), inside the range.
        slope: (N, 3, H, W), of the linear function; 0 on pixels that must not move.
        gap: (N,), by how much the function must change.
        norm: "linf", "l2" or "l1".
        low: of the range.
        high: of the range.

    Returns:
        (N, 3, H, W).
    """
    if norm == "l1":
        return l1.shortest_change(x, slope, gap, low, high)
    flat, weight = x.flatten(1), slope.flatten(1)
    upwards = weight * gap.sign()[:, None] > 0
    weight = weight.abs()
    largest = weight.amax(dim=1).clamp(min=torch.finfo(weight.dtype).tiny)
    weight = weight / largest[:, None]  # squares of small gradients would underflow
    room = torch.where(upwards, high - flat, flat - low).clamp(min=0) * (weight > 0)
    linf = norm == "linf"
    stop = room if linf else room / weight.clamp(min=torch.finfo(weight.dtype).tiny)
    rate = weight if linf else weight.square()
    in_full = weight * room
    wanted = gap.abs().double() / largest.double()
    moment = torch.zeros_like(wanted, dtype=x.dtype)
    for _ in range(NEWTON_ROUNDS):
        moving = stop > moment[:, None]
        gained = torch.where(moving, 0.0, in_full).sum(dim=1, dtype=torch.float64)
        rates = torch.where(moving, rate, 0.0).sum(dim=1, dtype=torch.float64)
        later = (wanted - gained) / rates.clamp(min=torch.finfo(torch.float64).tiny)
        later = torch.maximum(later.clamp(max=torch.finfo(x.dtype).max).to(x.dtype), moment)
        if later.device.type == "cpu" and torch.equal(later, moment):
            break  # mostly after three rounds; on other devices the comparison would make the host wait
        moment = later
    distance = torch.minimum(moment[:, None] if linf else moment[:, None] * weight, room)
    return torch.where(upwards, distance, -distance).view_as(x)
