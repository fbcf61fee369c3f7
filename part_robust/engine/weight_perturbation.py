"""Adversarial weight perturbation (Wu et al., 2020): gradients are taken where the weights are worst nearby."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn


class WeightPerturbation:
    """Moves every weight tensor w by gamma ||w|| g / ||g||, g the gradient of the loss, until `restore`.

    Tensors of one dimension (biases, norms) stay. The weights are kept as they were and put back bit by bit, before
    the optimizer's step: unlike in the published code its weight decay acts on the true weights.

    Attributes:
        active: False during the warm-up.
    """

    def __init__(self, gamma: float = 0.01, warmup_iters: int = 0) -> None:
        """Set the length of the perturbation.

        Args:
            gamma: length of the perturbation relative to the weights'.
            warmup_iters: iterations without perturbation at the beginning.
        """
        self.gamma = gamma
        self.warmup_iters = warmup_iters
        self.active = warmup_iters <= 0
        self._kept: list[tuple[nn.Parameter, Tensor]] = []

    def at(self, iteration: int) -> None:
        """Switch the perturbation on where the warm-up is over at this iteration."""
        self.active = iteration >= self.warmup_iters

    def perturb(self, model: nn.Module, losses: Sequence[Callable[[], Tensor]]) -> None:
        """Perturbs the weights of `model`.

        Args:
            model: not wrapped; its buffers come out of this as they went in.
            losses: give the loss piece by piece, with a graph; added up they are that of this process's batch.
        """
        assert not self._kept, "restore() was not called"
        weights = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        gradients = [torch.zeros_like(w) for w in weights]
        try:
            for loss in losses:
                found = torch.autograd.grad(loss(), weights, allow_unused=True)
                for total, part in zip(gradients, found, strict=True):
                    if part is not None:
                        total += part
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
        if comm.get_world_size() > 1:  # all processes must use the same weights
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            torch.distributed.all_reduce(flat)
            parts = flat.split([g.numel() for g in gradients])
            gradients = [part.view_as(g) for part, g in zip(parts, gradients, strict=True)]
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                self._kept.append((weight, weight.detach().clone()))
                length = gradient.norm()
                step = self.gamma * weight.norm() * gradient / length
                # A weight without gradient stays; so does one whose gradient overflowed.
                weight.add_(step.where(torch.isfinite(length) & (length > 0), torch.zeros_like(step)))

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the weights back. Does nothing when they are."""
        for weight, value in self._kept:
            weight.copy_(value)
        self._kept.clear()


class RestoreWeights(HookBase):
    """Hook that puts the weights back between the backward pass and the optimizer's step.

    Otherwise that step would be undone with the perturbation. It is registered on the inner trainer, whose
    `after_backward` comes there.
    """

    def __init__(self, perturbation: WeightPerturbation) -> None:
        self.perturbation = perturbation

    def after_backward(self) -> None:
        self.perturbation.restore()
