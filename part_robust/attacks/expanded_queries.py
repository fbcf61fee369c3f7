"""Gradients past a detector's choice of object queries.

Letters: N images of (3, H, W), C classes.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class ChoosesQueries(Protocol):
    """A model that may read the class from object queries which it chooses among others."""

    def expanded_queries(self, factor: int) -> AbstractContextManager[None] | None:
        """Return the context in which it chooses `factor` times as many; None where it chooses none."""
        ...


class ExpandedQueries:
    """Images -> the model's own class logits (N, C), with the gradient that it has with more object queries.

    A detector reads the class from the pixels of highest score, a hard choice: the others get no gradient. The forward
    pass is the model's own; the backward pass goes through a model that chooses more pixels (BPDA,
    Athalye et al., 2018).
    """

    def __init__(self, view: Any, padding: Tensor | None, factor: int = 4) -> None:
        """Wrap a view of a model that chooses object queries.

        Args:
            view: the model inside `attack_mode`, a `ChoosesQueries`.
            padding: bool (N, H, W) or None.
            factor: ratio of the number of object queries to the model's own.
        """
        self.view = view
        self.padding = padding
        self.factor = factor

    def __call__(self, images: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self.view.class_logits(images, self.padding)
        with torch.no_grad():
            logits = self.view.class_logits(images, self.padding)
        with self.view.expanded_queries(self.factor):
            expanded = self.view.class_logits(images, self.padding)
        return logits + (expanded - expanded.detach())

    @property
    def passes(self) -> int:
        """Forward passes of a call."""
        return 2 if torch.is_grad_enabled() else 1

    def select(self, index: Tensor) -> ExpandedQueries:
        """The same for the images at `index`."""
        return ExpandedQueries(self.view, None if self.padding is None else self.padding[index], self.factor)


def expand_queries(view: Any, padding: Tensor | None, factor: int = 4) -> ExpandedQueries | None:
    """Return None for models that do not read the class from chosen queries."""
    if not isinstance(view, ChoosesQueries) or view.expanded_queries(factor) is None:
        return None
    return ExpandedQueries(view, padding, factor)
