"""The whole gradient of models that cut it in training, gradients past the choice of queries, and none at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from part_robust.modeling.segmenters.transformer import Decoder, QuerySelection


@contextmanager
def full_gradient(model: nn.Module) -> Iterator[None]:
    """No module detaches its references meanwhile (DINO's decoder and query selection).

    The published detectors pass boxes between decoder layers as constants, which steadies training. An attack that
    follows the remaining gradient misses a part of the truth: robust accuracy measured with it is too high.
    """
    cut = _modules_with_detach(model)
    try:
        for module in cut:
            module.detach_references = False
        yield
    finally:
        for module in cut:
            module.detach_references = True


@contextmanager
def expanded_queries(model: nn.Module, factor: int) -> Iterator[None]:
    """Meanwhile `factor` times the queries are chosen from the encoder's pixels, or all there are.

    The choice of the Q most confident pixels is a hard gate: those that are not chosen get no gradient, although a
    small change of the image might have them chosen. An attack that takes its gradients here sees past the gate.
    """
    choosers = _choosing_modules(model)
    try:
        for module in choosers:
            module.factor = factor
        yield
    finally:
        for module in choosers:
            module.factor = 1


def chooses_queries(model: nn.Module) -> bool:
    """Return whether `expanded_queries` would change anything."""
    return bool(_choosing_modules(model))


@contextmanager
def eval_mode_no_grad(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients: batch norm keeps its statistics, and the model is as before afterwards."""
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, flag in training.items():
            module.training = flag


def has_detached_gradients(model: nn.Module) -> bool:
    """Return whether `full_gradient` would change anything."""
    return bool(_modules_with_detach(model))


def _choosing_modules(model: nn.Module) -> list[QuerySelection]:
    return [module for module in model.modules() if isinstance(module, QuerySelection)]


def _modules_with_detach(model: nn.Module) -> list[Decoder]:
    return [module for module in model.modules() if isinstance(module, Decoder) and module.detach_references]
