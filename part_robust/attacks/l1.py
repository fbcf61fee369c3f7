"""Geometry of the L1 ball inside the pixel range (Croce and Hein, 2021, "Mind the box").

Changes of least L1 norm are sparse: few pixel values change much. The range of pixels therefore cuts off most of a
plain L1 ball, and everything here takes both together.

Letters: N images of (3, H, W), D = 3 H W values of each. All lengths in 0..255 pixel units.
"""

from __future__ import annotations

import torch
from torch import Tensor

from part_robust.attacks import noise

# What a projection leaves of the radius unused, so that rounding to float32 never ends outside.
SLACK = 1e-6


def project(adversarial: Tensor, images: Tensor, eps: float, low: float, high: float) -> Tensor:
    """Return the point of ball and range that is nearest to `adversarial` in the Euclidean sense; allowed points stay.

    Every change becomes `clip(|change| - shift, 0, room)`, where room is the way to the end of the range (proposition
    2.1). What remains in total falls with the shift along straight lines between 2 D points: those where a pixel begins
    to shrink, and those where it is back at its original. The shift is read off the line that crosses the radius.

    Args:
        adversarial: (N, 3, H, W).
        images: (N, 3, H, W), inside the range.
        eps: radius.
        low: of the range.
        high: of the range.
    """
    original, change = images.flatten(1), (adversarial - images).flatten(1)
    size = change.abs()
    room = torch.where(change > 0, high - original, original - low).clamp(min=0)
    clipped = torch.minimum(size, room)
    total = clipped.sum(dim=1, dtype=torch.float64)
    points, order = torch.cat([size - clipped, size], dim=1).sort(dim=1)
    # Pixels that shrink between a point and the next one.
    shrinking = torch.where(order < size.shape[1], 1, -1).cumsum(dim=1)[:, :-1]
    fallen = (shrinking * points.double().diff(dim=1)).cumsum(dim=1)
    remaining = total[:, None] - torch.cat([torch.zeros_like(fallen[:, :1]), fallen[:, :-1]], dim=1)
    wanted = eps * (1 - SLACK)
    last = ((remaining > wanted).sum(dim=1, keepdim=True) - 1).clamp(min=0)
    shift = points.gather(1, last) + (remaining.gather(1, last) - wanted) / shrinking.gather(1, last).clamp(min=1)
    kept = torch.minimum((size - shift).clamp(min=0).to(size.dtype), room)
    # Points are float32, so the line is only as exact as these.
    rest = kept.sum(dim=1, keepdim=True, dtype=torch.float64)
    kept = kept * (wanted / rest.clamp(min=torch.finfo(rest.dtype).tiny)).clamp(max=1).to(kept.dtype)
    moved = original + torch.copysign(kept, change)
    # Rounded towards the original: half a step of float32 for each of 150,000 values is a whole level.
    moved = torch.where((moved - original).abs() > kept, torch.nextafter(moved, original), moved)
    inside = (total <= eps)[:, None]
    return torch.where(inside, adversarial.flatten(1).clamp(low, high), moved).view_as(images)


def uniform_change(keys: Tensor, shape: torch.Size, eps: float, mask: Tensor | None = None) -> Tensor:
    """Draw changes (N, *shape) uniformly from the ball of a mask, bool (N, 1, H, W) or None; keys int64 (N,)."""
    # Exponential variables over their sum and one more are uniform in the simplex.
    sizes = _exponential(noise.uniform(keys, shape))
    if mask is not None:
        sizes = sizes * mask
    rest = _exponential(noise.uniform(keys, (1, 1, 1), stream=2))
    signs = torch.where(noise.uniform(keys, shape, stream=1) < 0.5, -1.0, 1.0)
    return eps * signs * sizes / (sizes.sum(dim=(1, 2, 3), keepdim=True) + rest)


def _exponential(drawn: Tensor) -> Tensor:
    return -torch.log1p(-drawn)


