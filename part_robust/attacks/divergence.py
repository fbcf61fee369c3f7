"""TRADES's attack (Zhang et al., 2019): away from the model's own clean prediction instead of the label."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from part_robust.attacks.attackable import AttackInputs
from part_robust.attacks.model_view import attack_batch
from part_robust.attacks.objective import ClassObjective


def kl_from(logits: Tensor, clean: Tensor) -> Tensor:
    """(N,) KL(softmax(clean) || softmax(logits)), both (N, C)."""
    log_p, log_q = clean.float().log_softmax(dim=1), logits.float().log_softmax(dim=1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)


def prediction_changed(logits: Tensor, clean: Tensor) -> Tensor:
    """Return bool (N,), whether the most probable class differs, both (N, C)."""
    return logits.argmax(dim=1) != clean.argmax(dim=1)


class DivergenceObjective(ClassObjective):
    """A divergence of class logits from those of the clean images, both (N, C)."""

    # The divergence of an image from itself is zero, which is its minimum.
    zero_at_start = True

    @property
    def of_class_labels(self) -> bool:
        return False

    def targets(self, inputs: AttackInputs) -> Tensor:
        with torch.no_grad():
            return inputs.class_forward()(inputs.images)


KL_DIVERGENCE = DivergenceObjective("kl_divergence", kl_from, prediction_changed)

# Old name, of when attacks with this objective needed another function.
attack_training_batch = attack_batch
