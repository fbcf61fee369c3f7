"""Targets, outputs of segmenters and matchings: the data that passes between modeling, losses and evaluation.

Letters: N images, P parts (background is semantic label P), G true parts of an image (padded to the same number),
T sets of predictions (decoder layers), Q queries, D denoising queries, M groups of them, K class logits of a query,
C channels, E channels of mask features, H W pixels of the image, h w pixels of a feature or prediction map, L pixels or
points at which masks are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.structures import Instances
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


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


@dataclass(frozen=True)
class LabelCount:
    """Count in the denominator of a loss, of a batch in this process, and the least it is divided by."""

    count: Tensor
    least: float = 1.0


@dataclass
class TrueMasks:
    """True masks where they are compared.

    Attributes:
        values: float, 0..1, 0 where nothing counts: (N, G, L), or (N, G, H, W).
        counted: float, 0..1, how much a pixel counts: (N, L), or (N, H, W).
    """

    values: Tensor
    counted: Tensor


@dataclass
class PartBoxes:
    """True parts of a batch as set losses compare them, padded to the same number.

    Attributes:
        labels: int64 (N, G), 0..K-1; 0 where there is none.
        boxes: (N, G, 4) cxcywh, 0..1 of the image without its padding.
        present: bool (N, G).
        known: bool (N,), False for images without part labels, which teach nothing.
        complete: bool (N,), False where parts may be missing: there a prediction without a true part is not wrong.
        masks: of the same parts, for models that predict masks.
        counts: present parts of each image, known on the host; None: counted on the device where they are needed.
    """

    labels: Tensor
    boxes: Tensor
    present: Tensor
    known: Tensor
    complete: Tensor
    masks: TrueMasks | None = None
    counts: tuple[int, ...] | None = None

    def count(self) -> tuple[int, ...]:
        """Present parts of each image."""
        return tuple(self.present.sum(dim=1).tolist()) if self.counts is None else self.counts


@dataclass
class Matching:
    """Matching of queries to true parts.

    Attributes:
        query: int64 (T, N, G), the query of each true part.
        matched: bool (T, N, G), False for padding and for parts that found no query.
    """

    query: Tensor
    matched: Tensor


@dataclass
class Assignment:
    """Assignment of queries to the true parts of an image.

    Attributes:
        matching: of all sets, the decoder's and after them the encoder's.
        pixels: int64 (N, Q), where each query started; None for learned queries, which start everywhere alike.
    """

    matching: Matching
    pixels: Tensor | None

    def kept(self, pixels: Tensor | None, num_queries: int) -> Tensor:
        """Return bool (T, N, Q, G), the same pairs among queries that start from `pixels` (N, Q) of a changed image."""
        query = self.matching.query
        if self.pixels is None or pixels is None:
            here, place = torch.arange(num_queries, device=query.device)[None], query
        else:
            here, place = pixels, self.pixels.expand(len(query), -1, -1).gather(2, query)
        return (here[None, :, :, None] == place[:, :, None]) & self.matching.matched[:, :, None]


@dataclass
class PredictedMasks:
    """Masks of T sets, not multiplied out: the loss needs the gradient of few of them.

    Attributes:
        embedding: (T, N, Q, E), of queries.
        pixels: (N, E, h, w).
    """

    embedding: Tensor
    pixels: Tensor

    def logits(self, query: Tensor | None = None) -> Tensor:
        """(T, N, Q, h, w), or (T, N, R, h, w) of the queries int64 (T, N, R)."""
        embedding = self.embedding
        if query is not None:
            embedding = embedding.gather(2, query[..., None].expand(-1, -1, -1, embedding.shape[-1]))
        return torch.einsum("tnqe,nehw->tnqhw", embedding, self.pixels)


@dataclass
class PredictedParts:
    """Predictions of T sets: logits (T, N, Q, K), boxes (T, N, Q, 4) cxcywh, and masks where the model has them."""

    logits: Tensor
    boxes: Tensor
    masks: PredictedMasks | None = None

    def of(self, sets: slice, queries: slice = slice(None)) -> PredictedParts:
        """Some of the sets and queries."""
        masks = self.masks
        if masks is not None:
            masks = PredictedMasks(masks.embedding[sets, :, queries], masks.pixels)
        return PredictedParts(self.logits[sets, :, queries], self.boxes[sets, :, queries], masks)

    @staticmethod
    def cat(predictions: Sequence[PredictedParts]) -> PredictedParts:
        """All sets, of the same images, as one."""
        masks = [p.masks for p in predictions if p.masks is not None]
        return PredictedParts(
            torch.cat([p.logits for p in predictions]),
            torch.cat([p.boxes for p in predictions]),
            PredictedMasks(torch.cat([m.embedding for m in masks]), masks[0].pixels) if masks else None,
        )


@dataclass
class DenoisingQueries:
    """Queries made of disturbed true parts, which go in front of the ordinary ones.

    Attributes:
        content: (N, D, C).
        boxes: (N, D, 4) cxcywh, 0..1.
        attention_mask: bool (D + Q, D + Q), True where a query (row) must not see another (column): a group sees
            itself and the ordinary queries, and these see no group.
        groups: M.
        matching: which query must give back which true part of the targets repeated M times, (1, N, M G).
        counted: bool (N, D), False for the padding of images with fewer parts than others.
    """

    content: Tensor
    boxes: Tensor
    attention_mask: Tensor
    groups: int
    matching: Matching
    counted: Tensor


@dataclass
class Denoised:
    """Denoising queries and what the decoder's layers predict for them."""

    queries: DenoisingQueries
    predictions: PredictedParts