def unit_ascent(gradient: Tensor) -> Tensor:
    """Steepest ascent of length 1 where no range limits it: one value of largest gradient (N, 3, H, W); 0 stays 0."""
    flat = gradient.flatten(1)
    index = flat.abs().argmax(dim=1, keepdim=True)
    return torch.zeros_like(flat).scatter(1, index, flat.gather(1, index).sign()).view_as(gradient)


def sparse_signs(gradient: Tensor, count: Tensor) -> Tensor:
    """Return the signs of the `count` largest gradients, divided by their number: (N, 3, H, W) of length 1.

    Args:
        gradient: (N, 3, H, W).
        count: float (N,), values that move, rounded up and at least 1; equal gradients move together.
    """
    flat = gradient.flatten(1)
    smallest = flat.shape[1] - count.ceil().long().clamp(min=1, max=flat.shape[1])
    threshold = flat.abs().sort(dim=1).values.gather(1, smallest[:, None])
    signs = torch.where(flat.abs() >= threshold, flat.sign(), 0.0)
    return (signs / signs.abs().sum(dim=1, keepdim=True).clamp(min=1)).view_as(gradient)


def steepest_step(x: Tensor, gradient: Tensor, length: float, low: float, high: float) -> Tensor:
    """Return the change of L1 norm at most `length` along which a linear function grows most inside the range.

    Values of the largest gradients go to the end of the range, one after the other (proposition 2.2).

    Args:
        x: (N, 3, H, W), inside the range.
        gradient: (N, 3, H, W), 0 on values that must not move.
        length: of the step.
        low: of the range.
        high: of the range.
    """
    weight, room = gradient.flatten(1).abs(), _room(x, gradient, low, high)
    wanted = torch.full((len(x),), length, dtype=torch.float64, device=x.device)
    return _signed(_largest_first(weight, room, torch.ones_like(weight), wanted), gradient)


def shortest_change(x: Tensor, slope: Tensor, gap: Tensor, low: float, high: float) -> Tensor:
    """Return the change of least L1 norm that moves a linear function by `gap` and keeps all values in range.

    Args: see `fab.shortest_change`.
    """
    upwards = slope * gap.sign().view(-1, 1, 1, 1)
    weight, room = upwards.flatten(1).abs(), _room(x, upwards, low, high)
    largest = weight.amax(dim=1).clamp(min=torch.finfo(weight.dtype).tiny)
    weight = weight / largest[:, None]
    return _signed(_largest_first(weight, room, weight, gap.abs().double() / largest.double()), upwards)


def _room(x: Tensor, direction: Tensor, low: float, high: float) -> Tensor:
    """(N, D) ways to the end of the range in a direction; 0 where that is 0."""
    flat, towards = x.flatten(1), direction.flatten(1)
    return torch.where(towards > 0, high - flat, flat - low).clamp(min=0) * (towards != 0)


def _largest_first(weight: Tensor, room: Tensor, worth: Tensor, wanted: Tensor) -> Tensor:
    """Return moves (N, D), in the order of their weight each as far as its room, until their worth is what is wanted.

    Args:
        weight: (N, D), decides the order.
        room: (N, D), longest moves.
        worth: (N, D), of a move of length 1.
        wanted: float64 (N,), sum of move times worth.
    """
    order = weight.sort(dim=1, descending=True, stable=True).indices
    room, worth = room.gather(1, order), worth.gather(1, order).double()
    whole = worth * room
    before = whole.cumsum(dim=1) - whole
    moves = (wanted[:, None] - before) / worth.clamp(min=torch.finfo(torch.float64).tiny)
    # Limited before the conversion: float32 does not hold a huge quotient.
    moves = torch.minimum(moves.clamp(min=0), room.double()).to(room.dtype)
    return torch.zeros_like(room).scatter(1, order, moves)


def _signed(moves: Tensor, direction: Tensor) -> Tensor:
    return (moves * direction.flatten(1).sign()).view_as(direction)
