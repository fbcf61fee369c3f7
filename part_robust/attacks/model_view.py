"""A model as an attack sees it, and as it was before once the attack is over."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from part_robust.attacks.base import Attack, AttackResult


@contextmanager
def attack_view(model: nn.Module, full_gradient: bool = True) -> Iterator[Any]:
    """The module inside DistributedDataParallel, in eval mode, parameters frozen, gradients on, autocast off.

    On exit, also after an error, everything is as before: the training flag of every submodule, `requires_grad` of
    every parameter, and torch's random state. Attacks take gradients by `autograd.grad` with respect to the images
    alone, so no `.grad` is written; eval mode writes no buffers. A model that cuts its gradient in training may offer a
    context `attack_gradient()` in which it does not, which is entered unless `full_gradient` is False.
    """
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    training = {module: module.training for module in inner.modules()}
    requires_grad = {parameter: parameter.requires_grad for parameter in inner.parameters()}
    device = next((p.device for p in inner.parameters()), torch.device("cpu"))
    devices = [device] if device.type == "cuda" else []
    try:
        inner.eval()
        for parameter in requires_grad:
            parameter.requires_grad_(False)
        with (
            torch.random.fork_rng(devices=devices),
            torch.inference_mode(False),
            torch.enable_grad(),
            getattr(inner, "attack_gradient", nullcontext)() if full_gradient else nullcontext(),
            torch.autocast(device.type, enabled=False),
        ):
            yield inner
    finally:
        for module, flag in training.items():
            module.training = flag
        for parameter, flag in requires_grad.items():
            parameter.requires_grad_(flag)


def attack_batch(
    attack: Attack, inner: Any, batched_inputs: list[dict], keys: Tensor
) -> tuple[AttackResult, Tensor | None]:
    """Attacks a batch of the mapper's dicts.

    Args:
        attack: the attack; its objective says whether it is aimed at the class or at the parts.
        inner: the model, inside `attack_view`. It offers `preprocess(batched_inputs)` -> (images, padding), and
            `class_logits(images, padding)`, `part_logits(images, padding)` or `part_loss_view(batched_inputs, images,
            padding, ...)`, whichever the objective reads.
        batched_inputs: with `class_id`, and `sem_seg` for part objectives.
        keys: int64 (N,).

    Returns:
        The result and the padding mask of the batch.
    """
    images, padding = inner.preprocess(batched_inputs)
    if attack.objective.reads == "part_losses":
        view = inner.part_loss_view(batched_inputs, images, padding, **attack.objective.options)
        labels = torch.tensor([item["class_id"] for item in batched_inputs], device=images.device)
        return attack(view, images, labels, keys=keys, padding=padding), padding
    forward: Callable[[Tensor], Tensor] = functools.partial(getattr(inner, attack.objective.reads), padding=padding)
    if attack.objective.reads == "class_logits":
        targets = torch.tensor([item["class_id"] for item in batched_inputs], device=images.device)
    else:
        targets = torch.stack([item["sem_seg"] for item in batched_inputs]).to(images.device)
    return attack(forward, images, targets, keys=keys, padding=padding), padding
