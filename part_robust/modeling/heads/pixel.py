"""Pixel part model (Sitawarin et al., 2023): part logits vote for classes through the part-to-class matrix.

Letters: N images, C classes, P parts, h w pixels of the decoder's output.
"""

from __future__ import annotations

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from part_robust.modeling.part_to_class import PartToClass
from part_robust.modeling.registry import CLASS_HEAD_REGISTRY, ClassHead
from part_robust.structures import PartOutput


@CLASS_HEAD_REGISTRY.register()
class PixelHead(ClassHead):
    """Mean over pixels of part logits, then part-to-class matrix.

    The matrix is linear, so averaging first gives what class maps averaged over pixels give, without the maps.
    """

    needs_parts = True
    reads = ("sem_seg_logits",)

    @configurable
    def __init__(self, *, part_to_class: nn.Module, foreground_weights: bool = False) -> None:
        """Set how part logits become class logits.

        Args:
            part_to_class: (N, P) -> (N, C).
            foreground_weights: weigh each pixel by its probability not to be background (the weights of an image add
                up to 1); False is the plain mean.
        """
        super().__init__()
        self.part_to_class = part_to_class
        self.foreground_weights = foreground_weights

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        return {
            "part_to_class": PartToClass(cfg),
            "foreground_weights": cfg.MODEL.PIXEL_HEAD.FOREGROUND_WEIGHTS,
        }

    def forward(self, features: dict[str, Tensor], parts: PartOutput | None) -> Tensor:
        assert parts is not None and parts.sem_seg_logits is not None, "PixelHead needs a dense segmenter"
        logits = parts.sem_seg_logits.float().flatten(2)
        if self.foreground_weights:
            scores = (logits[:, :-1] * foreground_weights(logits)).sum(dim=-1)
        else:
            scores = logits[:, :-1].mean(dim=-1)
        return self.part_to_class(scores)


def foreground_weights(logits: Tensor) -> Tensor:
    """Share of each pixel in the image's foreground.

    In the log domain, so that an image of nothing but background still has weights that add up to 1, and gradients.

    Args:
        logits: (N, P + 1, h * w), background last.

    Returns:
        (N, 1, h * w), proportional to 1 - p(background), adding up to 1.
    """
    foreground = logits[:, :-1].logsumexp(dim=1, keepdim=True) - logits.logsumexp(dim=1, keepdim=True)
    return foreground.softmax(dim=-1)
