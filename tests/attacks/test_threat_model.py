"""Properties of balls, projections and random starts."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from part_robust.attacks import ThreatModel, ThreatModelViolation
from part_robust.attacks.noise import make_keys
from part_robust.attacks.threat_model import NORMS

SHAPE = (3, 3, 4, 5)
pixels = hnp.arrays(np.float32, SHAPE, elements=st.floats(0, 255, width=32))
changes = hnp.arrays(np.float32, SHAPE, elements=st.floats(-300, 300, width=32))
norms = st.sampled_from(NORMS)
radii = st.floats(0, 400)


@given(pixels, changes, norms, radii)
def test_projection_is_allowed_and_changes_nothing_the_second_time(image, change, norm, eps):
    threat = ThreatModel(norm, eps)
    image = torch.from_numpy(image)
    projected = threat.project(image + torch.from_numpy(change), image)
    threat.verify(projected, image)
    torch.testing.assert_close(threat.project(projected, image), projected, atol=2e-4, rtol=1e-5)


@given(pixels, changes, norms, st.floats(1, 400))
def test_projection_never_moves_an_allowed_point_nor_expands(image, change, norm, eps):
    threat = ThreatModel(norm, eps)
    image = torch.from_numpy(image)
    wanted = (image + torch.from_numpy(change)).clamp(0, 255)
    projected = threat.project(wanted, image)
    distance = threat.distance(wanted, image)
    assert (threat.distance(projected, image) <= distance + 1e-3).all()
    inside = distance <= eps * 0.999
    torch.testing.assert_close(projected[inside], wanted[inside], atol=1e-4, rtol=0)


@given(pixels, norms, radii, st.integers(-(2**63), 2**63 - 1))
def test_random_start_is_allowed(image, norm, eps, seed):
    threat = ThreatModel(norm, eps)
    image = torch.from_numpy(image)
    threat.verify(threat.random_start(image, make_keys(0, torch.full((3,), seed))), image)


@pytest.mark.parametrize("norm", NORMS)
def test_random_start_fills_the_ball(norm):
    image = torch.full((400, 1, 2, 2), 128.0)
    threat = ThreatModel(norm, 10.0)
    start = threat.random_start(image, torch.arange(400))
    delta = (start - image).flatten(1)
    assert delta.mean().abs() < 0.5, "centred"
    radius = threat.distance(start, image) / 10.0
    # In d dimensions the share of volume inside radius r is r^d; here d = 4.
    for r in (0.5, 0.7, 0.9):
        assert (radius <= r).float().mean().item() == pytest.approx(r**4, abs=0.06)


def test_l2_projection_lands_on_the_sphere_only_from_outside():
    """The published code moved every point to the sphere: a change of length 0.1 became one of length 1."""
    image = torch.full((2, 3, 2, 2), 100.0)
    change = torch.zeros_like(image)
    change[0, 0, 0, 0], change[1, 0, 0, 0] = 0.1, 50.0
    projected = ThreatModel("l2", 1.0).project(image + change, image)
    assert (projected - image).flatten(1).norm(dim=1).tolist() == pytest.approx([0.1, 1.0], rel=1e-3)


@pytest.mark.parametrize("norm", NORMS)
def test_ascent_direction_is_steepest(norm):
    gradient = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    gradient[3] *= 1e-25  # its squares underflow in float32
    direction = ThreatModel(norm, 1.0).ascent_direction(gradient)
    length = ThreatModel(norm, 1.0).distance(direction, torch.zeros_like(direction))
    torch.testing.assert_close(length, torch.ones(4))
    scale = gradient.flatten(1).abs().amax(dim=1)[:, None]
    gain = ((direction.flatten(1)) * (gradient.flatten(1) / scale)).sum(dim=1)
    dual = (gradient.flatten(1) / scale).norm(p={"linf": 1, "l2": 2, "l1": float("inf")}[norm], dim=1)
    torch.testing.assert_close(gain, dual)
    assert not ThreatModel(norm, 1.0).ascent_direction(torch.zeros(1, 3, 2, 2)).any()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda x: x + 8.1, "distance"),
        (lambda x: torch.full_like(x, 255.5), "pixels"),
        (lambda x: x.clone().index_put((torch.tensor([1]),), torch.tensor(float("nan"))), "nan"),
    ],
)
def test_verify_refuses(spoil, reason):
    image = torch.full((2, 3, 2, 2), 248.0)
    with pytest.raises(ThreatModelViolation, match=reason):
        ThreatModel("linf", 8.0).verify(spoil(image), image)


def test_impossible_values():
    with pytest.raises(ValueError, match="norm"):
        ThreatModel("l3", 8.0)
    with pytest.raises(ValueError, match="eps"):
        ThreatModel("linf", -1.0)
