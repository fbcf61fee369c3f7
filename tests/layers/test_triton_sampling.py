"""The Triton kernel against plain PyTorch: in Triton's interpreter everywhere, and on a GPU where there is one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")

SHAPES = [(3, 4), (2, 2), (1, 1)]


def compare(device: str, dtype: torch.dtype) -> None:
    """Outputs and all gradients; 37 queries and 6 channels fill no block, and some locations lie far outside."""
    from part_robust.layers.ms_deform_attn import ms_deform_attn
    from part_robust.layers.triton_sampling import TritonSampling

    torch.manual_seed(0)
    value = torch.randn(2, 17, 2, 6).to(device, dtype)
    locations = (0.5 + 0.4 * torch.randn(2, 37, 2, 3, 2, 2)).to(device)
    locations[0, 0, 0, 0, 0] = 1e6
    weights = torch.rand(2, 37, 2, 3, 2).to(device)
    gradient = torch.randn(2, 37, 12).to(device, dtype)
    results = []
    for run in (
        lambda *tensors: TritonSampling.apply(*tensors, SHAPES),
        lambda *tensors: ms_deform_attn(tensors[0], SHAPES, *tensors[1:], "embedding_bag"),
    ):
        tensors = [x.clone().requires_grad_(True) for x in (value, locations, weights)]
        output = run(*tensors)
        results.append((output, *torch.autograd.grad(output, tensors, gradient)))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def test_in_the_interpreter():
    # Triton decides at its import, which has long happened here.
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(dtype):
    compare("cuda", dtype)


def test_off_the_gpu_it_says_so():
    from part_robust.layers.ms_deform_attn import ms_deform_attn

    with pytest.raises(ValueError, match="CUDA"):
        ms_deform_attn(
            torch.zeros(1, 1, 1, 1), [(1, 1)], torch.zeros(1, 1, 1, 1, 1, 2), torch.zeros(1, 1, 1, 1, 1), "triton"
        )


if __name__ == "__main__":
    compare("cpu", torch.float32)
    compare("cpu", torch.bfloat16)
