"""Square: its patches, its random numbers, and that more queries never help the model."""

from __future__ import annotations

import pytest
import torch

from part_robust.attacks import get_objective
from part_robust.attacks.noise import make_keys, uniform
from part_robust.attacks.square import POWER, double_bump, moved_mass, stripes, tiles, window
from tests.attacks.nets import Curved, pictures, run


@pytest.mark.parametrize(("height", "width"), [(7, 7), (5, 12), (31, 8), (3, 4)])
def test_first_perturbations(height, width):
    keys = make_keys(0, torch.arange(200))
    first = stripes(keys, torch.Size((3, height, width)))
    assert first.shape == (200, 3, height, width) and set(first.unique().tolist()) == {-1.0, 1.0}
    assert (first == first[:, :, :1]).all() and abs(first.mean()) < 0.1
    for norm, power in POWER.items():
        first = tiles(keys, torch.Size((3, height, width)), norm)
        torch.testing.assert_close(first.flatten(1).norm(power, dim=1), torch.ones(200))
        assert abs(first.sum(dim=(1, 2, 3)).mean()) < 1.0 and not torch.equal(first[0], first[1])


def test_windows_reach_every_place_and_stay_inside():
    drawn = torch.stack(torch.meshgrid(torch.linspace(0, 0.9999, 40), torch.linspace(0, 0.9999, 40), indexing="ij"), -1)
    squares = window(drawn.view(-1, 2), 3, 6, 9)
    assert (squares.flatten(1).sum(dim=1) == 9).all()
    assert squares[:, 0].flatten(1).any(dim=0).all()
    assert window(torch.tensor([[0.999, 0.999]]), 6, 6, 6).all()


@pytest.mark.parametrize(("norm", "eps"), [("l2", 30.0), ("l1", 400.0)])
@pytest.mark.parametrize("side", [3, 5, 11])
def test_moved_mass_fills_the_ball_and_changes_two_windows_alone(side, norm, eps):
    delta = torch.randn(20, 3, 11, 13, generator=torch.Generator().manual_seed(0))
    delta[0] = 0.0
    drawn = uniform(make_keys(0, torch.arange(20)), (8,))
    moved = moved_mass(delta, drawn, side, eps, norm)
    length = moved.flatten(1).norm(POWER[norm], dim=1)
    if norm == "l2":
        torch.testing.assert_close(length, torch.full((20,), eps))
    else:
        assert (length >= eps * (1 - 1e-5)).all(), "the projection takes back the rest"
    changed = window(drawn[:, :2], side, 11, 13) | window(drawn[:, 2:4], side, 11, 13)
    assert torch.equal(moved[~changed.expand_as(moved)], delta[~changed.expand_as(delta)])
    emptied = window(drawn[:, 2:4], side, 11, 13) & ~window(drawn[:, :2], side, 11, 13)
    assert not moved[emptied.expand_as(moved)].any()


def test_bump_has_a_hill_and_a_valley():
    for side in (2, 3, 4, 9):
        for norm, power in POWER.items():
            bump = double_bump(side, torch.device("cpu"), norm)
            assert bump.shape == (side, side) and float(bump.norm(power)) == pytest.approx(1.0)
            assert (bump[: side // 2] > 0).all() and (bump[side // 2 :] < 0).all()


@pytest.mark.parametrize(("norm", "eps"), [("linf", 3.0), ("l2", 3.0), ("l1", 60.0)])
def test_more_queries_never_help_the_model(norm, eps):
    model, images = Curved(side=8), pictures(12, side=8)
    labels = model(images).argmax(dim=1)
    losses = []
    for queries in (1, 20, 200):
        node = {"NAME": "Square", "OBJECTIVE": "margin", "STEPS": queries, "NORM": norm, "EPS": eps}
        result = run(model, node, images, labels)
        assert result.forwards == 12 * (queries + 1)
        losses.append(get_objective("margin").loss(model(result.images), labels))
    assert (losses[1] >= losses[0] - 1e-5).all() and (losses[2] >= losses[1] - 1e-5).all()
    assert losses[2].mean() > losses[0].mean() + 0.1
