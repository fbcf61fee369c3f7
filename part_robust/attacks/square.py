"""Square attack (Andriushchenko et al., 2020): random search over square patches, without any gradient.

Letters: N images of (3, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from part_robust.attacks import noise
from part_robust.attacks.arguments import shared_arguments
from part_robust.attacks.base import ATTACK_REGISTRY, Attack
from part_robust.attacks.problem import Problem, score
from part_robust.attacks.state import State, where

# Queries after which the squares' area halves. The paper stretches them to the number of queries; AutoAttack does not,
# and neither do we: so a run of fewer queries is the beginning of a longer one, and more queries never help the model.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)

POWER = {"l2": 2, "l1": 1}


@dataclass
class SquareState(State):
    """State of the images under Square.

    Attributes:
        walk_loss: (N,), the loss at `x`, from which the next patch starts.
    """

    walk_loss: Tensor


@ATTACK_REGISTRY.register()
class Square(Attack):
    """Square attack: each query changes one square of the image, and is kept where the loss grows.

    Place and signs of the squares depend on the image's key alone. Under "l1" everything is as under "l2" with another
    norm and steeper bumps, and since those leave the pixel range first, more mass is placed than the ball has and the
    result is projected (Croce and Hein, 2021).
    """

    uses_gradient = False

    def __init__(self, *, steps: int, area_share: float, **shared: Any) -> None:
        """Build the attack from its number of queries.

        Args:
            steps: number of queries.
            area_share: of the first squares in the image, more than 0 and at most 1; p of the paper.
            **shared: see `Attack`.

        Raises:
            ValueError: a value is impossible.
        """
        super().__init__(steps=steps, **shared)
        if not 0.0 < area_share <= 1.0:
            raise ValueError(f"SQUARE_AREA must be more than 0 and at most 1, got {area_share}")
        self.area_share = area_share

    @classmethod
    def default_config(cls) -> CfgNode:
        node = super().default_config()
        # Share of the image that the first squares cover, 0..1 (p of the paper).
        node.SQUARE_AREA = 0.8
        return node

    @classmethod
    def from_config(cls, node: Mapping) -> Square:
        return cls(area_share=node["SQUARE_AREA"], **shared_arguments(node))

    def start(self, problem: Problem, restart: int) -> State:
        threat, shape = problem.threat_model, problem.images.shape[1:]
        change = stripes(problem.keys, shape) if threat.norm == "linf" else tiles(problem.keys, shape, threat.norm)
        x = problem.project(problem.images + threat.eps * change)
        fields = State.initial_fields(x, zero_gradient=False)
        return SquareState(**fields, walk_loss=fields["loss"])

    def step(self, problem: Problem, state: State, step: int, scored: bool) -> None:
        assert isinstance(state, SquareState)
        x = state.x if step == 0 else self._changed(problem, state.x, step)
        found = score(problem, self.objective, x)
        state.update_best(x, found)
        take = (found.loss > state.walk_loss) | torch.isnan(state.walk_loss)
        state.x = where(take, x, state.x)
        state.walk_loss = torch.where(take, found.loss, state.walk_loss)

    def _changed(self, problem: Problem, x: Tensor, step: int) -> Tensor:
        channels, height, width = x.shape[1:]
        halvings = sum(step > query for query in HALVINGS)
        side = math.sqrt(self.area_share / 2**halvings * height * width)
        threat = problem.threat_model
        if threat.norm == "linf":
            side = min(max(round(side), 1), height, width)
            drawn = noise.uniform(problem.keys, (2 + channels,), stream=step)
            square = window(drawn[:, :2], side, height, width)
            signs = torch.where(drawn[:, 2:] < 0.5, -1.0, 1.0)[:, :, None, None]
            edge = (problem.images + threat.eps * signs).clamp_(threat.low, threat.high)
            return problem.restrict(torch.where(square, edge, x))  # both allowed: nothing to project
        side = min(max(round(side), 3), height, width)
        drawn = noise.uniform(problem.keys, (5 + channels,), stream=step)
        return problem.project(
            problem.images + moved_mass(x - problem.images, drawn, side - (side + 1) % 2, threat.eps, threat.norm)
        )

    def describe(self) -> dict:
        return super().describe() | {"area_share": self.area_share}


def stripes(keys: Tensor, shape: torch.Size) -> Tensor:
    """(N, 3, H, W) of +1 and -1, equal along columns: the first perturbation for L-inf."""
    channels, height, width = shape
    signs = torch.where(noise.uniform(keys, (channels, 1, width)) < 0.5, -1.0, 1.0)
    return signs.expand(-1, -1, height, -1)


def tiles(keys: Tensor, shape: torch.Size, norm: str) -> Tensor:
    """(N, 3, H, W) of length 1 in "l2" or "l1": at least 5 by 5 bumps of random sign and direction, as a start."""
    channels, height, width = shape
    side = max(min(height, width) // 5, 1)
    rows, columns = height // side, width // side
    drawn = noise.uniform(keys, (channels + 1, rows, columns)).repeat_interleave(side, 2).repeat_interleave(side, 3)
    signs = torch.where(drawn[:, :channels] < 0.5, -1.0, 1.0)
    bump = double_bump(side, keys.device, norm)
    bump = torch.where(drawn[:, channels:] < 0.5, bump.repeat(rows, columns), bump.T.repeat(rows, columns))
    spare = (height - rows * side, width - columns * side)
    left, top = spare[1] // 2, spare[0] // 2
    pattern = F.pad(signs * bump, (left, spare[1] - left, top, spare[0] - top))
    return pattern / pattern.flatten(1).norm(POWER[norm], dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)


def window(drawn: Tensor, side: int, height: int, width: int) -> Tensor:
    """Return bool (N, 1, H, W), a square at the place that two random numbers in [0, 1) name, float (N, 2)."""
    top, left = corner(drawn, side, height, width)
    rows = torch.arange(height, device=drawn.device) - top[:, None]
    columns = torch.arange(width, device=drawn.device) - left[:, None]
    inside_rows, inside_columns = (rows >= 0) & (rows < side), (columns >= 0) & (columns < side)
    return (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None]


def corner(drawn: Tensor, side: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Top and left int64 (N,) of a square, every place as likely as any other."""
    return (drawn[:, 0] * (height - side + 1)).long(), (drawn[:, 1] * (width - side + 1)).long()


