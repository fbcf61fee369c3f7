"""Multi-scale deformable attention (Zhu et al., 2021), in plain PyTorch.

Letters: N images, Q queries, H heads, D channels per head, C = H D channels, L feature levels, P points per level and
head, S pixels of all levels together, fine to coarse and row by row.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from part_robust.layers.constants import constant
from part_robust.layers.kernel_choice import automatic_backend
from part_robust.layers.sparse_sampling import SparseSampling

Shapes = Sequence[tuple[int, int]]
BACKENDS = ("auto", "sparse", "embedding_bag", "gather", "grid_sample", "triton")


def ms_deform_attn(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor, backend: str = "auto") -> Tensor:
    """Weighted sum of bilinear samples: out[n, q, h] = sum over l, p of weights * value_l[n, h] at locations.

    Samples are zero outside of the map; pixel i of w has its centre at (i + 0.5) / w.

    Args:
        value: (N, S, H, D).
        shapes: (h, w) of each of the L levels.
        locations: (N, Q, H, L, P, 2), x and y, 0..1 of the map, any finite value.
        weights: (N, Q, H, L, P).
        backend: "sparse" (CPU only) and "embedding_bag" never write the samples to memory, but on CUDA the backward
            pass of the latter sorts all sampling points. "gather" and "grid_sample" write them: the first can be
            differentiated twice, the second keeps a quarter as many. "triton" is a kernel for CUDA tensors,
            differentiable once. "auto": see `automatic_backend`.

    Returns:
        (N, Q, H * D), in the dtype of `value`; the sum itself is in float32 at least.

    Raises:
        ValueError: an unknown backend, or "sparse" off the CPU, or "triton" off CUDA; `shapes` do not add up to S.
        ImportError: "triton" without the package triton.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, is {backend!r}")
    images, tokens, heads, channels = value.shape
    if sum(h * w for h, w in shapes) != tokens:
        raise ValueError(f"levels of shapes {list(shapes)} have {sum(h * w for h, w in shapes)} pixels, not {tokens}")
    queries = locations.shape[1]
    dtype = torch.promote_types(value.dtype, torch.float32)
    if backend == "auto":
        backend = automatic_backend(value)
    if backend == "sparse":
        if value.device.type != "cpu":
            raise ValueError(f"backend sparse runs on a CPU only, the tensors are on {value.device}")
        result = SparseSampling.apply(value.to(dtype), locations.to(dtype), weights.to(dtype), shapes)
        return result.to(value.dtype)
    if backend == "triton":
        if value.device.type != "cuda":
            raise ValueError(f"backend triton runs on CUDA only, the tensors are on {value.device}")
        # Here, so that the package does not need Triton.
        from part_robust.layers.triton_sampling import TritonSampling

        return TritonSampling.apply(value, locations, weights, shapes)
    if backend == "grid_sample":
        return _grid_sample(value.to(dtype), shapes, locations.to(dtype), weights.to(dtype)).to(value.dtype)
    token, share = _corners(shapes, locations.to(dtype), weights.to(dtype))
    # Row of (n, s, h) in the table of all value vectors: nothing has to be transposed.
    image = torch.arange(images, device=value.device).view(-1, 1, 1, 1)
    head = torch.arange(heads, device=value.device).view(-1, 1)
    rows = (image * tokens + token.flatten(3)) * heads + head
    rows, share = rows.view(images * queries * heads, -1), share.flatten(3).view(images * queries * heads, -1)
    table = value.to(dtype).reshape(images * tokens * heads, channels)
    if backend == "gather":
        samples = table.index_select(0, rows.flatten()).view(*rows.shape, channels)
        result = (share[..., None] * samples).sum(dim=1)
    else:
        result = F.embedding_bag(rows, table, mode="sum", per_sample_weights=share)
    return result.view(images, queries, heads * channels).to(value.dtype)