@dataclass
class PredictedSets:
    """Predictions and true parts that the losses of a query segmenter compare.

    Attributes:
        true_parts: of the targets.
        decoder: predictions of the decoder's layers, the last one last.
        encoder: predictions of the encoder's one set, where queries are chosen from it.
        pixels: int64 (N, Q), the encoder's pixels that queries started from, where they are chosen from these.
        denoising: in training, where there are denoising queries.
    """

    true_parts: PartBoxes
    decoder: PredictedParts
    encoder: PredictedParts | None = None
    pixels: Tensor | None = None
    denoising: Denoised | None = None

    def all(self) -> PredictedParts:
        """The decoder's sets, and after them the encoder's."""
        return self.decoder if self.encoder is None else PredictedParts.cat([self.decoder, self.encoder])

    def last(self) -> PredictedParts:
        """The decoder's last layer."""
        return self.decoder.of(slice(-1, None))


@dataclass
class PartOutput:
    """Parts as a segmenter predicts them; a dense one fills `sem_seg_logits`, a query one most of the rest.

    Attributes:
        sem_seg_logits: (N, P + 1, h, w), background last, at the segmenter's own resolution.
        query_logits: (N, Q, K) class logits of the last decoder layer, K as the segmenter defines it.
        query_boxes: (N, Q, 4) cxcywh, 0..1 of the image without its padding.
        query_masks: (N, Q, h, w) mask logits.
        content_size: (N or 1, 2), height and width in pixels of the images without their padding.
        targets: what the output was made with, for losses of single images.
        sets: what the losses of queries compare, of an output made with targets.
        assignment: queries of all sets that learn the true parts; None before `PartSegmenter.assign`.
    """

    sem_seg_logits: Tensor | None = None
    query_logits: Tensor | None = None
    query_boxes: Tensor | None = None
    query_masks: Tensor | None = None
    content_size: Tensor | None = None
    targets: PartTargets | None = None
    sets: PredictedSets | None = None
    assignment: Assignment | None = None

    @property
    def aux(self) -> dict[str, Any]:
        """Fields by the keys of the dict that this class had before; to be removed."""
        values: dict[str, Any] = {"content_size": self.content_size, "assignment": self.assignment}
        if self.sets is not None:
            values |= {name: value for name, value in vars(self.sets).items() if name != "denoising"}
            if self.sets.denoising is not None:
                denoised = self.sets.denoising
                values |= {"denoising": denoised.predictions, "denoising_queries": denoised.queries}
        return {name: value for name, value in values.items() if value is not None}
