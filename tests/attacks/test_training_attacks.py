"""N-FGSM and TRADES's attack."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from part_robust.attacks import (
    KL_DIVERGENCE,
    PGD,
    AttackError,
    ThreatModel,
    attack_training_batch,
    build_attack,
    get_objective,
    training_radius,
)
from part_robust.attacks.noise import make_keys

KEYS = torch.arange(4)


def linear_model(images: torch.Tensor) -> torch.Tensor:
    """Class 1 grows with every pixel."""
    score = images.flatten(1).mean(dim=1) / 255.0
    return torch.stack([torch.zeros_like(score), score], dim=1)


def images(value: float = 128.0, size: int = 6) -> torch.Tensor:
    return torch.full((4, 3, size, size), value)


def test_nfgsm_is_noise_then_one_whole_step():
    attack = build_attack({"NAME": "NFGSM", "EPS": 8.0, "NOISE": 2.0})
    labels = torch.zeros(4, dtype=torch.int64)
    change = attack(linear_model, images(), labels, keys=KEYS).images - images()
    # Every pixel goes up by 8 after noise in -16..16, and is not brought back to -8..8.
    assert change.min() >= 8 - 16 - 1e-3 and change.max() <= 8 + 16 + 1e-3
    assert change.min() < -6 and change.max() > 22
    assert abs(float(change.mean()) - 8.0) < 1.0
    again = attack(linear_model, images(), labels, keys=KEYS).images - images()
    assert torch.equal(change, again)
    assert training_radius(attack) == 8.0
    assert attack.describe()["threat_model"]["eps"] == 24.0 and attack.describe()["training_eps"] == 8.0


def test_nfgsm_stays_in_the_pixel_range_and_off_the_padding():
    attack = build_attack({"NAME": "NFGSM"})
    padding = torch.zeros(4, 6, 6, dtype=torch.bool)
    padding[:, 4:] = True
    labels = torch.zeros(4, dtype=torch.int64)
    for value in (0.0, 255.0):
        result = attack(linear_model, images(value), labels, keys=KEYS, padding=padding).images
        assert result.min() >= 0 and result.max() <= 255
        assert torch.equal(result[:, :, 4:], images(value)[:, :, 4:])
        assert not torch.equal(result[:, :, :4], images(value)[:, :, :4])


def test_nfgsm_follows_the_warm_up_and_notices_blindness():
    attack = build_attack({"NAME": "NFGSM", "EPS": 8.0, "NOISE": 0.0})
    attack.scale = 0.25
    labels = torch.zeros(4, dtype=torch.int64)
    result = attack(linear_model, images(), labels, keys=KEYS)
    assert torch.allclose(result.images - images(), torch.tensor(2.0))
    assert not result.zero_gradient.any()
    blind = attack(lambda x: linear_model(x) * 0.0, images(), labels, keys=KEYS)
    assert blind.zero_gradient.all()


@pytest.mark.parametrize("wrong", [{"NORM": "l2"}, {"RESTARTS": 2}, {"NOISE": -1.0}, {"EARLY_STOP": True}])
def test_nfgsm_refuses_what_it_is_not(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)) if "NOISE" not in wrong else "NOISE"):
        build_attack({"NAME": "NFGSM", **wrong})


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3 * 6 * 6, 3)

    def preprocess(self, batch):
        return torch.stack([item["image"] for item in batch]), None

    def class_logits(self, images, padding=None):
        return self.layer(images.flatten(1) / 255.0)


def test_trades_attack_leads_away_from_the_clean_prediction_without_labels():
    inner = Inner()
    for parameter in inner.parameters():
        parameter.requires_grad_(False)
    batch = [{"image": image, "class_id": 0} for image in images(100.0)]
    attack = PGD(threat_model=ThreatModel(eps=8.0), objective=KL_DIVERGENCE, steps=5, step_size=2.0)
    result, _ = attack_training_batch(attack, inner, batch, make_keys(0, KEYS))
    clean, attacked = inner.class_logits(images(100.0)), inner.class_logits(result.images)
    noise = inner.class_logits(ThreatModel(eps=8.0).random_start(images(100.0), KEYS))
    found, by_chance = KL_DIVERGENCE.loss(attacked, clean), KL_DIVERGENCE.loss(noise, clean)
    assert (found > 2 * by_chance).all()
    relabelled = [{**item, "class_id": 2} for item in batch]
    again, _ = attack_training_batch(attack, inner, relabelled, make_keys(0, KEYS))
    assert torch.equal(result.images, again.images)


def test_other_objectives_are_attacked_as_ever():
    inner = Inner()
    batch = [{"image": image, "class_id": 0} for image in images(100.0)]
    attack = PGD(threat_model=ThreatModel(eps=8.0), objective=get_objective("cross_entropy"), steps=1, step_size=8.0)
    result, _ = attack_training_batch(attack, inner, batch, make_keys(0, KEYS))
    labels = torch.zeros(4, dtype=torch.int64)
    direct = attack(inner.class_logits, images(100.0), labels, keys=make_keys(0, KEYS))
    assert torch.equal(result.images, direct.images)


def test_a_detached_model_is_refused():
    attack = build_attack({"NAME": "NFGSM"})
    with pytest.raises(AttackError):
        attack(lambda x: linear_model(x).detach(), images(), torch.zeros(4, dtype=torch.int64), keys=KEYS)
