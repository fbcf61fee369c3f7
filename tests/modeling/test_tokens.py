"""Feature pyramids as tokens: the convolution that halves a map, also maps one pixel wide or high."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from part_robust.modeling.segmenters.tokens import HalvingConv2d

SIZES = [(1, 1), (4, 1), (1, 4), (7, 1), (2, 2), (5, 3)]


@pytest.mark.parametrize("size", SIZES)
def test_halving_is_the_plain_convolution(size):
    torch.manual_seed(0)
    conv = HalvingConv2d(5, 6).double()
    maps = torch.randn(2, 5, *size, dtype=torch.float64, requires_grad=True)
    plain = F.conv2d(maps, conv.weight, conv.bias, stride=2, padding=1)
    assert torch.allclose(conv(maps), plain, atol=1e-12)
    leaves = (maps, conv.weight, conv.bias)
    ours = torch.autograd.grad(conv(maps).square().sum(), leaves)
    theirs = torch.autograd.grad(plain.square().sum(), leaves)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("size", SIZES)
def test_halving_has_a_finite_gradient_in_bfloat16(size):
    """Memory that holds NaN when it is handed out again shows a read of what nobody wrote."""
    for _ in range(30):
        dirty = [torch.full((1000 + 97 * i,), float("nan")) for i in range(200)]
        del dirty
        conv = HalvingConv2d(16, 32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = conv(torch.randn(6, 16, *size))
        out.float().square().sum().backward()
        assert torch.isfinite(conv.weight.grad).all()
