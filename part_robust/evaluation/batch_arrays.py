"""A finished batch as a flat dict of arrays, which is all that the evaluation's numbers are computed from; and back.

Names say what an array is, `<row>` being "clean", a tier or a part attack:

- `images.<name>`: one entry per image; `images.image_id` first of all.
- `counts.<row>.<name>`: pixels by image and label that occur in the image.
- `evaluators.<row>.<number>.<name>`: what each evaluator saw, its `partial`.
- `costs.<attack>.<name>`: of each attack on the whole batch.
- `pictures.<name>`: images for people, few of them.

Letters: N images, C classes, K = P + 1 labels (background last).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

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
    arrays: BatchArrays = {
        "images.image_id": batch.keys.numpy(),
        "images.label": batch.labels.numpy(),
        "images.object_share": object_share(batch.items, batch.num_parts),
        "costs.evaluation.forwards": np.array(batch.forwards),
    }
    counts: dict[str, LabelCounts] = {}
    for row, outputs in _rows(batch, results):
        arrays.update(_evaluated(row, outputs, batch, evaluators))
        if batch.has_classes:
            logits = torch.stack([output["class_logits"] for output in outputs])
            arrays[f"images.prediction.{row}"] = logits.argmax(dim=1).cpu().numpy()
            arrays[f"images.margin.{row}"] = margins(logits, batch.labels)[0].cpu().numpy()
        if batch.has_parts:
            known = next((result.counts[row] for result in results.values() if row in result.counts), None)
            counts[row] = known or label_counts(outputs, batch.items, batch.num_parts)
            arrays[f"images.pixels_right.{row}"] = counts[row].right.cpu().numpy()
            arrays.update(_occurring(row, counts[row], batch.keys.numpy()))
    if batch.has_parts:
        arrays["images.pixels"] = counts["clean"].pixels.cpu().numpy()
    for tier, result in results.items():
        arrays[f"images.broken_by.{tier.name}"] = result.broken_by.cpu().numpy()
        for name, fooled in result.fooled.items():
            earlier = arrays.get(f"images.fooled.{name}", False)
            arrays[f"images.fooled.{name}"] = fooled.cpu().numpy() | earlier
    for eps, standing in curve.items():
        arrays[f"images.curve.{eps:g}"] = standing.cpu().numpy()
    measured = to_host(_measured_on_device(batch))
    for name, outcome in batch.outcomes.items():
        arrays[f"images.done.{name}"] = outcome.done.cpu().numpy()
        if outcome.distance is not None:
            arrays[f"images.distance.{name}"] = measured[f"{name}.distance"].numpy()
        cost = outcome.cost
        arrays[f"costs.{name}.images"] = np.array(cost.images)
        arrays[f"costs.{name}.forwards"] = np.array(cost.forwards)
        arrays[f"costs.{name}.backwards"] = np.array(cost.backwards)
        arrays[f"costs.{name}.blind"] = np.array(cost.blind)
        arrays[f"costs.{name}.seconds"] = np.array(cost.seconds)
        if cost.histories:
            sums = [sum_of_losses(measured[f"{name}.{i}"], cost.steps) for i in range(len(cost.histories))]
            arrays[f"costs.{name}.history"] = np.sum(sums, axis=0)
    if results:
        arrays.update(picture_arrays(batch, next(iter(results.values())), sample))
    return arrays


def _measured_on_device(batch: AttackedBatch) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, outcome in batch.outcomes.items():
        found |= {f"{name}.{number}": history for number, history in enumerate(outcome.cost.histories)}
        if outcome.distance is not None:
            found[f"{name}.distance"] = outcome.distance
    return found


def _rows(batch: AttackedBatch, results: Mapping[Tier, TierResult]) -> Iterator[tuple[str, list[dict]]]:
    """Name and outputs of everything that the evaluators look at."""
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


def _occurring(row: str, counts: LabelCounts, image_ids: np.ndarray) -> BatchArrays:
    """PACO has hundreds of parts, an image a few: only labels that occur are kept."""
    image, label = ((counts.truth > 0) | (counts.predicted > 0)).nonzero(as_tuple=True)
    arrays = {
        "image_id": image_ids[image.cpu().numpy()],
        "label": label.cpu().numpy(),
        **{name: getattr(counts, name)[image, label].cpu().numpy() for name in ("hits", "truth", "predicted")},
    }
    return {f"counts.{row}.{name}": array for name, array in arrays.items()}


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
        self.images = {name.removeprefix("images."): self._stacked(name)[order] for name in names}

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

    def concatenated(self, prefix: str) -> dict[str, np.ndarray]:
        """Arrays whose names begin with `prefix`, one batch after the other, under the rest of their names."""
        names = sorted({name for batch in self.batches for name in batch if name.startswith(prefix)})
        return {
            name.removeprefix(prefix): np.concatenate([batch[name] for batch in self.batches if name in batch])
            for name in names
        }

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
