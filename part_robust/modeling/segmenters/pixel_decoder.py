"""Pixel decoder of Mask DINO (Li et al., 2022): a deformable encoder, and features of pixels that masks are made from.

Letters: N images, L feature levels, S pixels of all levels together, C channels, E channels of mask features,
h w pixels of the mask feature (a quarter of the image's sides), H W image pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.layers import Conv2d
from torch import Tensor, nn
from torch.nn import functional as F

from part_robust.layers.ms_deform_attn import MSDeformAttn
from part_robust.modeling.segmenters.tokens import (
    Tokens,
    group_norm,
    input_projection,
    make_tokens,
    reset_projections,
    reverse_levels,
)
from part_robust.modeling.segmenters.transformer import Encoder

LEVEL_ORDERS = ("coarse_first", "fine_first")


class PixelDecoder(nn.Module):
    """Parameter names are those of public checkpoints.

    The published decoder of queries sees the levels in the reverse of the encoder's order, whichever that is; with
    "fine_first", where boxes start from pixels, the coarsest level so has the smallest boxes.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        mask_in_channels: int,
        dim: int,
        mask_dim: int,
        levels: int,
        level_order: str,
        layers: int,
        heads: int,
        points: int,
        feedforward_dim: int,
        position_temperature: float = 10000.0,
        backend: str = "auto",
    ) -> None:
        """Build the encoder of pixels.

        Args:
            in_channels: of the backbone features that the encoder sees, fine to coarse.
            mask_in_channels: of the backbone feature that has the resolution of masks.
            dim: C.
            mask_dim: E.
            levels: L, at least the number of features; more are made from the last one by strided convolutions.
            level_order: "coarse_first" (published semantic models) or "fine_first" (published instance models); also
                the order of `input_proj` and of `level_embed`, though extra levels come last in `input_proj` always.
            layers: number of encoder layers.
            heads: attention heads.
            points: sampling points per head and level.
            feedforward_dim: hidden units of the encoder layers' perceptrons.
            position_temperature: of `sine_position`.
            backend: of `ms_deform_attn`.

        Raises:
            ValueError: fewer levels than features; an unknown order.
        """
        super().__init__()
        if levels < len(in_channels):
            raise ValueError(
                f"MODEL.MASK_DINO.LEVELS {levels} is less than the {len(in_channels)} MODEL.MASK_DINO.IN_FEATURES"
            )
        if level_order not in LEVEL_ORDERS:
            raise ValueError(
                f"MODEL.MASK_DINO.LEVEL_ORDER must be one of {', '.join(LEVEL_ORDERS)}, is {level_order!r}"
            )
        self.coarse_first = level_order == "coarse_first"
        self.features = len(in_channels)
        self.position_temperature = position_temperature
        ordered = list(in_channels)[::-1] if self.coarse_first else list(in_channels)
        self.input_proj = nn.ModuleList(input_projection(channels, dim) for channels in ordered)
        for extra in range(levels - len(in_channels)):
            self.input_proj.append(input_projection(dim if extra else in_channels[-1], dim, stride=2))
        self.level_embed = nn.Parameter(torch.empty(levels, dim))
        self.encoder = Encoder(
            layers=layers,
            dim=dim,
            heads=heads,
            feedforward_dim=feedforward_dim,
            levels=levels,
            points=points,
            backend=backend,
        )
        self.adapter_1 = Conv2d(mask_in_channels, dim, 1, bias=False, norm=group_norm(dim))
        self.layer_1 = Conv2d(dim, dim, 3, padding=1, bias=False, norm=group_norm(dim), activation=F.relu)
        self.mask_features = nn.Conv2d(dim, mask_dim, 1)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        for parameter in self.encoder.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, MSDeformAttn):
                module.reset_parameters()
        nn.init.normal_(self.level_embed)
        reset_projections(self.input_proj)
        for convolution in (self.adapter_1, self.layer_1, self.mask_features):
            weight_init.c2_xavier_fill(convolution)

    def forward(self, maps: Sequence[Tensor], padding_mask: Tensor | None) -> tuple[Tensor, Tokens]:
        """Return what the decoder of queries sees.

        Args:
            maps: backbone features (N, c, h, w), fine to coarse.
            padding_mask: bool (N, H, W), True on padding. The published model never masks padding, and lets it take
                part like any pixel; here it counts as zero, as in DINO, so results equal those only without padding.

        Returns:
            (N, S, C) encoded pixels and their tokens, in the order of the decoder of queries.
        """
        ordered = list(maps)[::-1] if self.coarse_first else list(maps)
        levels = [projection(source) for projection, source in zip(self.input_proj, ordered, strict=False)]
        extra: list[Tensor] = []
        for projection in self.input_proj[self.features :]:
            extra.append(projection(extra[-1] if extra else maps[-1]))
        levels = extra[::-1] + levels if self.coarse_first else levels + extra
        tokens = make_tokens(levels, padding_mask, self.level_embed, self.position_temperature)
        turned, (memory,) = reverse_levels(tokens, self.encoder(tokens))
        return memory, turned

    def pixels(self, mask_map: Tensor, memory: Tensor, tokens: Tokens) -> Tensor:
        """Features (N, E, h, w) whose product with a query's mask embedding is its mask.

        Args:
            mask_map: the backbone feature (N, c, h, w) at the resolution of masks.
            memory: of `forward`.
            tokens: of `forward`.
        """
        sizes = [height * width for height, width in tokens.shapes]
        # The finest level of those the encoder saw; extra levels are coarse.
        finest = 0 if self.coarse_first else len(sizes) - 1
        fine = memory.split(sizes, dim=1)[finest].transpose(1, 2).unflatten(-1, tokens.shapes[finest])
        lateral = self.adapter_1(mask_map)
        upsampled = F.interpolate(fine, size=lateral.shape[-2:], mode="bilinear", align_corners=False)
        return self.mask_features(self.layer_1(lateral + upsampled))
