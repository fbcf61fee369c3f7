"""Optimizers: SGD (the thesis) or AdamW (the published detectors).

The backbone has a separate learning rate, and all gradients are clipped together. On CUDA all weights are changed by
one fused kernel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn

# Devices on which torch's fused kernels are used. They exist for the CPU, too, where weights would differ in their last
# digits from those of earlier versions.
FUSED_ON = ("cuda",)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer that SOLVER describes.

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
    fused = all(p.device.type in FUSED_ON for group in parameters for p in group["params"])
    if fused:
        options |= {"foreach": False, "fused": True}
    clip = solver.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE == "full_model":
        kind = clipped(kind, clip.CLIP_VALUE, clip.NORM_TYPE)
    else:
        kind = maybe_add_gradient_clipping(cfg, kind)
    optimizer = kind(parameters, **options)
    # Otherwise a GradScaler would leave its scale to the fused kernel, which comes after the clipping.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]  # torch declares it nowhere
    kernel = {name: optimizer.defaults[name] for name in ("foreach", "fused")}
    optimizer.register_load_state_dict_pre_hook(functools.partial(_with_kernel, kernel))
    return optimizer


def _with_kernel(kernel: Mapping, optimizer: torch.optim.Optimizer, state: dict) -> dict:
    """A state with the kernel of this machine, whatever the machine used that saved it."""
    return {**state, "param_groups": [{**group, **kernel} for group in state["param_groups"]]}


def clipped(kind: type[torch.optim.Optimizer], max_norm: float, norm_type: float = 2.0) -> type[torch.optim.Optimizer]:
    """A subclass whose step first scales all gradients so that their common norm is at most `max_norm`.

    detectron2's own clips every parameter by itself. Gradient scalers unscale before they call `step`.
    """

    class FullModelClipping(kind):  # type: ignore[valid-type, misc]  # a base that is a value
        def step(self, closure: Callable[[], float] | None = None) -> float | None:
            gradients = [p for group in self.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(gradients, max_norm, norm_type=norm_type)
            return super().step(closure=closure)

    FullModelClipping.__name__ = f"{kind.__name__}WithFullModelClipping"
    return FullModelClipping
