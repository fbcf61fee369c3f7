"""A classifier from elsewhere as a module: normalised images -> logits of the data set's classes.

Letters: N images, K outputs of the model, C classes of the data set, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from part_robust.utils.errors import UserError


class ExternalNet(nn.Module):
    """A model that stays in eval mode whatever is set, with what lies between its output and class logits.

    Attributes:
        batch: the fewest and the most images that the model takes at once; 0 for any.
        differentiable: its outputs have a gradient with respect to the images; `try_model` finds out.
        notes: sentences for the reader of the results.
    """

    indices: Tensor
    absent: Tensor

    def __init__(
        self,
        function: Callable[[Tensor], Any],
        *,
        channels: str = "RGB",
        output: str = "",
        probabilities: bool = False,
        batch: tuple[int, int] = (1, 0),
        class_indices: Sequence[int | Sequence[int]] = (),
    ) -> None:
        """Wrap a model.

        Args:
            function: the model, images (N, 3, H, W) -> outputs (N, K), or several of which one is that.
            channels: "RGB" or "BGR", the order that it takes.
            output: key or index of the logits among several outputs.
            probabilities: outputs are probabilities, whose logarithm is taken.
            batch: see the class.
            class_indices: output of each class of the data set, or its outputs; empty: output i is class i.
        """
        super().__init__()
        self.function = function
        self.channels = channels
        self.output = output
        self.probabilities = probabilities
        self.batch = batch
        groups = [[entry] if isinstance(entry, int) else list(entry) for entry in class_indices]
        most = max(map(len, groups), default=0)
        # (C, most) outputs of each class; those that a class lacks are `absent`.
        padded = [[*group, *[group[0]] * (most - len(group))] for group in groups]
        self.register_buffer("indices", torch.tensor(padded, dtype=torch.int64), persistent=False)
        absent = [[place >= len(group) for place in range(most)] for group in groups]
        self.register_buffer("absent", torch.tensor(absent, dtype=torch.bool), persistent=False)
        self.differentiable = True
        self.notes: list[str] = []
        for module in self.modules():
            module.training = False

    def train(self, mode: bool = True) -> ExternalNet:
        """Stay in eval mode: an exported graph has no other."""
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, C) of the data set's classes.

        That of a class of several outputs is the logarithm of the sum of their exponentials: the softmax over the
        classes is then the probability of the union, among the outputs that are used.

        Args:
            images: (N, 3, H, W), RGB, normalised.
        """
        logits = self.outputs(images)
        if self.probabilities:
            logits = logits.clamp(min=torch.finfo(logits.dtype).tiny).log()
        if not len(self.indices):
            return logits
        if self.indices.shape[1] == 1:
            return logits.index_select(1, self.indices[:, 0])
        return logits[:, self.indices].masked_fill(self.absent, -torch.inf).logsumexp(dim=2)

    def outputs(self, images: Tensor) -> Tensor:
        """Return the model's own outputs (N, K), in float32 at least."""
        if not isinstance(self.function, nn.Module) and images.dtype != torch.float32:
            raise TypeError("a callable takes float32 images")
        if self.channels == "BGR":
            images = images.flip(1)
        least, most = self.batch
        pieces = images.split(most) if most else (images,)
        found = [self._call(piece, least) for piece in pieces]
        outputs = found[0] if len(found) == 1 else torch.cat(found)
        # A callable may compute elsewhere.
        outputs = outputs.to(images.device)
        return outputs if outputs.dtype == torch.float64 else outputs.float()

    def _call(self, images: Tensor, least: int) -> Tensor:
        missing = least - len(images)
        full = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)]) if missing > 0 else images
        # An optimised graph changes its kernels after the first passes, and with them the rounding.
        with torch.jit.optimized_execution(False):
            return select_output(self.function(full), self.output, len(full))[: len(images)]


def select_output(result: Any, output: str, number: int) -> Tensor:
    """Return the logits (N, K) among what a model has returned.

    Args:
        result: a tensor, or a mapping or sequence with tensors.
        output: key or index of the one that is wanted; "" where there is one alone.
        number: N.

    Raises:
        UserError: there is no such output, or it is not a tensor of this shape.
    """
    if isinstance(result, (Mapping, tuple, list)):
        entries = dict(result) if isinstance(result, Mapping) else dict(enumerate(result))
        named = {str(key): value for key, value in entries.items()}
        if output not in named:
            found = ", ".join(f"{key} {_shape(value)}" for key, value in named.items())
            raise UserError(
                f"--output (MODEL.EXTERNAL.OUTPUT) must name the logits among the outputs of the model, got "
                f"{output!r}; it returns a {type(result).__name__} with {found}"
            )
        result = named[output]
    if not isinstance(result, Tensor) or result.dim() != 2 or len(result) != number:
        raise UserError(
            f"the model must return a tensor of logits (N, classes), got {_shape(result)} for {number} images"
        )
    return result


def _shape(value: Any) -> str:
    return f"{tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
