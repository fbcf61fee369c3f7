"""Two-Headed part model (thesis section 1.2, Fig. 1.3): a class head beside the part decoder.

Both read the backbone's last feature; the decoder teaches the backbone and can be dropped afterwards.
"""

from __future__ import annotations

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, get_norm
from torch import Tensor, nn

from part_robust.modeling.features import check_features
from part_robust.modeling.registry import CLASS_HEAD_REGISTRY, ClassHead
from part_robust.structures import PartOutput


@CLASS_HEAD_REGISTRY.register()
class TwoHeadedHead(ClassHead):
    """Adaptive pooling to k x k, one k x k convolution, one linear layer."""

    @configurable
    def __init__(
        self,
        *,
        in_feature: str,
        in_channels: int,
        pool_size: int,
        hidden_dim: int,
        num_classes: int,
        norm: str,
    ) -> None:
        """Build the head for one backbone feature.

        Args:
            in_feature: backbone feature to read.
            in_channels: its channels.
            pool_size: k, cells per side after pooling.
            hidden_dim: channels after the convolution.
            num_classes: C.
            norm: name for detectron2's get_norm.
        """
        super().__init__()
        self.in_feature = in_feature
        self.layers = nn.Sequential(
            nn.AdaptiveAvgPool2d(pool_size),
            get_norm(norm, in_channels) or nn.Identity(),
            nn.ReLU(),
            nn.Conv2d(in_channels, hidden_dim, pool_size),
            get_norm(norm, hidden_dim) or nn.Identity(),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(hidden_dim, num_classes),
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        node = cfg.MODEL.TWO_HEADED_HEAD
        check_features("MODEL.TWO_HEADED_HEAD.IN_FEATURE", [node.IN_FEATURE], input_shape)
        return {
            "in_feature": node.IN_FEATURE,
            "in_channels": input_shape[node.IN_FEATURE].channels,
            "pool_size": node.POOL_SIZE,
            "hidden_dim": node.HIDDEN_DIM,
            "num_classes": cfg.MODEL.PART_CLASSIFIER.NUM_CLASSES,
            "norm": cfg.MODEL.PART_CLASSIFIER.HEAD_NORM,
        }

    def forward(self, features: dict[str, Tensor], parts: PartOutput | None) -> Tensor:
        return self.layers(features[self.in_feature])
