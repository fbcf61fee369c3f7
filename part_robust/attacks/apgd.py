"""Auto-PGD (Croce and Hein, 2020): PGD with momentum, whose step size halves where the loss stops growing.

It also has the radius schedule of SEA (Croce, Singh and Hein, 2023) and, under L1, the sparse steps of l1-APGD (Croce
and Hein, 2021, "Mind the box").

Letters: N images, S steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor

from part_robust.attacks import l1, noise
from part_robust.attacks.arguments import shared_arguments
from part_robust.attacks.base import ATTACK_REGISTRY, Attack
from part_robust.attacks.objective import Score
from part_robust.attacks.problem import Problem, gradient, score
from part_robust.attacks.radius_schedule import checked_schedule, default_schedule
from part_robust.attacks.state import State, where
from part_robust.attacks.targets import TargetChoice

# l1-APGD: first share of the values that a step moves, factor on the number of changed values for later steps, share of
# that number below which a point counts as sparser, divisor of the step size, smallest step size in radii, share of the
# steps between two checkpoints.
L1_FIRST_SHARE = 0.2
L1_SPARSITY = 1 / 1.5
L1_SPARSER = 0.95
L1_DIVISOR = 1.5
L1_SMALLEST_STEP = 0.1
L1_CHECKPOINTS = 0.04
# Of APGD on the cross-entropy in AutoAttack's L1 version.
L1_RESTARTS = 5


@dataclass
class ApgdState(State):
    """State of the images under Auto-PGD.

    Attributes:
        grad: (N, 3, H, W), gradient at `x`.
        previous: (N, 3, H, W), the iterate before `x`.
        max_loss_x: (N, 3, H, W), the iterate of largest loss; `best` has the largest margin score.
        max_loss: (N,), its loss.
        max_loss_grad: (N, 3, H, W), its gradient.
        relative_step_size: (N,), step size as a share of the radius.
        num_increases: (N,), steps since the last checkpoint that raised the loss.
        max_loss_at_checkpoint: (N,), `max_loss` at the last checkpoint.
        halved_at_checkpoint: bool (N,), the step size was halved there.
        num_changed: (N,), values of `max_loss_x` that differed from the original at the last checkpoint; "l1" alone.
        num_moving: (N,), values that a step moves; "l1" alone.
    """

    grad: Tensor
    previous: Tensor
    max_loss_x: Tensor
    max_loss: Tensor
    max_loss_grad: Tensor
    relative_step_size: Tensor
    num_increases: Tensor
    max_loss_at_checkpoint: Tensor
    halved_at_checkpoint: Tensor
    num_changed: Tensor | None = None
    num_moving: Tensor | None = None


@ATTACK_REGISTRY.register()
class APGD(Attack):
    """Auto-PGD: steps with momentum, at first of twice the radius.

    At checkpoints, where too few steps raised the loss, or where the largest loss and the step size have not changed
    since the last one, the step size halves and the search continues from its best point.

    Under "l1" a step moves few values, by equal amounts and without momentum: two thirds as many as the best point has
    changed. At checkpoints, where the best point has become sparser, the search continues from it with steps of the
    radius again; elsewhere steps become shorter.
    """

    def __init__(
        self,
        *,
        steps: int,
        random_start: bool,
        momentum: float,
        success_share: float,
        radius_schedule: Sequence[Sequence[float]],
        **shared: Any,
    ) -> None:
        """Build the attack from its steps and its schedules.

        Args:
            steps: number of steps; a run evaluates the model once more, at its start.
            random_start: start uniformly in the ball instead of at the image.
            momentum: weight of the gradient step, 1 - weight of the last move; alpha of the paper, 0..1.
            success_share: share of steps that must raise the loss, rho of the paper, 0..1.
            radius_schedule: pairs (factor on eps, share of the steps). Each stage starts where the last one found the
                largest loss, projected to its own radius; only the last one, of factor 1, counts. SEA: 2, 1.5 and 1
                for 30, 30 and 40 % of the steps.
            **shared: see `Attack`.

        Raises:
            ValueError: a value is impossible.
        """
        super().__init__(steps=steps, **shared)
        for name, value in (("APGD_MOMENTUM", momentum), ("APGD_SUCCESS_SHARE", success_share)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must lie in 0..1, got {value}")
        if self.restarts > 1 and not random_start:
            raise ValueError("RESTARTS > 1 without RANDOM_START repeats the same run")
        self.starts_randomly = random_start
        self.momentum = momentum
        self.success_share = success_share
        self.radius_schedule = checked_schedule(radius_schedule)
        self.sparse = self.threat_model.norm == "l1"
        # First step of each stage and, last, the number of steps.
        ends = accumulate(share for _, share in self.radius_schedule)
        self.stages = [0, *(round(steps * end) for end in ends)]
        if len(set(self.stages)) < len(self.stages):
            raise ValueError(f"RADIUS_SCHEDULE must give each stage a step, got {radius_schedule} of {steps} steps")

    @classmethod
    def default_config(cls) -> CfgNode:
        node = super().default_config()
        # Start uniformly in the ball instead of at the image.
        node.RANDOM_START = True
        # Weight of the gradient step against the last move; share of the steps between two checkpoints that must raise
        # the loss, otherwise the step size halves (alpha and rho of the paper, 0..1).
        node.APGD_MOMENTUM = 0.75
        node.APGD_SUCCESS_SHARE = 0.75
        # Pairs (factor on EPS, share of STEPS), the last factor 1; () for the one of the norm: "l1" has that of
        # l1-APGD, ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4)), the others ((1.0, 1.0),), one radius throughout. SEA:
        # ((2.0, 0.3), (1.5, 0.3), (1.0, 0.4)).
        node.RADIUS_SCHEDULE = ()
        node.update(TargetChoice.default_config())
        return node

    @classmethod
    def from_config(cls, node: Mapping) -> APGD:
        return cls(
            random_start=node["RANDOM_START"],
            momentum=node["APGD_MOMENTUM"],
            success_share=node["APGD_SUCCESS_SHARE"],
            radius_schedule=node["RADIUS_SCHEDULE"] or default_schedule(node["NORM"], node["STEPS"]),
            targets=TargetChoice.from_config(node),
            **shared_arguments(node),
        )

    def start(self, problem: Problem, restart: int) -> State:
        ball = self._stage(problem, 0)
        x = self._random_start(ball) if self.starts_randomly else problem.images
        fields = State.initial_fields(x)
        fields["best"] = problem.images  # an allowed image, in case no step follows
        nothing, false = fields["best_score"], fields["best_success"]
        blank = torch.zeros_like(x)
        return ApgdState(
            **fields,
            grad=blank,
            previous=x,
            max_loss_x=x,
            max_loss=nothing,
            max_loss_grad=blank,
            relative_step_size=torch.zeros_like(nothing),
            num_increases=torch.zeros_like(nothing),
            max_loss_at_checkpoint=nothing,
            halved_at_checkpoint=false,
        )

    def step(self, problem: Problem, state: State, step: int, scored: bool) -> None:
        assert isinstance(state, ApgdState)
        stage = next(i for i, end in enumerate(self.stages[1:]) if step < end)
        first, end = self.stages[stage], self.stages[stage + 1]
        ball, counts = self._stage(problem, stage), stage + 2 == len(self.stages)
        if step == first:
            self._start_stage(ball, state, counts, step / self.steps)
        step_size = (state.relative_step_size * ball.threat_model.eps).view(-1, 1, 1, 1)
        candidate = ball.project(state.x + step_size * self._direction(ball, state))
        if step > first and not self.sparse:
            # The step along the gradient, combined with the last move.
            candidate = (
                state.x + self.momentum * (candidate - state.x) + (1 - self.momentum) * (state.x - state.previous)
            )
            candidate = ball.project(candidate)
        state.previous, state.x = state.x, candidate
        # The gradient at the last point is unused.
        found = self._evaluate(ball, state, counts, (step + 1) / self.steps, last=step + 1 == end)
        state.num_increases = state.num_increases + (found > 0)
        if self.sparse:
            if (step + 1 - first) % max(int(L1_CHECKPOINTS * (end - first)), 1) == 0:
                _sparse_checkpoint(ball, state)
            return
        marks = checkpoints(end - first)
        if step + 1 - first in marks[1:-1]:
            self._checkpoint(state, marks, step + 1 - first)

    def _stage(self, problem: Problem, stage: int) -> Problem:
        factor = self.radius_schedule[stage][0]
        return problem if factor == 1.0 else replace(problem, threat_model=problem.threat_model.scaled(factor))

    def _random_start(self, ball: Problem) -> Tensor:
        if self.sparse and ball.starts is None:
            # Uniform points of the ball are dense. Those of l1-APGD are sparse: noise as wide as the range, projected.
            width = ball.threat_model.high - ball.threat_model.low
            return ball.project(ball.images + width * noise.normal(ball.keys, ball.images.shape[1:]))
        return ball.random_start()

    def _direction(self, ball: Problem, state: ApgdState) -> Tensor:
        if not self.sparse:
            return ball.threat_model.ascent_direction(state.grad)
        assert state.num_moving is not None
        return l1.sparse_signs(state.grad, state.num_moving)

    def _start_stage(self, ball: Problem, state: ApgdState, counts: bool, progress: float) -> None:
        """Start a stage at the point of largest loss of the stage before."""
        state.x = ball.project(state.max_loss_x)
        state.max_loss = torch.full_like(state.max_loss, float("nan"))
        self._evaluate(ball, state, counts, progress, last=False)
        state.relative_step_size = torch.full_like(state.relative_step_size, 1.0 if self.sparse else 2.0)
        state.num_increases = torch.zeros_like(state.num_increases)
        state.max_loss_at_checkpoint = state.max_loss
        state.halved_at_checkpoint = torch.ones_like(state.halved_at_checkpoint)
        if self.sparse:
            state.num_changed = _num_changed(ball, state.x)
            state.num_moving = L1_SPARSITY * state.num_changed
            if len(self.radius_schedule) == 1:
                state.num_changed = torch.full_like(state.num_changed, state.x[0].numel())
                state.num_moving = L1_FIRST_SHARE * state.num_changed

    def _evaluate(self, ball: Problem, state: ApgdState, counts: bool, progress: float, last: bool) -> Tensor:
        """Evaluate the model at `x`; returns by how much the loss grew."""
        before = state.loss
        found: Score
        if last:
            found, grad = score(ball, self.objective, state.x, progress), None
        else:
            grad, found = gradient(ball, self.objective, state.x, progress)
            state.record_gradient(grad, found)
            state.grad = grad
        if counts:
            state.update_best(state.x, found)
        state.loss = found.loss
        new = (found.loss > state.max_loss) | torch.isnan(state.max_loss)
        state.max_loss_x = where(new, state.x, state.max_loss_x)
        state.max_loss = torch.where(new, found.loss, state.max_loss)
        if grad is not None:
            state.max_loss_grad = where(new, grad, state.max_loss_grad)
        return found.loss - before

    def _checkpoint(self, state: ApgdState, marks: Sequence[int], now: int) -> None:
        """One checkpoint (section 3.2 of the paper)."""
        since = now - max(mark for mark in marks if mark < now)
        few = state.num_increases < self.success_share * since
        stuck = ~state.halved_at_checkpoint & (state.max_loss <= state.max_loss_at_checkpoint)
        halve = few | stuck
        state.relative_step_size = torch.where(halve, state.relative_step_size / 2, state.relative_step_size)
        state.x = where(halve, state.max_loss_x, state.x)
        state.grad = where(halve, state.max_loss_grad, state.grad)
        state.loss = torch.where(halve, state.max_loss, state.loss)
        state.halved_at_checkpoint = halve
        state.max_loss_at_checkpoint = state.max_loss
        state.num_increases = torch.zeros_like(state.num_increases)

    def describe(self) -> dict:
        return super().describe() | {
            "random_start": self.starts_randomly,
            "momentum": self.momentum,
            "success_share": self.success_share,
            "radius_schedule": [list(stage) for stage in self.radius_schedule],
        }


def _sparse_checkpoint(ball: Problem, state: ApgdState) -> None:
    """One checkpoint of l1-APGD (section 3.3 and algorithm 1 of "Mind the box")."""
    assert state.num_changed is not None
    now = _num_changed(ball, state.max_loss_x)
    sparser = now < L1_SPARSER * state.num_changed
    shorter = (state.relative_step_size / L1_DIVISOR).clamp(min=L1_SMALLEST_STEP)
    state.relative_step_size = torch.where(sparser, 1.0, shorter)
    state.x = where(sparser, state.max_loss_x, state.x)
    state.grad = where(sparser, state.max_loss_grad, state.grad)
    state.loss = torch.where(sparser, state.max_loss, state.loss)
    state.num_changed, state.num_moving = now, L1_SPARSITY * now


def _num_changed(ball: Problem, x: Tensor) -> Tensor:
    return (x != ball.images).flatten(1).sum(dim=1).float()


def checkpoints(steps: int) -> list[int]:
    """Steps after which the step size is checked: gaps from 22 % of the steps on, each 3 % shorter, 6 % at least."""
    shares = [0.0, 0.22]
    while shares[-1] < 1.0:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    # Rounded first: 0.57 * 100 is a little more than 57 in floating point.
    return sorted({min(math.ceil(round(share * steps, 6)), steps) for share in shares})
