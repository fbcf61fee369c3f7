"""Checkpoints hold numbers, not programs: files are read so that nothing in them can run."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

# What pickled NumPy arrays are made of, and the containers around them (detectron2's model zoo).
ALLOWED = {
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}


class UnsafeCheckpoint(ValueError):
    """The file holds more than tensors and plain values."""


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ALLOWED or (module in ("builtins", "__builtin__") and name in ("set", "frozenset")):
            return super().find_class(module, name)
        raise UnsafeCheckpoint(f"{module}.{name}")


def check_pickle(path: str | Path) -> None:
    """
    Raises:
        UnsafeCheckpoint: the pickle holds anything but NumPy arrays, containers, strings and numbers.
    """
    with open(path, "rb") as file:
        try:
            _ArraysOnly(file, encoding="latin1").load()
        except UnsafeCheckpoint as error:
            raise UnsafeCheckpoint(_sentence(path, str(error))) from None


def load_tensors(path: str | Path) -> Any:
    """`torch.load` of tensors and plain values alone, onto the CPU.

    Raises:
        UnsafeCheckpoint: the file holds other objects.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnsafeCheckpoint(_sentence(path, str(error).splitlines()[0])) from error


def _sentence(path: str | Path, what: str) -> str:
    return (
        f"{path} holds objects that run code when they are read ({what}) and is not opened. If you trust whoever made "
        'it, keep its weights alone: python -c "import torch; '
        f"torch.save({{'model': torch.load('{path}', weights_only=False)['model']}}, 'weights.pth')\""
    )
