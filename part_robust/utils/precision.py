"""The precision of float32 matrix products and convolutions on a GPU, set where it matters and recorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Within, float32 matrix products and convolutions on CUDA use TF32 (10 bits of mantissa instead of 23) or do not.

    cuDNN's convolutions use it by default, which changes the class of images near a boundary: an evaluation and its
    verification must not. On a CPU nothing changes.

    Args:
        allowed: use TF32.
    """
    before = _flags()
    _set(allowed, allowed)
    try:
        yield
    finally:
        _set(*before)


@contextmanager
def exact_kernels() -> Iterator[None]:
    """Context of evaluations, in which float32 is float32 (no TF32).

    cuDNN does not choose kernels by their time, which may give other last digits at every start.
    """
    benchmark = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        with tf32(False):
            yield
    finally:
        torch.backends.cudnn.benchmark = benchmark


def describe_precision() -> dict[str, str]:
    """Return how float32 numbers are multiplied now, for records: "float32" or "tf32" of `matmul` and `convolution`."""
    matmul, convolution = ("tf32" if flag else "float32" for flag in _flags())
    return {"matmul": matmul, "convolution": convolution}


def _flags() -> tuple[bool, bool]:
    try:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    except RuntimeError:  # precisions of single operators were set, which these flags cannot express
        return False, False


def _set(matmul: bool, convolution: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = matmul
    torch.backends.cudnn.allow_tf32 = convolution
