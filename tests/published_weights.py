"""Checkpoints of published part models' layouts with random weights, a function of public key names and shapes.

The numbers that the public code gives with them are in tests/fixtures/published_small.npz, see
tests/fixtures/make_published_small.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.dino_weights import make_weight

FILE = Path(__file__).with_name("fixtures") / "published_small.npz"
# Numbers of parts and classes of the part models, and of classes of the others.
PARTS, CLASSES = 6, 3
CONSTANTS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def images() -> Tensor:
    """Return an RGB image (1, 3, 224, 256), 0..255: the strides divide its sides, a dilation of 12 fits inside."""
    return torch.from_numpy(255.0 * np.random.RandomState(0).rand(1, 3, 224, 256).astype(np.float32))


def fill_state(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights of `make_weight`, with the normalisation and counters as in a file."""
    state = {}
    for key, shape in shapes.items():
        leaf = key.rsplit(".", 1)[-1]
        if leaf == "num_batches_tracked":
            state[key] = torch.tensor(1)
        elif leaf in CONSTANTS and len(shape) == 4:
            state[key] = torch.tensor(CONSTANTS[leaf]).view(shape)
        elif leaf == "gamma":
            state[key] = 0.1 * make_weight(key, shape)
        else:
            state[key] = make_weight(key, shape)
    return state


def published(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The file of a published model, and the numbers that the public code gives for `images` with it."""
    with np.load(FILE) as file:
        shapes = json.loads(str(file[f"{name}.shapes"]))
        numbers = {
            key.removeprefix(f"{name}."): torch.from_numpy(file[key])
            for key in file.files
            if key.startswith(f"{name}.") and not key.endswith(".shapes")
        }
    return fill_state({key: tuple(shape) for key, shape in shapes.items()}), numbers


def sample(feature: Tensor) -> Tensor:
    """Every 13th channel and every 4th row and column of a feature (N, C, H, W)."""
    return feature[:, ::13, ::4, ::4]
