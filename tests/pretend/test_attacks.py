"""Every attack with every objective, on the pretend device as on the CPU."""

from __future__ import annotations

import importlib.util
from collections import Counter

import pytest
import torch

from part_robust.attacks import (
    ATTACK_REGISTRY,
    OBJECTIVES,
    Attack,
    AttackResult,
    Official,
    attack_batch,
    attack_mode,
    build_attack,
)
from part_robust.engine import PartTrainer
from part_robust.modeling.counts import with_counts
from tests.attacks.nets import ATTACKS, Curved, DensePart, pictures, run, spec
from tests.pretend.device import assert_same_as_on_cpu, pretend_device
from tests.pretend.runs import SMALL
from tests.pretend.waits import count_waits
from tests.toy import tiny_cfg

SETTINGS = {
    **ATTACKS,
    "nfgsm": {"NAME": "NFGSM", "STEPS": 1, "OBJECTIVE": "margin"},
    "pgd_restarts": {"NAME": "PGD", "STEPS": 4, "RESTARTS": 2, "RECORD_HISTORY": True, "KEEP": "best"},
    "apgd_margin": {"NAME": "APGD", "STEPS": 6, "OBJECTIVE": "margin"},
    "apgd_dlr": {"NAME": "APGD", "STEPS": 6, "OBJECTIVE": "dlr"},
}
DENSE = [name for name, objective in OBJECTIVES.items() if objective.needs_pixels]
DETECTED = [name for name, objective in OBJECTIVES.items() if objective.needs_parts and not objective.needs_pixels]


def given(result: AttackResult) -> list:
    """What an attack gives, without what it has no value for."""
    values = [result.images, result.success, result.zero_gradient, result.history]
    return [value for value in values if value is not None]


def attack_classes(device: str, attack: Attack) -> list:
    model, images = Curved().to(device), pictures().to(device)
    return given(run(model, attack, images, model(images).argmax(dim=1)))


@pytest.mark.parametrize("name", SETTINGS)
def test_attacks_on_the_class(name):
    values = {"EPS": 4.0, "COMPACT_EVERY": 2, **SETTINGS[name]}
    values["EARLY_STOP"] = values.get("KEEP") == "best" or values["NAME"] not in ("PGD", "NFGSM")
    assert_same_as_on_cpu(lambda device: attack_classes(device, build_attack(values)))


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_with_a_mask(name):
    def case(device: str) -> list:
        model, images = Curved().to(device), pictures().to(device)
        mask = torch.zeros(6, 1, 5, 5, device=device)
        mask[1:, :, 1:3, 2:] = 1.0
        attack = build_attack(spec(name, EPS=60.0, EARLY_STOP=True))
        return given(run(model, attack, images, model(images).argmax(dim=1), mask=mask))

    assert_same_as_on_cpu(case)


@pytest.mark.parametrize("name", [name for name in ATTACKS if name.endswith("_l1")])
def test_steps_under_l1_never_wait_for_the_device(name):
    waits = []
    for steps in (6, 12):
        with pretend_device(), count_waits() as counted:
            attack_classes("cuda", build_attack({"EPS": 60.0, **ATTACKS[name], "STEPS": steps}))
        waits.append(Counter(counted))
    assert waits[0] == waits[1]


def test_all_attacks_are_here():
    assert {values["NAME"] for values in SETTINGS.values()} == {name for name, _ in ATTACK_REGISTRY}


@pytest.mark.parametrize("objective", DENSE)
@pytest.mark.parametrize("name", ["pgd", "apgd_schedule", "square"])
def test_attacks_on_dense_parts(name, objective):
    def case(device: str) -> list:
        model, images = DensePart().to(device), pictures(4, side=8).to(device)
        labels = model(images).argmax(dim=1)
        labels[:, :2] = 255
        return given(run(model, spec(name, OBJECTIVE=objective, EPS=12.0, STEPS=4, EARLY_STOP=True), images, labels))

    assert_same_as_on_cpu(case)


@pytest.mark.parametrize(
    ("model", "values"),
    [
        *(("dino_sequential", {"NAME": "APGD", "OBJECTIVE": objective, "EARLY_STOP": True}) for objective in DETECTED),
        *(("mask_dino_simple", {"NAME": "PGD", "OBJECTIVE": objective}) for objective in DETECTED),
        ("dino_sequential", {"NAME": "APGD", "OBJECTIVE": "margin", "QUERY_FACTOR": 2}),
        ("mask_dino_simple", {"NAME": "PGD", "FULL_GRADIENT": False}),
    ],
)
def test_attacks_on_detectors(toy_data, model, values):
    def case(device: str) -> list:
        cfg = with_counts(tiny_cfg(model, *SMALL, "MODEL.DEVICE", device))
        torch.manual_seed(0)
        built = PartTrainer.build_model(cfg)
        batch = next(iter(PartTrainer.build_test_loader(cfg, "toy_val")))[:4]
        attack = build_attack({"EPS": 4.0, "STEPS": 2, **values})
        with attack_mode(built, attack.full_gradient) as inner:
            return given(attack_batch(attack, inner, batch, torch.arange(4), scored=True)[0])

    assert_same_as_on_cpu(case)


@pytest.mark.skipif(importlib.util.find_spec("pyautoattack") is None, reason="pip install part_robust[aa]")
@pytest.mark.parametrize("name", ["apgd", "apgd_t", "fab", "square"])
def test_attacks_of_another_package(name):
    assert_same_as_on_cpu(lambda device: attack_classes(device, Official.from_config(spec(name))))


def test_attacks_leave_the_random_numbers_of_the_device_alone():
    with pretend_device():
        before = torch.cuda.get_rng_state()
        for name in ("pgd", "square", "fab"):
            attack_classes("cuda", build_attack(SETTINGS[name]))
        assert torch.equal(torch.cuda.get_rng_state(), before)
