"""Expectation over transformations: the average of a randomised model as the target (Athalye et al., 2018)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class EotView:
    """Images -> outputs averaged over random draws of the model; gradients are averaged with them.

    An attack on one draw of a randomised model follows the noise of that draw. The average over draws estimates the
    model's expected output, and its gradient is the one that an attacker can follow.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], draws: int = 10, average: str = "logits") -> None:
        """Average a randomised model over several forward passes.

        Args:
            forward: randomised, images (N, 3, H, W) -> class logits (N, C).
            draws: forward passes for each call.
            average: "logits", or "probabilities": the logarithm of the mean softmax, what a vote over draws decides.

        Raises:
            ValueError: a value is impossible.
        """
        if draws < 1:
            raise ValueError(f"expectation over transformations needs at least 1 draw, got {draws}")
        if average not in ("logits", "probabilities"):
            raise ValueError(f"average must be 'logits' or 'probabilities', got {average!r}")
        self.forward = forward
        self.draws = draws
        self.average = average

    def __call__(self, images: Tensor) -> Tensor:
        outputs = torch.stack([self.forward(images) for _ in range(self.draws)])
        if self.average == "logits":
            return outputs.mean(dim=0)
        return outputs.log_softmax(dim=-1).logsumexp(dim=0) - torch.tensor(float(self.draws)).log().to(outputs)

    def select(self, index: Tensor) -> EotView:
        """The view of the images at `index`, for attacks whose batch shrinks."""
        return EotView(select(self.forward, index), self.draws, self.average)


def select(forward: Any, index: Tensor) -> Any:
    """`forward` for the images at `index`: its own `select` where it has one, itself where it has none."""
    return forward.select(index) if hasattr(forward, "select") else forward
