"""Square attack (Andriushchenko et al., 2020): random search over square patches, without any gradient.

Letters: N images of (3, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

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
        box: int64 (N, 4), top, left, height and width of the attacker's mask, in which all squares lie; None: the
            attacker has no mask.
    """

    walk_loss: Tensor
    box: Tensor | None = None


@ATTACK_REGISTRY.register()
class Square(Attack):
    """Square attack: each query changes one square of the image, and is kept where the loss grows.

    Place and signs of the squares depend on the image's key alone. With a mask, squares lie in the mask's bounding box,
    and their area is a share of the box's.

    Under "l1" everything is as under "l2" with another norm and steeper bumps, and since those leave the pixel range
    first, more mass is placed than the ball has and the result is projected (Croce and Hein, 2021).
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
        norm, shape = problem.threat_model.norm, problem.images.shape[1:]
        pattern = stripes(problem.keys, shape) if norm == "linf" else tiles(problem.keys, shape, norm)
        if problem.mask is not None and norm != "linf":
            pattern = pattern * problem.mask
            pattern = pattern / pattern.flatten(1).norm(POWER[norm], dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
        x = problem.project(problem.images + problem.threat_model.eps * pattern)
        fields = State.initial_fields(x, zero_gradient=False)
        box = None if problem.mask is None else bounding_box(problem.mask)
        return SquareState(**fields, walk_loss=fields["loss"], box=box)

    def step(self, problem: Problem, state: State, step: int, scored: bool) -> None:
        assert isinstance(state, SquareState)
        x = state.x if step == 0 else self._changed(problem, state, step)
        found = score(problem, self.objective, x)
        state.update_best(x, found)
        take = (found.loss > state.walk_loss) | torch.isnan(state.walk_loss)
        state.x = where(take, x, state.x)
        state.walk_loss = torch.where(take, found.loss, state.walk_loss)

    def _changed(self, problem: Problem, state: SquareState, step: int) -> Tensor:
        x = state.x
        channels, height, width = x.shape[1:]
        halvings = sum(step > query for query in HALVINGS)
        threat, share = problem.threat_model, self.area_share / 2**halvings
        least = 1 if threat.norm == "linf" else 3
        side = min(max(round(math.sqrt(share * height * width)), least), height, width)
        sides = None if state.box is None else sides_in(state.box, share, least)
        if threat.norm == "linf":
            drawn = noise.uniform(problem.keys, (2 + channels,), stream=step)
            square = window(drawn[:, :2], side if sides is None else sides, height, width, state.box)
            signs = torch.where(drawn[:, 2:] < 0.5, -1.0, 1.0)[:, :, None, None]
            edge = (problem.images + threat.eps * signs).clamp_(threat.low, threat.high)
            return problem.restrict(torch.where(square, edge, x))  # both allowed: nothing to project
        drawn = noise.uniform(problem.keys, (5 + channels,), stream=step)
        side -= (side + 1) % 2
        area = None
        if sides is not None:
            assert state.box is not None and problem.mask is not None
            area = MaskedArea(problem.mask, state.box, sides - (sides + 1) % 2)
        moved = moved_mass(x - problem.images, drawn, side, threat.eps, threat.norm, area)
        return problem.project(problem.images + moved)

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


def window(drawn: Tensor, side: int | Tensor, height: int, width: int, box: Tensor | None = None) -> Tensor:
    """Return bool (N, 1, H, W), a square at the place that two random numbers in [0, 1) name, float (N, 2).

    Args:
        drawn: the random numbers.
        side: of the squares, at most the box's; int64 (N,) if they differ.
        height: H.
        width: W.
        box: int64 (N, 4), top, left, height and width of where the squares may lie; None: the whole image.
    """
    return squares(*corner(drawn, side, height, width, box), side, height, width)


def squares(top: Tensor, left: Tensor, side: int | Tensor, height: int, width: int) -> Tensor:
    """Return bool (N, 1, H, W), squares at top and left, int64 (N,), of one side or of sides int64 (N,)."""
    side = side[:, None] if isinstance(side, Tensor) else side
    rows = torch.arange(height, device=top.device) - top[:, None]
    columns = torch.arange(width, device=top.device) - left[:, None]
    inside_rows, inside_columns = (rows >= 0) & (rows < side), (columns >= 0) & (columns < side)
    return (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None]


def corner(
    drawn: Tensor, side: int | Tensor, height: int, width: int, box: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Top and left int64 (N,) of a square, every place as likely as any other; arguments as of `window`."""
    if box is None:
        return (drawn[:, 0] * (height - side + 1)).long(), (drawn[:, 1] * (width - side + 1)).long()
    top, left, rows, columns = box.unbind(dim=1)
    return top + (drawn[:, 0] * (rows - side + 1)).long(), left + (drawn[:, 1] * (columns - side + 1)).long()


