"""The base of DINO and Mask DINO as part segmenters: true parts, losses, and what attacks on them need.

Letters: N images, Q queries, T sets of predictions, K part classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from part_robust.layers.box_ops import xyxy_to_cxcywh
from part_robust.layers.mask_box import FOUND_SCORE
from part_robust.losses.set_criterion import SetCriterion
from part_robust.modeling.registry import PartSegmenter, zero_loss
from part_robust.modeling.segmenters.denoising import repeat_targets
from part_robust.structures import (
    Assignment,
    Denoised,
    LabelCount,
    Matching,
    PartBoxes,
    PartOutput,
    PartTargets,
    PredictedSets,
)

LOSS_SCALES = ("mean", "thesis")
FOUND_LOG_ODDS = math.log(FOUND_SCORE / (1 - FOUND_SCORE))


def repeated(rows: Tensor, number: int) -> Tensor:
    """The first `number` of the rows (Q, C), which begin anew where they end."""
    return rows if number == len(rows) else rows[torch.arange(number, device=rows.device) % len(rows)]


def validate_option(key: str, value: str, choices: Sequence[str]) -> str:
    """Returns the value.

    Raises:
        ValueError: MODEL has no such `value` for `key`.
    """
    if value not in choices:
        raise ValueError(f"MODEL.{key} must be one of {', '.join(choices)}, is {value!r}")
    return value


class QuerySegmenter(PartSegmenter):
    """A segmenter whose parts are queries. Made with targets, its output has `sets`.

    Attributes:
        criterion: the losses.
        label_enc: part labels -> content of denoising queries.
        num_queries: Q.
    """

    attack_objective = "part_loss"
    target_fields: tuple[str, ...] = ("parts",)
    uses_queries = True
    attack_terms = ("class", "box", "scores")
    predicts = ("query_logits", "query_boxes")
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
        """Same as `PartSegmenter.assign`.

        A query of `like` that starts from no chosen pixel any more has left its part to be matched anew.
        """
        sets = self.sets(output)
        predictions = sets.all()
        kept = None if like is None else like.kept(sets.pixels, predictions.logits.shape[2])
        matching = self.active_criterion.match(predictions, sets.true_parts, kept)
        output.assignment = Assignment(matching, sets.pixels)
        return output.assignment

    def losses(self, output: PartOutput, targets: PartTargets) -> dict[str, Tensor]:
        sets, criterion = self.sets(output), self.active_criterion
        assignment = output.assignment or self.assign(output)
        sums = criterion.sums(sets.all(), sets.true_parts, assignment.matching)
        layers = len(sets.decoder.logits)
        denoising_sums = None if sets.denoising is None else self._denoising_sums(sets.denoising, sets.true_parts)
        ordinary, denoising = criterion.normalizers(sets.true_parts, [sums, denoising_sums])
        losses = criterion.batch_losses({k: v[:layers] for k, v in sums.items()}, ordinary)
        if sets.encoder is not None:
            losses |= criterion.batch_losses(
                {k: v[layers:] for k, v in sums.items()}, ordinary, prefix="loss_part_encoder_"
            )
        if sets.denoising is not None and denoising_sums is not None:
            groups = sets.denoising.queries.groups
            losses |= criterion.batch_losses(denoising_sums, denoising, groups, prefix="loss_part_denoising_")
        elif self.training:
            # The same names in every process, and every parameter reached, also where one has no true part.
            nothing = zero_loss(self.label_enc.weight)
            losses |= {f"loss_part_denoising_{name}": nothing for name in criterion.weights}
        return losses

    def _denoising_sums(self, denoised: Denoised, true_parts: PartBoxes) -> dict[str, Tensor]:
        queries = denoised.queries
        sets = len(denoised.predictions.logits)
        matching = Matching(queries.matching.query.expand(sets, -1, -1), queries.matching.matched.expand(sets, -1, -1))
        repeated = repeat_targets(true_parts, queries.groups)
        return self.active_criterion.sums(denoised.predictions, repeated, matching, queries.counted)

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
        sets = self.sets(output)
        return self.active_criterion.match(sets.last(), sets.true_parts)

    def image_losses(self, output: PartOutput, matching: Matching | None = None, term: str = "") -> Tensor:
        """Loss (N,) of the last layer's parts, each image for itself; matched anew unless a matching is given."""
        sets, criterion = self.sets(output), self.active_criterion
        sums = criterion.sums(sets.last(), sets.true_parts, matching)
        return criterion.image_losses(sums, sets.true_parts, term)

    def score_margins(self, output: PartOutput) -> Tensor:
        assert output.query_logits is not None
        logits = output.query_logits.float()
        if self.active_criterion.no_object_weight is None:
            return logits.amax(dim=-1) - FOUND_LOG_ODDS
        # Softmax: the log-odds of a class are its logit less the log-sum-exp of all others, "no object" among these.
        parts = logits[..., :-1].max(dim=-1, keepdim=True)
        others = logits.scatter(-1, parts.indices, float("-inf")).logsumexp(dim=-1)
        return parts.values[..., 0] - others - FOUND_LOG_ODDS

    @staticmethod
    def sets(output: PartOutput) -> PredictedSets:
        """The sets of an output made with targets."""
        assert output.sets is not None, "the output was made without targets"
        return output.sets
