"""A few attacked images for people: the worst, the median and some that held.

Letters: N images of (3, H, W), RGB, 0..255; M images chosen; P parts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import torch
from torch import Tensor

from part_robust.attacks.noise import make_keys
from part_robust.evaluation.attacked_batch import AttackedBatch, margins
from part_robust.evaluation.conversion import predicted_labels
from part_robust.evaluation.journal import BatchArrays
from part_robust.evaluation.named_arrays import PictureArrays
from part_robust.evaluation.tiers import TierResult
from part_robust.utils.transfer import to_host

# Images among which the pictures are chosen; all of them would be too many to keep.
SAMPLE = 48
KINDS = {"worst": 4, "median": 4, "robust": 4}
TOP = 3


def picture_sample(image_ids: Iterable[int], number: int = SAMPLE) -> frozenset[int]:
    """At most `number` of the images, spread evenly and the same for every evaluation of the same data."""
    ids = sorted(image_ids)
    order = make_keys(0, torch.tensor(ids, dtype=torch.int64)).argsort(stable=True)
    return frozenset(ids[i] for i in order[:number].tolist())


def picture_arrays(batch: AttackedBatch, result: TierResult, sample: Collection[int]) -> BatchArrays:
    """Arrays of `PictureArrays`, of the batch's images that are in the sample; empty where none is."""
    rows = [row for row, item in enumerate(batch.items) if item["image_id"] in sample]
    if not rows:
        return {}
    size = tuple(batch.images.shape[-2:])

    def parts(outputs: list[dict]) -> np.ndarray:
        if not batch.has_parts:
            return np.full((len(rows), *size), -1, dtype=np.int16)
        found = [predicted_labels(outputs[row], batch.num_parts, size).cpu() for row in rows]
        return torch.stack(found).numpy().astype(np.int16)

    index = batch.on_device(torch.tensor(rows))
    images = to_host({"clean": batch.images[index].round().byte(), "attacked": result.images[index]})
    true_parts = torch.stack([batch.items[row]["sem_seg"] for row in rows])
    arrays = {
        "image_id": batch.keys.numpy()[rows],
        "label": batch.labels[rows].numpy(),
        **{name: value.numpy() for name, value in images.items()},
        "true_parts": torch.where(true_parts > batch.num_parts, -1, true_parts).cpu().numpy().astype(np.int16),
        "parts_before": parts(batch.clean),
        "parts_after": parts(result.outputs),
    }
    # How far the attack got: the class margin, or the share of pixels it turned.
    if batch.has_classes:
        for when, outputs in (("before", batch.clean), ("after", result.outputs)):
            logits = torch.stack([outputs[row]["class_logits"] for row in rows]).float()
            arrays[f"top3_labels_{when}"], arrays[f"top3_probabilities_{when}"] = _top(logits)
        margin, wrong = margins(logits, batch.labels[rows])
        arrays["harm"], arrays["broken"] = margin.cpu().numpy(), wrong.cpu().numpy()
    else:
        turned = (arrays["parts_before"] != arrays["parts_after"]).reshape(len(rows), -1).mean(axis=1)
        arrays["harm"], arrays["broken"] = turned, turned > 0.5
    return PictureArrays(**arrays).write()


def _top(logits: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Labels int64 (M, 3) and probabilities (M, 3) of the most probable classes; -1 and 0 where there are fewer."""
    number = min(TOP, logits.shape[1])
    probabilities, labels = logits.softmax(dim=1).topk(number, dim=1)
    missing = ((0, 0), (0, TOP - number))
    return (
        np.pad(labels.cpu().numpy(), missing, constant_values=-1),
        np.pad(probabilities.cpu().numpy(), missing),
    )


def choose_pictures(pictures: PictureArrays | None) -> dict[str, np.ndarray]:
    """Choose at most 12 of the sample, and name their `kind`.

    They are the images on which the attack went farthest, those in the middle, and those that held best.

    Args:
        pictures: of all batches together; None where there are none.
    """
    if pictures is None:
        return {}
    order = np.lexsort((pictures.image_id, -pictures.harm))
    broken, robust = order[pictures.broken[order]], order[~pictures.broken[order]]
    chosen: list[tuple[int, str]] = [(row, "worst") for row in broken[: KINDS["worst"]]]
    held = [(row, "robust") for row in robust[::-1][: KINDS["robust"]]]
    taken = {row for row, _ in chosen + held}
    middle = sorted(range(len(order)), key=lambda rank: abs(rank - (len(order) - 1) / 2))
    free = [order[rank] for rank in middle if order[rank] not in taken][: KINDS["median"]]
    chosen += [(row, "median") for row in free] + held
    rows = np.array([row for row, _ in chosen], dtype=np.int64)
    arrays = {name: array[rows] for name, array in sorted(vars(pictures).items()) if array is not None}
    return {**arrays, "kind": np.array([kind for _, kind in chosen])}
