"""FAB: exact on linear models, and its projection against a linear program and a quadratic one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize

from part_robust.attacks.fab import shortest_change
from part_robust.attacks.threat_model import NORMS, ThreatModel
from tests.attacks.nets import Curved, Linear, pictures, run


@pytest.mark.parametrize("norm", NORMS)
def test_finds_the_exact_distance_of_a_linear_model(norm):
    model, images = Linear(), pictures(10)
    labels = model(images).argmax(dim=1)
    labels[0] = (labels[0] + 1) % 5
    exact = model.distances(images, labels, norm)
    eps = float(exact.median())
    result = run(model, {"NAME": "FAB", "STEPS": 10, "NORM": norm, "EPS": eps, "NUM_TARGETS": 4}, images, labels)
    torch.testing.assert_close(result.distance[1:], exact[1:], rtol=1e-3, atol=0)
    assert result.distance[0] == 0
    assert (result.distance >= exact.clamp(min=0) * (1 - 1e-4)).all(), "nothing is nearer than the nearest"
    assert torch.equal(result.success, result.distance <= eps)
    assert torch.equal(result.images[~result.success], images[~result.success]), "what is too far is not returned"


def test_distance_does_not_depend_on_eps_and_no_start_does_harm():
    model, images = Curved(), pictures(10)
    labels = model(images).argmax(dim=1)
    node = {"NAME": "FAB", "STEPS": 20, "NUM_TARGETS": 4}
    found = [run(model, {**node, "EPS": eps}, images, labels) for eps in (0.5, 8.0)]
    assert torch.equal(found[0].distance, found[1].distance) and torch.isfinite(found[0].distance).all()
    more = run(model, {**node, "EPS": 8.0, "RESTARTS": 2}, images, labels)
    assert (more.distance <= found[1].distance).all()


def linear_optimum(x, slope, gap, norm):
    """(reachable, norm of the shortest change) by general solvers."""
    sign = 1.0 if gap >= 0 else -1.0
    bounds = [(-value, 255.0 - value) for value in x]
    if norm == "linf":
        # Minimise r with |d_i| <= r.
        count = len(x)
        rows = np.block([[np.eye(count), -np.ones((count, 1))], [-np.eye(count), -np.ones((count, 1))]])
        found = linprog(
            np.r_[np.zeros(count), 1.0], rows, np.zeros(2 * count), np.r_[slope, 0.0][None], [gap], [*bounds, (0, None)]
        )
        return found.success, found.fun
    if norm == "l1":
        # Minimise the sum of ups and downs, none of them negative.
        ways = [(0.0, 255.0 - value) for value in x] + [(0.0, value) for value in x]
        found = linprog(np.ones(2 * len(x)), A_eq=np.r_[slope, -slope][None], b_eq=[gap], bounds=ways)
        return found.success, found.fun
    reach = sum(abs(w) * (high if w * sign > 0 else -low) for w, (low, high) in zip(slope, bounds, strict=True))
    if reach < abs(gap):
        return False, None
    constraint = {"type": "eq", "fun": lambda d: d @ slope - gap, "jac": lambda d: slope}
    found = minimize(
        lambda d: d @ d, np.zeros(len(x)), jac=lambda d: 2 * d, bounds=bounds, constraints=[constraint], method="SLSQP"
    )
    return found.success, found.fun**0.5


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(0, 255), min_size=4, max_size=4),
    st.lists(st.sampled_from([0.0, 0.5, -1.0, 2.0, -3.0]), min_size=4, max_size=4).filter(any),
    st.floats(-900, 900),
    st.sampled_from(NORMS),
)
def test_shortest_change_is_the_solvers(x, slope, gap, norm):
    x, slope = np.array(x, dtype=np.float32).astype(float), np.array(slope)
    # Columns (1, 4, 1, 1): the function does not care about the shape.
    pixels, weights = (torch.tensor(value, dtype=torch.float32).view(1, 4, 1, 1) for value in (x, slope))
    change = shortest_change(pixels, weights, torch.tensor([gap], dtype=torch.float32), norm, 0.0, 255.0)
    moved = (pixels + change).flatten().numpy()
    assert (moved >= -1e-3).all() and (moved <= 255.0 + 1e-3).all()
    reachable, length = linear_optimum(x, slope, gap, norm)
    gained = float((change * weights).sum())
    if reachable:
        assert gained == pytest.approx(gap, rel=1e-4, abs=1e-2)
        assert float(ThreatModel(norm).length(change)) == pytest.approx(length, rel=1e-3, abs=1e-2)
    else:
        side = np.where(slope * np.sign(gap) > 0, 255.0 - x, np.where(slope == 0, 0.0, -x))
        assert gained == pytest.approx(float(side @ slope), rel=1e-4, abs=1e-2), "as far as it goes"


def test_shortest_change_of_nothing():
    x = torch.full((2, 3, 2, 2), 100.0)
    for norm in NORMS:
        assert not shortest_change(x, torch.zeros_like(x), torch.ones(2), norm, 0.0, 255.0).any()
        assert not shortest_change(x, torch.ones_like(x), torch.zeros(2), norm, 0.0, 255.0).any()
