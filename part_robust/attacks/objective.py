"""What an attack maximises, per image, and when it has won.

Letters: N images, C classes, P parts (label P is background), H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class Score:
    """Attributes:
    loss: (N,), what the attack maximises.
    harm: (N,), how bad the outputs are for the model: what the best of several images is chosen by.
    fooled: bool (N,), the attack has won.
    """

    loss: Tensor
    harm: Tensor | None = None
    fooled: Tensor | None = None


@dataclass(frozen=True)
class Objective:
    """A loss to maximise.

    Attributes:
        name: its name in the config.
        reads: what `outputs` are: "class_logits" (N, C) with labels (N,) as targets, or "part_logits" (N, P + 1, H, W)
            with label maps (N, H, W), where labels above P count nowhere; "part_losses" is a pair of class logits
            (N, C) or None, and the loss to maximise (N,), with labels (N,).
        loss: (outputs, targets) -> (N,), larger is worse for the model.
        fooled: (outputs, targets) -> bool (N,), True where the model is wrong.
        options: of the model's view that gives the outputs.
        harm: (outputs, targets) -> (N,), what the best of several images is chosen by; None: the loss.
        targeted: the loss takes a third argument, int64 (N,), the classes to aim at.
        scheduled: the loss takes a third argument, the share of the attack that is over, 0..1.
    """

    name: str
    reads: str
    loss: Callable[..., Tensor]
    fooled: Callable[[Any, Any], Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)
    harm: Callable[[Any, Any], Tensor] | None = None
    targeted: bool = False
    scheduled: bool = False

    def value(self, outputs: Any, targets: Any, progress: float = 1.0) -> Tensor:
        """The loss (N,). Targeted objectives take (labels, classes to aim at) as `targets`."""
        if self.targeted:
            return self.loss(outputs, *targets)
        return self.loss(outputs, targets, progress) if self.scheduled else self.loss(outputs, targets)

    def score(self, outputs: Any, targets: Any, loss: Tensor, judged: bool = True) -> Score:
        """The whole score of outputs whose `loss` is known; without `judged`, the loss alone."""
        if not judged:
            return Score(loss)
        labels = targets[0] if self.targeted else targets
        harm = loss if self.harm is None else self.harm(outputs, labels)
        return Score(loss, harm, self.fooled(outputs, labels))

    def score_originals(self, outputs: Any, targets: Any) -> Score:
        """Of images that are not attacked yet, so that there is no class to aim at."""
        if not self.targeted:
            return self.score(outputs, targets, self.value(outputs, targets))
        assert self.harm is not None
        harm = self.harm(outputs, targets)
        return Score(harm, harm, self.fooled(outputs, targets))


def class_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of class logits (N, C) and labels (N,), in float32."""
    return F.cross_entropy(logits.float(), labels, reduction="none")


def class_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Best wrong logit minus the right one (Carlini and Wagner, 2017); unlike cross-entropy it never saturates."""
    logits = logits.float()
    right = logits.gather(1, labels[:, None])[:, 0]
    wrong = logits.scatter(1, labels[:, None], float("-inf")).amax(dim=1)
    return wrong - right


def misclassified(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.argmax(dim=1) != labels


def pixel_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean pixel cross-entropy of each image over its labelled pixels; 0 where there are none."""
    counts = labels < logits.shape[1]
    loss = F.cross_entropy(logits.float(), labels.where(counts, -100), ignore_index=-100, reduction="none")
    return loss.flatten(1).sum(dim=1) / counts.flatten(1).sum(dim=1).clamp(min=1)


def most_pixels_wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """True where less than half of the labelled pixels are right."""
    counts = (labels < logits.shape[1]).flatten(1)
    right = ((logits.argmax(dim=1) == labels).flatten(1) & counts).sum(dim=1)
    return 2 * right < counts.sum(dim=1)


def given_loss(outputs: tuple[Tensor | None, Tensor], labels: Tensor) -> Tensor:
    """The model's own loss."""
    return outputs[1]


def class_is_wrong(outputs: tuple[Tensor | None, Tensor], labels: Tensor) -> Tensor:
    """False where there are no class logits: a detection is never plainly wrong."""
    logits = outputs[0]
    return torch.zeros_like(labels, dtype=torch.bool) if logits is None else misclassified(logits, labels)


OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective("cross_entropy", "class_logits", class_cross_entropy, misclassified),
        Objective("margin", "class_logits", class_margin, misclassified),
        Objective("pixel_cross_entropy", "part_logits", pixel_cross_entropy, most_pixels_wrong),
        *(
            Objective(
                name + suffix,
                "part_losses",
                given_loss,
                class_is_wrong,
                {"joint": name == "joint", "fixed": bool(suffix)},
            )
            for name in ("part_loss", "joint")
            for suffix in ("", "_fixed")
        ),
    )
}


def get_objective(name: str) -> Objective:
    """Raises:
    ValueError: no such objective; lists those there are.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"unknown attack objective {name!r}: choose one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def better(harm: Tensor, fooled: Tensor, best_harm: Tensor, best_fooled: Tensor) -> Tensor:
    """bool (N,): the new result is worse for the model. Being fooled beats any harm."""
    return (fooled & ~best_fooled) | ((fooled == best_fooled) & (harm > best_harm)) | torch.isnan(best_harm)
