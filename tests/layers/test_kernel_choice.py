"""Which implementation of deformable attention "auto" takes, and the GPUs that its kernels compile for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from part_robust.layers import kernel_choice
from part_robust.layers.kernel_choice import automatic_backend, why_not_triton

CUDA = torch.device("cuda:0")


def tensor_on(device: torch.device, dtype: torch.dtype = torch.float32, channels: int = 32) -> SimpleNamespace:
    return SimpleNamespace(device=device, dtype=dtype, shape=(1, 4, 8, channels))


@pytest.fixture(autouse=True)
def _forget():
    why_not_triton.cache_clear()
    yield
    why_not_triton.cache_clear()


def test_on_a_cpu():
    assert automatic_backend(torch.zeros(1)) == "sparse"


@pytest.mark.parametrize(
    ("dtype", "reason", "backend"),
    [
        (torch.float32, "", "triton"),
        (torch.bfloat16, "", "triton"),
        (torch.float64, "", "grid_sample"),  # sums are in float32
        (torch.float32, "too old", "grid_sample"),
    ],
)
def test_on_cuda(monkeypatch, dtype, reason, backend):
    monkeypatch.setattr(kernel_choice, "_try_triton", lambda device: reason)
    assert automatic_backend(tensor_on(CUDA, dtype)) == backend


def test_on_cuda_for_many_channels_and_for_repeatable_runs(monkeypatch):
    monkeypatch.setattr(kernel_choice, "_try_triton", lambda device: "")
    assert automatic_backend(tensor_on(CUDA, channels=256)) == "grid_sample"
    torch.use_deterministic_algorithms(True)
    try:
        assert automatic_backend(tensor_on(CUDA)) == "embedding_bag"
    finally:
        torch.use_deterministic_algorithms(False)


def test_an_old_gpu_is_named_once(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert [automatic_backend(tensor_on(CUDA)) for _ in range(2)] == ["grid_sample", "grid_sample"]
    assert caplog.text.count("needs compute capability 8.0, the GPU has (7, 5)") == 1


def test_a_kernel_that_fails_is_replaced(monkeypatch, caplog):
    """Here Triton finds no GPU, whatever torch says."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert why_not_triton(torch.device("cpu")) and "runs in plain PyTorch" in caplog.text


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_kernels_compile(capability, dtype):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from part_robust.layers.triton_sampling import BLOCK, _backward, _forward

    constants = {"LEVELS": 4, "POINTS": 4, "ROWS": BLOCK, "WIDE": 32}
    sizes = dict.fromkeys(("tokens", "queries", "heads", "channels"), "i32")
    pointers = {"table": f"*{dtype}", "levels": "*i32", "locations": "*fp32", "weights": "*fp32"}
    forward = pointers | {"result": f"*{dtype}"} | sizes
    gradients = {"table_gradient": "*fp32", "locations_gradient": "*fp32", "weights_gradient": "*fp32"}
    backward = pointers | {"gradient": f"*{dtype}"} | gradients | sizes
    for kernel, signature in ((_forward, forward), (_backward, backward)):
        types = signature | dict.fromkeys(constants, "constexpr")
        source = ASTSource(
            fn=kernel, signature=types, constexprs={(kernel.arg_names.index(k),): v for k, v in constants.items()}
        )
        assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]
