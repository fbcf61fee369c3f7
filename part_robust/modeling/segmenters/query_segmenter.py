"""The base of DINO and Mask DINO as part segmenters: true parts, losses, and what attacks on them need.

Letters: N images, Q queries, T sets of predictions, K part classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from part_robust.layers.box_ops import xyxy_to_cxcywh
from part_robust.losses.matcher import Matching, PartBoxes
from part_robust.losses.set_criterion import PredictedParts, SetCriterion
from part_robust.modeling.registry import LabelCount, PartOutput, PartSegmenter, PartTargets, zero_loss
from part_robust.modeling.segmenters.denoising import DenoisingQueries, repeat_targets

LOSS_SCALES = ("mean", "thesis")


def repeated(rows: Tensor, number: int) -> Tensor:
    """The first `number` of the rows (Q, C), which begin anew where they end."""
    return rows if number == len(rows) else rows[torch.arange(number, device=rows.device) % len(rows)]


def check_choice(key: str, value: str, choices: Sequence[str]) -> str:
    """Returns the value.

    Raises:
        ValueError: MODEL has no such `value` for `key`.
    """
    if value not in choices:
        raise ValueError(f"MODEL.{key} must be one of {', '.join(choices)}, is {value!r}")
    return value


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


class QuerySegmenter(PartSegmenter):
    """A segmenter whose parts are queries.

    Made with targets, its output holds in `aux`

    - `true_parts`: `PartBoxes`;
    - `decoder`: `PredictedParts` of the decoder's layers, the last one last;
    - `encoder`: `PredictedParts` of the encoder's one set, where queries are chosen from it;
    - `pixels`: int64 (N, Q), where queries started, where they are chosen from the encoder's pixels;
    - `denoising`, `denoising_queries`: `PredictedParts` and `DenoisingQueries`, in training where there are any.

    `forward` takes `denoise` besides: False asks no denoising queries.

    Attributes:
        criterion: the losses.
        label_enc: part labels -> content of denoising queries.
        num_queries: Q.
    """

    attack_objective = "part_loss"
    target_fields: tuple[str, ...] = ("parts",)
    criterion: SetCriterion
    label_enc: nn.Embedding
    num_queries: int

    @property
    def active_criterion(self) -> SetCriterion:
        """The criterion of training or of evaluation."""
        return self.criterion

    def true_parts(self, targets: PartTargets, content_size: Tensor) -> PartBoxes:
        """The targets' boxes, cxcywh in 0..1 of the images without their padding."""
        parts = targets.padded()
        scale = content_size.flip(-1).repeat(1, 2)[:, None]
        return PartBoxes(
            labels=parts.classes,
            boxes=xyxy_to_cxcywh(parts.boxes / scale),
            present=parts.present,
            known=targets.labelled,
            complete=targets.labelled if targets.complete is None else targets.labelled & targets.complete,
            counts=parts.counts,
        )

    def assign(self, output: PartOutput, like: Assignment | None = None) -> Assignment:
        """Matches all sets of an output made with targets, once: `losses` goes by it.

        Args:
            output: of this segmenter.
            like: of the same images before they changed: parts keep the queries they had there. A query that starts
                from no chosen pixel any more has left its part to be matched anew.
        """
        predictions = self._all_sets(output)
        pixels = output.aux.get("pixels")
        kept = None if like is None else like.kept(pixels, predictions.logits.shape[2])
        matching = self.active_criterion.match(predictions, output.aux["true_parts"], kept)
        output.aux["assignment"] = Assignment(matching, pixels)
        return output.aux["assignment"]

    def losses(self, output: PartOutput, targets: PartTargets) -> dict[str, Tensor]:
        true_parts, criterion = output.aux["true_parts"], self.active_criterion
        encoder: PredictedParts | None = output.aux.get("encoder")
        assignment: Assignment = output.aux.get("assignment") or self.assign(output)
        sums = criterion.sums(self._all_sets(output), true_parts, assignment.matching)
        layers = len(output.aux["decoder"].logits)
        denoising_sums = self._denoising_sums(output) if "denoising" in output.aux else None
        ordinary, denoising = criterion.normalizers(true_parts, [sums, denoising_sums])
        losses = criterion.batch_losses({k: v[:layers] for k, v in sums.items()}, ordinary)
        if encoder is not None:
            losses |= criterion.batch_losses(
                {k: v[layers:] for k, v in sums.items()}, ordinary, prefix="loss_part_encoder_"
            )
        if denoising_sums is not None:
            groups = output.aux["denoising_queries"].groups
            losses |= criterion.batch_losses(denoising_sums, denoising, groups, prefix="loss_part_denoising_")
        elif self.training:
            # The same names in every process, and every parameter reached, also where one has no true part.
            nothing = zero_loss(self.label_enc.weight)
            losses |= {f"loss_part_denoising_{name}": nothing for name in criterion.weights}
        return losses

    def _denoising_sums(self, output: PartOutput) -> dict[str, Tensor]:
        queries: DenoisingQueries = output.aux["denoising_queries"]
        predictions: PredictedParts = output.aux["denoising"]
        sets = len(predictions.logits)
        matching = Matching(queries.matching.query.expand(sets, -1, -1), queries.matching.matched.expand(sets, -1, -1))
        repeated = repeat_targets(output.aux["true_parts"], queries.groups)
        return self.active_criterion.sums(predictions, repeated, matching, queries.counted)

    def label_counts(self, targets: PartTargets) -> dict[str, LabelCount]:
        known = targets.labelled
        parts = targets.padded().present.sum(dim=1)
        counts = {"loss_part": LabelCount(parts.sum())}
        weight = self.active_criterion.no_object_weight
        if weight is not None:
            complete = known if targets.complete is None else known & targets.complete
            of_queries = LabelCount(self.active_criterion.class_count(parts, complete, self.num_queries), weight)
            # Denoising queries are all made of true parts, and counted as these.
            counts |= dict.fromkeys(("loss_part_class", "loss_part_encoder_class"), of_queries)
        return counts

    def match(self, output: PartOutput) -> Matching:
        """Return which queries of the last layer are matched to which true parts; `output` was made with targets."""
        return self.active_criterion.match(self._last(output), output.aux["true_parts"])

    def image_losses(self, output: PartOutput, matching: Matching | None = None) -> Tensor:
        """Loss (N,) of the last layer's parts, each image for itself; matched anew unless a matching is given."""
        criterion = self.active_criterion
        sums = criterion.sums(self._last(output), output.aux["true_parts"], matching)
        return criterion.image_losses(sums, output.aux["true_parts"])

    @staticmethod
    def _all_sets(output: PartOutput) -> PredictedParts:
        decoder: PredictedParts = output.aux["decoder"]
        encoder: PredictedParts | None = output.aux.get("encoder")
        return decoder if encoder is None else PredictedParts.cat([decoder, encoder])

    @staticmethod
    def _last(output: PartOutput) -> PredictedParts:
        decoder: PredictedParts = output.aux["decoder"]
        return decoder.of(slice(-1, None))
