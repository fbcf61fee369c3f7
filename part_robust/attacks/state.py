"""State of each image of a batch, during a run and after it.

Letters: N images of (3, H, W), RGB, 0..255.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from part_robust.attacks.objective import Score, better
from part_robust.utils.renamed import renamed


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
    raise TypeError(f"targets must be a tensor or a tuple of tensors, got {type(value).__name__}")


@dataclass
class Rows:
    """A dataclass whose fields are tensors (N, ...), one row per image, or None."""

    def select(self, index: Tensor) -> Any:
        """The rows at `index`, int64 (M,)."""
        return replace(self, **{f.name: select(getattr(self, f.name), index) for f in fields(self)})

    def copy(self) -> Any:
        """Return a copy whose tensors `put` may change."""
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
        zero_gradient: bool (N,), the gradient was zero at every step.
        margin_score: (N,), of `images`; None where it was not computed.
        success: bool (N,), whether `images` are a success; None where it was not computed.
        distance: (N,), norm of the smallest perturbation; None for attacks that do not minimise it.
    """

    images: Tensor
    zero_gradient: Tensor
    margin_score: Tensor | None = None
    success: Tensor | None = None
    distance: Tensor | None = None


@dataclass
class AttackResult:
    """Result of an attack on a batch of images.

    Attributes:
        images: (N, 3, H, W), allowed by the threat model (verified).
        zero_gradient: bool (N,), images whose gradient was zero at every step of every run, so that a failed attack is
            not evidence of robustness. False for images that were removed before the first step, and for attacks that
            use no gradient.
        num_zero_gradient: number of these images, an integer on the host.
        num_attackable: number of images with labels for the objective, an integer on the host.
        success: bool (N,), the model is wrong on `images`; None where it was not computed (one run, last iterate kept,
            `scored` False).
        forwards: images sent through the model: a batch of 4 for 3 steps counts 12.
        backwards: images whose gradient was taken, counted in the same way.
        history: (S, N), the loss at each step, run after run, NaN where an image had been removed; None unless
            `record_history`.
        distance: (N,), norm of the smallest perturbation found that changes the class, inside eps or not, 0 for images
            that are wrong already, `inf` where none was found; None for attacks that do not look for it.
    """

    images: Tensor
    zero_gradient: Tensor
    num_zero_gradient: int
    num_attackable: int
    success: Tensor | None = None
    forwards: int = 0
    backwards: int = 0
    history: Tensor | None = None
    distance: Tensor | None = None

    fooled = renamed("success")


@dataclass
class State(Rows):
    """State of a run; attacks extend it.

    Attributes:
        x: (N, 3, H, W), the iterate.
        loss: (N,), of the last image that the model was evaluated at; NaN before the first.
        zero_gradient: bool (N,), all gradients so far were zero.
        best: (N, 3, H, W), the allowed image that is worst for the model so far.
        best_score: (N,), margin score of `best`; NaN before the first.
        best_success: bool (N,), whether `best` is a success.
    """

    x: Tensor
    loss: Tensor
    zero_gradient: Tensor
    best: Tensor
    best_score: Tensor
    best_success: Tensor

    # Names of earlier versions.
    blind = renamed("zero_gradient")
    best_harm = renamed("best_score")
    best_fooled = renamed("best_success")

    @classmethod
    def initial_fields(cls, x: Tensor, zero_gradient: bool = True) -> dict[str, Tensor]:
        """Return the fields of the state at the start `x` (N, 3, H, W), before the first forward pass."""
        nothing = torch.full((len(x),), float("nan"), device=x.device)
        false = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        flags = torch.full_like(false, zero_gradient)
        values = {"loss": nothing, "best_score": nothing, "best_success": false, "zero_gradient": flags}
        return {"x": x, "best": x, **values}

    def update_best(self, x: Tensor, found: Score) -> None:
        """Replace `best` by `x` where that is worse for the model."""
        assert found.margin_score is not None and found.success is not None
        self.loss = found.loss
        take = better(found.margin_score, found.success, self.best_score, self.best_success)
        self.best = where(take, x, self.best)
        self.best_score = torch.where(take, found.margin_score, self.best_score)
        self.best_success = torch.where(take, found.success, self.best_success)

    def record_gradient(self, grad: Tensor, found: Score) -> None:
        """Update `zero_gradient` on the device, so that no step waits for it."""
        self.zero_gradient = self.zero_gradient & (grad == 0).flatten(1).all(dim=1)
        if found.nothing_to_attack is not None:
            self.zero_gradient = self.zero_gradient & ~found.nothing_to_attack

    # Names of earlier versions.
    unseen = initial_fields
    see = update_best
    notice = record_gradient


def where(condition: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Choose whole images by a condition (N,)."""
    return torch.where(condition.view(-1, *[1] * (first.dim() - 1)), first, second)


def worst_of(best: Run, run: Run, rows: Tensor) -> Run:
    """Return the worse result of each image; `run` is of the images of `best` at `rows`, int64 (M,)."""
    part = len(rows) < len(best.images)
    old = best.select(rows) if part else best
    assert old.margin_score is not None and old.success is not None
    assert run.margin_score is not None and run.success is not None
    take = better(run.margin_score, run.success, old.margin_score, old.success)
    distance = None
    if old.distance is not None and run.distance is not None:
        distance = torch.where(take, run.distance, old.distance)
    new = Run(
        images=where(take, run.images, old.images),
        zero_gradient=old.zero_gradient & run.zero_gradient,
        margin_score=torch.where(take, run.margin_score, old.margin_score),
        success=torch.where(take, run.success, old.success),
        distance=distance,
    )
    if not part:
        return new
    best.put(rows, new)
    return best
