"""Objectives against independent formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from part_robust.attacks.objective import better, get_objective


def test_class_objectives():
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8) % 5
    expected = -log_softmax(logits.numpy(), axis=1)[np.arange(8), labels.numpy()]
    np.testing.assert_allclose(get_objective("cross_entropy").loss(logits, labels).numpy(), expected, rtol=1e-5)
    margin = get_objective("margin").loss(logits, labels)
    for row in range(8):
        others = [float(v) for k, v in enumerate(logits[row]) if k != labels[row]]
        assert float(margin[row]) == pytest.approx(max(others) - float(logits[row, labels[row]]))
    assert torch.equal(margin > 0, get_objective("margin").fooled(logits, labels))


def test_pixel_objective_ignores_what_counts_nowhere():
    logits = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 4, (3, 5, 6), generator=torch.Generator().manual_seed(1))
    labels[0, :2] = 255
    labels[1] = 65535
    loss = get_objective("pixel_cross_entropy").loss(logits, labels)
    logs = log_softmax(logits.numpy(), axis=1)
    for row in (0, 2):
        valid = labels[row].numpy() < 4
        picked = np.take_along_axis(logs[row], labels[row].clamp(max=3).numpy()[None], axis=0)[0]
        assert float(loss[row]) == pytest.approx(-picked[valid].mean(), rel=1e-5)
    assert float(loss[1]) == 0.0
    right = torch.nn.functional.one_hot(labels.clamp(max=3), 4).permute(0, 3, 1, 2).float()
    assert not get_objective("pixel_cross_entropy").fooled(right, labels).any()
    assert get_objective("pixel_cross_entropy").fooled(-right, labels).tolist() == [True, False, True]


def test_being_fooled_beats_any_loss():
    loss, best = torch.tensor([1.0, 9.0, 2.0, 1.0]), torch.tensor([5.0, 5.0, 1.0, float("nan")])
    fooled, best_fooled = torch.tensor([True, False, False, False]), torch.tensor([False, True, False, False])
    assert better(loss, fooled, best, best_fooled).tolist() == [True, False, True, True]
