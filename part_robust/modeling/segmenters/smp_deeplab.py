"""DeepLabv3+ as segmentation-models-pytorch builds it, the decoder of Sitawarin et al. (2023) and their checkpoints.

Beside detectron2's (`deeplab.py`): no norm between the depthwise and the pointwise convolution of a pair, a norm after
the global pooling, another convolution after the pyramid, 3x3 instead of 5x5 where features join, upsampling with
aligned corners, and logits at the size of the image, which class heads then read.

Letters: N images, P parts, H W pixels of the image, h w pixels of a feature.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from torch import Tensor, nn
from torch.nn import functional as F

from part_robust.modeling.registry import PART_SEGMENTER_REGISTRY
from part_robust.modeling.segmenters.deeplab import DeepLabSegmenter, check_features_of_decoder, ignore_label
from part_robust.structures import PartOutput, PartTargets
from part_robust.utils.errors import UserError


@PART_SEGMENTER_REGISTRY.register()
class SmpDeepLabSegmenter(DeepLabSegmenter):
    """Two backbone features -> part logits of every pixel of the image."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        check_features_of_decoder(cfg, input_shape)
        node, parts = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.PART_CLASSIFIER.NUM_PARTS
        if len(node.IN_FEATURES) != 2:
            raise UserError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES must be two features for SmpDeepLabSegmenter, got {node.IN_FEATURES}. "
                'Set it to ["res2", "res5"]'
            )
        fine, coarse = sorted(node.IN_FEATURES, key=lambda name: input_shape[name].stride)
        decoder = SmpDeepLabDecoder(
            features=(fine, coarse),
            in_channels=(input_shape[fine].channels, input_shape[coarse].channels),
            project_channels=node.PROJECT_CHANNELS[0],
            pyramid_channels=node.ASPP_CHANNELS,
            channels=node.CONVS_DIM,
            dilations=node.ASPP_DILATIONS,
            dropout=node.ASPP_DROPOUT,
            outputs=parts + 1,
            norm=node.NORM,
        )
        return {"head": decoder, "ignore_label": ignore_label(parts)}

    def forward(
        self,
        features: dict[str, Tensor],
        image_size: tuple[int, int],
        padding_mask: Tensor | None = None,
        targets: PartTargets | None = None,
        class_only: bool = False,
        denoise: bool = True,
    ) -> PartOutput:
        logits = F.interpolate(self.head.layers(features), image_size, mode="bilinear", align_corners=True)
        return PartOutput(sem_seg_logits=logits, targets=targets)


class SmpDeepLabDecoder(nn.Module):
    """A pyramid of dilated convolutions on the coarse feature, joined with the fine one."""

    def __init__(
        self,
        *,
        features: tuple[str, str],
        in_channels: tuple[int, int],
        project_channels: int,
        pyramid_channels: int,
        channels: int,
        dilations: Sequence[int],
        dropout: float,
        outputs: int,
        norm: str,
    ) -> None:
        """Build the decoder for the given features and number of outputs.

        Args:
            features: names of the fine and the coarse feature.
            in_channels: their channels.
            project_channels: of the fine feature where it joins; the authors of DeepLabv3+ have 48.
            pyramid_channels: of each branch of the pyramid.
            channels: after the features have joined.
            dilations: of the branches with 3x3 convolutions.
            dropout: share of the pyramid's outputs that are left out in training.
            outputs: P + 1.
            norm: name for detectron2's get_norm.
        """
        super().__init__()
        self.features = features
        fine, coarse = in_channels
        self.branches = nn.ModuleList([_pointwise(coarse, pyramid_channels, norm)])
        self.branches.extend(_separable(coarse, pyramid_channels, norm, dilation) for dilation in dilations)
        self.pooled = _pointwise(coarse, pyramid_channels, norm)
        self.merge = _pointwise((len(dilations) + 2) * pyramid_channels, pyramid_channels, norm)
        self.dropout = nn.Dropout(dropout)
        self.refine = _separable(pyramid_channels, pyramid_channels, norm)
        self.project = _pointwise(fine, project_channels, norm)
        self.fuse = _separable(project_channels + pyramid_channels, channels, norm)
        self.predictor = nn.Conv2d(channels, outputs, 1)

    def layers(self, features: dict[str, Tensor]) -> Tensor:
        """Backbone features -> part logits (N, P + 1, h, w) of the fine feature's size."""
        fine, coarse = (features[name] for name in self.features)
        pooled = self.pooled(coarse.mean(dim=(-2, -1), keepdim=True)).expand(-1, -1, *coarse.shape[-2:])
        pyramid = torch.cat([*(branch(coarse) for branch in self.branches), pooled], dim=1)
        context = self.refine(self.dropout(self.merge(pyramid)))
        context = F.interpolate(context, fine.shape[-2:], mode="bilinear", align_corners=True)
        return self.predictor(self.fuse(torch.cat([context, self.project(fine)], dim=1)))


def _pointwise(in_channels: int, out_channels: int, norm: str) -> Conv2d:
    return Conv2d(in_channels, out_channels, 1, bias=not norm, norm=get_norm(norm, out_channels), activation=F.relu)


def _separable(in_channels: int, out_channels: int, norm: str, dilation: int = 1) -> nn.Sequential:
    depthwise = nn.Conv2d(
        in_channels, in_channels, 3, padding=dilation, dilation=dilation, groups=in_channels, bias=False
    )
    return nn.Sequential(depthwise, _pointwise(in_channels, out_channels, norm))
