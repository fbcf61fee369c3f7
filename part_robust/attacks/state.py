"""State of each image of a batch, during a run and after it.

Letters: N images of (3, H, W), RGB, 0..255.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from part_robust.attacks.objective import Score, better


def select(value: Any, index: Tensor) -> Any:
    """Return rows `index` of a tensor (N, ...), or of every tensor in a tuple; None stays None.

    Raises:
        TypeError: the value is none of these.
    """
    if value is None:
        return value
    if isinstance(value, Tensor):
        return value.index_select(0, index)
    if isinstance(value, tuple):
        return tuple(select(item, index) for item in value)
    raise TypeError(f"targets must be a tensor or a tuple of tensors, are {type(value).__name__}")


@dataclass
class Rows:
    """A dataclass whose fields are tensors (N, ...), one row per image, or None."""

    def select(self, index: Tensor) -> Any:
        """The rows at `index`, int64 (M,)."""
        return replace(self, **{f.name: select(getattr(self, f.name), index) for f in fields(self)})

    def copy(self) -> Any:
        """Return the same with tensors of its own, to `put` into."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: None if value is None else value.clone() for name, value in values.items()})

    def put(self, rows: Tensor, other: Rows) -> None:
        """Writes `other` over the rows at `rows`, int64 (M,)."""
        for f in fields(self):
            if getattr(self, f.name) is not None:
                getattr(self, f.name)[rows] = getattr(other, f.name)


@dataclass
class Run(Rows):
    """Result of one run, or the worst of several.

    Attributes:
        images: (N, 3, H, W), allowed by the threat model.
        zero_gradient: bool (N,), no step saw a gradient.
        harm: (N,), how bad `images` are for the model; None where nobody needs to know.
        fooled: bool (N,), likewise.
        distance: (N,), of attacks that look for the smallest perturbation.
    """

    images: Tensor
    zero_gradient: Tensor
    harm: Tensor | None = None
    fooled: Tensor | None = None
    distance: Tensor | None = None


@dataclass
class AttackResult:
    """Result of an attack on a batch of images.

    Attributes:
        images: (N, 3, H, W), allowed by the threat model (verified).
        zero_gradient: bool (N,), images whose gradient was zero at every step of every run: the attack was blind there
            and the result says nothing about robustness. False for images that left before the first step, and for
            attacks that use no gradient.
        num_zero_gradient: how many images that are, known on the host.
        fooled: bool (N,), the objective's verdict on `images`; None where nobody asked (one run, last iterate kept).
        forwards: images sent through the model: a batch of 4 for 3 steps counts 12.
        backwards: images whose gradient was taken, counted likewise.
        history: (S, N), the loss the model had at each step, run after run, NaN where an image had left; None unless
            `record_history`.
        distance: (N,), norm of the smallest perturbation found that changes the class, inside eps or not, 0 for images
            that are wrong already, `inf` where none was found; None for attacks that do not look for it.
    """

    images: Tensor
    zero_gradient: Tensor
    num_zero_gradient: int
    fooled: Tensor | None = None
    forwards: int = 0
    backwards: int = 0
    history: Tensor | None = None
    distance: Tensor | None = None


@dataclass
class State(Rows):
    """A run on its way; attacks extend it.

    Attributes:
        x: (N, 3, H, W), the iterate.
        loss: (N,), of the last image the model was asked about; NaN before the first.
        blind: bool (N,), no gradient so far was other than zero.
        best: (N, 3, H, W), the allowed image that is worst for the model so far.
        best_harm: (N,), of `best`; NaN before the first.
        best_fooled: bool (N,), likewise.
    """

    x: Tensor
    loss: Tensor
    blind: Tensor
    best: Tensor
    best_harm: Tensor
    best_fooled: Tensor

    @classmethod
    def unseen(cls, x: Tensor, blind: bool = True) -> dict[str, Tensor]:
        """The fields of a state in which the model has seen nothing yet."""
        nothing = torch.full((len(x),), float("nan"), device=x.device)
        false = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        flags = torch.full_like(false, blind)
        return {"x": x, "loss": nothing, "blind": flags, "best": x, "best_harm": nothing, "best_fooled": false}

    def see(self, x: Tensor, found: Score) -> None:
        """Keeps `x` where it is worse for the model than what there was."""
        assert found.harm is not None and found.fooled is not None
        self.loss = found.loss
        take = better(found.harm, found.fooled, self.best_harm, self.best_fooled)
        self.best = where(take, x, self.best)
        self.best_harm = torch.where(take, found.harm, self.best_harm)
        self.best_fooled = torch.where(take, found.fooled, self.best_fooled)

    def notice(self, slope: Tensor, found: Score) -> None:
        """Remembers whether there was a gradient. Stays on the device: one look at it in the end, none per step."""
        self.blind = self.blind & (slope == 0).flatten(1).all(dim=1)
        if found.idle is not None:
            self.blind = self.blind & ~found.idle


def where(condition: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Whole images by a condition (N,)."""
    return torch.where(condition.view(-1, *[1] * (first.dim() - 1)), first, second)


def worst_of(best: Run, run: Run, rows: Tensor) -> Run:
    """The worse of both for each image; `run` is about the images of `best` at `rows`, int64 (M,)."""
    part = len(rows) < len(best.images)
    old = best.select(rows) if part else best
    assert old.harm is not None and old.fooled is not None
    assert run.harm is not None and run.fooled is not None
    take = better(run.harm, run.fooled, old.harm, old.fooled)
    distance = None
    if old.distance is not None and run.distance is not None:
        distance = torch.where(take, run.distance, old.distance)
    new = Run(
        images=where(take, run.images, old.images),
        zero_gradient=old.zero_gradient & run.zero_gradient,
        harm=torch.where(take, run.harm, old.harm),
        fooled=torch.where(take, run.fooled, old.fooled),
        distance=distance,
    )
    if not part:
        return new
    best.put(rows, new)
    return best
