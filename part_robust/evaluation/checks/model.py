"""The model as checks see it: its class logits as a callable, and C1, whether it was left as it was.

Letters: N images (3, H, W), C classes.
"""

from __future__ import annotations

import copy
import hashlib
import logging
from typing import Any

import torch
from torch import Tensor, nn

from part_robust.evaluation.checks.result import FAIL, PASS, Finding

logger = logging.getLogger(__name__)


class ClassForward:
    """Images -> class logits (N, C) of a model inside `attack_mode`, with the padding of its images."""

    def __init__(self, view: Any, padding: Tensor | None) -> None:
        """`padding` bool (N, H, W) or None."""
        self.view = view
        self.padding = padding

    def __call__(self, images: Tensor) -> Tensor:
        return self.view.class_logits(images, self.padding)

    def select(self, index: Tensor) -> ClassForward:
        """The same for the images at `index`."""
        return ClassForward(self.view, None if self.padding is None else self.padding[index])


def has_class_head(view: Any) -> bool:
    """Return whether the model offers class logits: models of parts alone have `head` None or no `class_logits`."""
    return callable(getattr(view, "class_logits", None)) and getattr(view, "head", view) is not None


def double_precision(view: Any, images: Tensor, padding: Tensor | None) -> ClassForward | None:
    """A copy of the model that computes in float64, or None where it cannot.

    Args:
        view: the model inside `attack_mode`, whose gradient the copy keeps.
        images: float (N, 3, H, W), tried on the first.
        padding: of the images.
    """
    if not isinstance(view, nn.Module):
        return None
    try:
        forward = ClassForward(copy.deepcopy(view).double(), padding)
        with torch.no_grad():
            forward.select(torch.tensor([0], device=images.device))(images[:1].double())
    except (NotImplementedError, RuntimeError, TypeError) as error:
        logger.info("The gradient is audited in float32, the model does not run in float64: %s", error)
        return None
    return forward


@torch.no_grad()
def tensor_hashes(model: nn.Module) -> dict[str, str]:
    """SHA-256 of every parameter and buffer, also of those that checkpoints leave out."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: _sha256(tensor) for name, tensor in tensors}


def _sha256(tensor: Tensor) -> str:
    plain = tensor.detach().contiguous().cpu().flatten()
    return hashlib.sha256(plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b"").hexdigest()


def check_untouched(model: nn.Module, before: dict[str, str]) -> Finding:
    """C1: every module is in eval mode, and parameters and buffers are what they were.

    Args:
        model: inside `attack_mode`.
        before: its `tensor_hashes` before the attack.
    """
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        return Finding(FAIL, f"in training mode under attack: {_some(training)}", float(len(training)))
    after = tensor_hashes(model)
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if changed:
        return Finding(FAIL, f"changed during the evaluation: {_some(changed)}", float(len(changed)))
    return Finding(PASS, f"{len(after)} parameters and buffers are what they were, all modules in eval mode", 0.0)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
