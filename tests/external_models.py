"""Classifiers from elsewhere for tests: a small network that has learned the toy data, and a module of callables."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tests.toy import CLASSES, SIZE, toy_json

MEAN, STD = 0.5, 0.25
# Of `part-robust evaluate-model`: what the network below takes.
FLAGS = ["--size", str(SIZE), "--mean", str(MEAN), "--std", str(STD)]
SHORT = [
    *("MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "DATALOADER.TEST_BATCH_SIZE", "5"),
    *("TEST.TIER", "screen", "ATTACK.SPECS.apgd_ce.STEPS", "4", "ATTACK.SPECS.apgd_t.STEPS", "2"),
    *("ATTACK.SPECS.fab_t.STEPS", "2", "ATTACK.SPECS.square.STEPS", "10"),
    *("TEST.CHECKS.IMAGES", "3", "TEST.CHECKS.SIBLINGS", ""),
]


def network(outputs: int = len(CLASSES)) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(8 * 16, outputs),
    )


def toy_images() -> tuple[Tensor, Tensor]:
    """The toy's images as the network takes them, and their classes."""
    data, pixels = toy_json()
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255
    return (images - MEAN) / STD, torch.tensor([image["class_id"] - 1 for image in data["images"]])


@torch.enable_grad()
def learn(model: nn.Module, forward: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, steps: int) -> None:
    """Trains a model on a few images, which it is right on afterwards, in eval mode."""
    optimizer = torch.optim.Adam(model.train().parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(forward(images), labels).backward()
        optimizer.step()
    model.eval()


@functools.cache
def trained() -> nn.Sequential:
    """The network that has learned the toy data, in eval mode; it is right on all of them."""
    torch.manual_seed(0)
    model, (images, labels) = network(), toy_images()
    learn(model, model, images, labels, steps=40)
    with torch.no_grad():
        assert bool((model(images).argmax(dim=1) == labels).all())
    return model


def save_torchscript(path: Path, model: nn.Module) -> str:
    torch.jit.save(torch.jit.trace(model, toy_images()[0][:2], check_trace=False), str(path))
    return str(path)


def save_exported(path: Path, model: nn.Module, number: int = 2, least: int | None = None) -> str:
    """A graph of `number` images, or of `least` and more."""
    shapes = None if least is None else ({0: torch.export.Dim("N", min=least, max=512)},)
    torch.export.save(torch.export.export(model, (toy_images()[0][:number],), dynamic_shapes=shapes), str(path))
    return str(path)


CALLABLES = """
import torch
from torch import nn

from tests.external_models import network, trained


def loaded(path):
    model = network()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model


def of(change):
    return lambda: lambda images: change(images)


learned = trained
random_weights = network
no_gradient = of(torch.no_grad()(lambda x: trained()(x)))
in_numpy = of(lambda x: trained()(x).detach().numpy())
probabilities = lambda: nn.Sequential(trained(), nn.Softmax(dim=1))
of_the_batch = of(lambda x: trained()(x - x.mean(dim=0)))
noisy = of(lambda x: trained()(x + 0.3 * torch.randn_like(x)))
named = of(lambda x: {"features": x, "logits": trained()(x)})
pair = of(lambda x: (x.mean(), trained()(x)))
blue_first = of(lambda x: trained()(x.flip(1)))
five = lambda: nn.Sequential(trained(), nn.Linear(3, 5))
infinite = of(lambda x: trained()(x) / 0)
half = lambda: network().half()
one_by_one = of(lambda x: trained()(x.view(1, 3, 32, 32)))
pairs = of(lambda x: trained()(x.view(2, 3, 32, 32)))
larger = lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 3))
nothing = lambda: None
broken = lambda: 1 / 0
value = 7
"""


def write_callables(folder: Path) -> Path:
    """Writes the module `external_callables`."""
    path = folder / "external_callables.py"
    path.write_text(CALLABLES)
    return path
