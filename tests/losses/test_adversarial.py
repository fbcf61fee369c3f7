"""Objectives of adversarial training against their papers' formulas, written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from part_robust.losses.adversarial import (
    TrainingObjective,
    boosted_cross_entropy,
    kl_divergence,
    misclassification_weighted_kl,
)


def batch(seed: int = 0, scale: float = 1.0, classes: int = 5):
    generator = torch.Generator().manual_seed(seed)
    attacked, clean = (scale * torch.randn(4, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    return attacked.requires_grad_(), clean.requires_grad_(), torch.tensor([0, 1, 4, 1]) % classes


def gradients(losses, *logits):
    return torch.autograd.grad(sum(losses.values()), logits, allow_unused=True)


def test_adversarial_is_cross_entropy_of_the_attacked_images_alone():
    attacked, clean, labels = batch()
    losses = TrainingObjective().class_losses(attacked, clean, labels)
    expected = -attacked.softmax(1)[range(4), labels].log().mean()
    assert list(losses) == ["loss_cls"] and torch.allclose(losses["loss_cls"], expected)
    assert gradients(losses, attacked, clean)[1] is None


def test_mix():
    attacked, clean, labels = batch()
    losses = TrainingObjective("mix", adversarial_weight=0.25).class_losses(attacked, clean, labels)
    entropy = [-x.softmax(1)[range(4), labels].log().mean() for x in (attacked, clean)]
    assert torch.allclose(sum(losses.values()), 0.25 * entropy[0] + 0.75 * entropy[1])
    assert all(g.abs().sum() > 0 for g in gradients(losses, attacked, clean))


def test_trades():
    attacked, clean, labels = batch()
    losses = TrainingObjective("trades", trades_beta=6.0).class_losses(attacked, clean, labels)
    p, q = clean.softmax(1), attacked.softmax(1)
    assert torch.allclose(losses["loss_cls"], -p[range(4), labels].log().mean())
    assert torch.allclose(losses["loss_cls_robust"], 6 * (p * (p / q).log()).sum(1).mean())
    assert all(g.abs().sum() > 0 for g in gradients({"r": losses["loss_cls_robust"]}, attacked, clean))


def test_mart():
    attacked, clean, labels = batch()
    losses = TrainingObjective("mart", mart_beta=5.0).class_losses(attacked, clean, labels)
    p, q = clean.softmax(1), attacked.softmax(1)
    boosted = []
    for row, label in zip(q, labels, strict=True):
        wrong = max(row[k] for k in range(5) if k != label)
        boosted.append(-row[label].log() - (1 - wrong).log())
    assert torch.allclose(losses["loss_cls"], torch.stack(boosted).mean())
    unsure = 1 - p[range(4), labels]
    assert torch.allclose(losses["loss_cls_robust"], 5 * (unsure * (p * (p / q).log()).sum(1)).mean())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.1, 1.0, 30.0]), st.sampled_from([2, 5]))
def test_properties(seed, scale, classes):
    """A divergence is never negative and 0 of equals; MART's terms are finite, and its weight lies in 0..1."""
    attacked, clean, labels = batch(seed, scale, classes)
    divergence = kl_divergence(clean, attacked)
    assert (divergence >= -1e-9).all() and (kl_divergence(clean, clean).abs() < 1e-9).all()
    weighted = misclassification_weighted_kl(clean, attacked, labels)
    assert (weighted <= divergence + 1e-9).all() and (weighted >= -1e-9).all()
    boosted = boosted_cross_entropy(attacked, labels)
    assert torch.isfinite(boosted).all()
    assert (boosted >= torch.nn.functional.cross_entropy(attacked, labels, reduction="none") - 1e-9).all()
    assert torch.isfinite(torch.autograd.grad(boosted.sum(), attacked)[0]).all()


def test_float32_certainty_stays_finite():
    """1 - p rounds to 0 in float32; the published code adds 1e-4 instead."""
    logits = torch.tensor([[0.0, 200.0]], requires_grad=True)
    loss = boosted_cross_entropy(logits, torch.tensor([0])).sum()
    assert torch.allclose(loss, torch.tensor(400.0))
    assert torch.isfinite(torch.autograd.grad(loss, logits)[0]).all()


@pytest.mark.parametrize(
    ("where", "method", "weights"),
    [
        ("attacked", "adversarial", (0.0, 1.0)),
        ("clean", "adversarial", (1.0, 0.0)),
        ("both", "trades", (0.5, 0.5)),
        ("both", "mix", (0.7, 0.3)),
    ],
)
def test_part_weights(where, method, weights):
    objective = TrainingObjective(method, adversarial_weight=0.3, part_loss_on=where)
    assert objective.part_weights() == pytest.approx(weights)
    assert objective.needs_clean(has_parts=True, has_class=False) == (where != "attacked")
    assert objective.needs_clean(has_parts=False, has_class=True) == (method != "adversarial")


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"method": "TRADES"}, "ATTACK.TRAIN.METHOD"),
        ({"part_loss_on": "none"}, "PART_LOSS_ON"),
        ({"adversarial_weight": 1.5}, "MIX_WEIGHT"),
        ({"trades_beta": -1.0}, "TRADES_BETA"),
    ],
)
def test_wrong_values_name_their_key(wrong, key):
    with pytest.raises(ValueError, match=key):
        TrainingObjective(**wrong)
