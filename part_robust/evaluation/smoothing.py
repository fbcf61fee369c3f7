"""Randomised smoothing: the L2 radius in which no change of an image changes the class of a smoothed model.

The smoothed model gives an image the class that the model predicts most often when Gaussian noise is added to the image
(Cohen, Rosenfeld and Kolter, 2019, "Certified Adversarial Robustness via Randomized Smoothing"). Its radius is proven,
with confidence 1 - alpha for each image, but it is another model than the one that attacks are run on.

Letters: N images of (3, H, W), RGB, 0..255; C classes; B images of a forward pass; M draws of noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from part_robust.attacks.noise import make_keys, normal
from part_robust.evaluation.statistics import binomial_lower_bound

PIXEL_RANGE = 255.0
# Of the noise, apart from the seeds of attacks; an arbitrary constant.
SEED = 190202918
ABSTAIN = -1
# Points of the curve, in standard deviations of the noise.
RADIUS_STEP = 0.25


@dataclass(frozen=True)
class Smoothing:
    """Settings of randomised smoothing, TEST.SMOOTHING.

    Attributes:
        sigma: standard deviation of the noise, 0..255 units.
        samples: draws that estimate how often the class is predicted, n in the paper.
        selection: draws before these that choose the class, n0.
        alpha: probability that the radius of an image is wrong, at most.
        images: at most this many of each data set; 0: all.
    """

    sigma: float
    samples: int
    selection: int
    alpha: float
    images: int = 0

    @classmethod
    def from_config(cls, node: Mapping[str, Any]) -> Smoothing | None:
        """Read the settings from the config's TEST.SMOOTHING; None where SIGMA is 0."""
        return cls(**{name: node[name.upper()] for name in cls.__dataclass_fields__}) if node["SIGMA"] else None

    def describe(self) -> dict[str, Any]:
        """Return the settings for the record, and `sigma_01`, sigma where pixels are 0..1."""
        return {**asdict(self), "sigma_01": self.sigma / PIXEL_RANGE}

    @property
    def largest_radius(self) -> float:
        """The radius of an image whose class is predicted in every draw: more draws are needed for a larger one."""
        return float(self.sigma * stats.norm.ppf(self.alpha ** (1.0 / self.samples)))


@dataclass(frozen=True)
class Certificates:
    """Predictions and radii of the smoothed model.

    Attributes:
        prediction: int64 (N,), ABSTAIN where the vote decides nothing (PREDICT in the paper).
        certified: int64 (N,), class of the radius (CERTIFY), ABSTAIN where there is none.
        counts: int64 (N,), how many of the draws predicted the class that was chosen, certified or not.
        radius: float (N,), 0..255 units, 0 where there is none.
    """

    prediction: np.ndarray
    certified: np.ndarray
    counts: np.ndarray
    radius: np.ndarray

    def holds(self, label: np.ndarray, radius: float) -> np.ndarray:
        """Return bool (N,), whether every change of at most `radius` (0..255 units) leaves the class right."""
        return (self.certified == label) & (self.radius > radius)


def certify(selection: np.ndarray, votes: np.ndarray, smoothing: Smoothing) -> Certificates:
    """CERTIFY and PREDICT of the paper, section 3.2.

    Args:
        selection: int (N, C), predictions of the draws that choose the class.
        votes: int (N, C), of others, `smoothing.samples` for each image.
        smoothing: settings.
    """
    chosen = selection.argmax(axis=1)
    counts = np.take_along_axis(votes, chosen[:, None], axis=1)[:, 0]
    lower = binomial_lower_bound(counts, smoothing.samples, smoothing.alpha)
    has_radius = lower > 0.5
    radius = np.where(has_radius, smoothing.sigma * stats.norm.ppf(np.maximum(lower, 0.5)), 0.0)
    ordered = np.sort(votes, axis=1)
    first, second = ordered[:, -1], ordered[:, -2] if votes.shape[1] > 1 else np.zeros_like(ordered[:, -1])
    # The two-sided binomial test that the two most frequent classes are equally likely.
    p_value = np.minimum(2.0 * stats.binom.sf(first - 1, first + second, 0.5), 1.0)
    return Certificates(
        prediction=np.where(p_value <= smoothing.alpha, votes.argmax(axis=1), ABSTAIN),
        certified=np.where(has_radius, chosen, ABSTAIN),
        counts=counts,
        radius=radius,
    )


