"""Checkpoints hold numbers, not programs: files are read so that nothing in them can run."""

from __future__ import annotations

import argparse
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from part_robust.utils.errors import UserError
from part_robust.utils.files import check_file

# What pickled NumPy arrays are made of, and the containers around them (detectron2's model zoo).
ALLOWED = {
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}


class UnsafeCheckpoint(UserError):
    """The file holds more than tensors and plain values."""


class NoCheckpoint(UserError):
    """The file is something else, or not whole."""


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ALLOWED or (module in ("builtins", "__builtin__") and name in ("set", "frozenset")):
            return super().find_class(module, name)
        raise UnsafeCheckpoint(f"{module}.{name}")


def check_pickle(path: str | Path) -> None:
    """Check that a pickle holds only plain data.

    Raises:
        UnsafeCheckpoint: the pickle holds anything but NumPy arrays, containers, strings and numbers.
        NoCheckpoint: the file is not a pickle, or not whole.
    """
    check_file(path, "a checkpoint")
    with open(path, "rb") as file:
        try:
            _ArraysOnly(file, encoding="latin1").load()
        except UnsafeCheckpoint as error:
            raise UnsafeCheckpoint(_sentence(path, str(error), _KEEP_ARRAYS)) from None
        except Exception as error:  # damaged pickles raise anything
            raise NoCheckpoint(_no_checkpoint(path)) from error


def load_tensors(path: str | Path) -> Any:
    """`torch.load` of tensors, plain values and parsed arguments alone, onto the CPU.

    Raises:
        UnsafeCheckpoint: the file holds other objects.
        NoCheckpoint: the file is not a checkpoint of PyTorch, or not whole.
        OSError: it cannot be read.
    """
    check_file(path, "a checkpoint")
    try:
        # Research code saves its parsed arguments beside the weights: attributes alone, nothing that runs.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise anything, a cut one an OSError without a name
        if isinstance(error, OSError) and error.filename:
            raise
        reason = next((line for line in str(error).splitlines() if _FOREIGN.search(line)), "")
        if isinstance(error, pickle.UnpicklingError) and reason and _begin(path).startswith(_MAGIC):
            raise UnsafeCheckpoint(_sentence(path, str(error).splitlines()[0], _KEEP_TENSORS)) from error
        raise NoCheckpoint(_no_checkpoint(path)) from error


def load_state(path: str | Path) -> dict:
    """Load a file that holds a mapping, as every checkpoint does; same as `load_tensors` otherwise.

    Raises:
        UnsafeCheckpoint, NoCheckpoint, OSError: same as `load_tensors`.
    """
    content = load_tensors(path)
    if not isinstance(content, dict):
        raise NoCheckpoint(f"{path} must be a checkpoint that holds weights by name, got a {type(content).__name__}")
    for name in ("", *(name for name in CONTAINERS if name in content)):
        problem = _not_weights(content[name] if name else content)
        if problem:
            raise NoCheckpoint(
                f"{path} must be a checkpoint that holds weights by name, got {problem} in {name or 'it'}"
            )
    if not isinstance(content.get("iteration", 0), int):
        raise NoCheckpoint(f"{path} must hold its iteration as a whole number, got {content['iteration']!r}")
    return content


# Where files keep the weights.
CONTAINERS = ("model", "state_dict", "model_state_dict", "model_state", "average")


def _not_weights(state: Any) -> str | None:
    """Return the fault of weights by name, as text, or None; other values than tensors may be among them."""
    if not isinstance(state, dict):
        return f"a {type(state).__name__}"
    for name, value in state.items():
        if not isinstance(name, str):
            return f"the name {name!r}"
        if isinstance(value, torch.Tensor) and (
            value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta
        ):
            return f"a tensor {name} that is sparse, quantized, complex or without values"
    return None


# Zip files, and pickles of protocol 2 and above.
_MAGIC = (b"PK\x03\x04", b"\x80")
# How torch.load refuses objects; damaged files give other messages.
_FOREIGN = re.compile(r"Unsupported (global|class)|GLOBAL|Can only build|Trying to (instantiate|call)|legacy")
_GUESSES = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file: git lfs pull"),
    (b"<", "a page of HTML or XML: the download went wrong"),
    (b"PK\x03\x04", "the beginning of a checkpoint: the file is cut off, copy or download it again"),
    (b"\x80", "a pickle that is damaged or cut off: copy or download it again"),
)


def _begin(path: str | Path, length: int = 40) -> bytes:
    with open(path, "rb") as file:
        return file.read(length)


def _no_checkpoint(path: str | Path) -> str:
    size, begin = Path(path).stat().st_size, _begin(path)
    if not size:
        return f"{path} must be a checkpoint, got an empty file"
    guess = next((f" ({words})" for magic, words in _GUESSES if begin.lstrip().startswith(magic)), "")
    return f"{path} must be a checkpoint, got {size} bytes that begin with {begin!r}{guess}"


_KEEP_TENSORS = (
    "import torch; c = torch.load({path!r}, weights_only=False); "
    "torch.save({{'model': c.get('model', c.get('state_dict', c))}}, 'weights.pth')"
)
_KEEP_ARRAYS = (
    "import pickle; c = pickle.load(open({path!r}, 'rb'), encoding='latin1'); "
    "c = {{'model': c.get('model', c), '__author__': '', 'matching_heuristics': True}}; "
    "pickle.dump(c, open('weights.pkl', 'wb'))"
)


def _sentence(path: str | Path, what: str, keep: str) -> str:
    return (
        f"{path} holds objects that run code when they are read ({what}) and is not opened. If you trust its author, "
        f'keep its weights alone: python -c "{keep.format(path=str(path))}"'
    )
