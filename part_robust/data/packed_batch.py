"""Batches on their way from a data-loading worker, all tensors of a batch in one piece of shared memory.

torch hands every tensor to another process as a file of its own. A batch of 32 images with masks, boxes and labels has
more than a hundred tensors, and each costs both processes system calls and an open file.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from part_robust.utils.transfer import byte_ranges


class PackedBatch(list):
    """A list of mapped images, for `collate_fn` of a DataLoader; other processes receive it as an ordinary list."""

    def __reduce__(self) -> tuple:
        return unpack, pack(list(self))


@dataclass(frozen=True)
class Piece:
    """Where a tensor is in the buffer: its first and last byte, type and shape."""

    start: int
    end: int
    dtype: torch.dtype
    shape: torch.Size

    def of(self, buffer: Tensor) -> Tensor:
        """Return the tensor, a view of the buffer, uint8 (bytes,)."""
        return buffer[self.start : self.end].view(self.dtype).view(self.shape)


def pack(batch: Any) -> tuple[bytes, list[Piece], Tensor]:
    """Return what `unpack` takes: a pickled object without its tensors, where these are, and a uint8 (bytes,) buffer.

    Args:
        batch: anything that can be pickled; its tensors are on the CPU and take no gradient. In the result they are
            contiguous.
    """
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(batch)
    tensors = {str(index): tensor for index, tensor in enumerate(pickler.tensors)}
    ranges = byte_ranges(tensors)
    pieces = [Piece(*ranges[name], tensor.dtype, tensor.shape) for name, tensor in tensors.items()]
    # In shared memory from the start, as torch's default_collate does, which saves a copy.
    storage = torch.UntypedStorage._new_shared(max((piece.end for piece in pieces), default=0))
    buffer = torch.empty(0, dtype=torch.uint8).set_(storage)
    for piece, tensor in zip(pieces, pickler.tensors, strict=True):
        piece.of(buffer).copy_(tensor)
    return file.getvalue(), pieces, buffer


def unpack(pickled: bytes, pieces: Sequence[Piece], buffer: Tensor) -> Any:
    """Return the object that `pack` got; its tensors are views of the buffer."""
    return _Unpickler(io.BytesIO(pickled), [piece.of(buffer) for piece in pieces]).load()


class _Pickler(pickle.Pickler):
    """Leaves out tensors; `tensors` are these in the order of their numbers."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []
        self.numbers: dict[int, int] = {}

    def persistent_id(self, value: Any) -> int | None:
        if type(value) is not Tensor:
            return None
        # One tensor in two places stays one.
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.tensors)
            self.tensors.append(value)
        return self.numbers[id(value)]


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: Sequence[Tensor]) -> None:
        super().__init__(file)
        self.tensors = tensors

    def persistent_load(self, number: int) -> Tensor:
        return self.tensors[number]
