"""Optimizers: SGD (the thesis) or AdamW (the published detectors), a learning rate of its own for the backbone, and
clipping of all gradients together."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """
    Raises:
        ValueError: SOLVER.OPTIMIZER is neither SGD nor AdamW.
    """
    solver = cfg.SOLVER
    parameters = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=lambda name: solver.BACKBONE_MULTIPLIER if name.startswith("backbone.") else 1.0,
    )
    options: dict = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY}
    fused = {"fused": True} if can_fuse(cfg, model) else {}
    if solver.OPTIMIZER == "SGD":
        kind: type[torch.optim.Optimizer] = torch.optim.SGD
        options |= {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV} | (fused or {"foreach": True})
    elif solver.OPTIMIZER == "AdamW":
        kind = torch.optim.AdamW
        options |= fused
    else:
        raise ValueError(f"SOLVER.OPTIMIZER must be SGD or AdamW, is {solver.OPTIMIZER!r}")
    clip = solver.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE == "full_model":
        return clipped(kind, clip.CLIP_VALUE, clip.NORM_TYPE)(parameters, **options)
    return maybe_add_gradient_clipping(cfg, kind)(parameters, **options)


def can_fuse(cfg: CfgNode, model: nn.Module) -> bool:
    """Whether one kernel may update all weights: on CUDA, unless gradients are clipped under a loss scale, which a
    fused optimizer takes off only after the clipping."""
    scaled = cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE == "float16"
    on_gpu = all(parameter.device.type == "cuda" for parameter in model.parameters())
    return on_gpu and not (scaled and cfg.SOLVER.CLIP_GRADIENTS.ENABLED)


def clipped(kind: type[torch.optim.Optimizer], max_norm: float, norm_type: float = 2.0) -> type[torch.optim.Optimizer]:
    """A subclass whose step first scales all gradients so that their common norm is at most `max_norm`.

    detectron2's own clips every parameter by itself. Gradient scalers unscale before they call `step`.
    """

    class FullModelClipping(kind):  # type: ignore[valid-type, misc]
        def step(self, closure=None):
            gradients = [p for group in self.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(gradients, max_norm, norm_type=norm_type)
            return super().step(closure=closure)

    FullModelClipping.__name__ = f"{kind.__name__}WithFullModelClipping"
    return FullModelClipping
