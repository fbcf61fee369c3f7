"""Several tensors in one copy."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from part_robust.utils.transfer import to_device, to_host

META = torch.device("meta")
TYPES = (torch.uint8, torch.bool, torch.int64, torch.float32, torch.float64, torch.bfloat16)


def tensors_of(sizes: list[tuple[int, tuple[int, ...]]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        str(number): torch.randint(0, 2, shape, generator=generator).to(TYPES[kind])
        for number, (kind, shape) in enumerate(sizes)
    }


class CountCopies(TorchDispatchMode):
    """Counts tensors that change their device, and lets "meta" keep the values of the CPU."""

    def __init__(self):
        super().__init__()
        self.copies = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and kwargs.get("device") == META:
            self.copies += 1
        return func(*args, **kwargs)


shapes = st.tuples(st.integers(0, len(TYPES) - 1), st.lists(st.integers(0, 3), max_size=3).map(tuple))


@settings(max_examples=50, deadline=None)
@given(st.lists(shapes, max_size=6))
def test_one_copy_of_any_tensors(sizes):
    tensors = tensors_of(sizes)
    with CountCopies() as counted:
        moved = to_device(tensors, META)
    assert counted.copies == bool(tensors)
    assert list(moved) == list(tensors)
    for name, tensor in tensors.items():
        assert (moved[name].shape, moved[name].dtype, moved[name].device) == (tensor.shape, tensor.dtype, META)
    assert all(to_device(tensors, torch.device("cpu"))[name] is tensor for name, tensor in tensors.items())


@settings(max_examples=50, deadline=None)
@given(st.lists(shapes, max_size=6))
def test_values_survive_the_common_buffer(sizes):
    """On the way there and back, with the CPU in the place of the device."""
    from part_robust.utils import transfer

    tensors = tensors_of(sizes)
    pieces = transfer.byte_ranges(tensors)
    buffer = torch.empty(sum(map(transfer._bytes, tensors.values())), dtype=torch.uint8)
    for name, (start, end) in pieces.items():
        transfer._view(buffer[start:end], tensors[name]).copy_(tensors[name])
    for name, (start, end) in pieces.items():
        assert torch.equal(transfer._view(buffer[start:end], tensors[name]), tensors[name])
    assert all(torch.equal(to_host(tensors)[name], tensor) for name, tensor in tensors.items())
