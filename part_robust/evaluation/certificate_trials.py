"""Attempts to refute certified radii: images inside them are attacked, and the votes on the results counted anew.

A radius is only as good as the draws behind it. They must be independent, and the model must treat noise that it has
never seen as it treated the noise of the vote. A model that looks at its batch, keeps a state or knows the noise breaks
that, and its radii may be of any size.

Letters: N images of (3, H, W), RGB, 0..255; C classes; M draws of noise.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from part_robust.attacks import ThreatModel, get_objective
from part_robust.attacks.pgd import PGD
from part_robust.attacks.problem import AttackError
from part_robust.evaluation.smoothing import Smoothing, count_predictions, noisy_batches
from part_robust.evaluation.statistics import binomial_lower_bound

logger = logging.getLogger(__name__)

ClassLogits = Callable[[Tensor, Tensor | None], Tensor]

# Draws of a trial at most, batches they are spread over at least, and the share of the radius that the attack may use.
DRAWS, BATCHES, SHARE = 1000, 16, 0.9
# The attack: Salman et al. (2019) average the probabilities of noisy images and follow their gradient.
STEPS, ATTACK_DRAWS = 10, 16
# Probability with which a bound on the vote may be wrong; part of every p-value (Berger and Boos, 1994).
SLACK = 1e-6


class SmoothedLogits:
    """Images -> logarithms of the mean probabilities under noise, other noise in every call; differentiable."""

    def __init__(
        self, class_logits: ClassLogits, keys: Tensor, padding: Tensor | None, sigma: float, batch_size: int, seed: int
    ) -> None:
        """Set the model, and the noise as in `noisy_batches`."""
        self.class_logits = class_logits
        self.keys = keys
        self.padding = padding
        self.sigma = sigma
        self.batch_size = batch_size
        self.seed = seed
        self.calls = 0

    def __call__(self, images: Tensor) -> Tensor:
        draws = range(self.calls * ATTACK_DRAWS, (self.calls + 1) * ATTACK_DRAWS)
        self.calls += 1
        batches = noisy_batches(images, self.keys, draws, self.sigma, self.batch_size, self.padding, self.seed)
        logits = torch.cat(
            [self.class_logits(noisy, None if self.padding is None else self.padding[rows]) for rows, noisy in batches]
        )
        by_draw = logits.log_softmax(dim=1).view(ATTACK_DRAWS, len(images), -1)
        return by_draw.logsumexp(dim=0) - math.log(ATTACK_DRAWS)


def attack_smoothed(
    class_logits: ClassLogits,
    images: Tensor,
    labels: Tensor,
    radii: list[float],
    keys: Tensor,
    padding: Tensor | None,
    smoothing: Smoothing,
    batch_size: int,
    seed: int,
) -> Tensor:
    """Return (N, 3, H, W), images changed by at most their radius to lose the votes for `labels`.

    Images of a model without a gradient stay as they are.

    Args:
        class_logits: images (B, 3, H, W) and padding -> (B, C), inside `attack_mode`.
        images: float (N, 3, H, W), 0..255.
        labels: int64 (N,), classes to leave.
        radii: N of them, L2, 0..255 units; every image has a ball of its own.
        keys: int64 (N,), image ids.
        padding: bool (N, H, W) or None, pixels that do not change.
        smoothing: settings.
        batch_size: images of a forward pass, at most.
        seed: of the noise.
    """
    attacked = []
    for row, radius in enumerate(radii):
        one = slice(row, row + 1)
        own_padding = None if padding is None else padding[one]
        forward = SmoothedLogits(class_logits, keys[one], own_padding, smoothing.sigma, batch_size, seed)
        attack = PGD(
            threat_model=ThreatModel("l2", radius),
            objective=get_objective("cross_entropy"),
            steps=STEPS,
            step_size=2.5 * radius / STEPS,
            random_start=False,
        )
        try:
            attacked.append(attack(forward, images[one], labels[one], keys=keys[one], padding=own_padding).images)
        except AttackError as error:
            # Such a model is found by other checks; the vote on the image itself can still be counted anew.
            logger.warning("The smoothed model cannot be attacked: %s", error)
            attacked.append(images[one])
    return torch.cat(attacked)


def run_trials(
    class_logits: ClassLogits,
    images: Tensor,
    labels: Tensor,
    counts: np.ndarray,
    radii: np.ndarray,
    keys: Tensor,
    padding: Tensor | None,
    smoothing: Smoothing,
    batch_size: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Count the votes on images with a radius, and on attacked images inside it, in draws that are new to the model.

    Draws of different images share a batch, so what a model reads from the rest of the batch differs from the vote.

    Args:
        class_logits: see `attack_smoothed`.
        images: see `attack_smoothed`.
        labels: int64 (N,), classes of the radii.
        counts: int (N,), how many of `smoothing.samples` draws predicted them.
        radii: float (N,), 0..255 units.
        keys: see `attack_smoothed`.
        padding: see `attack_smoothed`.
        smoothing: settings.
        batch_size: see `attack_smoothed`.
        seed: of the noise; `votes_seed` gives one that was not known before.

    Returns:
        Two entries for each image: `distance` (0 or that of the attacked image, 0..255 units), `draws`, `votes` for the
        class among them, `samples` and `count` of the vote that gave the radius.
    """
    attacked = attack_smoothed(
        class_logits, images, labels, (SHARE * radii).tolist(), keys, padding, smoothing, batch_size, seed
    )
    distances = ThreatModel("l2").distance(attacked, images).tolist()
    draws = min(smoothing.samples, DRAWS)
    # Several batches even of few draws, as what a model draws for each batch is one draw only.
    batch_size = min(batch_size, math.ceil(2 * len(images) * draws / BATCHES))
    votes = count_predictions(
        class_logits,
        torch.cat([images, attacked]),
        keys.repeat(2),
        # Apart from the noise that the attack has seen.
        range(STEPS * ATTACK_DRAWS, STEPS * ATTACK_DRAWS + draws),
        smoothing.sigma,
        batch_size,
        None if padding is None else padding.repeat(2, 1, 1),
        seed,
    )
    found = votes.gather(1, labels.repeat(2)[:, None])[:, 0].tolist()
    entries = []
    for row, (image_id, count) in enumerate(zip(keys.tolist(), counts.tolist(), strict=True)):
        vote = {"image_id": image_id, "samples": smoothing.samples, "count": count, "draws": draws}
        for place, distance in ((row, 0.0), (row + len(images), distances[row])):
            entries.append({**vote, "distance": distance, "votes": found[place]})
    return entries


def trial_p_value(trial: dict[str, Any], sigma: float) -> float:
    """Return how likely a sound vote gives so few votes in a trial; at most 1.

    A class of probability p at an image has at least Phi(Phi^-1(p) - d / sigma) at distance d (Cohen et al., 2019,
    proof of Theorem 1). The vote bounds p from below.

    Args:
        trial: entry of `run_trials`.
        sigma: of the noise, 0..255 units.
    """
    vote = binomial_lower_bound(np.array([trial["count"]]), trial["samples"], SLACK)[0]
    least = stats.norm.cdf(stats.norm.ppf(vote) - trial["distance"] / sigma)
    return float(min(stats.binom.cdf(trial["votes"], trial["draws"], least) + SLACK, 1.0))
