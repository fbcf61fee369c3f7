"""What users swap by name: part segmenters and class heads, their interfaces, and what passes between them.

Letters: N images, C classes, P parts (background is semantic label P), Q queries, H W image pixels,
h w pixels of a feature or prediction map.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.structures import Instances
from detectron2.utils.registry import Registry
from torch import Tensor, nn

PART_SEGMENTER_REGISTRY = Registry("PART_SEGMENTER")
PART_SEGMENTER_REGISTRY.__doc__ = """
Part segmenters, called as `name(cfg, input_shape)` with `dict[str, ShapeSpec]` of the backbone's features.
See `PartSegmenter` for what they must do.
"""

CLASS_HEAD_REGISTRY = Registry("CLASS_HEAD")
CLASS_HEAD_REGISTRY.__doc__ = """
Heads that read the object class, called as `name(cfg, input_shape)`. See `ClassHead` for what they must do.
"""


@dataclass
class PartOutput:
    """Parts as a segmenter predicts them; a dense one fills `sem_seg_logits`, a query one the rest.

    Attributes:
        sem_seg_logits: (N, P + 1, h, w), background last, at the segmenter's own resolution.
        query_logits: (N, Q, K) class logits of the last decoder layer, K as the segmenter defines it.
        query_boxes: (N, Q, 4) cxcywh, 0..1 of the image.
        query_masks: (N, Q, h, w) mask logits.
        aux: what the segmenter's own losses need besides.
    """

    sem_seg_logits: Tensor | None = None
    query_logits: Tensor | None = None
    query_boxes: Tensor | None = None
    query_masks: Tensor | None = None
    aux: dict[str, Any] = field(default_factory=dict)


@dataclass
class PartTargets:
    """Part labels of a batch.

    Attributes:
        sem_seg: int64 (N, H, W), `ignore_label` where nothing is known.
        instances: one per image, on the model's device.
        labelled: bool (N,): images whose parts are annotated at all.
        complete: bool (N,): images whose parts are all annotated; None means all that are labelled.
    """

    sem_seg: Tensor
    instances: list[Instances]
    labelled: Tensor
    complete: Tensor | None = None


class LabelCount(NamedTuple):
    """What the denominator of a loss counts in a batch, in this process, and the least it is divided by."""

    count: Tensor
    least: float = 1.0


class PartSegmenter(nn.Module):
    """Interface of a part segmenter.

    Attributes:
        attack_objective: what an attack on the parts alone maximises (attacks/objective.py). For "part_loss" and
            "joint" a segmenter also offers, of outputs made with targets, `image_losses(output, matching=None)`, the
            loss (N,) of each image for itself, and `match(output)`, which queries answer for which true parts, None
            where there are no queries.
    """

    attack_objective: str = "pixel_cross_entropy"

    def forward(
        self,
        features: dict[str, Tensor],
        image_size: tuple[int, int],
        padding_mask: Tensor | None = None,
        targets: PartTargets | None = None,
        class_only: bool = False,
    ) -> PartOutput:
        """Predicts parts.

        Args:
            features: backbone features.
            image_size: (H, W) of the network input.
            padding_mask: bool (N, H, W), True on padding; None when there is none.
            targets: given in training, for segmenters that need them there (denoising queries).
            class_only: leave out everything that no class head reads; the attack's path.
        """
        raise NotImplementedError

    def losses(self, output: PartOutput, targets: PartTargets) -> dict[str, Tensor]:
        """Unweighted by c_seg; set losses are averaged over decoder layers. Images that are not `labelled` add
        nothing; a batch without any part label gives a finite zero that still reaches every parameter."""
        raise NotImplementedError

    def label_counts(self, targets: PartTargets) -> dict[str, LabelCount]:
        """Denominators of `losses`, by name of the loss, known before any prediction; "loss_part" is that of losses
        which are not named. Images with parts by default."""
        return {"loss_part": LabelCount(targets.labelled.sum())}

    def inference(self, output: PartOutput, image_size: tuple[int, int]) -> list[dict]:
        """One dict per image: `sem_seg` (P + 1, H, W) logits (background last), and `instances` where the segmenter
        predicts them."""
        raise NotImplementedError

    def dense_logits(self, output: PartOutput, image_size: tuple[int, int]) -> Tensor:
        """Logits (N, P + 1, H, W), background last: `inference`'s `sem_seg`, and nothing besides.

        Raises:
            ValueError: the segmenter predicts no dense parts.
        """
        results = self.inference(output, image_size)
        if "sem_seg" not in results[0]:
            raise ValueError("this model predicts boxes, no dense parts: set the attack's OBJECTIVE to part_loss")
        return torch.stack([result["sem_seg"] for result in results])


class ClassHead(nn.Module):
    """Interface of a class head: features and / or parts -> class logits.

    Attributes:
        needs_parts: the head reads the segmenter's output. When False the segmenter is skipped wherever only the
            class is wanted, in attacks above all.
    """

    needs_parts: bool = False

    def forward(self, features: dict[str, Tensor], parts: PartOutput | None) -> Tensor:
        """Returns logits (N, C), never probabilities."""
        raise NotImplementedError


def build_part_segmenter(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> PartSegmenter | None:
    """The segmenter `MODEL.PART_CLASSIFIER.SEGMENTER` names, or None for ""."""
    name = cfg.MODEL.PART_CLASSIFIER.SEGMENTER
    return PART_SEGMENTER_REGISTRY.get(name)(cfg, input_shape) if name else None


def build_class_head(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> ClassHead | None:
    """The head `MODEL.PART_CLASSIFIER.HEAD` names, or None for ""."""
    name = cfg.MODEL.PART_CLASSIFIER.HEAD
    return CLASS_HEAD_REGISTRY.get(name)(cfg, input_shape) if name else None


def zero_loss(*tensors: Tensor) -> Tensor:
    """A zero that depends on `tensors`, so that every process of a distributed job has the same gradients to reduce."""
    return torch.stack([tensor.sum() * 0.0 for tensor in tensors]).sum()
