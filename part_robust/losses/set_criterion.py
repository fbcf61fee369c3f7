"""Losses of a set of predicted parts against the true ones (Carion et al., 2020; Zhang et al., 2023; Li et al., 2022).

Letters: T sets of predictions (decoder layers), N images, Q queries, K part classes, G true parts (padded).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from part_robust.layers.box_ops import cxcywh_to_xyxy, paired_generalized_iou
from part_robust.layers.constants import constant
from part_robust.losses.mask_losses import DenseMaskLoss, PointMaskLoss
from part_robust.losses.matcher import HungarianMatcher
from part_robust.losses.part_segmentation import global_mean_weight
from part_robust.structures import Matching, PartBoxes, PredictedParts


class SetCriterion:
    """Class loss of all queries; L1 and generalised IoU of matched boxes; losses of matched masks.

    Unweighted sums per image come first, so that the loss of each image is known.

    Attributes:
        weights: of the terms "class", "box", "giou", and with masks "mask" and "dice".
    """

    def __init__(
        self,
        *,
        matcher: HungarianMatcher,
        class_weight: float = 1.0,
        box_weight: float = 5.0,
        giou_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        mask_loss: DenseMaskLoss | PointMaskLoss | None = None,
        no_object_weight: float | None = None,
        sum_sets: bool = False,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        """Set the losses and their weights.

        Args:
            matcher: assigns predictions to true parts.
            class_weight: of the class loss.
            box_weight: of the L1 loss.
            giou_weight: of 1 - generalised IoU.
            mask_weight: of the masks' cross-entropy.
            dice_weight: of the dice loss.
            mask_loss: compares masks; None for models without.
            no_object_weight: makes the class loss a softmax cross-entropy, in which queries without a true part are of
                a last class that counts this much; None for the focal loss of sigmoids.
            sum_sets: sum over the T sets, as published, instead of their mean.
            alpha: of the focal loss.
            gamma: of the focal loss.
        """
        self.matcher = matcher
        self.mask_loss = mask_loss
        self.weights = {"class": class_weight, "box": box_weight, "giou": giou_weight}
        if mask_loss is not None:
            self.weights |= {"mask": mask_weight, "dice": dice_weight}
        self.no_object_weight = no_object_weight
        self.sum_sets = sum_sets
        self.alpha, self.gamma = alpha, gamma

    def with_mask_loss(self, mask_loss: DenseMaskLoss | PointMaskLoss) -> SetCriterion:
        """The same criterion, masks compared in another way."""
        other = copy.copy(self)
        other.mask_loss = mask_loss
        return other

    def match(self, predictions: PredictedParts, targets: PartBoxes, kept: Tensor | None = None) -> Matching:
        """Return which queries are matched to which true parts, in each set for itself.

        `kept` is that of `HungarianMatcher`.
        """
        if self.mask_loss is None:
            return self.matcher(predictions.logits, predictions.boxes, targets, None, kept)
        assert predictions.masks is not None and targets.masks is not None
        masks = self.mask_loss.cost(predictions.masks, targets.masks)
        return self.matcher(predictions.logits, predictions.boxes, targets, masks, kept)

    def sums(
        self,
        predictions: PredictedParts,
        targets: PartBoxes,
        matching: Matching | None = None,
        counted: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Loss terms, summed over the queries of each set and image.

        Args:
            predictions: of T sets.
            targets: of the N images.
            matching: given, or found by the matcher.
            counted: bool (N, Q), queries that exist; all by default.

        Returns:
            The names of `weights` -> (T, N); zero for images that are not `known`. Under softmax also "class_count", by
            how much the queries count together.
        """
        if matching is None:
            matching = self.match(predictions, targets)
        logits, boxes = predictions.logits.float(), predictions.boxes.float()
        result = self._class_sums(logits, targets, matching, counted)
        own = boxes.gather(2, matching.query[..., None].expand(-1, -1, -1, 4))
        true = targets.boxes.to(boxes.dtype).expand_as(own)
        distance = (own - true).abs().sum(dim=-1)
        overlap = 1.0 - paired_generalized_iou(cxcywh_to_xyxy(own), cxcywh_to_xyxy(true))
        result["box"] = distance.where(matching.matched, 0.0).sum(dim=-1)
        result["giou"] = overlap.where(matching.matched, 0.0).sum(dim=-1)
        if self.mask_loss is not None:
            assert predictions.masks is not None and targets.masks is not None
            result |= self.mask_loss.sums(predictions.masks, targets.masks, matching)
        return result

    def _class_sums(
        self, logits: Tensor, targets: PartBoxes, matching: Matching, counted: Tensor | None
    ) -> dict[str, Tensor]:
        # Row Q takes what is not matched, and is cut off.
        query = matching.query.where(matching.matched, logits.shape[2])
        answers = torch.zeros(*logits.shape[:2], logits.shape[2] + 1, dtype=torch.bool, device=logits.device)
        answers = answers.scatter(2, query, True)[:, :, :-1]
        # Where parts may be missing, only predictions that have found one are right or wrong.
        trained = (targets.complete[:, None] | answers) & targets.known[:, None]
        if counted is not None:
            trained = trained & counted
        label = targets.labels.expand_as(query)
        if self.no_object_weight is None:
            wanted = logits.new_zeros(*logits.shape[:2], logits.shape[2] + 1, logits.shape[3])
            label = F.one_hot(label, logits.shape[3]).to(logits.dtype)
            wanted = wanted.scatter(2, query[..., None].expand_as(label), label)[:, :, :-1]
            focal = sigmoid_focal_loss(logits, wanted, self.alpha, self.gamma).sum(dim=-1)
            return {"class": focal.where(trained, 0.0).sum(dim=-1)}
        nothing = logits.shape[3] - 1
        classes = query.new_full((*logits.shape[:2], logits.shape[2] + 1), nothing)
        classes = classes.scatter(2, query, label)[:, :, :-1]
        entropy = F.cross_entropy(logits.flatten(0, 2), classes.flatten(), reduction="none").view_as(classes)
        weight = torch.where(answers, 1.0, self.no_object_weight).where(trained, 0.0)
        return {"class": (entropy * weight).sum(dim=-1), "class_count": weight.sum(dim=-1)}

    def class_count(self, parts: Tensor, complete: Tensor, num_queries: int) -> Tensor:
        """Return "class_count" of a batch and one set, a scalar that no prediction changes.

        Each part finds a query while there are any, and the others count as nothing.

        Args:
            parts: int64 (N,), true parts of each image; 0 where none are known.
            complete: bool (N,), images whose parts are all known.
            num_queries: Q.
        """
        assert self.no_object_weight is not None
        found = parts.clamp(max=num_queries)
        return (found + self.no_object_weight * (num_queries - found) * complete).sum()

    def normalizers(self, targets: PartBoxes, groups_of_sums: Sequence[Mapping[str, Tensor] | None]) -> list[Tensor]:
        """Return what `batch_losses` divides by, for several groups of sets, from one exchange between the processes.

        The exchange takes place in every process, whatever its images hold, and always has the same size.

        Args:
            targets: of this process's images.
            groups_of_sums: `sums` of each group of sets; None for a group that this process does not have, such as
                denoising queries where no image has a true part.

        Returns:
            For each group (2,): 1 / the true parts of the whole batch, and 1 / by how much a set's queries count
            together (softmax class loss; 1 otherwise). Both times the number of processes, for
            `DistributedDataParallel` averages over these.
        """
        parts = targets.present.sum()[None].float()
        if self.no_object_weight is None:
            weight = global_mean_weight(parts)
            return [torch.cat([weight, torch.ones_like(weight)]) for _ in groups_of_sums]
        # All sets of a group count the same: each true part finds one query, and no prediction changes the others.
        counts = [parts[0] * 0.0 if sums is None else sums["class_count"][0].sum() for sums in groups_of_sums]
        least = constant((1.0, *[self.no_object_weight] * len(counts)), torch.float32, parts.device)
        weights = global_mean_weight(torch.cat([parts, torch.stack(counts).float()]), least)
        return [torch.stack([weights[0], own]) for own in weights[1:]]

    def batch_losses(
        self, sums: Mapping[str, Tensor], normalizer: Tensor, groups: int = 1, prefix: str = "loss_part_"
    ) -> dict[str, Tensor]:
        """Return weighted scalars: means (or sums) over the T sets, over the true parts of the batch in all processes.

        The softmax class loss is the mean over the queries instead.

        The softmax class loss is the mean over the queries instead.

        Args:
            sums: of `sums`.
            normalizer: (2,), of `normalizers`.
            groups: how many denoising queries each true part has.
            prefix: of the names.
        """
        losses = {}
        for name, weight in self.weights.items():
            own = normalizer[0] / groups
            if name == "class" and self.no_object_weight is not None:
                own = normalizer[1]
            sets = own * sums[name].sum(dim=1)
            losses[prefix + name] = weight * (sets.sum() if self.sum_sets else sets.mean())
        return losses

    def image_losses(self, sums: Mapping[str, Tensor], targets: PartBoxes, term: str = "") -> Tensor:
        """Weighted total (N,), mean over the T sets and the true parts of the image itself: what attacks maximise.

        Args:
            sums: of `sums`.
            targets: of the N images.
            term: "class" for the class loss alone, "box" for everything else, "" for all of it.
        """
        count = targets.present.sum(dim=1).clamp(min=1)
        total = torch.zeros_like(sums["class"])
        for name, weight in self.weights.items():
            if term and (name == "class") != (term == "class"):
                continue
            own = count
            if name == "class" and self.no_object_weight is not None:
                own = sums["class_count"].clamp(min=self.no_object_weight)
            total = total + weight * sums[name] / own
        return total.mean(dim=0)
