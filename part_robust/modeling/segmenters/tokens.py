"""Feature pyramids as sequences of tokens, for the deformable transformers of DINO and Mask DINO.

Letters: N images, L feature levels, S pixels of all levels together, C channels, h w pixels of a level, H W pixels of
the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from part_robust.layers.constants import cached_constant, constant
from part_robust.layers.ms_deform_attn import Shapes
from part_robust.layers.position_encoding import sine_position


@dataclass
class Tokens:
    """A feature pyramid as one sequence, level by level.

    Attributes:
        features: (N, S, C).
        position: (N or 1, S, C), position and level embedding.
        shapes: (h, w) of each level.
        padding: bool (N, S), True on padding; None without any.
        valid_ratio: (N or 1, L, 2), share of each level's width and height that is not padding.
    """

    features: Tensor
    position: Tensor
    shapes: Shapes
    padding: Tensor | None
    valid_ratio: Tensor


def make_tokens(
    levels: Sequence[Tensor],
    padding_mask: Tensor | None,
    level_embed: Tensor,
    temperature: float,
    offset: float = 0.0,
) -> Tokens:
    """Make one sequence of the pixels of all levels.

    Args:
        levels: L maps (N, C, h, w).
        padding_mask: bool (N, H, W), True on padding.
        level_embed: (L, C).
        temperature: of `sine_position`.
        offset: of `sine_position`.
    """
    shapes = tuple((int(level.shape[-2]), int(level.shape[-1])) for level in levels)
    device, channels = levels[0].device, levels[0].shape[1]
    dtype = torch.promote_types(levels[0].dtype, torch.float32)
    if padding_mask is None:
        sine = [whole_map_position(*shape, channels, temperature, offset, device) for shape in shapes]
        padding, ratio = None, constant((((1.0, 1.0),) * len(shapes),), dtype, device)
    else:
        whole = (~padding_mask)[:, None].float()
        valid = [F.interpolate(whole, size=shape, mode="nearest")[:, 0].bool() for shape in shapes]
        sine = [sine_position(mask, channels, temperature, offset) for mask in valid]
        padding = torch.cat([~mask.flatten(1) for mask in valid], dim=1)
        shares = [torch.stack([m[:, 0].to(dtype).mean(dim=1), m[:, :, 0].to(dtype).mean(dim=1)], dim=-1) for m in valid]
        ratio = torch.stack(shares, dim=1)
    position = [own.flatten(1, 2) + embed for own, embed in zip(sine, level_embed.to(dtype), strict=True)]
    return Tokens(
        features=torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1),
        position=torch.cat(position, dim=1).to(levels[0].dtype),
        shapes=shapes,
        padding=padding,
        valid_ratio=ratio,
    )


@cached_constant
def whole_map_position(
    height: int, width: int, channels: int, temperature: float, offset: float, device: torch.device
) -> Tensor:
    """(1, h, w, C), `sine_position` of a map without padding."""
    valid = torch.ones(1, height, width, dtype=torch.bool, device=device)
    return sine_position(valid, channels, temperature, offset)


def reverse_levels(tokens: Tokens, *sequences: Tensor) -> tuple[Tokens, list[Tensor]]:
    """The same with the last level first, and so other sequences (N, S, ...) over the same pixels."""
    sizes = [height * width for height, width in tokens.shapes]

    def turn(sequence: Tensor) -> Tensor:
        return torch.cat(sequence.split(sizes, dim=1)[::-1], dim=1)

    turned = Tokens(
        features=turn(tokens.features),
        position=turn(tokens.position),
        shapes=list(tokens.shapes)[::-1],
        padding=None if tokens.padding is None else turn(tokens.padding),
        valid_ratio=tokens.valid_ratio.flip(1),
    )
    return turned, [turn(sequence) for sequence in sequences]


def pixel_centers(shapes: Shapes, valid_ratio: Tensor) -> Tensor:
    """Centres of all pixels, (N or 1, S, 2) x and y, 0..1 of the image without its padding."""
    centers = []
    for level, (height, width) in enumerate(shapes):
        y = (torch.arange(height, device=valid_ratio.device) + 0.5) / height
        x = (torch.arange(width, device=valid_ratio.device) + 0.5) / width
        grid = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], dim=-1).flatten(0, 1)
        centers.append(grid.to(valid_ratio.dtype) / valid_ratio[:, level, None])
    return torch.cat(centers, dim=1)


def group_norm(dim: int) -> nn.GroupNorm:
    """Return a GroupNorm with 32 groups for `dim` >= 256, else with groups of 8 channels."""
    return nn.GroupNorm(min(32, max(dim // 8, 1)), dim)


class HalvingConv2d(nn.Conv2d):
    """3 x 3 convolution of stride 2 and padding 1: (N, C, H, W) -> (N, D, ceil(H / 2), ceil(W / 2)).

    A map one pixel wide gets its zero column as an input: oneDNN's bfloat16 gradient of the weights reads unwritten
    memory where a kernel's outer columns meet padding only, and is then not finite. The output is the same.
    """

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__(in_channels, dim, kernel_size=3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1)) if x.shape[-1] == 1 else x)


def input_projection(in_channels: int, dim: int, stride: int = 1) -> nn.Sequential:
    """Backbone feature -> level of the transformer, at half the resolution with stride 2."""
    conv = nn.Conv2d(in_channels, dim, 1) if stride == 1 else HalvingConv2d(in_channels, dim)
    return nn.Sequential(conv, group_norm(dim))


def reset_projections(projections: nn.ModuleList) -> None:
    """Initial weights of `input_projection`s, as published."""
    for module in projections.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def content_size(padding_mask: Tensor | None, image_size: tuple[int, int], device: torch.device) -> Tensor:
    """(N or 1, 2) height and width in pixels of the images without their padding."""
    if padding_mask is None:
        return constant((tuple(image_size),), torch.float32, device)
    valid = ~padding_mask
    return torch.stack([valid[:, :, 0].sum(dim=1), valid[:, 0].sum(dim=1)], dim=-1).float()
