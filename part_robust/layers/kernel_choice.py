"""Which implementation of multi-scale deformable attention runs where."""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# From Ampere on: what the kernels are compiled for in the tests.
LEAST_CAPABILITY = (8, 0)
# Channels of a head, of which a program of the kernel holds a row for each of its queries in registers.
MOST_CHANNELS = 128


def automatic_backend(value: Tensor) -> str:
    """The backend that "auto" means for this tensor.

    On a CPU "sparse", or "embedding_bag" inside torch.compile. On CUDA "triton" where the kernel runs and is right on
    this device, for float32 and bfloat16; otherwise "grid_sample", as the backward pass of `embedding_bag` sorts all
    sampling points there. Why it is not Triton is written to the log once. Both add gradients in an order that changes
    from run to run, so under `torch.use_deterministic_algorithms` it is "embedding_bag".

    Args:
        value: (N, S, H, D).
    """
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if value.device.type == "cpu":
        return "embedding_bag" if torch.compiler.is_compiling() else "sparse"
    if value.device.type != "cuda":
        return "embedding_bag"
    if torch.are_deterministic_algorithms_enabled():
        return "embedding_bag"
    if traced or value.dtype not in (torch.float32, torch.bfloat16) or value.shape[-1] > MOST_CHANNELS:
        return "grid_sample"
    return "grid_sample" if why_not_triton(value.device) else "triton"


@functools.cache
def why_not_triton(device: torch.device) -> str:
    """Return the reason why the Triton kernel cannot be used on a CUDA device; "" if it can.

    It can where it has computed a small example, forward and backward, as plain PyTorch does.
    """
    reason = _try_triton(device)
    if reason:
        logger.warning("Deformable attention runs in plain PyTorch on %s, not in the Triton kernel: %s", device, reason)
    else:
        logger.info("Deformable attention runs in the Triton kernel on %s", device)
    return reason


def _try_triton(device: torch.device) -> str:
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        return f"it needs compute capability {LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]}, the GPU has {capability}"
    try:
        from part_robust.layers.triton_sampling import TritonSampling
    except ImportError as error:
        return f"the package triton cannot be imported ({error})"
    from part_robust.layers.ms_deform_attn import ms_deform_attn

    shapes = [(2, 3), (1, 1)]
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), torch.inference_mode(False):
        generator = torch.Generator().manual_seed(0)
        tensors = [
            torch.rand(*shape, generator=generator).to(device).requires_grad_(True)
            for shape in ((1, 7, 2, 4), (1, 3, 2, 2, 2, 2), (1, 3, 2, 2, 2))
        ]
        try:
            ours = TritonSampling.apply(*tensors, shapes)
            found = [ours, *torch.autograd.grad(ours.sum(), tensors)]
        except Exception as error:  # a compiler, a driver or a launch may fail in many ways
            return f"{type(error).__name__}: {(str(error).strip() or 'no reason').splitlines()[0]}"
        value, locations, weights = tensors
        plain = ms_deform_attn(value, shapes, locations, weights, "gather")
        expected = [plain, *torch.autograd.grad(plain.sum(), tensors)]
    if not all(torch.allclose(x, y, rtol=1e-3, atol=1e-4) for x, y in zip(found, expected, strict=True)):
        return "its result on a small example is wrong"
    return ""
