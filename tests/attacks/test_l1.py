"""The L1 ball inside the pixel range: projection and steps against general solvers, and l1-APGD's sparsity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize

from part_robust.attacks import ThreatModel, build_attack, get_objective, l1
from part_robust.attacks.noise import make_keys, uniform
from part_robust.attacks.problem import PlainForward, Problem
from tests.attacks.nets import Curved, Linear, pictures, run, spec

values = st.lists(st.floats(0, 255, width=32), min_size=4, max_size=4)
wide = st.lists(st.floats(-400, 600, width=32), min_size=4, max_size=4)


def row(numbers) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float32).view(1, 4, 1, 1)


def nearest(point: np.ndarray, image: np.ndarray, eps: float) -> np.ndarray:
    """Nearest allowed point by a general solver: ups and downs are separate variables, so that the norm is linear."""
    away = point - image

    def loss(moves):
        rest = moves[:4] - moves[4:] - away
        return rest @ rest / 1000, 2 * np.r_[rest, -rest] / 1000

    found = minimize(
        loss,
        np.zeros(8),
        jac=True,
        bounds=[(0, 255 - value) for value in image] + [(0, value) for value in image],
        constraints=[{"type": "ineq", "fun": lambda moves: eps - moves.sum(), "jac": lambda moves: -np.ones(8)}],
        method="SLSQP",
        options={"maxiter": 300, "ftol": 1e-12},
    )
    return image + found.x[:4] - found.x[4:]


@settings(max_examples=60, deadline=None)
@given(values, wide, st.floats(0, 900))
@example([0.0, 255.0, 100.0, 100.0], [-50.0, 300.0, 100.0, 400.0], 200.0)
@example([0.0, 0.0, 0.0, 0.0], [90.0, 90.0, 90.0, 90.0], 120.0)
def test_projection_is_the_solvers(image, point, eps):
    found = l1.project(row(point), row(image), eps, 0.0, 255.0).flatten().double().numpy()
    image, point = np.array(image), np.array(point)
    solved = nearest(point, image, eps)
    assert ((found - point) ** 2).sum() <= ((solved - point) ** 2).sum() * (1 + 1e-4) + 1e-2
    np.testing.assert_allclose(found, solved, atol=0.5)


@settings(max_examples=60, deadline=None)
@given(values, wide, st.floats(0, 900), st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_nothing_allowed_lies_beyond_the_projection(image, point, eps, shares):
    """Seen from the projection, the point lies on the other side of every allowed point."""
    threat, image, point = ThreatModel("l1", eps), row(image), row(point)
    found = threat.project(point, image)
    torch.testing.assert_close(threat.project(found, image), found, atol=1e-4, rtol=0)
    assert float((found - image).double().abs().sum()) <= eps * (1 + 1e-6) + 1e-6, "float32 rounds towards the image"
    other = threat.project(255 * row(shares), image)
    rounded = 2e-5 + 1e-6 * eps
    assert float(((point - found) * (other - found)).double().sum()) <= rounded * float((point - found).abs().sum())


def test_projection_of_many_values_at_once():
    """As large as images are: equal changes of all values would round the same way."""
    images = (255 * uniform(torch.arange(3), (3, 64, 64))).round()
    direction = torch.where(uniform(torch.arange(3), (3, 64, 64), stream=1) < 0.5, -1.0, 1.0)
    wanted = torch.stack(
        [images[0] + 0.2 * direction[0], images[1] + 300 * direction[1], (images[2] + 1e-3).clamp(max=255)]
    )
    found = l1.project(wanted, images, 700.0, 0.0, 255.0)
    total = (found - images).double().abs().flatten(1).sum(dim=1)
    assert (total <= 700.0).all() and (total[:2] > 699.0).all()
    assert torch.equal(found[2], wanted[2])
    assert all(
        torch.equal(l1.project(wanted[i : i + 1], images[i : i + 1], 700.0, 0.0, 255.0)[0], found[i]) for i in range(3)
    )


def test_pixels_that_must_stay_use_up_nothing_of_the_radius():
    images, keys = pictures(5, 6), torch.arange(5)
    mask = torch.zeros(5, 1, 6, 6)
    mask[:, :, :2] = 1.0
    threat = ThreatModel("l1", 300.0)
    problem = Problem(PlainForward(Linear()), images, keys, make_keys(0, keys), mask, threat, 1.0, keys)
    found = problem.project(images + 90.0)
    assert torch.equal(found[:, :, 2:], images[:, :, 2:])
    torch.testing.assert_close(found, problem.project(found))
    inside = threat.project(images + 90.0 * mask, images)
    torch.testing.assert_close(found, inside)
    torch.testing.assert_close(threat.distance(found, images), torch.full((5,), 300.0), rtol=1e-5, atol=0)
    start = problem.random_start()
    assert torch.equal(start[:, :, 2:], images[:, :, 2:])
    # 36 free values: the radius of a uniform point is 36 / 37 of eps on average.
    assert (threat.distance(start, images) > 200.0).all()


@settings(max_examples=60, deadline=None)
@given(values, st.lists(st.floats(-5, 5, width=16), min_size=4, max_size=4), st.floats(0, 900))
def test_steepest_step_is_the_solvers(image, gradient, length):
    step = l1.steepest_step(row(image), row(gradient), length, 0.0, 255.0)
    assert float(step.abs().sum()) <= length + 1e-3
    assert (row(image) + step >= 0).all() and (row(image) + step <= 255).all()
    ways = [(0.0, 255.0 - value) for value in image] + [(0.0, value) for value in image]
    slope = np.r_[gradient, -np.array(gradient)]
    solved = linprog(-slope, A_ub=np.ones((1, 8)), b_ub=[length], bounds=ways)
    assert float((step * row(gradient)).sum()) == pytest.approx(-solved.fun, rel=1e-4, abs=1e-2)


def test_sparse_signs_have_length_one():
    gradient = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    gradient[3] = 0.0
    signs = l1.sparse_signs(gradient, torch.tensor([7.2, 0.0, 1e9, 3.0]))
    assert (signs != 0).flatten(1).sum(dim=1).tolist() == [8, 1, 75, 0]
    torch.testing.assert_close(signs.abs().flatten(1).sum(dim=1), torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert gradient[0].abs()[signs[0] != 0].min() >= gradient[0].abs()[signs[0] == 0].max()
    assert (signs * gradient >= 0).all()


@pytest.mark.parametrize("name", ["pgd_l1", "apgd_l1"])
@pytest.mark.parametrize("eps", [8.0, 900.0])
def test_reach_the_optimum_of_a_linear_model(name, eps):
    """With 900, six values and more are at the end of the range."""
    model, images = Linear(2), pictures()
    labels = torch.zeros(6, dtype=torch.long)
    values = {"EPS": eps, "STEPS": 60, "STEP_SIZE": eps / 20, "OBJECTIVE": "margin", "RADIUS_SCHEDULE": ((1.0, 1.0),)}
    result = run(model, spec(name, **values), images, labels)
    slope = (model.weight[1] - model.weight[0]).detach().view(1, 3, 5, 5).expand(6, -1, -1, -1)
    best = (slope * l1.steepest_step(images, slope, eps, 0.0, 255.0)).flatten(1).sum(dim=1)
    margin = get_objective("margin").loss
    moved = (margin(model(result.images), labels) - margin(model(images), labels)).detach()
    torch.testing.assert_close(moved, best, rtol=2e-2, atol=1e-3)


def test_apgd_is_sparse_and_no_weaker_than_pgd():
    model, images = Curved(side=8), pictures(40, side=8)
    labels = model(images).argmax(dim=1)
    node = {"NORM": "l1", "EPS": 15.0, "STEPS": 40, "OBJECTIVE": "margin"}
    auto = run(model, {"NAME": "APGD", **node}, images, labels)
    plain = run(model, {**node, "STEP_SIZE": 4.0, "KEEP": "best"}, images, labels)
    assert 10 < int(plain.success.sum()) <= int(auto.success.sum()) < 40, "else this compares nothing"
    assert (auto.images != images).flatten(1).float().mean() < 0.3


@pytest.mark.parametrize(
    ("changes", "schedule"),
    [
        ({"NORM": "l1"}, [[3.0, 0.3], [2.0, 0.3], [1.0, 0.4]]),
        ({"NORM": "l1", "STEPS": 2}, [[1.0, 1.0]]),
        ({"NORM": "l1", "RADIUS_SCHEDULE": ((1.0, 1.0),)}, [[1.0, 1.0]]),
        ({"NORM": "l2"}, [[1.0, 1.0]]),
    ],
)
def test_published_schedule_is_the_default_under_l1_alone(changes, schedule):
    attack = build_attack({"NAME": "APGD", "STEPS": 100, "EPS": 9.0, **changes})
    assert attack.describe()["radius_schedule"] == schedule
