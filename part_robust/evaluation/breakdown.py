"""Where a model is robust and where not: by class, by part, by the size of the object, and what classes turn into.

Letters: N images, C classes, K = P + 1 labels (background last).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from part_robust.evaluation.statistics import ratio_interval, wilson_interval


def share(right: np.ndarray) -> dict:
    """Count, percentage and 95 % interval of bool (N,)."""
    correct, total = int(right.sum()), len(right)
    low, high = wilson_interval(correct, total)
    return {"correct": correct, "accuracy": percent(correct, total), "interval": [100 * low, 100 * high]}


def pixel_share(right: np.ndarray, pixels: np.ndarray) -> dict:
    """The same of pixels, right and labelled, by image (N,)."""
    low, high = ratio_interval(right, pixels)
    correct, total = int(right.sum()), int(pixels.sum())
    return {"correct": correct, "accuracy": percent(correct, total), "interval": [100 * low, 100 * high]}


def percent(correct: int | float, total: int | float) -> float | None:
    """None of nothing."""
    return 100.0 * float(correct) / float(total) if total else None


def by_class(labels: np.ndarray, clean: np.ndarray, robust: np.ndarray | None, names: Sequence[str]) -> list[dict]:
    """Percent right of each class that has images; `clean` and `robust` are bool (N,), the latter None of no attack."""
    rows = []
    for index, name in enumerate(names):
        own = labels == index
        if own.any():
            images = int(own.sum())
            rows.append({"name": name, "images": images, **_scores(clean, robust, own)})
    return rows


def _scores(clean: np.ndarray, robust: np.ndarray | None, own: np.ndarray) -> dict:
    """Return the percentages of the images `own`, bool (N,)."""
    images = int(own.sum())
    attacked = None if robust is None else percent(robust[own].sum(), images)
    return {"clean": percent(clean[own].sum(), images), "robust": attacked}


def by_size(shares: np.ndarray, clean: np.ndarray, robust: np.ndarray | None, bins: int = 4) -> list[dict]:
    """Percent right by the share of the image that the object's labelled parts cover, in bins of equally many images.

    Args:
        shares: float (N,), 0..1, NaN where unknown; such images are left out.
        clean: bool (N,).
        robust: bool (N,); None of no attack.
        bins: at most; fewer where images share a size.
    """
    known = ~np.isnan(shares)
    if not known.any():
        return []
    shares, clean, robust = shares[known], clean[known], None if robust is None else robust[known]
    edges = np.unique(np.quantile(shares, np.linspace(0, 1, bins + 1)))
    bin_of = np.clip(np.searchsorted(edges, shares, side="right") - 1, 0, max(len(edges) - 2, 0))
    rows = []
    for index in range(max(len(edges) - 1, 1)):
        own = bin_of == index
        low, high = float(edges[index]), float(edges[min(index + 1, len(edges) - 1)])
        rows.append({"low": low, "high": high, "images": int(own.sum()), **_scores(clean, robust, own)})
    return rows


def by_part(
    clean: Mapping[str, np.ndarray], attacked: Mapping[str, np.ndarray] | None, names: Sequence[str]
) -> list[dict]:
    """Percent of each label's true pixels that are found, clean and attacked.

    Args:
        clean: pixels by image and label, arrays (M,) `label`, `hits` and `truth`.
        attacked: same as `clean`, on the attacked images; None of no attack.
        names: of the K labels.
    """

    def sums(counts: Mapping[str, np.ndarray], what: str) -> np.ndarray:
        return np.bincount(counts["label"], weights=counts[what], minlength=len(names))

    truth, before = sums(clean, "truth"), sums(clean, "hits")
    after = None if attacked is None else sums(attacked, "hits")
    return [
        {
            "name": name,
            "pixels": int(truth[i]),
            "clean": percent(before[i], truth[i]),
            "attacked": None if after is None else percent(after[i], truth[i]),
        }
        for i, name in enumerate(names)
        if truth[i] > 0
    ]


def clean_to_attacked(clean: np.ndarray, attacked: np.ndarray, num_classes: int) -> np.ndarray:
    """int64 (C, C): images by the class predicted without (rows) and under attack (columns)."""
    pairs = np.bincount(clean * num_classes + attacked, minlength=num_classes * num_classes)
    return pairs.reshape(num_classes, num_classes)
