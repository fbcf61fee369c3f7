"""Copies between host and device, several tensors at a time: each copy makes the host wait, however small it is."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor


def to_device(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The same tensors on the device, by one copy of all that are not there yet.

    On a CUDA device the copy comes from pinned memory and does not make the host wait, where memory can be pinned.

    Args:
        tensors: of any shapes and types, by name.
        device: where they are wanted.

    Returns:
        Tensors of the same names, shapes and types. Those that were on the device already are returned as they are.
    """
    device = torch.device(device)
    missing = {name: tensor for name, tensor in tensors.items() if tensor.device.type != device.type}
    if not missing:
        return dict(tensors)
    if len(missing) == 1:
        ((name, tensor),) = missing.items()
        return {**tensors, name: _pinned(tensor, device).to(device, non_blocking=True)}
    pin = device.type == "cuda" and _can_pin()
    buffer = torch.empty(sum(map(_bytes, missing.values())), dtype=torch.uint8, pin_memory=pin)
    pieces = byte_ranges(missing)
    for name, (start, end) in pieces.items():
        _view(buffer[start:end], missing[name]).copy_(missing[name])
    moved = buffer.to(device, non_blocking=True)
    return {**tensors, **{name: _view(moved[start:end], missing[name]) for name, (start, end) in pieces.items()}}


def to_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, detached, in the memory of the host, by one copy of all that are on a device.

    Args:
        tensors: of any shapes and types, by name; all that are not on the CPU on one device.
    """
    remote = {name: tensor.detach() for name, tensor in tensors.items() if tensor.device.type != "cpu"}
    local = {name: tensor.detach() for name, tensor in tensors.items() if tensor.device.type == "cpu"}
    if len(remote) < 2:
        return {name: local.get(name, tensor.detach()).cpu() for name, tensor in tensors.items()}
    pieces = byte_ranges(remote)
    buffer = torch.cat([remote[name].contiguous().flatten().view(torch.uint8) for name in pieces]).cpu()
    found = {name: _view(buffer[start:end], remote[name]) for name, (start, end) in pieces.items()}
    return {name: local[name] if name in local else found[name] for name in tensors}


def byte_ranges(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Return the first and last byte of each tensor in a common buffer, wide types first, which keeps all aligned."""
    pieces, start = {}, 0
    for name in sorted(tensors, key=lambda name: -tensors[name].element_size()):
        end = start + _bytes(tensors[name])
        pieces[name] = (start, end)
        start = end
    return pieces


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _view(piece: Tensor, like: Tensor) -> Tensor:
    return piece.view(like.dtype).view(like.shape)


def _pinned(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory() if device.type == "cuda" and _can_pin() else tensor


@functools.cache
def _can_pin() -> bool:
    """Return whether pinned memory is to be had; a container may forbid it."""
    try:
        return torch.empty(1, pin_memory=True).is_pinned()
    except RuntimeError:
        return False
