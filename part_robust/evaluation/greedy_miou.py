"""The worst case for mIoU, which is a number of the whole data set and so has no worst case per image.

Letters: N images, K labels (P parts and background), A choices for each image: no attack, and each attack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Counts = Mapping[str, np.ndarray]


def greedy_worst_miou(choices: Sequence[Counts], num_labels: int, sweeps: int = 2) -> tuple[float, np.ndarray]:
    """Choose for each image in turn what lowers the mIoU over the whole data set most, all other choices given.

    Croce, Singh and Hein (2024) do so. The result is never above that of any single choice.

    Args:
        choices: of each the pixels by image and label, where they occur: arrays (M,) `image_id`, `label`, `hits`,
            `truth` and `predicted`.
        num_labels: K.
        sweeps: times that the images are gone through; it ends earlier when nothing changes.

    Returns:
        mIoU in percent, over the labels that occur in truth or prediction; NaN where none does. And int64 (N,), the
        choice of each image that occurs, ascending image ids.
    """
    ids = np.unique(np.concatenate([counts["image_id"] for counts in choices]))
    tables = [_sorted_by_image(counts, ids) for counts in choices]
    totals = [_total(counts, num_labels) for counts in choices]
    miou = [_miou(*total[None].swapaxes(0, 1))[0] for total in totals]
    if not len(ids) or np.isnan(miou).all():
        return float("nan"), np.zeros(len(ids), dtype=np.int64)
    best = int(np.nanargmin(miou))
    chosen, total = np.full(len(ids), best), totals[best].copy()
    for _ in range(sweeps):
        before = chosen.copy()
        for image in range(len(ids)):
            own = np.stack([_dense(table, image, num_labels) for table in tables])
            candidates = total[None] - own[chosen[image]][None] + own
            values = _miou(candidates[:, 0], candidates[:, 1])
            # Ties stay as they are, or the choice would depend on rounding.
            if np.nanmin(values) < values[chosen[image]] - 1e-12:
                chosen[image] = int(np.nanargmin(values))
                total = candidates[chosen[image]]
        if (before == chosen).all():
            break
    return float(_miou(total[0][None], total[1][None])[0]), chosen


def _sorted_by_image(counts: Counts, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (M,), hits and unions (2, M), ordered by image, and where each image begins (N + 1,)."""
    order = np.argsort(counts["image_id"], kind="stable")
    values = np.stack([counts["hits"], counts["truth"] + counts["predicted"] - counts["hits"]])
    begins = np.searchsorted(counts["image_id"][order], np.append(ids, np.iinfo(np.int64).max))
    return counts["label"][order], values[:, order].astype(np.int64), begins


def _dense(table: tuple[np.ndarray, np.ndarray, np.ndarray], image: int, num_labels: int) -> np.ndarray:
    """(2, K) hits and unions of one image."""
    labels, values, begins = table
    part = slice(begins[image], begins[image + 1])
    dense = np.zeros((2, num_labels), dtype=np.int64)
    dense[:, labels[part]] = values[:, part]
    return dense


def _total(counts: Counts, num_labels: int) -> np.ndarray:
    total = np.zeros((2, num_labels), dtype=np.int64)
    np.add.at(total[0], counts["label"], counts["hits"])
    np.add.at(total[1], counts["label"], counts["truth"] + counts["predicted"] - counts["hits"])
    return total


def _miou(hits: np.ndarray, unions: np.ndarray) -> np.ndarray:
    """(A,) percent from (A, K)."""
    occurs = unions > 0
    iou = np.where(occurs, hits / np.maximum(unions, 1), 0.0)
    number = occurs.sum(axis=1)
    return np.where(number > 0, 100.0 * iou.sum(axis=1) / np.maximum(number, 1), np.nan)
