"""Activations that are computed again in the backward pass instead of kept (Chen et al., 2016)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from detectron2.modeling.backbone.resnet import ResNetBlockBase
from torch import nn
from torch.utils.checkpoint import checkpoint

from part_robust.modeling.segmenters.transformer import DecoderLayer, EncoderLayer
from part_robust.modeling.timm_backbone import TimmBackbone

KINDS: dict[str, type[nn.Module]] = {"backbone": ResNetBlockBase, "encoder": EncoderLayer, "decoder": DecoderLayer}


def checkpoint_activations(model: nn.Module, parts: Sequence[str]) -> int:
    """Changes `forward` of the residual blocks or transformer layers of a model; returns of how many.

    Results and gradients stay as they are, with dropout too. Names of weights stay. Without gradients nothing changes.

    Args:
        model: changed in place.
        parts: any of "backbone", "encoder", "decoder".

    Raises:
        ValueError: another part, or one that the model has not.
    """
    changed = 0
    for part in parts:
        if part not in KINDS:
            raise ValueError(f"MODEL.ACTIVATION_CHECKPOINTING must be of {', '.join(KINDS)}, got {part!r}")
        modules = [module for module in model.modules() if isinstance(module, KINDS[part])]
        if part == "backbone":
            modules += [b for net in model.modules() if isinstance(net, TimmBackbone) for b in blocks(net.net)]
        if not modules:
            raise ValueError(f"MODEL.ACTIVATION_CHECKPOINTING: this model has no {part} of layers to compute again")
        for module in modules:
            module.forward = functools.partial(_forward, module, module.forward)
        changed += len(modules)
    return changed


def blocks(net: nn.Module) -> list[nn.Module]:
    """Return the blocks of a network of timm, in order.

    They are what its stages line up in `nn.Sequential`, as far as it has modules of its own. timm's own
    `set_grad_checkpointing` would count a batch twice in the statistics of batch norms.
    """
    found: list[nn.Module] = []
    for child in net.children():
        if isinstance(net, nn.Sequential) and not isinstance(child, nn.Sequential) and any(child.children()):
            found.append(child)
        else:
            found += blocks(child)
    return found


def _forward(module: nn.Module, forward: Callable, *args: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_kept(module)))


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Batch norm counts a batch once, however often it is computed."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(m.momentum, None if m.num_batches_tracked is None else m.num_batches_tracked.clone()) for m in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if count is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(count)
