"""The whole gradient of models that cut it in training, and no gradient at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def full_gradient(model: nn.Module) -> Iterator[None]:
    """No module detaches its references meanwhile (DINO's decoder and query selection).

    The published detectors pass boxes between decoder layers as constants, which steadies training. An attack that
    follows the remaining gradient misses a part of the truth: robust accuracy measured with it is too high.
    """
    cut = _cutting_modules(model)
    try:
        for module in cut:
            module.detach_references = False
        yield
    finally:
        for module in cut:
            module.detach_references = True


@contextmanager
def only_looking(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients: batch norm keeps its statistics, and the model is as before afterwards."""
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, flag in training.items():
            module.training = flag


def cuts_gradient(model: nn.Module) -> bool:
    """Whether `full_gradient` would change anything."""
    return bool(_cutting_modules(model))


def _cutting_modules(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if getattr(module, "detach_references", False)]
