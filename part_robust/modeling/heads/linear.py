"""The ordinary classifier's head: spatial mean of a backbone feature, then one linear layer (He et al., 2016)."""

from __future__ import annotations

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from part_robust.modeling.features import check_features
from part_robust.modeling.registry import CLASS_HEAD_REGISTRY, ClassHead
from part_robust.structures import PartOutput


@CLASS_HEAD_REGISTRY.register()
class LinearHead(ClassHead):
    """Reads the backbone only."""

    @configurable
    def __init__(self, *, in_feature: str, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.in_feature = in_feature
        self.classifier = nn.Linear(in_channels, num_classes)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        feature = cfg.MODEL.LINEAR_HEAD.IN_FEATURE
        check_features("MODEL.LINEAR_HEAD.IN_FEATURE", [feature], input_shape)
        return {
            "in_feature": feature,
            "in_channels": input_shape[feature].channels,
            "num_classes": cfg.MODEL.PART_CLASSIFIER.NUM_CLASSES,
        }

    def forward(self, features: dict[str, Tensor], parts: PartOutput | None) -> Tensor:
        return self.classifier(features[self.in_feature].mean(dim=(-2, -1)))
