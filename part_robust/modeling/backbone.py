"""ResNets with basic blocks at any width, for small models on CPUs; detectron2's builder fixes them to 64 channels."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet

BLOCKS_PER_STAGE = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


@BACKBONE_REGISTRY.register()
def build_basic_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """ResNet-10, -18 or -34 (He et al., 2016) with RES2_OUT_CHANNELS in res2, doubled in every stage.

    `RES5_DILATION` 2 keeps res5 at stride 16 by leaving its stride out; detectron2's basic block has no dilation.

    Raises:
        ValueError: MODEL.RESNETS.DEPTH is none of 10, 18, 34.
    """
    node = cfg.MODEL.RESNETS
    if node.DEPTH not in BLOCKS_PER_STAGE:
        raise ValueError(f"MODEL.RESNETS.DEPTH must be one of {tuple(BLOCKS_PER_STAGE)}, is {node.DEPTH}")
    stem = BasicStem(in_channels=input_shape.channels, out_channels=node.STEM_OUT_CHANNELS, norm=node.NORM)
    stages = []
    in_channels, out_channels = node.STEM_OUT_CHANNELS, node.RES2_OUT_CHANNELS
    for index, blocks in enumerate(BLOCKS_PER_STAGE[node.DEPTH]):
        first_stride = 1 if index == 0 or (index == 3 and node.RES5_DILATION == 2) else 2
        stages.append(
            ResNet.make_stage(
                BasicBlock,
                blocks,
                stride_per_block=[first_stride] + [1] * (blocks - 1),
                in_channels=in_channels,
                out_channels=out_channels,
                norm=node.NORM,
            )
        )
        in_channels, out_channels = out_channels, 2 * out_channels
    return ResNet(stem, stages, out_features=node.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)
