"""Multi-scale deformable attention as a Triton kernel, forward and backward, for CUDA tensors in float32 and bfloat16.

Letters: as in ms_deform_attn.py. One program computes BLOCK queries of one head of one image. Sums are in float32; the
backward adds to the values' gradient with atomics, so its last digits depend on the order of the programs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from part_robust.layers.constants import constant

BLOCK = 32


@triton.jit
def _corner(table, row, column, height, width, start, stride, base, channel, live, channels):
    """Values (BLOCK, channels) of a pixel, 0 outside of the map; and their offsets and mask."""
    inside = live & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    offset = base + (start + row * width + column)[:, None] * stride + channel[None, :]
    mask = inside[:, None] & (channel < channels)[None, :]
    return tl.load(table + offset, mask=mask, other=0.0).to(tl.float32), offset, mask


@triton.jit
def _forward(
    table, levels, locations, weights, result, tokens, queries, heads, channels,
    LEVELS: tl.constexpr, POINTS: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    query = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    image_head = tl.program_id(1).to(tl.int64)
    image, head = image_head // heads, image_head % heads
    channel = tl.arange(0, WIDE)
    live = query < queries
    bag = (image * queries + query) * heads + head
    base = image * tokens * heads * channels + head * channels
    total = tl.zeros((ROWS, WIDE), dtype=tl.float32)
    for level in range(LEVELS):
        height = tl.load(levels + 3 * level)
        width = tl.load(levels + 3 * level + 1)
        start = tl.load(levels + 3 * level + 2)
        for point in range(POINTS):
            place = (bag * LEVELS + level) * POINTS + point
            weight = tl.load(weights + place, mask=live, other=0.0)
            x = tl.load(locations + 2 * place, mask=live, other=0.0) * width - 0.5
            y = tl.load(locations + 2 * place + 1, mask=live, other=0.0) * height - 0.5
            # Far off everything is outside, and no integer overflows.
            x = tl.minimum(tl.maximum(x, -2.0), width + 1.0)
            y = tl.minimum(tl.maximum(y, -2.0), height + 1.0)
            column = tl.floor(x).to(tl.int32)
            row = tl.floor(y).to(tl.int32)
            after, below = x - tl.floor(x), y - tl.floor(y)
            stride = heads * channels
            a, _, _ = _corner(table, row, column, height, width, start, stride, base, channel, live, channels)
            b, _, _ = _corner(table, row, column + 1, height, width, start, stride, base, channel, live, channels)
            c, _, _ = _corner(table, row + 1, column, height, width, start, stride, base, channel, live, channels)
            d, _, _ = _corner(table, row + 1, column + 1, height, width, start, stride, base, channel, live, channels)
            upper = a * (1.0 - after)[:, None] + b * after[:, None]
            lower = c * (1.0 - after)[:, None] + d * after[:, None]
            total += (upper * (1.0 - below)[:, None] + lower * below[:, None]) * weight[:, None]
    offset = (bag * channels)[:, None] + channel[None, :]
    tl.store(result + offset, total, mask=live[:, None] & (channel < channels)[None, :])


@triton.jit
def _backward(
    table, levels, locations, weights, gradient, table_gradient, locations_gradient, weights_gradient,
    tokens, queries, heads, channels,
    LEVELS: tl.constexpr, POINTS: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    query = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    image_head = tl.program_id(1).to(tl.int64)
    image, head = image_head // heads, image_head % heads
    channel = tl.arange(0, WIDE)
    live = query < queries
    bag = (image * queries + query) * heads + head
    base = image * tokens * heads * channels + head * channels
    known = live[:, None] & (channel < channels)[None, :]
    g = tl.load(gradient + (bag * channels)[:, None] + channel[None, :], mask=known, other=0.0).to(tl.float32)
    for level in range(LEVELS):
        height = tl.load(levels + 3 * level)
        width = tl.load(levels + 3 * level + 1)
        start = tl.load(levels + 3 * level + 2)
        for point in range(POINTS):
            place = (bag * LEVELS + level) * POINTS + point
            weight = tl.load(weights + place, mask=live, other=0.0)
            x = tl.load(locations + 2 * place, mask=live, other=0.0) * width - 0.5
            y = tl.load(locations + 2 * place + 1, mask=live, other=0.0) * height - 0.5
            x = tl.minimum(tl.maximum(x, -2.0), width + 1.0)
            y = tl.minimum(tl.maximum(y, -2.0), height + 1.0)
            column = tl.floor(x).to(tl.int32)
            row = tl.floor(y).to(tl.int32)
            after, below = x - tl.floor(x), y - tl.floor(y)
            before, above = 1.0 - after, 1.0 - below
            stride = heads * channels
            a, at, mask = _corner(table, row, column, height, width, start, stride, base, channel, live, channels)
            tl.atomic_add(table_gradient + at, g * (weight * above * before)[:, None], mask=mask)
            b, at, mask = _corner(table, row, column + 1, height, width, start, stride, base, channel, live, channels)
            tl.atomic_add(table_gradient + at, g * (weight * above * after)[:, None], mask=mask)
            c, at, mask = _corner(table, row + 1, column, height, width, start, stride, base, channel, live, channels)
            tl.atomic_add(table_gradient + at, g * (weight * below * before)[:, None], mask=mask)
            d, at, mask = _corner(
                table, row + 1, column + 1, height, width, start, stride, base, channel, live, channels
            )
            tl.atomic_add(table_gradient + at, g * (weight * below * after)[:, None], mask=mask)
            ga, gb = tl.sum(g * a, axis=1), tl.sum(g * b, axis=1)
            gc, gd = tl.sum(g * c, axis=1), tl.sum(g * d, axis=1)
            on_left, on_right = above * ga + below * gc, above * gb + below * gd
            tl.store(weights_gradient + place, before * on_left + after * on_right, mask=live)
            tl.store(locations_gradient + 2 * place, (on_right - on_left) * weight * width, mask=live)
            down = before * (gc - ga) + after * (gd - gb)
            tl.store(locations_gradient + 2 * place + 1, down * weight * height, mask=live)


class TritonSampling(torch.autograd.Function):
    """`ms_deform_attn` of contiguous values in float32 or bfloat16; differentiable once."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, locations: Tensor, weights: Tensor, shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        value, locations, weights = value.contiguous(), locations.float().contiguous(), weights.float().contiguous()
        starts = itertools.accumulate((height * width for height, width in shapes), initial=0)
        rows = tuple((height, width, start) for (height, width), start in zip(shapes, starts, strict=False))
        levels = constant(rows, torch.int32, value.device)
        images, tokens, heads, channels = value.shape
        queries = locations.shape[1]
        result = value.new_empty(images, queries, heads, channels)
        ctx.save_for_backward(value, levels, locations, weights)
        ctx.sizes = (tokens, queries, heads, channels)
        ctx.constants = {
            "LEVELS": locations.shape[3],
            "POINTS": locations.shape[4],
            "ROWS": BLOCK,
            "WIDE": triton.next_power_of_2(channels),
        }
        ctx.grid = (triton.cdiv(queries, BLOCK), images * heads)
        _forward[ctx.grid](value, levels, locations, weights, result, *ctx.sizes, **ctx.constants)
        return result.flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        value, levels, locations, weights = ctx.saved_tensors
        value_gradient = torch.zeros_like(value, dtype=torch.float32)
        locations_gradient, weights_gradient = torch.empty_like(locations), torch.empty_like(weights)
        _backward[ctx.grid](
            value,
            levels,
            locations,
            weights,
            gradient.contiguous(),
            value_gradient,
            locations_gradient,
            weights_gradient,
            *ctx.sizes,
            **ctx.constants,
        )
        return value_gradient.to(value.dtype), locations_gradient, weights_gradient, None
