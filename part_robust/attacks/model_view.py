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
from part_robust.attacks.objective import Objective
from part_robust.attacks.open_queries import OpenQueries, open_queries
from part_robust.utils.precision import tf32
from part_robust.utils.transfer import to_device


@contextmanager
def attack_view(model: nn.Module, full_gradient: bool = True) -> Iterator[Any]:
    """The module inside DistributedDataParallel, in eval mode, parameters frozen, gradients on, autocast and TF32 off.

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
            tf32(False),
        ):
            yield inner
    finally:
        for module, flag in training.items():
            module.training = flag
        for parameter, flag in requires_grad.items():
            parameter.requires_grad_(flag)


class ModelView:
    """Images -> what an objective reads of a model, for one batch of the mapper's dicts; a `Forward`.

    The model offers `class_logits(images, padding)`, `part_logits(images, padding)` or `part_loss_view(batched_inputs,
    images, padding, ...)`, whichever the objective reads.
    """

    def __init__(
        self,
        inner: Any,
        objective: Objective,
        batched_inputs: list[dict],
        images: Tensor,
        padding: Tensor | None,
        query_factor: int = 1,
    ) -> None:
        """Show the model to an attack with the given objective.

        Args:
            inner: the model, inside `attack_view`.
            objective: it says whether the attack is aimed at the class or at the parts.
            batched_inputs: with `class_id`, and `sem_seg` or `instances` for part objectives.
            images: (N, 3, H, W) before the attack.
            padding: bool (N, H, W), True on letterbox padding.
            query_factor: above 1, gradients of the class are those of a model that chooses so many times the object
                queries (`OpenQueries`), where it chooses any.
        """
        self.inner = inner
        self.objective = objective
        self.batched_inputs = batched_inputs
        self.images = images
        self.padding = padding
        self.query_factor = query_factor
        self.view: Callable[[Tensor], Any]
        opened = open_queries(inner, padding, query_factor) if query_factor > 1 else None
        if objective.reads == "part_losses":
            self.view = inner.part_loss_view(batched_inputs, images, padding, **objective.options)
        elif opened is not None and objective.reads == "class_logits":
            self.view = opened
        elif objective.reads == "class_logits" and hasattr(inner, "attack_class_logits"):
            self.view = functools.partial(inner.attack_class_logits(), padding=padding)
        else:
            self.view = functools.partial(getattr(inner, objective.reads), padding=padding)

    def __call__(self, images: Tensor) -> Any:
        return self.view(images)

    @property
    def passes(self) -> int:
        """Forward passes of a call."""
        return self.view.passes if isinstance(self.view, OpenQueries) else 1

    def select(self, index: Tensor) -> ModelView:
        """The view of the images at `index`; a matching frozen at the originals costs a forward pass again."""
        batched_inputs = [self.batched_inputs[i] for i in index.tolist()]
        padding = None if self.padding is None else self.padding[index]
        return ModelView(self.inner, self.objective, batched_inputs, self.images[index], padding, self.query_factor)

    def call_arguments(self, keys: Tensor) -> dict[str, Tensor]:
        """Arguments of `Attack.__call__` that belong to the images, by one copy to their device.

        Args:
            keys: int64 (N,).

        Returns:
            `keys`; `targets` that the objective compares with, labels (N,) or label maps (N, H, W); and, for objectives
            of the parts, `attackable`, bool (N,), False for images without part labels.
        """
        host = {"keys": keys}
        if self.objective.reads == "part_logits":
            host["targets"] = torch.stack([item["sem_seg"] for item in self.batched_inputs])
        else:
            host["targets"] = torch.tensor([item["class_id"] for item in self.batched_inputs])
        if self.objective.reads != "class_logits":
            joint = self.objective.options.get("joint", False)
            labelled = [joint or item.get("part_supervision") != "none" for item in self.batched_inputs]
            host["attackable"] = torch.tensor(labelled)
        return to_device(host, self.images.device)


def attack_batch(
    attack: Attack,
    inner: Any,
    batched_inputs: list[dict],
    keys: Tensor,
    scored: bool = False,
    starts: Tensor | None = None,
) -> tuple[AttackResult, Tensor | None]:
    """Attacks a batch of the mapper's dicts.

    Args:
        attack: the attack; its objective says whether it is aimed at the class or at the parts.
        inner: the model, inside `attack_view`. Besides what `ModelView` needs it offers `preprocess(batched_inputs)` ->
            (images, padding).
        batched_inputs: with `class_id`, and `sem_seg` or `instances` for part objectives.
        keys: int64 (N,).
        scored: as of `Attack`.
        starts: as of `Attack`.

    Returns:
        The result and the padding mask of the batch.
    """
    images, padding = inner.preprocess(batched_inputs)
    view = ModelView(inner, attack.objective, batched_inputs, images, padding, attack.query_factor)
    result = attack(
        view,
        images,
        padding=padding,
        scored=scored,
        starts=starts,
        **view.call_arguments(keys),
    )
    return result, padding
