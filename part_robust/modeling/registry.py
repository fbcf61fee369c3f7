"""Registries of part segmenters and class heads, their interfaces, and what passes between them.

Letters: N images, C classes, P parts (background is semantic label P), Q queries, H W image pixels,
h w pixels of a feature or prediction map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.structures import Instances
from detectron2.utils.registry import Registry
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

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
    """Part labels of a batch, on the model's device as far as the segmenter reads them (`PartSegmenter.target_fields`).

    Attributes:
        sem_seg: int64 (N, H, W), `ignore_label` where nothing is known; None if the segmenter does not read it.
        instances: one per image. They stay in the memory of the host unless the segmenter reads "instances".
        labelled: bool (N,): images whose parts are annotated at all.
        complete: bool (N,): images whose parts are all annotated; None means all that are labelled.
        parts: `PaddedParts` of the instances, on the device; None if the segmenter does not read them.
    """

    sem_seg: Tensor | None
    instances: list[Instances]
    labelled: Tensor
    complete: Tensor | None = None
    parts: PaddedParts | None = None

    def padded(self, masks: bool = False) -> PaddedParts:
        """`parts`, padded here where only the instances are given. Their masks only with `masks`."""
        if self.parts is None or (masks and self.parts.masks is None):
            self.parts = PaddedParts.pad(self.instances, self.labelled.tolist(), masks)
        return self.parts


@dataclass
class PaddedParts:
    """The true parts of a batch in tensors of one size, 0 where an image has fewer than another.

    Attributes:
        classes: int64 (N, G).
        boxes: float32 (N, G, 4), XYXY pixels.
        present: bool (N, G), False for padding and for images without part labels.
        counts: present parts of each image, known on the host.
        masks: bool (N, G, H, W), where they are read.
    """

    classes: Tensor
    boxes: Tensor
    present: Tensor
    counts: tuple[int, ...]
    masks: Tensor | None = None

    @classmethod
    def pad(cls, instances: Sequence[Instances], labelled: Sequence[bool], masks: bool) -> PaddedParts:
        """Pads the instances of a batch, on the device they are on.

        Args:
            instances: one per image, with `gt_classes`, `gt_boxes` and, with `masks`, `gt_masks`.
            labelled: by image; parts of images that are not labelled are not present.
            masks: pad the masks as well.
        """
        counts = tuple(len(own) if known else 0 for own, known in zip(instances, labelled, strict=True))
        classes = pad_sequence([own.gt_classes for own in instances], batch_first=True)
        present = torch.arange(classes.shape[1])[None] < torch.tensor(counts)[:, None]
        return cls(
            classes=classes,
            boxes=pad_sequence([own.gt_boxes.tensor.float() for own in instances], batch_first=True),
            present=present.to(classes.device),
            counts=counts,
            masks=pad_sequence([own.gt_masks.tensor for own in instances], batch_first=True) if masks else None,
        )


@dataclass(frozen=True)
class LabelCount:
    """Count in the denominator of a loss, of a batch in this process, and the least it is divided by."""

    count: Tensor
    least: float = 1.0


class PartSegmenter(nn.Module):
    """Interface of a part segmenter.

    Attributes:
        attack_objective: what an attack on the parts alone maximises (attacks/objective.py). For "part_loss" and
            "joint" a segmenter also offers, of outputs made with targets, `image_losses(output, matching=None)`, the
            loss (N,) of each image for itself, and `match(output)`, which queries answer for which true parts, None
            where there are no queries.
        target_fields: what the losses read of the targets, which is all that is copied to the device: "sem_seg",
            "instances", "parts" (`PaddedParts`), and with it "masks".
    """

    attack_objective: str = "pixel_cross_entropy"
    target_fields: tuple[str, ...] = ("sem_seg", "instances")

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
        """Return the part losses, not yet weighted by c_seg; set losses are averaged over decoder layers.

        Images that are not `labelled` add nothing; a batch without any part label gives a finite zero that still
        reaches every parameter.
        """
        raise NotImplementedError

    def label_counts(self, targets: PartTargets) -> dict[str, LabelCount]:
        """Return the denominators of `losses`, by name of the loss, known before any prediction.

        "loss_part" is that of losses which are not named. By default it is the number of images with parts.
        """
        return {"loss_part": LabelCount(targets.labelled.sum())}

    def inference(self, output: PartOutput, image_size: tuple[int, int]) -> list[dict]:
        """Return one dict per image: `sem_seg` (P + 1, H, W), logits, background last, and `instances`, if any."""
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
