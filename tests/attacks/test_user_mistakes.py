"""Attacks called with what they cannot use: keys, radii, pixels, labels."""

from __future__ import annotations

import inspect

import pytest
import torch

from part_robust.attacks import ATTACK_REGISTRY, attack_defaults, build_attack
from part_robust.attacks.build import TRAINING_KEYS
from part_robust.config import default_cfg
from part_robust.utils.errors import UserError
from tests.attacks.nets import Bold


def linear(images):
    return torch.stack([images.mean(dim=(1, 2, 3)), images[:, 0].mean(dim=(1, 2)), -images.mean(dim=(1, 2, 3))], dim=1)


def run(images, labels, **keys):
    attack = build_attack({"NAME": "PGD", "STEPS": 1, **keys})
    return attack(linear, images, torch.tensor(labels), keys=torch.arange(len(images)))


def test_the_known_keys_are_those_of_the_config():
    assert default_cfg().ATTACK.TRAIN.keys() == attack_defaults().keys() | TRAINING_KEYS


def test_unknown_keys_are_refused():
    for keys, words in (({"eps": 4.0}, "'eps'.*similar: EPS"), ({"STEP": 3}, "'STEP'.*similar: STEPS")):
        with pytest.raises(UserError, match=words):
            build_attack({"NAME": "PGD", **keys})
    with pytest.raises(UserError, match="'whatever'.*there are: APGD_MOMENTUM"):
        build_attack(default_cfg().ATTACK.TRAIN, whatever=1)


def test_attacks_of_the_user_may_have_keys_of_their_own(monkeypatch):
    monkeypatch.setitem(ATTACK_REGISTRY._obj_map, "Bold", Bold)
    plain = build_attack({"NAME": "Bold"})
    changed = build_attack({"NAME": "Bold", "BOLDNESS": 5, "HASTE": 1, "STEPS": 2})
    assert (plain.traits, plain.steps, changed.traits, changed.steps) == ((3.0, None), 7, (5, 1), 2)
    with pytest.raises(UserError, match="'BOLDNES'.*similar: BOLDNESS"):
        build_attack({"NAME": "Bold", "BOLDNES": 3})


@pytest.mark.parametrize("name", ["PGD", "NFGSM", "APGD", "FAB", "Square", "RandomNoise"])
def test_defaults_of_constructors_are_those_of_the_config(name):
    kind = ATTACK_REGISTRY.get(name)
    with_defaults = {
        key: parameter.default
        for cls in kind.__mro__
        if "__init__" in vars(cls)
        for key, parameter in inspect.signature(cls.__init__).parameters.items()
        if parameter.default is not parameter.empty
    }
    keys = {key.lower(): value for key, value in kind.default_config().items()}
    stated = with_defaults.keys() & keys.keys()
    assert stated >= {"restarts", "seed", "early_stop", "compact_every", "record_history"}
    assert {key: with_defaults[key] for key in stated} == {key: keys[key] for key in stated}


def test_a_radius_in_the_unit_of_the_literature_is_warned_of(caplog):
    for keys in ({"EPS": 8.0}, {"EPS": 0.0}, {"EPS": 0.5, "NORM": "l2"}):
        build_attack({"NAME": "PGD", **keys})
    assert not caplog.records
    build_attack({"NAME": "PGD", "EPS": 8 / 255})
    assert "EPS 0.0313725 of attack PGD" in caplog.text and "8.0 here, this one would be 8" in caplog.text


@pytest.mark.parametrize(("low", "high"), [(-2.0, 2.0), (0.0, 300.0)])
def test_pixels_out_of_range_are_refused(low, high):
    images = torch.linspace(low, high, 2 * 3 * 4 * 4).view(2, 3, 4, 4)
    with pytest.raises(UserError, match=f"images must have pixels from 0 to 255, got {low:g} to {high:g}"):
        run(images, [0, 1])


def test_pixels_in_0_to_1_are_warned_of(caplog):
    run(torch.full((2, 3, 4, 4), 200.0), [0, 1])
    run(torch.zeros(2, 3, 4, 4), [0, 1])
    assert "multiply" not in caplog.text
    run(torch.rand(2, 3, 4, 4), [0, 1])
    assert "multiply images in 0..1 by 255" in caplog.text


@pytest.mark.parametrize("labels", [[0, 3], [-1, 1]])
def test_labels_out_of_range_are_refused(labels):
    with pytest.raises(UserError, match=r"labels must be 0\.\.2 for a model of 3 classes, got"):
        run(torch.full((2, 3, 4, 4), 100.0), labels)
