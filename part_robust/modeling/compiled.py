"""The path that attacks differentiate, through torch.compile."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


class CompiledPath:
    """A function of images, compiled by `torch.compile`.

    Once compiling has failed, which is logged with its reason, it is the function itself. Copies of a model compile for
    themselves.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        """Wrap a function; it is compiled when it is first called.

        Args:
            function: images (N, 3, H, W), and keyword arguments -> logits, differentiable.
        """
        self.function = function
        self.compiled: Callable[..., Tensor] | None = torch.compile(function)
        self.tried_backward = False

    def __call__(self, images: Tensor, **arguments: Any) -> Tensor:
        if self.compiled is None:
            return self.function(images, **arguments)
        try:
            result = self.compiled(images, **arguments)
            if result.requires_grad and not self.tried_backward:
                # The backward pass is compiled when it is first needed, in the attack, where no other path is left.
                torch.autograd.grad(result.sum(), images, retain_graph=True, allow_unused=True)
                self.tried_backward = True
            return result
        except Exception as error:
            # A compiler, a driver or a linker may fail in many ways. What is not their fault comes again.
            result = self.function(images, **arguments)
            reason = " ".join(str(error).split())[:300]
            logger.warning("ATTACK.COMPILE: attacks run uncompiled, %s: %s", type(error).__name__, reason)
            self.compiled = None
            return result

    def __deepcopy__(self, memo: dict) -> None:
        return None

    def __reduce__(self) -> tuple:
        return type(None), ()
