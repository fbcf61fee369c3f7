"""Constant tensors, made once for each shape and device: making one from Python numbers makes the host wait."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable

import torch
from torch import Tensor


def cached_constant(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Caches a function of hashable arguments, a device among them, that gives a constant tensor.

    The caller must not change the result in place. Traced and compiled code makes its own constants, which a cache
    would carry from one graph into another.
    """
    cached = functools.lru_cache(maxsize=128)(function)

    @functools.wraps(function)
    def wrapper(*args: Hashable) -> Tensor:
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return function(*args)
        # A tensor of inference mode could not be saved for a backward pass later.
        with torch.inference_mode(False), torch.no_grad():
            return cached(*args)

    return wrapper


@cached_constant
def constant(values: tuple, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`torch.tensor(values)`, for (nested) tuples of numbers."""
    return torch.tensor(values, dtype=dtype, device=device)
