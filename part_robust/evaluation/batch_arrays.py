"""A finished batch as a flat dict of arrays, which is all that the evaluation's numbers are computed from.

Fields and names of the arrays: part_robust/evaluation/named_arrays.py. Besides, `evaluators.<row>.<number>.<name>` are
what each evaluator saw, its `partial`. Images that a later round may break have partials of their own, with
`<row>@<image id>` in place of the row, so that their results can be replaced.

Letters: N images, C classes, K = P + 1 labels (background last).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

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
from part_robust.evaluation.merged import Merged as Merged
from part_robust.evaluation.named_arrays import (
    AttackArrays,
    ClassArrays,
    CostArrays,
    CurveArrays,
    ImageArrays,
    LabelArrays,
    PixelArrays,
    TierArrays,
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
        arrays |= _evaluated_in_parts(row, outputs, batch, results, evaluators)
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
    arrays |= attack_arrays(batch)
    if results:
        arrays |= picture_arrays(batch, next(iter(results.values())), sample)
    return {**images.write(), **arrays}


def attack_arrays(batch: AttackedBatch) -> BatchArrays:
    """Return arrays of each attack on the whole batch, and its cost."""
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


def _evaluated_in_parts(
    row: str,
    outputs: list[dict],
    batch: AttackedBatch,
    results: Mapping[Tier, TierResult],
    evaluators: DatasetEvaluators,
) -> BatchArrays:
    """Return what the evaluators saw of a row: one partial of the images that stay as they are, one of each other."""
    broken_by = next((result.broken_by for tier, result in results.items() if tier.rounds and tier.name == row), None)
    if broken_by is None:
        return _evaluated(row, outputs, batch.items, evaluators)
    pairs = list(zip(batch.items, outputs, strict=True))
    alone = (broken_by < 0).tolist()
    final = [pair for pair, may_change in zip(pairs, alone, strict=True) if not may_change]
    arrays = _evaluated(row, [output for _, output in final], [item for item, _ in final], evaluators) if final else {}
    for (item, output), may_change in zip(pairs, alone, strict=True):
        if may_change:
            arrays |= _evaluated(f"{row}@{item['image_id']}", [output], [item], evaluators)
    return arrays


def _evaluated(row: str, outputs: list[dict], items: list[dict], evaluators: DatasetEvaluators) -> BatchArrays:
    evaluators.reset()
    evaluators.process(items, outputs)
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
