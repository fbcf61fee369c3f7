"""Objectives against independent formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from part_robust.attacks import OBJECTIVES, Objective, attack_batch, attack_mode, build_attack
from part_robust.attacks.objective import better, get_objective
from tests.attacks.nets import Linear, pictures


def test_class_objectives():
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8) % 5
    expected = -log_softmax(logits.numpy(), axis=1)[np.arange(8), labels.numpy()]
    np.testing.assert_allclose(get_objective("cross_entropy").loss(logits, labels).numpy(), expected, rtol=1e-5)
    margin = get_objective("margin").loss(logits, labels)
    for row in range(8):
        others = [float(v) for k, v in enumerate(logits[row]) if k != labels[row]]
        assert float(margin[row]) == pytest.approx(max(others) - float(logits[row, labels[row]]))
    assert torch.equal(margin > 0, get_objective("margin").success(logits, labels))


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
    assert not get_objective("pixel_cross_entropy").success(right, labels).any()
    assert get_objective("pixel_cross_entropy").success(-right, labels).tolist() == [True, False, True]


def test_being_fooled_beats_any_loss():
    loss, best = torch.tensor([1.0, 9.0, 2.0, 1.0]), torch.tensor([5.0, 5.0, 1.0, float("nan")])
    success, best_success = torch.tensor([True, False, False, False]), torch.tensor([False, True, False, False])
    assert better(loss, success, best, best_success).tolist() == [True, False, True, True]


# What its objectives read of a model, and whether they are aimed at its parts.
NEEDS = {
    "cross_entropy margin dlr targeted_margin targeted_dlr": ("class",),
    "pixel_cross_entropy masked_cross_entropy balanced_cross_entropy jensen_shannon soft_wrong_pixels segpgd cospgd": (
        "parts",
        "pixels",
    ),
    "part_loss part_loss_fixed": ("parts",),
    "part_class_loss part_class_loss_fixed part_box_loss part_box_loss_fixed hide_parts": ("parts",),
    "joint joint_fixed": ("class", "parts"),
}


def test_every_objective_says_what_it_needs():
    assert {name for names in NEEDS for name in names.split()} == set(OBJECTIVES)
    for names, needs in NEEDS.items():
        for objective in map(get_objective, names.split()):
            found = (objective.needs_class, objective.needs_parts, objective.needs_pixels)
            assert found == tuple(what in needs for what in ("class", "parts", "pixels")), objective.name
            assert objective.of_class_labels == (needs == ("class",) and not objective.targeted)


class OnlyClasses(Linear):
    """All that an attack on the class needs of a model."""

    def class_logits(self, images, padding=None):
        return self(images)

    def preprocess(self, batch):
        return torch.stack([item["image"] for item in batch]), None


@pytest.mark.parametrize("steps", [1, 4])
def test_an_objective_written_the_old_way_attacks(monkeypatch, steps):
    """`Objective(name, reads, loss, fooled)` put into OBJECTIVES, as before there was a class for each."""
    margin = get_objective("margin")
    monkeypatch.setitem(OBJECTIVES, "mine", Objective("mine", "class_logits", margin.loss, margin.success))
    batch = [{"image": image, "class_id": index % 5} for index, image in enumerate(pictures())]
    found = []
    for name in ("mine", "margin", margin):
        with attack_mode(OnlyClasses()) as inner:
            attack = build_attack({"OBJECTIVE": name, "STEPS": steps, "KEEP": "best"})
            found.append(attack_batch(attack, inner, batch, torch.arange(6))[0])
    assert all(torch.equal(found[0].images, other.images) for other in found[1:])
    assert torch.equal(found[0].success, found[1].success)


def test_the_old_way_names_what_is_read():
    labels, logits = torch.tensor([1]), torch.tensor([[0.0, 1.0, 2.0]])
    aimed = Objective("x", "class_logits", lambda a, b, c: a[:, 0] + c, lambda a, b: b == 1, None, lambda a, b: b, True)
    assert float(aimed.value(logits, (labels, labels))) == 1.0 and aimed.targeted
    assert Objective("x", "part_losses", max, max, {"joint": True, "fixed": False}).joint
    assert Objective("x", "part_logits", max, max).needs_pixels
    with pytest.raises(ValueError, match="reads must be one of class_logits, part_logits, part_losses, got 'parts'"):
        Objective("x", "parts", max, max)
