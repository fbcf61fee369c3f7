"""Fixtures: the toy data set, registered once, and one thread, which is fastest for tiny tensors."""

from __future__ import annotations

import pytest
import torch
from detectron2.data import DatasetCatalog

import part_robust.modeling  # noqa: F401  (registration)
from part_robust.data import register_part_dataset
from tests.toy import write_toy


def pytest_collection_modifyitems(items):
    """The pretend device comes last: a real GPU cannot be used for gradients in a process that has had it."""
    items.sort(key=lambda item: "pretend" in item.path.parts)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory):
    """(json, image root) of the toy data set, registered as toy_train and toy_val."""
    path, root = write_toy(tmp_path_factory.mktemp("toy"))
    for name in ("toy_train", "toy_val"):
        if name not in DatasetCatalog.list():
            register_part_dataset(name, path, root)
    return path, root
