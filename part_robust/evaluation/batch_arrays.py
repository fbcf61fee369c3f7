"""A finished batch as a flat dict of arrays, which is all that the evaluation's numbers are computed from; and back.

Fields and names of the arrays: part_robust/evaluation/named_arrays.py. Besides, `evaluators.<row>.<number>.<name>` are
what each evaluator saw, its `partial`.

Letters: N images, C classes, K = P + 1 labels (background last).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluators
from torch import Tensor

from part_robust.evaluation.attacked_batch import (
    AttackedBatch,
    LabelCounts,
    label_counts,
    margins,
    object_share,
    sum_of_losses,
)
from part_robust.evaluation.journal import BatchArrays
from part_robust.evaluation.named_arrays import (
    AttackArrays,
    ClassArrays,
    CostArrays,
    CurveArrays,
    ImageArrays,
    Kind,
    LabelArrays,
    PictureArrays,
    PixelArrays,
    TierArrays,
    TotalCost,
)
from part_robust.evaluation.pictures import picture_arrays
from part_robust.evaluation.tiers import Tier, TierResult
from part_robust.utils.transfer import to_host


def describe_batch(
    batch: AttackedBatch,
    results: Mapping[Tier, TierResult],
    curve: Mapping[float, Tensor],
    evaluators: DatasetEvaluators,
    sample: Collection[int],
) -> BatchArrays:
    """Return what is kept of a batch, as arrays on the host.

    Args:
        batch: after all attacks.
        results: of every tier.
        curve: eps -> bool (N,), still right.
        evaluators: used, and left reset.
        sample: image ids that get a picture, under the first tier.
    """
    images = ImageArrays(batch.keys.numpy(), batch.labels.numpy(), object_share(batch.items, batch.num_parts))
    arrays = CostArrays(forwards=np.array(batch.forwards)).write("evaluation")
    counts: dict[str, LabelCounts] = {}
    for row, outputs in evaluated_rows(batch, results):
        arrays |= _evaluated(row, outputs, batch, evaluators)
        if batch.has_classes:
            logits = torch.stack([output["class_logits"] for output in outputs])
            margin, _ = margins(logits, batch.labels)
            arrays |= ClassArrays(logits.argmax(dim=1).cpu().numpy(), margin.cpu().numpy()).write(row)
        if batch.has_parts:
            known = next((result.counts[row] for result in results.values() if row in result.counts), None)
            counts[row] = known or label_counts(outputs, batch.items, batch.num_parts)
            arrays |= PixelArrays(counts[row].right.cpu().numpy()).write(row)
            arrays |= _occurring(counts[row], images.image_id).write(row)
    if batch.has_parts:
        images.pixels = counts["clean"].pixels.cpu().numpy()
    fooled: BatchArrays = {}
    for tier, result in results.items():
        arrays |= TierArrays(result.broken_by.cpu().numpy()).write(tier.name) | result.arrays
        for name, found in result.fooled.items():
            fooled[name] = found.cpu().numpy() | fooled.get(name, False)
    for eps, right in curve.items():
        arrays |= CurveArrays(right.cpu().numpy()).write(f"{eps:g}")
    for name, flags in fooled.items():
        arrays |= AttackArrays(fooled=flags).write(name)
    arrays |= _attacks(batch)
    if results:
        arrays |= picture_arrays(batch, next(iter(results.values())), sample)
    return {**images.write(), **arrays}


def _attacks(batch: AttackedBatch) -> BatchArrays:
    """Arrays of each attack on the whole batch, and its cost."""
    arrays: BatchArrays = {}
    measured = to_host(_measured_on_device(batch))
    for name, outcome in batch.outcomes.items():
        distance = None if outcome.distance is None else measured[f"{name}.distance"].numpy()
        arrays |= AttackArrays(done=outcome.done.cpu().numpy(), distance=distance).write(name)
        cost, history = outcome.cost, None
        if cost.histories:
            sums = [sum_of_losses(measured[f"{name}.{i}"], cost.steps) for i in range(len(cost.histories))]
            history = np.sum(sums, axis=0)
        totals = {field: np.array(getattr(cost, field)) for field in CostArrays.names() if field != "history"}
        arrays |= CostArrays(**totals, history=history).write(name)
    return arrays


def _measured_on_device(batch: AttackedBatch) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, outcome in batch.outcomes.items():
        found |= {f"{name}.{number}": history for number, history in enumerate(outcome.cost.histories)}
        if outcome.distance is not None:
            found[f"{name}.distance"] = outcome.distance
    return found


def evaluated_rows(batch: AttackedBatch, results: Mapping[Tier, TierResult]) -> Iterator[tuple[str, list[dict]]]:
    """Return name and outputs of all images that the evaluators process."""
    yield "clean", batch.clean
    seen: set[str] = set()
    for tier, result in results.items():
        yield tier.name, result.outputs
        for name, outputs in result.outputs_by_attack.items():
            if name not in seen:
                yield name, outputs
        seen.update(result.outputs_by_attack)


def _evaluated(row: str, outputs: list[dict], batch: AttackedBatch, evaluators: DatasetEvaluators) -> BatchArrays:
    evaluators.reset()
    evaluators.process(batch.items, outputs)
    arrays = {
        f"evaluators.{row}.{number}.{name}": array
        for number, evaluator in enumerate(evaluators._evaluators)
        for name, array in evaluator.partial().items()
    }
    evaluators.reset()
    return arrays


def _occurring(counts: LabelCounts, image_ids: np.ndarray) -> LabelArrays:
    """Return the counts of the labels that occur."""
    image, label = ((counts.truth > 0) | (counts.predicted > 0)).nonzero(as_tuple=True)
    hits, truth, predicted = (
        values[image, label].cpu().numpy() for values in (counts.hits, counts.truth, counts.predicted)
    )
    return LabelArrays(image_ids[image.cpu().numpy()], label.cpu().numpy(), hits, truth, predicted)


class Merged:
    """All batches of an evaluation together."""

    def __init__(self, batches: Sequence[BatchArrays]) -> None:
        """Merge the arrays of all batches.

        Raises:
            ValueError: there are none, so the data set is empty; an image occurs twice.
        """
        if not batches:
            raise ValueError("no image was evaluated: is the data set empty?")
        self.batches = batches
        ids = np.concatenate([batch["images.image_id"] for batch in batches])
        if len(np.unique(ids)) < len(ids):
            raise ValueError("an image was evaluated twice: is its image_id that of another image, too?")
        order = np.argsort(ids)
        names = [name for name in batches[0] if name.startswith("images.")]
        names += sorted({name for batch in batches for name in batch if name.startswith("images.")} - set(names))
        # Sorted by image id: the same for any number of processes and any order.
        self._arrays = {name: self._stacked(name)[order] for name in names}
        self.images = {name.removeprefix("images."): array for name, array in self._arrays.items()}

    def _stacked(self, name: str) -> np.ndarray:
        """Batches in which an attack had nothing to do have no entry for it."""
        example = next(batch[name] for batch in self.batches if name in batch)
        absent = np.nan if example.dtype.kind == "f" else 0
        return np.concatenate(
            [
                batch.get(name, np.full((len(batch["images.image_id"]), *example.shape[1:]), absent, example.dtype))
                for batch in self.batches
            ]
        )

    def __len__(self) -> int:
        return len(self.images["image_id"])

    @property
    def image(self) -> ImageArrays:
        """The images, ascending image ids, as all results of images."""
        return ImageArrays.read(self._arrays)

    def find(self, kind: type[Kind], name: str) -> Kind | None:
        """Results of images, of a row, tier, attack or radius; None where there are none.

        Args:
            kind: of the results.
            name: of the row, tier, attack or radius.
        """
        return kind.find(self._arrays, name)

    def read(self, kind: type[Kind], name: str) -> Kind:
        """Same as `find`.

        Raises:
            KeyError: there are none.
        """
        return kind.read(self._arrays, name)

    def labels(self, row: str) -> LabelArrays:
        """Pixels of the images of a row by label, one batch after the other."""
        return LabelArrays.read(self._concatenated(LabelArrays.names(row).values()), row)

    def together(self, kind: type[Kind], name: str = "") -> Kind | None:
        """Arrays of pairs of an image and something in it, one batch after the other; None where there are none."""
        return kind.find(self._concatenated(kind.names(name).values()), name)

    def pictures(self) -> PictureArrays | None:
        """Images that may become pictures, one batch after the other; None where there are none."""
        return self.together(PictureArrays)

    def cost(self, name: str) -> TotalCost:
        """Cost of an attack, or of everything else as "evaluation"."""
        totals = {field: self.total(key) for field, key in CostArrays.names(name).items()}
        history, seconds = totals.pop("history"), totals.pop("seconds")
        numbers = {field: int(total) for field, total in totals.items()}
        return TotalCost(**numbers, seconds=float(seconds), history=history if np.ndim(history) else None)

    def _concatenated(self, names: Iterable[str]) -> BatchArrays:
        """The arrays of these names that any batch has, one batch after the other."""
        found = {name: [batch[name] for batch in self.batches if name in batch] for name in names}
        return {name: np.concatenate(arrays) for name, arrays in found.items() if arrays}

    def total(self, name: str) -> np.ndarray:
        """Sum over the batches; 0 where none has it."""
        return np.sum([batch[name] for batch in self.batches if name in batch], axis=0)

    def score(self, row: str, evaluators: DatasetEvaluators) -> dict[str, dict[str, float]]:
        """Task -> metrics of a row, computed without any collective, as rank 0 has all batches."""
        results: dict[str, dict[str, float]] = {}
        for number, evaluator in enumerate(evaluators._evaluators):
            prefix = f"evaluators.{row}.{number}."
            partials = [
                {name.removeprefix(prefix): batch[name] for name in batch if name.startswith(prefix)}
                for batch in self.batches
            ]
            results |= evaluator.score_merged(partials)
        return results