def bounding_box(mask: Tensor) -> Tensor:
    """Return int64 (N, 4), top, left, height and width of what is True in masks (N, 1, H, W); 0 where nothing is."""
    ends = []
    for across in (3, 2):
        lines = mask[:, 0].any(dim=across - 1)
        # The first True of a line and of the reversed line.
        first = lines.long().argmax(dim=1)
        length = lines.shape[1] - lines.flip(1).long().argmax(dim=1) - first
        ends.append((first, length * lines.any(dim=1)))
    (top, height), (left, width) = ends
    return torch.stack([top, left, height, width], dim=1)


def sides_in(box: Tensor, share: float, least: int) -> Tensor:
    """Return int64 (N,), sides of squares of a share of a box's area that lie in it.

    Args:
        box: int64 (N, 4).
        share: of the area, 0..1.
        least: the smallest side, unless the box is narrower.
    """
    side = (share * box[:, 2].double() * box[:, 3]).sqrt().round().long().clamp(min=least)
    return torch.minimum(side, box[:, 2:].amin(dim=1)).clamp(min=1)


class MaskedArea(NamedTuple):
    """Where an attacker with a mask may place a window.

    Attributes:
        mask: bool (N, 1, H, W).
        box: int64 (N, 4), of `bounding_box`.
        side: int64 (N,), odd, of the windows.
    """

    mask: Tensor
    box: Tensor
    side: Tensor


def moved_mass(
    delta: Tensor, drawn: Tensor, side: int, eps: float, norm: str, area: MaskedArea | None = None
) -> Tensor:
    """A perturbation whose mass in one window went to another, with all that the ball has left (algorithm 3).

    Args:
        delta: (N, 3, H, W), the perturbation so far.
        drawn: (N, 5 + 3) random numbers in [0, 1): corners of both windows, direction of the bump, signs.
        side: of the windows, odd; with an area, no smaller than its sides.
        eps: radius of the ball.
        norm: "l2" or "l1".
        area: of an attacker with a mask, outside of which `delta` is 0 and stays 0.

    Returns:
        (N, 3, H, W) of length eps, longer under "l1"; shorter if none of the mask lies in a window.
    """
    count, channels, height, width = delta.shape
    sides, box = (side, None) if area is None else (area.side, area.box)
    emptied = window(drawn[:, 2:4], sides, height, width, box)
    union = window(drawn[:, :2], sides, height, width, box) | emptied
    power = POWER[norm]
    mass = delta.abs() if norm == "l1" else delta.square()
    spare = (eps**power - mass.flatten(1).sum(dim=1)).clamp(min=0)
    available = (mass * union).flatten(2).sum(dim=2) + spare[:, None] / channels
    # The projection takes back what "l1" gets too much; the range would cut off most of what it should have.
    available = channels * available if norm == "l1" else available.sqrt()

    top, left = corner(drawn[:, :2], sides, height, width, box)
    steps = torch.arange(side, device=delta.device)
    index = (top[:, None] + steps)[:, :, None] * width + (left[:, None] + steps)[:, None, :]
    bump = double_bump(side, delta.device, norm) if area is None else double_bumps(area.side, side, norm)
    bump = torch.where(drawn[:, 4, None, None] < 0.5, bump, bump.mT).flatten(1)[:, None]
    flat, kept = delta.flatten(2), torch.where(emptied, 0.0, delta).flatten(2)
    if area is not None:
        # A spare pixel, which is dropped in the end, stands for what lies beyond the sides of a smaller window.
        inside = steps < area.side[:, None]
        index = torch.where(inside[:, :, None] & inside[:, None, :], index, height * width)
        flat, kept, mask = (F.pad(x, (0, 1)) for x in (flat, kept, area.mask.flatten(2).to(bump.dtype)))
        bump = bump * mask.gather(2, index.view(count, 1, -1))
    index = index.view(count, 1, -1).expand(-1, channels, -1)
    old = flat.gather(2, index)
    signs = torch.where(drawn[:, 5:] < 0.5, -1.0, 1.0)[:, :, None]
    new = signs * bump + old / old.norm(power, dim=2, keepdim=True).clamp(min=1e-12)
    new = new / new.norm(power, dim=2, keepdim=True).clamp(min=1e-12) * available[:, :, None]
    return kept.scatter(2, index, new)[:, :, : height * width].view_as(delta)


