"""Tier bounded beside the standard set on all images, ours and pyautoattack's: verdicts, the bound, and time."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from crosscheck_attacks import architectures, ours, toy_images, train
from crosscheck_peers import STANDARD, Outcome, autoattack
from torch import Tensor, nn

from part_robust.config import get_part_robust_cfg
from part_robust.evaluation.rounds import random_order
from part_robust.evaluation.sequential_bound import SequentialSample

# The nets of the cross-check are trained against half of this radius.
TOY_EPS = 16.0


@dataclass
class BoundedOutcome(Outcome):
    """Outcome of tier bounded.

    Attributes:
        at_most_more: images that would fall besides, with 95 % confidence, if all attacks ran on all images.
        drawn: images in the sample.
        stood: images it was drawn from.
    """

    at_most_more: int
    drawn: int
    stood: int


def bounded(
    net: nn.Module, images: Tensor, labels: Tensor, points: float, clock: Callable[[], float], **overrides: object
) -> BoundedOutcome:
    """Tier bounded on images in memory: the attacks, with `overrides`, and the sample are those of the evaluation."""
    sampled = tuple(name for name in STANDARD if name in get_part_robust_cfg().TEST.SAMPLED_ATTACKS)
    screen = tuple(name for name in STANDARD if name not in sampled)
    found = ours(net, images, labels, screen, clock, **overrides)
    robust, seconds, forwards = found.robust.clone(), found.seconds, found.forwards
    ids = robust.nonzero()[:, 0].cpu().numpy()
    order = torch.from_numpy(random_order(ids)).to(images.device)
    sample, drawn, fallen = SequentialSample(len(ids), int(points / 100 * len(images) + 1e-9)), 0, 0
    while (size := sample.next_size(drawn, fallen)) is not None:
        rows = order[drawn:size]
        found = ours(net, images[rows], labels[rows], sampled, clock, keys=rows, **overrides)
        robust[rows] = found.robust
        seconds, forwards = seconds + found.seconds, forwards + found.forwards
        drawn, fallen = size, fallen + int((~found.robust).sum())
    return BoundedOutcome(robust, forwards, seconds, sample.at_most_more(drawn, fallen), drawn, len(ids))


def compare(
    name: str, net: nn.Module, images: Tensor, labels: Tensor, points: float, clock: Callable[[], float], eps: float
) -> dict:
    """A row of the table; pyautoattack's columns are None where it is not installed."""
    whole = ours(net, images, labels, STANDARD, clock, EPS=eps)
    part = bounded(net, images, labels, points, clock, EPS=eps)
    official = None
    if find_spec("pyautoattack"):
        official = autoattack(net, images, labels, STANDARD, "linf", eps, seed=0, clock=clock)
    accuracy = {key: 100 * float(found.robust.float().mean()) for key, found in (("whole", whole), ("part", part))}
    return {
        "model": name,
        "images": len(images),
        "bounded %": accuracy["part"],
        "at most lower": 100 * part.at_most_more / len(images),
        "drawn": f"{part.drawn} of {part.stood}",
        "standard %": accuracy["whole"],
        "pyautoattack %": None if official is None else 100 * float(official.robust.float().mean()),
        "bounded, s": part.seconds,
        "over standard": part.seconds / whole.seconds,
        "over pyautoattack (target <= 0.4)": None if official is None else part.seconds / official.seconds,
    }


def compare_toys(count: int, points: float, clock: Callable[[], float]) -> list[dict]:
    """Rows of the cross-check's small nets."""
    rows = []
    for name, build in architectures().items():
        net = train(build, "linf", TOY_EPS)
        images, labels = toy_images(count, seed=1)
        rows.append(compare(name, net, images, labels, points, clock, TOY_EPS))
    return rows
