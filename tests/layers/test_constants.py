"""Constants that are made once."""

from __future__ import annotations

import torch

from part_robust.layers.constants import cached_constant, constant


def test_the_same_tensor_again_and_another_for_another_type():
    cpu = torch.device("cpu")
    first = constant(((2, 3), (4, 5)), torch.int64, cpu)
    assert first.tolist() == [[2, 3], [4, 5]]
    assert constant(((2, 3), (4, 5)), torch.int64, cpu) is first
    assert constant(((2, 3), (4, 5)), torch.float32, cpu).dtype == torch.float32


def test_a_constant_of_inference_mode_can_be_saved_for_a_backward_pass():
    made = []

    @cached_constant
    def twos(count: int, device: torch.device) -> torch.Tensor:
        made.append(count)
        return torch.full((count,), 2.0, device=device)

    with torch.inference_mode():
        twos(3, torch.device("cpu"))
    x = torch.ones(3, requires_grad=True)
    (x * twos(3, torch.device("cpu"))).sum().backward()
    assert x.grad.tolist() == [2.0] * 3 and made == [3]


def test_a_trace_makes_its_own():
    def function(x):
        return x + constant((1.0, 2.0), torch.float32, x.device)

    before = constant((1.0, 2.0), torch.float32, torch.device("cpu"))
    traced = torch.jit.trace(function, torch.zeros(2))
    assert traced(torch.ones(2)).tolist() == [2.0, 3.0]
    exported = torch.export.export(_Module(function), (torch.zeros(2),))
    assert exported.module()(torch.ones(2)).tolist() == [2.0, 3.0]
    assert constant((1.0, 2.0), torch.float32, torch.device("cpu")) is before and type(before) is torch.Tensor


class _Module(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)
