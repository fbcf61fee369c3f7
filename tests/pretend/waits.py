"""Waits for the device, by place: operators and copies that stop the host until the device has caught up.

Counted are: reading a number (`item`, `float`, `bool`, `tolist`, `cpu`), every copy to the host that is not
non-blocking, copies to the device from pageable memory (CUDA stages them, so the stream is waited for also with
non_blocking=True) or blocking ones from pinned memory, indices on the CPU, and operators whose output shape depends on
values. Numbers that enter operators as Python scalars and factories on the device do not wait.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
OWN = ("device.py", "waits.py", "autocast.py", "world.py")
OWN_FILES = tuple(str(Path(__file__).resolve().parent / name) for name in OWN)

# Operators that read the device: the value itself, or the size of their result.
READING = {
    "_local_scalar_dense": "item",
    "nonzero": "nonzero",
    "masked_select": "masked_select",
    "_unique": "unique",
    "_unique2": "unique",
    "unique_dim": "unique",
    "unique_consecutive": "unique",
    "bincount": "bincount",
    "equal": "equal",
    "multinomial": "multinomial",
}
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")

_counts: Counter | None = None
_pinned: dict[int, torch.UntypedStorage] = {}


@contextmanager
def count_waits() -> Iterator[Counter]:
    """Counts waits inside by (kind, "file:line") of the innermost line of the project; contexts nest."""
    global _counts
    outer, found = _counts, Counter()
    _counts = found
    try:
        yield found
    finally:
        _counts = outer
        if outer is not None:
            outer.update(found)


def place() -> str:
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(str(ROOT)) and name not in OWN_FILES and ".venv" not in name:
            return f"{name[len(str(ROOT)) + 1 :]}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


def note(kind: str) -> None:
    if _counts is not None:
        _counts[kind, place()] += 1


def note_operator(name: str, args: tuple, kwargs: dict) -> None:
    if name in READING:
        note(READING[name])
    elif name == "repeat_interleave" and kwargs.get("output_size") is None:  # the host sums the repeats
        note("repeat_interleave")
    elif name in INDEXING and any(_is_mask(index) for index in args[1]) and not _fills_one_number(args):
        note("boolean index")


def _is_mask(index: object) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def _fills_one_number(args: tuple) -> bool:
    """Whether it is `x[mask] = number`, which CUDA runs as `masked_fill`."""
    values, accumulate = (args + (None, False))[2:4]
    return isinstance(values, Tensor) and values.numel() == 1 and not accumulate


def note_copy(direction: str, source: Tensor, non_blocking: bool) -> None:
    pinned = direction == "to host" or is_pinned(source)
    if not (non_blocking and pinned):
        note(direction)


def pin(tensor: Tensor) -> Tensor:
    """A copy that counts as pinned, as do its views. Kept until `unpin`, so that no other tensor gets its address."""
    result = tensor.clone()
    _pinned[result.untyped_storage().data_ptr()] = result.untyped_storage()
    return result


def unpin() -> None:
    """Nothing is pinned any more."""
    _pinned.clear()


def is_pinned(tensor: Tensor) -> bool:
    return tensor.untyped_storage().data_ptr() in _pinned
