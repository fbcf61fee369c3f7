"""Registries of part segmenters and class heads, and their interfaces.

Letters: N images, C classes, P parts (background is semantic label P), Q queries, H W image pixels,
h w pixels of a feature or prediction map.
"""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from part_robust.structures import Assignment, LabelCount, Matching, PartOutput, PartTargets
from part_robust.utils.errors import UserError

PART_SEGMENTER_REGISTRY = Registry("PART_SEGMENTER")
PART_SEGMENTER_REGISTRY.__doc__ = """
Part segmenters, called as `name(cfg, input_shape)` with `dict[str, ShapeSpec]` of the backbone's features.
See `PartSegmenter` for what they must do.
"""

CLASS_HEAD_REGISTRY = Registry("CLASS_HEAD")
CLASS_HEAD_REGISTRY.__doc__ = """
Heads that read the object class, called as `name(cfg, input_shape)`. See `ClassHead` for what they must do.
"""


class PartSegmenter(nn.Module):
    """Interface of a part segmenter. `forward`, `losses` and `inference` must be written; the rest has a default.

    Attributes:
        attack_objective: what an attack on the parts alone maximises (attacks/objective.py). "part_loss" and "joint"
            need `image_losses`.
        target_fields: what the losses read of the targets, which is all that is copied to the device: "sem_seg",
            "instances", "parts" (`PaddedParts`), and with it "masks".
        uses_queries: parts are predicted by queries that are assigned to the true parts: `assign` and `match` do so,
            and `forward` takes `denoise`, which others are called without.
        predicts: fields of `PartOutput` that it fills for class heads; empty where it does not say.
        predicts_masks: its instances have `pred_masks`, so that part masks are evaluated.
        attack_terms: what an attack can maximise of it besides the whole part loss: terms "class" and "box" of
            `image_losses`, "scores" for `score_margins`.
    """

    attack_objective: str = "pixel_cross_entropy"
    attack_terms: tuple[str, ...] = ()
    target_fields: tuple[str, ...] = ("sem_seg", "instances")
    uses_queries: bool = False
    predicts: tuple[str, ...] = ()
    predicts_masks: bool = False

    def forward(
        self,
        features: dict[str, Tensor],
        image_size: tuple[int, int],
        padding_mask: Tensor | None = None,
        targets: PartTargets | None = None,
        class_only: bool = False,
        denoise: bool = True,
    ) -> PartOutput:
        """Predicts parts.

        Args:
            features: backbone features.
            image_size: (H, W) of the network input.
            padding_mask: bool (N, H, W), True on padding; None when there is none.
            targets: given in training and to attacks on the parts, for segmenters that need them there.
            class_only: leave out everything that no class head reads; the attack's path.
            denoise: with `uses_queries`: make denoising queries, in training.
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

    def assign(self, output: PartOutput, like: Assignment | None = None) -> Assignment | None:
        """Assigns the queries of an output made with targets to the true parts, once: `losses` goes by it.

        Args:
            output: of this segmenter; gets its `assignment`.
            like: of the same images before they changed: parts keep the queries they had there, where they can.

        Returns:
            The assignment; None where there are no queries, as by default.
        """
        return None

    def match(self, output: PartOutput) -> Matching | None:
        """Matches the last layer's queries of an output made with targets with the true parts.

        Returns:
            The matching, for `image_losses`; None where there are no queries, as by default.
        """
        return None

    def image_losses(self, output: PartOutput, matching: Matching | None = None, term: str = "") -> Tensor:
        """Part loss (N,) of each image for itself, of an output made with targets: what attacks on it maximise.

        Args:
            output: of this segmenter.
            matching: of `match`, to go by; None: matched anew.
            term: one of `attack_terms`, for this term alone; it is passed to segmenters that have any.

        Raises:
            UserError: the segmenter has no such loss, as by default.
        """
        raise UserError(
            f"attack objectives part_loss and joint must be left to segmenters with a loss for each image, got "
            f"{type(self).__name__}: use {self.attack_objective}, or define image_losses"
        )

    def score_margins(self, output: PartOutput) -> Tensor:
        """Return (N, Q), by how much each query's surest part exceeds `FOUND_SCORE`, as a difference of log-odds.

        Raises:
            UserError: the segmenter has no scores of queries, as by default.
        """
        raise UserError(
            f"attack objective hide_parts must be left to segmenters whose parts are queries, got "
            f"{type(self).__name__}: use {self.attack_objective}, or define score_margins"
        )

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
            class is needed, such as in attacks.
        reads: fields of `PartOutput` that it must have; empty where it does not say.
    """

    needs_parts: bool = False
    reads: tuple[str, ...] = ()

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


def check_fit(segmenter: PartSegmenter, head: ClassHead) -> None:
    """Compare what a head reads with what a segmenter predicts, where both say so.

    Raises:
        UserError: the segmenter does not predict what the head reads.
    """
    missing = [name for name in head.reads if name not in segmenter.predicts]
    if missing and segmenter.predicts:
        raise UserError(
            f"MODEL.PART_CLASSIFIER.SEGMENTER must predict {' and '.join(missing)} for {type(head).__name__}, got "
            f"{type(segmenter).__name__}, which predicts {' and '.join(segmenter.predicts)}: choose another of the two"
        )


def zero_loss(*tensors: Tensor) -> Tensor:
    """A zero that depends on `tensors`, so that every process of a distributed job has the same gradients to reduce."""
    return torch.stack([tensor.sum() * 0.0 for tensor in tensors]).sum()
