"""The class head that is a classifier from elsewhere, and the backbone that passes images on to it."""

from __future__ import annotations

import logging

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn

from part_robust.modeling.external.net import ExternalNet
from part_robust.modeling.external.read import read_model
from part_robust.modeling.external.trial import try_model
from part_robust.modeling.registry import CLASS_HEAD_REGISTRY, ClassHead
from part_robust.structures import PartOutput

logger = logging.getLogger(__name__)


class PixelBackbone(Backbone):
    """Images (N, 3, H, W) -> {"pixels": the same}."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"pixels": images}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"pixels": ShapeSpec(channels=3, stride=1)}


@BACKBONE_REGISTRY.register()
def build_pixel_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> PixelBackbone:
    """Build the backbone of models that `ExternalHead` reads; it has no weights."""
    return PixelBackbone()


@CLASS_HEAD_REGISTRY.register()
class ExternalHead(ClassHead):
    """A classifier of MODEL.EXTERNAL, read from its own file (MODEL.WEIGHTS) when it is built."""

    @configurable
    def __init__(self, *, net: ExternalNet) -> None:
        super().__init__()
        self.net = net

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        """Read the model and try it.

        Raises:
            ImportError, OSError, UserError: same as `read_model`.
            UserError: same as `try_model`.
        """
        node, device = cfg.MODEL.EXTERNAL, torch.device(cfg.MODEL.DEVICE)
        found = read_model(node.KIND, node.NAME, cfg.MODEL.WEIGHTS, device)
        net = ExternalNet(
            found.function,
            channels=node.CHANNELS,
            output=node.OUTPUT,
            probabilities=node.PROBABILITIES,
            batch=(node.BATCH, node.BATCH) if node.BATCH else found.batch,
            class_indices=node.CLASS_INDICES,
        ).to(device)
        net.notes += found.notes
        mean, std = (
            torch.tensor(values, device=device).view(-1, 1, 1) for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
        )
        try_model(net, cfg.INPUT.SIZE, mean, std, cfg.MODEL.PART_CLASSIFIER.NUM_CLASSES)
        for note in net.notes:
            logger.warning("%s", note)
        return {"net": net}

    def forward(self, features: dict[str, Tensor], parts: PartOutput | None) -> Tensor:
        return self.net(features["pixels"])


def reads_own_file(model: nn.Module) -> bool:
    """Return whether a model has read MODEL.WEIGHTS when it was built, as no checkpoint of ours."""
    return isinstance(getattr(model, "head", None), ExternalHead)
