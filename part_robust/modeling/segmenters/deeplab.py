"""DeepLabv3+ (Chen et al., 2018) as a part segmenter: an adapter over detectron2's own head."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.projects.deeplab import DeepLabV3PlusHead
from torch import Tensor
from torch.nn import functional as F

from part_robust.losses.part_segmentation import image_cross_entropy, part_cross_entropy
from part_robust.modeling.features import check_features
from part_robust.modeling.registry import PART_SEGMENTER_REGISTRY, PartSegmenter
from part_robust.structures import LabelCount, Matching, PartOutput, PartTargets
from part_robust.utils.errors import UserError


@PART_SEGMENTER_REGISTRY.register()
class DeepLabSegmenter(PartSegmenter):
    """Backbone features -> part logits at stride 4 (`MODEL.SEM_SEG_HEAD.COMMON_STRIDE`)."""

    target_fields = ("sem_seg",)
    predicts = ("sem_seg_logits",)

    @configurable
    def __init__(self, *, head: DeepLabV3PlusHead, ignore_label: int) -> None:
        """Wrap detectron2's head.

        Args:
            head: a `DeepLabV3PlusHead` with P + 1 outputs, background last.
            ignore_label: label of pixels that count nowhere.
        """
        super().__init__()
        self.head = head
        self.ignore_label = ignore_label

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        check_features_of_decoder(cfg, input_shape)
        parts = cfg.MODEL.PART_CLASSIFIER.NUM_PARTS
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = parts + 1
        # Its own loss is never used: it would upsample by the stride, which is wrong for odd sizes.
        cfg.MODEL.SEM_SEG_HEAD.LOSS_TYPE = "cross_entropy"
        cfg.INPUT.CROP.ENABLED = False  # the head would fix its pooling to the crop size
        return {"head": DeepLabV3PlusHead(cfg, input_shape), "ignore_label": ignore_label(parts)}

    def forward(
        self,
        features: dict[str, Tensor],
        image_size: tuple[int, int],
        padding_mask: Tensor | None = None,
        targets: PartTargets | None = None,
        class_only: bool = False,
        denoise: bool = True,
    ) -> PartOutput:
        # The head's forward() returns no logits in training, layers() always does.
        return PartOutput(sem_seg_logits=self.head.layers(features), targets=targets)

    def losses(self, output: PartOutput, targets: PartTargets) -> dict[str, Tensor]:
        assert targets.sem_seg is not None
        logits = upsample(output.sem_seg_logits, targets.sem_seg.shape[-2:])
        return {"loss_part_seg": part_cross_entropy(logits, targets.sem_seg, self.ignore_label)}

    def label_counts(self, targets: PartTargets) -> dict[str, LabelCount]:
        assert targets.sem_seg is not None
        return {"loss_part": LabelCount((targets.sem_seg != self.ignore_label).sum())}

    def image_losses(self, output: PartOutput, matching: Matching | None = None, term: str = "") -> Tensor:
        """Mean cross-entropy (N,) over the labelled pixels of each image; `output` was made with targets."""
        assert output.targets is not None and output.targets.sem_seg is not None
        target = output.targets.sem_seg
        return image_cross_entropy(upsample(output.sem_seg_logits, target.shape[-2:]), target, self.ignore_label)

    def inference(self, output: PartOutput, image_size: tuple[int, int]) -> list[dict]:
        return [{"sem_seg": logits} for logits in upsample(output.sem_seg_logits, image_size)]


def check_features_of_decoder(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> None:
    """Refuses features that the backbone does not give, and other numbers of features than of projections.

    Raises:
        UserError: MODEL.SEM_SEG_HEAD.IN_FEATURES or PROJECT_CHANNELS does not fit.
    """
    node = cfg.MODEL.SEM_SEG_HEAD
    check_features("MODEL.SEM_SEG_HEAD.IN_FEATURES", node.IN_FEATURES, input_shape)
    if len(node.PROJECT_CHANNELS) != len(node.IN_FEATURES) - 1:
        raise UserError(
            "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS must have a number for each of IN_FEATURES except the coarsest, "
            f"got {node.PROJECT_CHANNELS} for {node.IN_FEATURES}"
        )


def ignore_label(parts: int) -> int:
    """Label of pixels that count nowhere, given the number of parts without background."""
    return 255 if parts <= 254 else 65535


def upsample(logits: Tensor | None, size: Sequence[int]) -> Tensor:
    """(N, K, h, w) -> (N, K, H, W), bilinear."""
    assert logits is not None
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