def double_bump(side: int, device: torch.device, norm: str) -> Tensor:
    """(side, side) of length 1 in "l2" or "l1": a hill in the upper half, a valley in the lower one (eq. 2)."""
    if side == 1:
        return torch.ones(1, 1, device=device)
    upper = side // 2
    both = torch.cat([_hill(upper, side, device, norm), -_hill(side - upper, side, device, norm)])
    return both / both.norm(POWER[norm])


def double_bumps(side: Tensor, reach: int, norm: str) -> Tensor:
    """(N, reach, reach): `double_bump` of each side, int64 (N,), from the top left corner; 0 beyond it."""
    steps = torch.arange(reach, device=side.device)
    upper, width = (side // 2)[:, None], side[:, None]
    lower_half = steps >= upper
    row = (steps - torch.where(lower_half, upper + (width - upper) // 2, upper // 2)).abs()
    column = (steps - width // 2).abs()
    # Sums up to k; each pixel has those between its rectangle and the centre's.
    sums = F.pad(_added(reach, side.device, norm).cumsum(0), (1, 0))
    level = sums[upper + 1, None] - sums[torch.maximum(row[:, :, None], column[:, None, :]).clamp(max=reach)]
    inside = (steps < width)[:, :, None] & (steps < width)[:, None, :]
    halves = [torch.where(inside & half[:, :, None], level, 0.0) for half in (~lower_half, lower_half)]
    power = POWER[norm]
    hill, valley = (half / half.flatten(1).norm(power, dim=1).clamp(min=1e-12).view(-1, 1, 1) for half in halves)
    both = hill - valley
    return both / both.flatten(1).norm(power, dim=1).view(-1, 1, 1)


def _hill(height: int, width: int, device: torch.device, norm: str) -> Tensor:
    """(height, width) of length 1: nested rectangles around the centre, the k-th adds `_added`."""
    rows = (torch.arange(height, device=device) - height // 2).abs()
    columns = (torch.arange(width, device=device) - width // 2).abs()
    levels = _added(max(height, width) // 2 + 1, device, norm).flip(0).cumsum(0).flip(0)
    hill = levels[torch.maximum(rows[:, None], columns[None, :])]
    return hill / hill.norm(POWER[norm])


def _added(count: int, device: torch.device, norm: str) -> Tensor:
    """(count,): 1 / k^2 for k from 1 on, under "l1" 1 / k^4."""
    added = 1.0 / torch.arange(1, count + 1, device=device).square()
    return added.square() if norm == "l1" else added
