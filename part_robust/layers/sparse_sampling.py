"""Bilinear sampling as a sparse matrix: the fast path of multi-scale deformable attention on the CPU.

Letters: as in ms_deform_attn.py; R = N S H rows of the value table, B = N Q H bags of 4 L P samples each.

The matrix (B, R) has a sample in each entry. Forward is its product with the values, backward the product of its
transpose with the gradient, and the entries' own gradients are a product of two dense matrices wherever an entry is.
Autograd's way to the first needs a sort, and to the second the samples in memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import scipy.sparse
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Of torch.sparse as a whole; the one function used here is tested against others.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")


class SparseSampling(torch.autograd.Function):
    """`ms_deform_attn` of CPU tensors of one floating type; differentiable once."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, locations: Tensor, weights: Tensor, shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        images, tokens, heads, channels = value.shape
        queries, points = locations.shape[1], locations.shape[4]
        # One number per level and point: rows of these lengths keep the inner loops long where they are broadcast.
        size = torch.tensor([(w, h) for h, w in shapes], dtype=torch.int32)
        start = torch.cat([size.new_zeros(1), size.prod(dim=1, dtype=torch.int32)[:-1]]).cumsum(0, dtype=torch.int32)
        start = start.repeat_interleave(points)
        width, height = (side.repeat_interleave(points) for side in size.unbind(dim=1))
        x0, left, right = _two_sides(locations[..., 0].flatten(3), width)
        y0, top, bottom = _two_sides(locations[..., 1].flatten(3), height)
        weights = weights.flatten(3)

        share = value.new_empty(images, queries, heads, 4, len(start))
        rows = torch.empty(share.shape, dtype=torch.int32)
        image = torch.arange(images, dtype=torch.int32).view(-1, 1, 1, 1) * (tokens * heads)
        head = torch.arange(heads, dtype=torch.int32).view(-1, 1)
        columns = [_inside(x0 + side, width) * heads + head for side in (0, 1)]
        for row, across in enumerate((top, bottom)):
            weighted = across * weights
            above = (_inside(y0 + row, height) * width + start) * heads + image
            for column, along in enumerate((left, right)):
                torch.mul(weighted, along, out=share[:, :, :, 2 * row + column])
                torch.add(above, columns[column], out=rows[:, :, :, 2 * row + column])
        bags = images * queries * heads
        rows, share = rows.view(bags, -1), share.view(bags, -1)
        table = value.reshape(-1, channels)
        result = F.embedding_bag(rows, table, mode="sum", per_sample_weights=share)
        ctx.save_for_backward(table, rows, share, weights, x0, left, right, y0, top, bottom, width, height)
        ctx.value_shape, ctx.levels = value.shape, len(shapes)
        return result.view(images, queries, heads * channels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        table, rows, share, weights, x0, left, right, y0, top, bottom, width, height = ctx.saved_tensors
        bags, per_bag = rows.shape
        gradient = gradient.reshape(bags, -1).contiguous()
        starts = torch.arange(0, bags * per_bag + 1, per_bag, dtype=torch.int32)
        shape = (bags, len(table))
        value_gradient = locations_gradient = weights_gradient = None
        if ctx.needs_input_grad[0]:
            matrix = scipy.sparse.csr_matrix(
                (share.flatten().numpy(), rows.flatten().numpy(), starts.numpy()), shape=shape
            ).tocsc()
            index, ends, entries = (torch.from_numpy(x) for x in (matrix.indices, matrix.indptr, matrix.data))
            value_gradient = F.embedding_bag(
                index, gradient, offsets=ends[:-1], mode="sum", per_sample_weights=entries
            ).view(ctx.value_shape)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            places = torch.sparse_csr_tensor(starts, rows.flatten(), torch.zeros_like(share).flatten(), shape)
            entries = torch.sparse.sampled_addmm(places, gradient, table.t(), beta=0.0).values()
            a, b, c, d = entries.view(*weights.shape[:3], 4, -1).unbind(dim=3)
            # Each side of the four corners, summed over the other axis.
            on_left, on_right = top * a + bottom * c, top * b + bottom * d
            weights_gradient = left * on_left + right * on_right
            along_x = on_right * _is_inside(x0 + 1, width) - on_left * _is_inside(x0, width)
            along_y = (left * c + right * d) * _is_inside(y0 + 1, height) - (left * a + right * b) * _is_inside(
                y0, height
            )
            locations_gradient = torch.stack([along_x * weights * width, along_y * weights * height], dim=-1)
            weights_gradient = weights_gradient.unflatten(-1, (ctx.levels, -1))
            locations_gradient = locations_gradient.unflatten(3, (ctx.levels, -1))
        return value_gradient, locations_gradient, weights_gradient, None


def _two_sides(location: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Along one axis: the pixel before each location, int32, and the shares of it and of the next, 0 outside."""
    position = location * size - 0.5
    low = position.floor()
    after = position.sub_(low)
    # Beyond int32 everything is outside anyway.
    low = low.nan_to_num(-2.0).clamp_(-2, 2**30).int()
    return low, (1.0 - after) * _is_inside(low, size), after * _is_inside(low + 1, size)


def _is_inside(index: Tensor, size: Tensor) -> Tensor:
    return (index >= 0) & (index < size)


def _inside(index: Tensor, size: Tensor) -> Tensor:
    return torch.minimum(index.clamp(min=0), size - 1)
