"""Objectives of adversarial training: which image each loss sees, and how clean and attacked predictions are compared.

Letters: N images, C classes. "attacked" and "clean" are class logits (N, C) of the same images with and without attack.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

METHODS = ("adversarial", "mix", "trades", "mart")
PART_LOSS_ON = ("attacked", "clean", "both")
MATCH_ON = ("attacked", "clean")


@dataclass(frozen=True)
class TrainingObjective:
    """Objective of a training on batches that an attack has changed.

    Attributes:
        method: "adversarial" (Madry et al., 2018): cross-entropy of the attacked images.
            "mix" (Goodfellow et al., 2015): adversarial_weight of the attacked images' cross-entropy and the rest of
            the clean ones'.
            "trades" (Zhang et al., 2019): clean cross-entropy + trades_beta KL(clean || attacked).
            "mart" (Wang et al., 2020): boosted cross-entropy of the attacked images + mart_beta KL(clean || attacked)
            weighed by how unsure the clean prediction is.
        adversarial_weight: 0..1, of "mix".
        trades_beta: 0 or more.
        mart_beta: 0 or more.
        part_loss_on: images whose parts are learned: "attacked", "clean", or "both": half each, under "mix" in its
            proportion.
        denoise_attacked: attacked images get denoising queries, too.
        match_on: image on which queries are assigned to the true parts that they learn from attacked images.
    """

    method: str = "adversarial"
    adversarial_weight: float = 0.5
    trades_beta: float = 6.0
    mart_beta: float = 5.0
    part_loss_on: str = "attacked"
    denoise_attacked: bool = True
    match_on: str = "attacked"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"ATTACK.TRAIN.METHOD must be one of {', '.join(METHODS)}, is {self.method!r}")
        if self.part_loss_on not in PART_LOSS_ON:
            raise ValueError(
                f"ATTACK.TRAIN.PART_LOSS_ON must be one of {', '.join(PART_LOSS_ON)}, is {self.part_loss_on!r}"
            )
        if self.match_on not in MATCH_ON:
            raise ValueError(f"ATTACK.TRAIN.MATCH_ON must be one of {', '.join(MATCH_ON)}, is {self.match_on!r}")
        if not 0.0 <= self.adversarial_weight <= 1.0:
            raise ValueError(f"ATTACK.TRAIN.MIX_WEIGHT must lie in 0..1, is {self.adversarial_weight}")
        if self.trades_beta < 0 or self.mart_beta < 0:
            raise ValueError("ATTACK.TRAIN.TRADES_BETA and MART_BETA must not be negative")

    @property
    def class_needs_clean(self) -> bool:
        """Whether the class loss compares attacked with clean images."""
        return self.method != "adversarial"

    def needs_clean(self, has_parts: bool, has_class: bool) -> bool:
        """Return whether a model with these branches has to see the clean images too."""
        return (has_class and self.class_needs_clean) or (
            has_parts and (self.part_loss_on != "attacked" or self.match_on == "clean")
        )

    def part_weights(self) -> tuple[float, float]:
        """Return the weights of the part losses on clean and on attacked images; they sum to 1."""
        if self.part_loss_on == "both":
            attacked = self.adversarial_weight if self.method == "mix" else 0.5
        else:
            attacked = float(self.part_loss_on == "attacked")
        return 1.0 - attacked, attacked

    def class_losses(
        self, attacked: Tensor, clean: Tensor | None, labels: Tensor, label_smoothing: float = 0.0
    ) -> dict[str, Tensor]:
        """Terms of the class loss, weighted, means over the batch.

        Args:
            attacked: logits.
            clean: logits; None where `class_needs_clean` is False.
            labels: int64 (N,), or shares of the classes, float (N, C), which MART does not take.
            label_smoothing: of cross-entropies, 0..1; MART's margin term has none.
        """
        if not self.class_needs_clean:
            return {"loss_cls": F.cross_entropy(attacked, labels, label_smoothing=label_smoothing)}
        assert clean is not None
        if self.method == "mix":
            weight = self.adversarial_weight
            return {
                "loss_cls": weight * F.cross_entropy(attacked, labels, label_smoothing=label_smoothing),
                "loss_cls_clean": (1.0 - weight) * F.cross_entropy(clean, labels, label_smoothing=label_smoothing),
            }
        if self.method == "trades":
            return {
                "loss_cls": F.cross_entropy(clean, labels, label_smoothing=label_smoothing),
                "loss_cls_robust": self.trades_beta * kl_divergence(clean, attacked).mean(),
            }
        return {
            "loss_cls": boosted_cross_entropy(attacked, labels, label_smoothing).mean(),
            "loss_cls_robust": self.mart_beta * misclassification_weighted_kl(clean, attacked, labels).mean(),
        }


def kl_divergence(clean: Tensor, attacked: Tensor) -> Tensor:
    """(N,) KL(softmax(clean) || softmax(attacked)); the gradient goes into both, as in TRADES."""
    return F.kl_div(attacked.log_softmax(dim=1), clean.log_softmax(dim=1), reduction="none", log_target=True).sum(dim=1)


def boosted_cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """(N,) cross-entropy and -log(1 - p) of the most probable wrong class (Wang et al., 2020, eq. 6)."""
    wrong = logits.detach().scatter(1, labels[:, None], float("-inf")).argmax(dim=1, keepdim=True)
    # log(1 - p_k) as a difference of sums of the other classes and of all: 1 - p itself would round to 0.
    others = logits.scatter(1, wrong, float("-inf")).logsumexp(dim=1)
    margin = logits.logsumexp(dim=1) - others
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none") + margin


def misclassification_weighted_kl(clean: Tensor, attacked: Tensor, labels: Tensor) -> Tensor:
    """(N,) KL(clean || attacked), times 1 - the clean probability of the right class (Wang et al., 2020, eq. 8)."""
    unsure = 1.0 - clean.softmax(dim=1).gather(1, labels[:, None])[:, 0]
    return kl_divergence(clean, attacked) * unsure
