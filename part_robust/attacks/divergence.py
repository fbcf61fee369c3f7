"""TRADES's attack (Zhang et al., 2019): away from the model's own clean prediction instead of the label."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from part_robust.attacks.base import Attack, AttackResult
from part_robust.attacks.model_view import attack_batch
from part_robust.attacks.objective import Objective


def kl_from(logits: Tensor, clean: Tensor) -> Tensor:
    """(N,) KL(softmax(clean) || softmax(logits)), both (N, C)."""
    log_p, log_q = clean.float().log_softmax(dim=1), logits.float().log_softmax(dim=1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)


def prediction_changed(logits: Tensor, clean: Tensor) -> Tensor:
    """Return bool (N,), whether the most probable class differs, both (N, C)."""
    return logits.argmax(dim=1) != clean.argmax(dim=1)


KL_DIVERGENCE = Objective("kl_divergence", "class_logits", kl_from, prediction_changed)


def attack_training_batch(
    attack: Attack, inner: Any, batched_inputs: list[dict], keys: Tensor
) -> tuple[AttackResult, Tensor | None]:
    """`attack_batch`, and for an attack whose objective is `KL_DIVERGENCE` with the clean logits as its targets.

    The divergence of an image from itself is 0 and so is its gradient: such an attack must not start there.
    """
    if attack.objective is not KL_DIVERGENCE:
        return attack_batch(attack, inner, batched_inputs, keys)
    images, padding = inner.preprocess(batched_inputs)
    forward = functools.partial(getattr(inner, "attack_class_logits", lambda: inner.class_logits)(), padding=padding)
    with torch.no_grad():
        clean = forward(images)
    return attack(forward, images, clean, keys=keys, padding=padding), padding
