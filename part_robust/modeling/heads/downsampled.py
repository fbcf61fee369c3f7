"""Downsampled part model (thesis section 1.2, Fig. 1.2): the class is read from shrunken part-probability maps alone.

Letters: N images, C classes, D part maps that are read, k cells per side after pooling.
"""

from __future__ import annotations

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, get_norm
from torch import Tensor, nn

from part_robust.modeling.registry import CLASS_HEAD_REGISTRY, ClassHead
from part_robust.structures import PartOutput


@CLASS_HEAD_REGISTRY.register()
class DownsampledHead(ClassHead):
    """Softmax over labels, pooling to (N, D, k, k), then a small CNN."""

    needs_parts = True
    reads = ("sem_seg_logits",)

    @configurable
    def __init__(
        self,
        *,
        num_parts: int,
        num_classes: int,
        pool_size: int,
        channels_per_part: int,
        hidden_dim: int,
        drop_background: bool,
        norm: str,
    ) -> None:
        """Build the small network for the given numbers of parts and classes.

        Args:
            num_parts: P, without background.
            num_classes: C.
            pool_size: k.
            channels_per_part: output channels of the convolution per part map.
            hidden_dim: units of the hidden layer.
            drop_background: read the P part maps only (D = P), not the background's (D = P + 1).
            norm: name for detectron2's get_norm.
        """
        super().__init__()
        self.drop_background = drop_background
        maps = num_parts if drop_background else num_parts + 1
        channels = channels_per_part * maps
        self.layers = nn.Sequential(
            nn.AdaptiveAvgPool2d(pool_size),
            nn.Conv2d(maps, channels, pool_size),
            get_norm(norm, channels) or nn.Identity(),
            nn.ReLU(),
            nn.Conv2d(channels, hidden_dim, 1),  # a linear layer that any of the norms can follow
            get_norm(norm, hidden_dim) or nn.Identity(),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(hidden_dim, num_classes),
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        node = cfg.MODEL.DOWNSAMPLED_HEAD
        return {
            "num_parts": cfg.MODEL.PART_CLASSIFIER.NUM_PARTS,
            "num_classes": cfg.MODEL.PART_CLASSIFIER.NUM_CLASSES,
            "pool_size": node.POOL_SIZE,
            "channels_per_part": node.CHANNELS_PER_PART,
            "hidden_dim": node.HIDDEN_DIM,
            "drop_background": node.DROP_BACKGROUND,
            "norm": cfg.MODEL.PART_CLASSIFIER.HEAD_NORM,
        }

    def forward(self, features: dict[str, Tensor], parts: PartOutput | None) -> Tensor:
        assert parts is not None and parts.sem_seg_logits is not None, "DownsampledHead needs a dense segmenter"
        # Pooled at the decoder's resolution: the bilinear upsampling to pixels would only be averaged away again.
        probabilities = parts.sem_seg_logits.softmax(dim=1)
        return self.layers(probabilities[:, :-1] if self.drop_background else probabilities)
