"""Sine position embeddings of pixels and of boxes.

Letters: N images, h w pixels of a feature map, C channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_embedding(values: Tensor, channels: int, temperature: float) -> Tensor:
    """Sines and cosines, interleaved, of angles that fall geometrically (Vaswani et al., 2017).

    Args:
        values: (...), angles in radians at the highest frequency.
        channels: C, even.
        temperature: ratio of the highest frequency to the lowest, nearly.

    Returns:
        (..., C), float32 or wider.
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    exponent = torch.arange(0, channels, 2, device=values.device, dtype=values.dtype) / channels
    angles = values[..., None] * temperature**-exponent
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def sine_position(
    valid: Tensor, channels: int, temperature: float = 10000.0, offset: float = 0.0, eps: float = 1e-6
) -> Tensor:
    """Position embedding of the pixels of a map, counted over valid pixels and scaled to 0..2 pi (DETR's).

    Args:
        valid: bool (N, h, w), False on padding.
        channels: C; the first half encodes y, the second x.
        temperature: 20 in DINO, 10000 in Mask DINO and in detrex's DINO.
        offset: added to the running count, -0.5 in detrex.
        eps: added to the number of valid pixels.

    Returns:
        float32 (N, h, w, C).
    """
    embeddings = []
    for axis in (1, 2):
        count = valid.cumsum(dim=axis, dtype=torch.float32)
        last = count.narrow(axis, count.shape[axis] - 1, 1)
        angle = (count + offset) / (last + eps) * (2 * math.pi)
        embeddings.append(sine_embedding(angle, channels // 2, temperature))
    return torch.cat(embeddings, dim=-1)


def box_embedding(boxes: Tensor, channels: int, temperature: float = 10000.0) -> Tensor:
    """Embedding of boxes (DAB-DETR's), in the order y, x, w, h.

    Args:
        boxes: (..., 4) cxcywh, 0..1.
        channels: per number.
        temperature: of `sine_embedding`.

    Returns:
        (..., 4 * channels), float32 or wider.
    """
    x, y, w, h = boxes.unbind(dim=-1)
    return sine_embedding(torch.stack([y, x, w, h], dim=-1) * (2 * math.pi), channels, temperature).flatten(-2)
