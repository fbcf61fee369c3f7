"""The model and the batch that an attack's objective takes its outputs and targets from.

Letters: N images of (3, H, W), RGB, 0..255; C classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from part_robust.attacks.expanded_queries import expand_queries


class Attackable(Protocol):
    """A model that `attack_batch` attacks. Only what the attack's objective needs is called."""

    def preprocess(self, batched_inputs: list[dict]) -> tuple[Tensor, Tensor | None]:
        """Images float (N, 3, H, W), and the padding mask, bool (N, H, W) or None."""
        ...

    def class_logits(self, images: Tensor, padding: Tensor | None = None) -> Tensor:
        """(N, C), differentiable, for objectives of the class."""
        ...

    def part_logits(self, images: Tensor, padding: Tensor | None = None) -> Tensor:
        """(N, P + 1, H, W), differentiable, for objectives of the pixels."""
        ...

    def part_loss_view(
        self, batched_inputs: list[dict], images: Tensor, padding: Tensor | None, joint: bool, fixed: bool
    ) -> Callable[[Tensor], tuple[Tensor | None, Tensor]]:
        """Images -> class logits (N, C) or None, and the model's own loss (N,), for objectives of that loss.

        Objectives of one term of the loss also pass `term`, "class" or "box".
        """
        ...


@runtime_checkable
class ScoresParts(Protocol):
    """A model that predicts parts with scores, for the objective that hides them."""

    def part_score_margins(self, images: Tensor, padding: Tensor | None = None) -> Tensor:
        """(N, Q), differentiable, by how much the score of each query exceeds the least that counts as found."""
        ...


@runtime_checkable
class CutsGradient(Protocol):
    """A model that detaches its gradient in training, and has a context in which it does not."""

    def attack_gradient(self) -> AbstractContextManager[None]:
        """Return the context in which nothing is detached."""
        ...


@runtime_checkable
class HasAttackPath(Protocol):
    """A model with a faster function for its class logits under attack."""

    def attack_class_logits(self) -> Callable[..., Tensor]:
        """Same as `class_logits`."""
        ...


@dataclass(frozen=True)
class AttackInputs:
    """One batch of the mapper's dicts, and the model that is attacked.

    Attributes:
        model: an `Attackable`, inside `attack_mode`.
        batched_inputs: with `class_id`, and `sem_seg` or `instances` for objectives of the parts.
        images: (N, 3, H, W) before the attack.
        padding: bool (N, H, W), True on letterbox padding.
        query_factor: above 1, gradients of the class are those of a model that chooses so many times the object queries
            (`ExpandedQueries`), where it chooses any.
    """

    model: Any
    batched_inputs: list[dict]
    images: Tensor
    padding: Tensor | None = None
    query_factor: int = 1

    def select(self, index: Tensor) -> AttackInputs:
        """The images at `index`, int64 (M,), alone."""
        return replace(
            self,
            batched_inputs=[self.batched_inputs[i] for i in index.tolist()],
            images=self.images[index],
            padding=None if self.padding is None else self.padding[index],
        )

    def class_forward(self) -> Callable[[Tensor], Tensor]:
        """Images -> class logits (N, C)."""
        expanded = expand_queries(self.model, self.padding, self.query_factor) if self.query_factor > 1 else None
        if expanded is not None:
            return expanded
        path = self.model.attack_class_logits() if isinstance(self.model, HasAttackPath) else self.model.class_logits
        return functools.partial(path, padding=self.padding)

    @property
    def labels(self) -> Tensor:
        """int64 (N,), on the host."""
        return torch.tensor([item["class_id"] for item in self.batched_inputs])

    @property
    def label_maps(self) -> Tensor:
        """int64 (N, H, W), on the host."""
        return torch.stack([item["sem_seg"] for item in self.batched_inputs])

    @property
    def labelled(self) -> Tensor:
        """Bool (N,), on the host: images with part labels."""
        return torch.tensor([item.get("part_supervision") != "none" for item in self.batched_inputs])