def _grid_sample(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Level by level, heads as further images, with PyTorch's bilinear sampling, whose -1..1 spans a map."""
    images, _, heads, channels = value.shape
    queries = locations.shape[1]
    # (N * H, Q, L, P, 2)
    grid = (2.0 * locations - 1.0).transpose(1, 2).flatten(0, 1)
    share = weights.transpose(1, 2).flatten(0, 1)
    result = value.new_zeros(images * heads, channels, queries)
    for level, (own, (height, width)) in enumerate(
        zip(value.split([h * w for h, w in shapes], dim=1), shapes, strict=True)
    ):
        pixels = own.permute(0, 2, 3, 1).reshape(images * heads, channels, height, width)
        samples = F.grid_sample(pixels, grid[:, :, level], padding_mode="zeros", align_corners=False)
        result = result + (samples * share[:, None, :, level]).sum(dim=-1)
    return result.view(images, heads * channels, queries).transpose(1, 2)


def level_sizes(shapes: Shapes, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(L, 2), width and height of each level."""
    return constant(tuple((w, h) for h, w in shapes), dtype, device)


def _corners(shapes: Shapes, locations: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the four pixels around each location and their weights.

    The pixels are indices among the S, int64 (N, Q, H, L, P * 4); the weights (N, Q, H, L, P * 4) are bilinear share x
    attention weight, 0 outside of the map.
    """
    device = locations.device
    size = level_sizes(shapes, torch.int64, device)
    starts = tuple(itertools.accumulate((h * w for h, w in shapes[:-1]), initial=0))
    start = constant(starts, torch.int64, device)
    position = locations * size[:, None].to(locations.dtype) - 0.5
    low = position.detach().floor()
    fraction = position - low
    # From here on (N, Q, H, L, P, 2 axes, 2 sides).
    index = low.long()[..., None] + torch.arange(2, device=device)
    limit = size[:, None, :, None]
    share = torch.stack([1.0 - fraction, fraction], dim=-1) * ((index >= 0) & (index < limit))
    index = index.clamp(min=0).minimum(limit - 1)
    x, y = index.unbind(dim=-2)
    width = size[:, 0].view(-1, 1, 1, 1)
    token = start.view(-1, 1, 1, 1) + y[..., :, None] * width + x[..., None, :]
    share_x, share_y = share.unbind(dim=-2)
    share = share_y[..., :, None] * (share_x * weights[..., None])[..., None, :]
    return token.flatten(4), share.flatten(4)


class MSDeformAttn(nn.Module):
    """Projections around `ms_deform_attn`; parameter names are those of public checkpoints.

    The rows of `sampling_offsets` are ordered (head, level, point, xy), those of `attention_weights` (head, level,
    point).
    """

    def __init__(
        self, *, dim: int = 256, heads: int = 8, levels: int = 4, points: int = 4, backend: str = "auto"
    ) -> None:
        """Build the projections of one layer.

        Args:
            dim: C.
            heads: H, a divisor of C.
            levels: L.
            points: P.
            backend: of `ms_deform_attn`.

        Raises:
            ValueError: C is not a multiple of H.
        """
        super().__init__()
        if dim % heads:
            raise ValueError(f"{dim} channels cannot be split over {heads} heads")
        self.heads, self.levels, self.points, self.backend = heads, levels, points, backend
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise each head with points in a separate direction, 1 to P pixels away, of equal weight."""
        angle = torch.arange(self.heads) * (2.0 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
        direction = direction / direction.abs().amax(dim=-1, keepdim=True)
        steps = torch.arange(1, self.points + 1)
        bias = direction[:, None, None] * steps[:, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.expand(-1, self.levels, -1, -1).flatten())
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        query: Tensor,
        reference: Tensor,
        memory: Tensor,
        shapes: Shapes,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Return what the queries read from the memory, (N, Q, C).

        Args:
            query: (N, Q, C).
            reference: points (N, Q, L, 2) or boxes (N, Q, L, 4) cxcywh in 0..1 of the map; N and L may be 1 where all
                images or levels share them. Offsets are in pixels around points, in half box sides around boxes.
            memory: (N, S, C).
            shapes: (h, w) of each level.
            padding_mask: bool (N, S), True on padding, whose values count as 0.

        Returns:
            (N, Q, C).
        """
        value = self.value_proj(memory)
        if padding_mask is not None:
            value = value.masked_fill(padding_mask[..., None], 0.0)
        # Positions need more digits than bfloat16 has.
        dtype = torch.promote_types(query.dtype, torch.float32)
        offsets = self.sampling_offsets(query).to(dtype).unflatten(-1, (self.heads, -1))
        weights = self.attention_weights(query).to(dtype).unflatten(-1, (self.heads, -1)).softmax(dim=-1)
        weights = weights.unflatten(-1, (self.levels, self.points))
        # (N, Q, 1, L * P * 2), a head's row of offsets: broadcasts over two numbers would be slow.
        center = self._per_point(reference[..., :2])
        if reference.shape[-1] == 2:
            size = level_sizes(shapes, offsets.dtype, query.device)
            locations = center + offsets / self._per_point(size)
        else:
            locations = center + offsets * self._per_point(reference[..., 2:] * (0.5 / self.points))
        locations = locations.unflatten(-1, (self.levels, self.points, 2))
        sampled = ms_deform_attn(value.unflatten(-1, (self.heads, -1)), shapes, locations, weights, self.backend)
        return self.output_proj(sampled)

    def _per_point(self, level: Tensor) -> Tensor:
        """(..., L or 1, 2) -> (..., 1, L * P * 2), the same for all points of a level."""
        level = level.expand(*level.shape[:-2], self.levels, 2)
        return level[..., None, :].expand(*level.shape[:-1], self.points, 2).flatten(-3)[..., None, :]
