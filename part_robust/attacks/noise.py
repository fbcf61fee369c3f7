"""Random numbers that belong to an image: the same for any batch size, process count, order and device.

A counter-based generator: every number is a hash of (key of the image, index of the pixel), so there is no state, no
loop over images and nothing to copy between host and device. The hash is the 64-bit finaliser of MurmurHash3
(A. Appleby, public domain), in wrapping int64 arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MULTIPLIER_1 = 0xFF51AFD7ED558CCD - (1 << 64)
_MULTIPLIER_2 = 0xC4CEB9FE1A85EC53 - (1 << 64)
_GOLDEN_RATIO = 0x9E3779B97F4A7C15 - (1 << 64)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def hash_int64(x: Tensor) -> Tensor:
    """Elementwise bijective hash of int64 values."""
    x = (x ^ _shift(x, 33)) * _MULTIPLIER_1
    x = (x ^ _shift(x, 33)) * _MULTIPLIER_2
    return x ^ _shift(x, 33)


def make_keys(seed: int, *parts: int | Tensor) -> Tensor:
    """Return keys from a seed and any number of integers or int64 tensors (image ids, restart, iteration), broadcast.

    They are on the device of the tensors.
    """
    device = next((part.device for part in parts if isinstance(part, Tensor)), None)
    # Filled on the device, and integers enter as scalars: nothing is copied between host and device.
    key = hash_int64(torch.full((), seed, dtype=torch.int64, device=device))
    for part in parts:
        key = hash_int64(key * _GOLDEN_RATIO + part)
    return key


def uniform(keys: Tensor, shape: Sequence[int], stream: int = 0) -> Tensor:
    """float32 (N, *shape) in [0, 1), for keys int64 (N,); another `stream` is another independent draw."""
    count = math.prod(shape)
    index = torch.arange(count, dtype=torch.int64, device=keys.device)
    stream_keys = make_keys(0, keys, stream)
    bits = _shift(hash_int64(stream_keys[:, None] + index * _GOLDEN_RATIO), 40)
    return (bits.float() / (1 << 24)).view(len(keys), *shape)


def normal(keys: Tensor, shape: Sequence[int], stream: int = 0) -> Tensor:
    """float32 (N, *shape), standard normal (Box and Muller, 1958); uses streams `stream` and `stream` + 1."""
    radius = (-2.0 * torch.log1p(-uniform(keys, shape, stream))).sqrt()
    return radius * torch.cos(2.0 * math.pi * uniform(keys, shape, stream + 1))