def noisy_batches(
    images: Tensor, keys: Tensor, draws: range, sigma: float, batch_size: int, padding: Tensor | None, seed: int = SEED
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield row numbers (B,) and noisy images (B, 3, H, W): every image with every draw, one draw after the other.

    The noise of a draw depends on the image's key, the number of the draw and the seed alone. Pixel values may leave
    0..255, as in the paper; padding gets no noise.

    Args:
        images: float (N, 3, H, W), 0..255.
        keys: int64 (N,), image ids.
        draws: numbers of the draws.
        sigma: standard deviation, 0..255 units.
        batch_size: largest B.
        padding: bool (N, H, W) or None.
        seed: of the noise.
    """
    for start in range(0, len(draws) * len(images), batch_size):
        index = torch.arange(start, min(start + batch_size, len(draws) * len(images)), device=images.device)
        rows = index % len(images)
        change = sigma * normal(make_keys(seed, keys[rows], draws.start + index // len(images)), images.shape[1:])
        if padding is not None:
            change = change * ~padding[rows][:, None]
        yield rows, images[rows] + change


@torch.no_grad()
def count_predictions(
    class_logits: Callable[[Tensor, Tensor | None], Tensor],
    images: Tensor,
    keys: Tensor,
    draws: range,
    sigma: float,
    batch_size: int,
    padding: Tensor | None = None,
    seed: int = SEED,
    note: Callable[[str], None] = lambda what: None,
) -> Tensor:
    """Return int64 (N, C), how often each class is predicted on an image with noise; on the images' device.

    Args:
        class_logits: images (B, 3, H, W) and padding -> (B, C), inside `attack_mode`.
        images: see `noisy_batches`.
        keys: see `noisy_batches`.
        draws: see `noisy_batches`.
        sigma: see `noisy_batches`.
        batch_size: see `noisy_batches`.
        padding: see `noisy_batches`.
        seed: see `noisy_batches`.
        note: callback, receives a progress message before each batch.
    """
    votes: Tensor | None = None
    done = 0
    for rows, noisy in noisy_batches(images, keys, draws, sigma, batch_size, padding, seed):
        note(f"draw {draws.start + done // len(images)}")
        done += len(noisy)
        logits = class_logits(noisy, None if padding is None else padding[rows])
        if votes is None:
            votes = torch.zeros(len(images) * logits.shape[1], dtype=torch.int64, device=images.device)
        index = rows * logits.shape[1] + logits.argmax(dim=1)
        votes.index_add_(0, index, torch.ones_like(index))
    assert votes is not None, "there are images and draws"
    return votes.view(len(images), -1)


def votes_seed(votes: np.ndarray) -> int:
    """Return a seed that no model can know before the votes int64 (N, C) are counted, the same for the same votes."""
    return int.from_bytes(hashlib.sha256(np.ascontiguousarray(votes).tobytes()).digest()[:7], "big")


def curve_radii(smoothing: Smoothing, attacked: list[float]) -> list[float]:
    """Return the radii of the curve, 0..255 units, ascending.

    They are steps of a quarter sigma, the largest radius that the draws can certify, and those of attacks.
    """
    steps = np.arange(0.0, smoothing.largest_radius, RADIUS_STEP * smoothing.sigma)
    return sorted({*steps.tolist(), smoothing.largest_radius, *(float(eps) for eps in attacked)})
