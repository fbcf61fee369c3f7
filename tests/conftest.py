"""Fixtures: the toy data set, registered once, a finished run, and one thread, which is fastest for tiny tensors."""

from __future__ import annotations

import logging
import os
import signal

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image

import part_robust.modeling  # noqa: F401  (registration)
from part_robust.data import register_part_dataset
from tests.processes import JOBS
from tests.toy import save_run, write_toy


def pytest_collection_modifyitems(items):
    """The pretend device comes last: a real GPU cannot be used for gradients in a process that has had it."""
    items.sort(key=lambda item: "pretend" in item.path.parts)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_closed_streams():
    """A handler for the terminal of an earlier test writes errors into the output of processes that this one forks."""
    for logger in [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]:
        for handler in list(logger.handlers):
            if isinstance(handler, logging.StreamHandler) and getattr(handler.stream, "closed", False):
                logger.removeHandler(handler)


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory):
    """(json, image root) of the toy data set, registered as toy_train and toy_val."""
    path, root = write_toy(tmp_path_factory.mktemp("toy"))
    for name in ("toy_train", "toy_val"):
        if name not in DatasetCatalog.list():
            register_part_dataset(name, path, root)
    return path, root


@pytest.fixture
def a_run(toy_data, tmp_path):
    """Makes the folder of a "finished" run of a toy (`tests.toy.save_run`), whose attacks are short."""

    def make(model: str, *opts):
        short = ["ATTACK.SPECS.pgd20.STEPS", 2, "ATTACK.SPECS.apgd_part_loss.STEPS", 3]
        save_run(tmp_path / "run", model, *short, *opts)
        return tmp_path / "run"

    return make


@pytest.fixture
def photos(tmp_path):
    """A folder of images of odd sizes and modes, and a file that is not an image by its ending."""
    folder = tmp_path / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 255, (50, 37, 3)).astype(np.uint8)).save(folder / "tall.jpg")
    Image.fromarray(generator.integers(0, 255, (9, 120)).astype(np.uint8)).save(folder / "wide.png")
    Image.fromarray(generator.integers(0, 255, (20, 20, 4)).astype(np.uint8), "RGBA").save(folder / "clear.PNG")
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture
def jobs():
    """Ends the processes that a test has left when it fails."""
    yield
    for job in JOBS:
        if job.process.is_alive():
            os.killpg(job.process.pid, signal.SIGKILL)
            job.process.join()
    JOBS.clear()
