"""Model in eval mode with frozen parameters during an attack, and restored after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from part_robust.attacks.attackable import AttackInputs, CutsGradient
from part_robust.attacks.base import Attack
from part_robust.attacks.expanded_queries import ExpandedQueries
from part_robust.attacks.objective import AttackObjective
from part_robust.attacks.state import AttackResult
from part_robust.utils.devices import module_device
from part_robust.utils.precision import tf32
from part_robust.utils.transfer import to_device


def attack_gradient(inner: Any, full_gradient: bool) -> AbstractContextManager[None]:
    """The context in which a model that detaches its gradient in training does not, where `full_gradient` is wanted."""
    return inner.attack_gradient() if full_gradient and isinstance(inner, CutsGradient) else nullcontext()


@contextmanager
def attack_mode(model: nn.Module, full_gradient: bool = True) -> Iterator[Any]:
    """The module inside DistributedDataParallel, in eval mode, parameters frozen, gradients on, autocast and TF32 off.

    On exit, also after an error, everything is as before: the training flag of every submodule, `requires_grad` of
    every parameter, and torch's random state. Attacks take gradients by `autograd.grad` with respect to the images
    alone, so no `.grad` is written; eval mode writes no buffers. The context of a model that detaches its gradient in
    training (`CutsGradient`) is entered unless `full_gradient` is False.
    """
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    training = {module: module.training for module in inner.modules()}
    requires_grad = {parameter: parameter.requires_grad for parameter in inner.parameters()}
    device = module_device(inner)
    devices = [device] if device.type == "cuda" else []
    try:
        inner.eval()
        for parameter in requires_grad:
            parameter.requires_grad_(False)
        with (
            torch.random.fork_rng(devices=devices),
            torch.inference_mode(False),
            torch.enable_grad(),
            attack_gradient(inner, full_gradient),
            torch.autocast(device.type, enabled=False),
            tf32(False),
        ):
            yield inner
    finally:
        for module, flag in training.items():
            module.training = flag
        for parameter, flag in requires_grad.items():
            parameter.requires_grad_(flag)


attack_view = attack_mode  # the name of earlier versions


class ModelView:
    """Images -> the outputs that an objective reads, for one batch of the mapper's dicts; a `Forward`."""

    def __init__(
        self,
        inner: Any,
        objective: AttackObjective,
        batched_inputs: list[dict],
        images: Tensor,
        padding: Tensor | None,
        query_factor: int = 1,
    ) -> None:
        """Prepare the outputs for an objective.

        Args:
            inner: the model, inside `attack_mode`; an `Attackable`.
            objective: decides which outputs of the model are read.
            batched_inputs: see `AttackInputs`.
            images: see `AttackInputs`.
            padding: see `AttackInputs`.
            query_factor: see `AttackInputs`.
        """
        self.objective = objective
        self.inputs = AttackInputs(inner, batched_inputs, images, padding, query_factor)
        self.view: Callable[[Tensor], Any] = objective.forward(self.inputs)

    def __call__(self, images: Tensor) -> Any:
        return self.view(images)

    @property
    def passes(self) -> int:
        """Forward passes of a call."""
        return self.view.passes if isinstance(self.view, ExpandedQueries) else 1

    def select(self, index: Tensor) -> ModelView:
        """Return the view of the images at `index`; a matching fixed at the originals costs one more forward pass."""
        chosen = self.inputs.select(index)
        return ModelView(
            chosen.model, self.objective, chosen.batched_inputs, chosen.images, chosen.padding, chosen.query_factor
        )

    def call_arguments(self, keys: Tensor) -> dict[str, Tensor]:
        """Return arguments of `Attack.__call__` that belong to the images, by one copy to their device.

        Args:
            keys: int64 (N,).

        Returns:
            `keys`; `targets` of the objective; and, for objectives of the parts, `attackable`, bool
            (N,), False for images without part labels.
        """
        arguments = {"keys": keys, "targets": self.objective.targets(self.inputs)}
        attackable = self.objective.attackable(self.inputs)
        if attackable is not None:
            arguments["attackable"] = attackable
        return to_device(arguments, self.inputs.images.device)


def attack_batch(
    attack: Attack,
    inner: Any,
    batched_inputs: list[dict],
    keys: Tensor,
    scored: bool = False,
    starts: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[AttackResult, Tensor | None]:
    """Attack a batch of the mapper's dicts.

    Args:
        attack: the attack; its objective is a loss of the class, of the parts or of both.
        inner: the model, inside `attack_mode`; an `Attackable`.
        batched_inputs: with `class_id`, and `sem_seg` or `instances` for part objectives.
        keys: int64 (N,).
        scored: see `Attack.__call__`.
        starts: see `Attack.__call__`.
        mask: see `Attack.__call__`.

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
        mask=mask,
        **view.call_arguments(keys),
    )
    return result, padding