def moved_mass(delta: Tensor, drawn: Tensor, side: int, eps: float, norm: str) -> Tensor:
    """A perturbation whose mass in one window went to another, with all that the ball has left (algorithm 3).

    Args:
        delta: (N, 3, H, W), the perturbation so far.
        drawn: (N, 5 + 3) random numbers in [0, 1): corners of both windows, direction of the bump, signs.
        side: of the windows, odd.
        eps: radius of the ball.
        norm: "l2" or "l1".

    Returns:
        (N, 3, H, W), under "l2" of length eps.
    """
    count, channels, height, width = delta.shape
    emptied = window(drawn[:, 2:4], side, height, width)
    union = window(drawn[:, :2], side, height, width) | emptied
    power = POWER[norm]
    mass = delta.abs() if norm == "l1" else delta.square()
    spare = (eps**power - mass.flatten(1).sum(dim=1)).clamp(min=0)
    available = (mass * union).flatten(2).sum(dim=2) + spare[:, None] / channels
    # The projection takes back what "l1" gets too much; the range would cut off most of what it should have.
    available = channels * available if norm == "l1" else available.sqrt()

    top, left = corner(drawn[:, :2], side, height, width)
    steps = torch.arange(side, device=delta.device)
    index = (top[:, None] + steps)[:, :, None] * width + (left[:, None] + steps)[:, None, :]
    index = index.view(count, 1, -1).expand(-1, channels, -1)
    old = delta.flatten(2).gather(2, index)
    bump = double_bump(side, delta.device, norm)
    bump = torch.where(drawn[:, 4, None, None] < 0.5, bump, bump.T).flatten(1)[:, None]
    signs = torch.where(drawn[:, 5:] < 0.5, -1.0, 1.0)[:, :, None]
    new = signs * bump + old / old.norm(power, dim=2, keepdim=True).clamp(min=1e-12)
    new = new / new.norm(power, dim=2, keepdim=True).clamp(min=1e-12) * available[:, :, None]
    return torch.where(emptied, 0.0, delta).flatten(2).scatter(2, index, new).view_as(delta)


def double_bump(side: int, device: torch.device, norm: str) -> Tensor:
    """(side, side) of length 1 in "l2" or "l1": a hill in the upper half, a valley in the lower one (eq. 2)."""
    if side == 1:
        return torch.ones(1, 1, device=device)
    upper = side // 2
    both = torch.cat([_hill(upper, side, device, norm), -_hill(side - upper, side, device, norm)])
    return both / both.norm(POWER[norm])


def _hill(height: int, width: int, device: torch.device, norm: str) -> Tensor:
    """(height, width) of length 1: nested rectangles around the centre, the k-th adds 1 / k^2, or in "l1" 1 / k^4."""
    rows = (torch.arange(height, device=device) - height // 2).abs()
    columns = (torch.arange(width, device=device) - width // 2).abs()
    count = max(height, width) // 2 + 1
    added = 1.0 / torch.arange(1, count + 1, device=device).square()
    added = added.square() if norm == "l1" else added
    levels = added.flip(0).cumsum(0).flip(0)
    hill = levels[torch.maximum(rows[:, None], columns[None, :])]
    return hill / hill.norm(POWER[norm])
