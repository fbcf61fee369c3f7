"""Losses against formulas written another way."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cosine, jensenshannon
from scipy.special import softmax

from part_robust.attacks import get_objective
from part_robust.attacks.objective import OBJECTIVES
from part_robust.attacks.part_losses import SHARPNESS

PARTS = [name for name in OBJECTIVES if OBJECTIVES[name].needs_pixels]


def part_case(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(3, 4, 5, 6, generator=generator)
    labels = torch.randint(0, 4, (3, 5, 6), generator=generator)
    labels[0, :2] = 255
    labels[1] = 65535
    return logits, labels


def pixels(logits, labels, row):
    """(label, probabilities) of the labelled pixels of one image."""
    counted = (labels[row] < 4).numpy()
    probabilities = softmax(logits[row].double().numpy(), axis=0)[:, counted].T
    return labels[row].numpy()[counted], probabilities


def margin(p, label):
    """Best wrong logit minus the right one."""
    return math.log(np.delete(p, label).max() / p[label])


def expected(name, label, p, present, unit):
    """The loss of one pixel of an image.

    `present` are the image's labelled pixels by label, and `unit` is their mean absolute margin.
    """
    entropy = -math.log(p[label])
    right = p.argmax() == label
    if name == "pixel_cross_entropy":
        return entropy
    if name == "masked_cross_entropy":
        return entropy * right
    if name == "balanced_cross_entropy":
        return entropy * right * sum(present.values()) / (len(present) * present[label])
    if name == "jensen_shannon":
        return jensenshannon(p, np.eye(4)[label]) ** 2  # scipy's is the distance, the root of the divergence
    if name == "soft_wrong_pixels":
        return 1 / (1 + math.exp(-SHARPNESS * margin(p, label) / unit))
    if name == "segpgd":  # at progress 0.5
        return entropy * (0.75 if right else 0.25)
    if name == "cospgd":
        return entropy * (1 - cosine(p, np.eye(4)[label]))
    raise AssertionError(f"no formula for {name}")


@pytest.mark.parametrize("name", PARTS)
def test_part_losses(name):
    logits, labels = part_case()
    objective = get_objective(name)
    loss = objective.value(logits, labels, 0.5)
    for row in (0, 2):
        truth, probabilities = pixels(logits, labels, row)
        present = {label: int((truth == label).sum()) for label in set(truth.tolist())}
        unit = np.mean([abs(margin(p, int(y))) for y, p in zip(truth, probabilities, strict=True)])
        single = [expected(name, int(y), p, present, unit) for y, p in zip(truth, probabilities, strict=True)]
        assert float(loss[row]) == pytest.approx(np.mean(single), rel=1e-4), name
    assert float(loss[1]) == 0.0
    found = objective.score(logits, labels, loss)
    wrong = [np.mean(p.argmax(axis=1) != y) for y, p in (pixels(logits, labels, row) for row in (0, 2))]
    assert found.margin_score[[0, 2]].tolist() == pytest.approx(wrong) and float(found.margin_score[1]) == 0.0
    assert found.nothing_to_attack.tolist() == [False, True, False]


@pytest.mark.parametrize("name", PARTS)
def test_part_losses_stay_finite_and_their_gradients_too(name):
    logits, labels = part_case()
    for factor in (0.0, 1.0, 1e4):
        scaled = (factor * logits).requires_grad_(True)
        loss = get_objective(name).value(scaled, labels, 1.0)
        (slope,) = torch.autograd.grad(loss.sum(), scaled)
        assert torch.isfinite(loss).all() and torch.isfinite(slope).all(), factor
        assert not slope[1].any() and not slope[0, :, :2].any(), "labels that count nowhere pull nowhere"


def test_a_factor_of_the_logits_does_not_change_the_soft_share():
    logits, labels = part_case()
    loss = get_objective("soft_wrong_pixels").value
    for factor in (1e-3, 1e3):
        torch.testing.assert_close(loss(factor * logits, labels), loss(logits, labels))


def test_weights_of_segpgd_move_from_right_to_wrong_pixels():
    logits, labels = part_case()
    objective = get_objective("segpgd")
    start, end = objective.value(logits, labels, 0.0), objective.value(logits, labels, 1.0)
    torch.testing.assert_close(start, get_objective("masked_cross_entropy").value(logits, labels))
    torch.testing.assert_close(end, get_objective("pixel_cross_entropy").value(logits, labels) / 2)


@settings(max_examples=50, deadline=None)
@given(st.integers(4, 9), st.floats(0.1, 50), st.floats(-100, 100), st.integers(0, 10**6))
def test_dlr_forgets_scale_and_shift(classes, factor, shift, seed):
    logits = torch.randn(5, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()
    labels = torch.arange(5) % classes
    target_classes = (labels + 1) % classes
    for name, targets in (("dlr", labels), ("targeted_dlr", (labels, target_classes))):
        loss = get_objective(name).value(logits, targets)
        moved = get_objective(name).value(factor * logits + shift, targets)
        torch.testing.assert_close(moved, loss, rtol=2e-2, atol=1e-3)


def test_dlr_by_hand():
    logits = torch.tensor([[5.0, 1.0, 3.0, 2.0, 0.0]])
    label = torch.tensor([0])
    assert float(get_objective("dlr").value(logits, label)) == pytest.approx((3 - 5) / (5 - 2))
    aimed = get_objective("targeted_dlr").value(logits, (label, torch.tensor([3])))
    assert float(aimed) == pytest.approx((2 - 5) / (5 - (2 + 1) / 2))
    assert float(get_objective("targeted_margin").value(logits, (label, torch.tensor([1])))) == -4.0


@pytest.mark.parametrize("classes", [2, 3])
def test_dlr_of_few_classes_is_the_margin_and_says_so(classes, monkeypatch, caplog):
    monkeypatch.setattr("detectron2.utils.logger._LOG_COUNTER", Counter())
    logits, labels = torch.randn(4, classes, generator=torch.Generator().manual_seed(0)), torch.arange(4) % classes
    with caplog.at_level("INFO"):
        loss = get_objective("dlr").value(logits, labels)
        aimed = get_objective("targeted_dlr").value(logits, (labels, (labels + 1) % classes))
    assert torch.equal(loss, get_objective("margin").value(logits, labels))
    assert torch.equal(aimed, get_objective("targeted_margin").value(logits, (labels, (labels + 1) % classes)))
    assert caplog.text.count("the margin is used instead") == 2
