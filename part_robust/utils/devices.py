"""The device that a config names, and whether this machine has it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from part_robust.utils.errors import UserError


def module_device(module: nn.Module) -> torch.device:
    """Return the device of a module's weights or, if it has none, of its buffers; the CPU where it has neither."""
    for tensors in (module.parameters(), module.buffers()):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")


def check_device(name: str, option: str = "MODEL.DEVICE") -> None:
    """Check that a device can be used.

    Args:
        name: of the device.
        option: key or flag that gives it, for the message.

    Raises:
        UserError: the name is not that of a device, or the machine lacks it.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"{option} must be a device such as cpu, cuda or cuda:0, got {name}") from error
    remedy = "Add MODEL.DEVICE cpu at the end of the command" if option == "MODEL.DEVICE" else f"Give {option} cpu"
    available: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
    }
    if device.type in available and not available[device.type]():
        raise UserError(
            f"{option} must be a device of this machine, got {name}, and PyTorch finds no such GPU here. {remedy}"
        )
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise UserError(
            f"{option} must be one of the {torch.cuda.device_count()} GPUs of this machine, counted from cuda:0, "
            f"got {name}"
        )
