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
    if solver.OPTIMIZER == "SGD":
        kind: type[torch.optim.Optimizer] = torch.optim.SGD
        options |= {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV, "foreach": True}
    elif solver.OPTIMIZER == "AdamW":
        kind = torch.optim.AdamW
    else:
        raise ValueError(f"SOLVER.OPTIMIZER must be SGD or AdamW, is {solver.OPTIMIZER!r}")
    clip = solver.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE == "full_model":
        return clipped(kind, clip.CLIP_VALUE, clip.NORM_TYPE)(parameters, **options)
    return maybe_add_gradient_clipping(cfg, kind)(parameters, **options)


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
