"""Auto-PGD: its checkpoints, its best point, its schedule of radii, and against plain PGD."""

from __future__ import annotations

import pytest
import torch

from part_robust.attacks import ThreatModel, get_objective
from part_robust.attacks.apgd import checkpoints
from part_robust.attacks.noise import make_keys
from tests.attacks.nets import Curved, Linear, pictures, run


def test_checkpoints_of_the_paper():
    assert checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99, 100]
    assert checkpoints(1) == [0, 1] and checkpoints(2) == [0, 1, 2]
    for steps in range(1, 120):
        marks = checkpoints(steps)
        assert marks[0] == 0 and marks[-1] == steps and marks == sorted(set(marks))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_reaches_the_optimum_of_a_linear_model(norm):
    model, images = Linear(2), pictures()
    labels = torch.zeros(6, dtype=torch.long)
    result = run(model, {"NAME": "APGD", "OBJECTIVE": "margin", "STEPS": 30, "NORM": norm}, images, labels)
    slope = (model.weight[1] - model.weight[0]).detach()
    gain = 8.0 * slope.norm(p=1 if norm == "linf" else 2)
    margin = get_objective("margin").loss
    moved = (margin(model(result.images), labels) - margin(model(images), labels)).detach()
    torch.testing.assert_close(moved, gain.expand(6), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("objective", ["cross_entropy", "margin", "dlr"])
def test_never_worse_than_its_start_and_better_than_pgd(norm, objective):
    model, images = Curved(), pictures(40)
    labels = model(images).argmax(dim=1)
    # Less than it takes to fool most: then the best point is the one of largest loss.
    shared = {"OBJECTIVE": objective, "NORM": norm, "EPS": {"linf": 0.5, "l2": 3.0}[norm], "STEPS": 40}
    loss = get_objective(objective).loss
    keys = torch.arange(40)
    auto = loss(model(run(model, {"NAME": "APGD", **shared}, images, labels).images), labels)
    plain = loss(
        model(run(model, {**shared, "STEP_SIZE": shared["EPS"] / 4, "KEEP": "best"}, images, labels).images), labels
    )
    start = ThreatModel(norm, shared["EPS"]).random_start(images, make_keys(0, keys, 0))
    assert (auto >= torch.maximum(loss(model(start), labels), loss(model(images), labels)) - 1e-5).all()
    assert auto.mean() >= plain.mean() - 1e-3


def test_history_never_ends_below_its_best():
    model, images = Curved(), pictures(8)
    labels = model(images).argmax(dim=1)
    node = {"NAME": "APGD", "OBJECTIVE": "margin", "STEPS": 50, "EPS": 2.0, "RECORD_HISTORY": True}
    result = run(model, node, images, labels)
    reached = get_objective("margin").loss(model(result.images), labels)
    torch.testing.assert_close(reached, result.history.amax(dim=0), atol=1e-4, rtol=1e-4)


def test_more_steps_and_restarts_do_not_lose():
    model, images = Curved(), pictures(30)
    labels = model(images).argmax(dim=1)
    node = {"NAME": "APGD", "EPS": 2.0, "OBJECTIVE": "margin", "STEPS": 10}
    one, three = (run(model, {**node, "RESTARTS": count}, images, labels) for count in (1, 3))
    loss = get_objective("margin").loss
    assert (loss(model(three.images), labels) >= loss(model(one.images), labels) - 1e-5).all()


def test_schedule_counts_inside_the_radius_alone():
    """A model that breaks between eps and twice eps only: larger radii search, and prove nothing."""
    images = torch.full((3, 3, 4, 4), 100.0)

    class Shell(torch.nn.Module):
        def forward(self, x):
            far = (x - images[: len(x)]).abs().flatten(1).amax(dim=1)
            return torch.stack([9.0 - far, far - 9.0], dim=1)

    labels = torch.zeros(3, dtype=torch.long)
    node = {"NAME": "APGD", "EPS": 8.0, "STEPS": 20, "RADIUS_SCHEDULE": ((2.0, 0.5), (1.0, 0.5))}
    result = run(Shell(), node, images, labels)
    assert not result.success.any()
    assert ((result.images - images).abs().flatten(1).amax(dim=1) <= 8.0).all()
    wider = run(Shell(), {**node, "EPS": 9.5}, images, labels)
    assert wider.success.all()
