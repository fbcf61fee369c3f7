"""Data-loading workers and what they inherit from the process that forks them."""

from __future__ import annotations

import gc
import sys

import torch
from torch.utils.data import DataLoader, Dataset

from part_robust.engine import data_stream  # noqa: F401 (prepares forks)


class Numbers(Dataset):
    def __init__(self, collect: bool = False) -> None:
        self.collect = collect

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.collect:
            gc.collect()
            sys.stderr.flush()
        return torch.tensor(index)


class Trainer:
    """Refers to itself, as trainers do by their hooks, so that it ends by garbage collection alone."""

    def __init__(self) -> None:
        self.batches = iter(DataLoader(Numbers(), num_workers=1))
        next(self.batches)
        self.hook = self


def test_workers_do_not_collect_the_iterators_of_earlier_loaders(capfd, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)  # pytest's keeps them for itself
    gc.disable()
    try:
        Trainer()  # garbage with living workers from here on
        assert [int(x) for x in DataLoader(Numbers(collect=True), num_workers=1)] == [0, 1, 2, 3]
    finally:
        gc.enable()
        gc.collect()
    assert "can only test a child process" not in capfd.readouterr().err
