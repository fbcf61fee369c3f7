"""Target classes of a targeted attack, the most promising first.

Letters: N images, C classes, T target classes, K candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from detectron2.config import CfgNode
from torch import Tensor

from part_robust.attacks.problem import AttackError, Problem

RANKINGS = ("logits", "malt")


@dataclass(frozen=True)
class TargetChoice:
    """Rule by which the target classes of a targeted attack are chosen.

    Attributes:
        number: at most this many classes, and never more than there are wrong classes.
        ranking: "logits": the largest wrong logits (Croce and Hein, 2020). "malt": the smallest logit gap per length of
            the gradient difference, the distance to the class boundary if the model were linear (Melamed, Yehudai and
            Shamir, MALT, 2024).
        candidates: wrong classes of largest logit among which "malt" chooses; costs one backward pass each.
    """

    number: int = 9
    ranking: str = "logits"
    candidates: int = 100

    def __post_init__(self) -> None:
        if self.number < 1:
            raise ValueError(f"NUM_TARGETS must be at least 1, got {self.number}")
        if self.ranking not in RANKINGS:
            raise ValueError(f"TARGET_RANKING must be one of {RANKINGS}, got {self.ranking!r}")
        if self.candidates < 1:
            raise ValueError(f"TARGET_CANDIDATES must be at least 1, got {self.candidates}")

    @classmethod
    def default_config(cls) -> CfgNode:
        """Return the keys of targeted attacks, with their defaults."""
        node = CfgNode()
        # Target classes of targeted objectives and of FAB, one run each; never more than there are wrong classes.
        node.NUM_TARGETS = cls.number
        # Their order: "logits" (largest first), or "malt" (Melamed et al., 2024): smallest logit gap per length of the
        # gradient difference, among the TARGET_CANDIDATES largest wrong logits, for one backward pass each.
        node.TARGET_RANKING = cls.ranking
        node.TARGET_CANDIDATES = cls.candidates
        return node

    @classmethod
    def from_config(cls, node: Mapping) -> TargetChoice:
        return cls(number=node["NUM_TARGETS"], ranking=node["TARGET_RANKING"], candidates=node["TARGET_CANDIDATES"])

    def describe(self) -> dict:
        """Return the settings for the record, by names that start with `targets_`."""
        values = asdict(self)
        if self.ranking == "logits":
            del values["candidates"]
        return {f"targets_{name}": value for name, value in values.items()}

    def choose(self, problem: Problem, logits: Tensor) -> Tensor:
        """Return the target classes, int64 (N, T).

        Args:
            problem: the batch, with labels (N,) as targets.
            logits: (N, C), of its images.

        Raises:
            AttackError: the model has a single class.
        """
        classes = logits.shape[1]
        if classes < 2:
            raise AttackError("a targeted attack needs at least two classes, the model has one")
        number = min(self.number, classes - 1)
        wrong = logits.float().scatter(1, problem.targets[:, None], float("-inf"))
        if self.ranking == "logits":
            return wrong.topk(number, dim=1).indices
        candidates = wrong.topk(min(max(self.candidates, number), classes - 1), dim=1).indices
        nearest = _linear_distances(problem, candidates).topk(number, dim=1, largest=False).indices
        return candidates.gather(1, nearest)


def _linear_distances(problem: Problem, candidates: Tensor) -> Tensor:
    """Return (N, K), distances to the class boundaries of the candidates, for the model linearised at the image."""
    images = problem.images.detach().requires_grad_(True)
    logits = problem.forward(images).float()
    if not logits.requires_grad:
        raise AttackError("the model's outputs do not depend on the image: MALT ranks classes by their gradients")
    gaps = logits.gather(1, problem.targets[:, None]) - logits.gather(1, candidates)
    lengths = []
    for rank in range(candidates.shape[1]):
        problem.counts.backwards += len(images)
        more = rank + 1 < candidates.shape[1]
        (grad,) = torch.autograd.grad(gaps[:, rank].sum(), images, retain_graph=more)
        if problem.perturbable is not None:
            grad = grad * problem.perturbable
        lengths.append(problem.threat_model.dual_norm(grad))
    return gaps.detach() / torch.stack(lengths, dim=1).clamp(min=1e-12)
