"""The device that a config names, and whether this machine has it."""

from __future__ import annotations

import torch

from part_robust.utils.errors import UserError


def check_device(name: str) -> None:
    """Check that a device can be used.

    Args:
        name: MODEL.DEVICE.

    Raises:
        UserError: the machine has no such device.
    """
    device = torch.device(name)
    if device.type != "cuda":
        return
    if not torch.cuda.is_available():
        raise UserError(
            f"MODEL.DEVICE must be a device of this machine, got {name}, and PyTorch finds no GPU here. Add "
            "MODEL.DEVICE cpu at the end of the command"
        )
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise UserError(
            f"MODEL.DEVICE must be one of the {torch.cuda.device_count()} GPUs of this machine, counted from cuda:0, "
            f"got {name}"
        )
