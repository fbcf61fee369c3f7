"""How sure a percentage is, and whether two of them differ.

Letters: N images, each right or wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval (low, high) of a share, 0..1 (Wilson, 1927); (0, 1) for no images.

    Unlike the textbook one it holds near 0 and 1, where robust accuracies often are.

    Raises:
        ValueError: more right than there are images.
    """
    if not 0 <= correct <= total:
        raise ValueError(f"{correct} of {total} cannot be right")
    if total == 0:
        return 0.0, 1.0
    z = _quantile(confidence)
    share = correct / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2)
    # The ends are exact where nothing, or everything, is right; rounding must not say otherwise.
    low = 0.0 if correct == 0 else max(centre - half, 0.0)
    high = 1.0 if correct == total else min(centre + half, 1.0)
    return low, high


def ratio_interval(correct: np.ndarray, total: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval (low, high), 0..1, of sum(correct) / sum(total), for pixels.

    The pixels of one image are not independent draws, images are (linearised variance of a ratio; Cochran, Sampling
    Techniques, 1977, section 6.3).

    Args:
        correct: (N,) right pixels of each image.
        total: (N,) labelled pixels; images without any do not count.
        confidence: of the interval, 0..1.
    """
    correct, total = correct[total > 0].astype(float), total[total > 0].astype(float)
    if len(total) < 2:
        return 0.0, 1.0
    share = correct.sum() / total.sum()
    residuals = correct - share * total
    variance = len(total) / (len(total) - 1) * float((residuals**2).sum()) / float(total.sum()) ** 2
    half = _quantile(confidence) * math.sqrt(variance)
    return max(share - half, 0.0), min(share + half, 1.0)


def binomial_lower_bound(successes: np.ndarray, trials: int, alpha: float) -> np.ndarray:
    """Return float (N,), the one-sided lower bounds of shares, 0..1, at confidence 1 - alpha (Clopper, Pearson, 1934).

    Each lies above the true share with a probability of at most alpha, whatever that share is.

    Args:
        successes: int (N,), each of `trials` independent draws.
        trials: number of draws, at least 1.
        alpha: 0..1, both excluded.
    """
    # The quantile of Beta(0, b) is not defined; nothing is known of a share without a success.
    bound = stats.beta.ppf(alpha, np.maximum(successes, 1), trials - np.maximum(successes, 1) + 1)
    return np.where(successes > 0, bound, 0.0)


@dataclass(frozen=True)
class Paired:
    """Two results on the same images.

    Attributes:
        images: N.
        both: images right in both.
        only_first: right in the first alone.
        only_second: right in the second alone.
        difference: share right in the second minus that in the first, -1..1.
        interval: (low, high) of the difference.
        p_value: of the exact McNemar test; the smaller, the less likely is such a difference by chance.
    """

    images: int
    both: int
    only_first: int
    only_second: int
    difference: float
    interval: tuple[float, float]
    p_value: float


def compare_paired(first: np.ndarray, second: np.ndarray, confidence: float = 0.95) -> Paired:
    """Compares two results image by image, which needs far fewer images than two intervals that must not overlap.

    Args:
        first: bool (N,), right.
        second: bool (N,), right, of the same images in the same order.
        confidence: of the interval (Bonett and Price, 2012).

    Raises:
        ValueError: no images, or not equally many.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"cannot pair {len(first)} with {len(second)} images")
    images = len(first)
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    lost, won = (only_first + 1) / (images + 2), (only_second + 1) / (images + 2)
    half = _quantile(confidence) * math.sqrt(max(lost + won - (won - lost) ** 2, 0.0) / (images + 2))
    return Paired(
        images=images,
        both=int((first & second).sum()),
        only_first=only_first,
        only_second=only_second,
        difference=(only_second - only_first) / images,
        interval=(max(won - lost - half, -1.0), min(won - lost + half, 1.0)),
        p_value=mcnemar(only_first, only_second),
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of the exact McNemar test; 1 where the results differ on no image.

    Under its hypothesis, each image on which two results differ is as likely to favour one as the other.
    """
    differing = only_first + only_second
    return float(stats.binomtest(only_first, differing).pvalue) if differing else 1.0


@dataclass(frozen=True)
class Spread:
    """A number over runs that differ in their seed alone, or the difference of two such runs.

    Attributes:
        mean: of the runs.
        deviation: sample standard deviation, with count - 1 below; None for a single run.
        count: runs.
    """

    mean: float
    deviation: float | None
    count: int

    def interval(self, confidence: float = 0.95) -> tuple[float, float] | None:
        """Return the interval (low, high) of the mean by Student's t distribution; None for a single run.

        Raises:
            ValueError: `confidence` is not between 0 and 1.
        """
        if self.deviation is None:
            return None
        _check_confidence(confidence)
        half = float(stats.t.ppf(0.5 + confidence / 2, self.count - 1)) * self.deviation / math.sqrt(self.count)
        return self.mean - half, self.mean + half


def spread(values: Sequence[float]) -> Spread:
    """Return mean and sample standard deviation of at least one number.

    Raises:
        ValueError: no numbers.
    """
    if not len(values):
        raise ValueError("no numbers have no mean")
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(float(np.mean(values)), deviation, len(values))


def _quantile(confidence: float) -> float:
    """Standard normal quantile of a two-sided interval."""
    _check_confidence(confidence)
    return float(stats.norm.ppf(0.5 + confidence / 2))


def _check_confidence(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, is {confidence}")
