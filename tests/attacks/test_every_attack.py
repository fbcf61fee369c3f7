"""What every attack promises, whichever it is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from part_robust.attacks import OBJECTIVES, build_attack
from part_robust.attacks.threat_model import ThreatModel
from part_robust.config import attack_spec, get_part_robust_cfg
from tests.attacks.nets import ATTACKS, EPS, Curved, DensePart, Linear, pictures, run, spec


def case(count: int = 6, side: int = 5):
    """Images of the curved model, the last of which it gets wrong before any attack."""
    model = Curved(side=side)
    images = pictures(count, side)
    labels = model(images).argmax(dim=1)
    labels[-1] = (labels[-1] + 1) % 5
    return model, images, labels


@pytest.mark.parametrize("name", ATTACKS)
def test_result_is_allowed_and_flags_are_the_models(name):
    model, images, labels = case()
    result = run(model, spec(name), images, labels)
    norm = ATTACKS[name].get("NORM", "linf")
    ThreatModel(norm, EPS[norm]).verify(result.images, images)
    wrong = model(result.images).argmax(dim=1) != labels
    assert torch.equal(result.success, wrong)
    assert bool(wrong[-1]), "what is wrong stays wrong"
    assert result.forwards > 0


@pytest.mark.parametrize("name", ATTACKS)
def test_batch_order_and_size_do_not_matter(name):
    model, images, labels = case()
    keys = torch.tensor([40, 3, 77, 12, 5, 6])
    together = run(model, spec(name), images, labels, keys)
    for order in ([0], [5, 2], [3, 1, 4]):
        part = run(model, spec(name), images[order], labels[order], keys[order])
        assert torch.equal(part.success, together.success[order])
        # Sums of float32 depend on the batch a little, and the way of an attack on them.
        torch.testing.assert_close(part.images, together.images[order], atol=2e-2, rtol=0)


@pytest.mark.parametrize("name", ATTACKS)
def test_early_stopping_changes_cost_alone(name):
    model, images, labels = case(24)
    full = run(model, spec(name), images, labels)
    assert 2 <= int(full.success.sum()), "the toy must let some images leave"
    for every in (1, 2, 5):
        short = run(model, spec(name, EARLY_STOP=True, COMPACT_EVERY=every), images, labels)
        assert torch.equal(short.success, full.success), every
        assert torch.equal(model(short.images).argmax(dim=1) != labels, full.success)
        assert torch.equal(short.zero_gradient, full.zero_gradient)
        # An image that is wrong before the attack costs no step at all.
        assert short.forwards < full.forwards and short.backwards <= full.backwards


@pytest.mark.parametrize("name", ATTACKS)
def test_padding_stays(name):
    model, images, labels = case()
    padding = torch.zeros(6, 5, 5, dtype=torch.bool)
    padding[:, :, 3:] = True
    padding[0] = False
    result = run(model, spec(name, EPS=30.0), images, labels, padding=padding)
    assert torch.equal(result.images[1:, :, :, 3:], images[1:, :, :, 3:])
    assert (result.images[:5] != images[:5]).any()


@pytest.mark.parametrize("name", ATTACKS)
def test_eps_zero_is_the_clean_result(name):
    model, images, labels = case()
    result = run(model, spec(name, EPS=0.0), images, labels)
    torch.testing.assert_close(result.images, images)
    assert torch.equal(result.success, model(images).argmax(dim=1) != labels)


@pytest.mark.parametrize("name", ["pgd", "apgd", "apgd_l2", "apgd_t", "fab", "square"])
def test_more_eps_never_saves_an_image_of_a_linear_model(name):
    """On one whose optimum is known; elsewhere a single run may be unlucky, which is why evaluations take the worst."""
    model, images = Linear(), pictures(12)
    labels = model(images).argmax(dim=1)
    flags = [
        run(
            model, spec(name, EPS=eps, STEPS=max(ATTACKS[name]["STEPS"], 20), STEP_SIZE=eps / 4), images, labels
        ).success
        for eps in (1.0, 3.0, 9.0, 60.0)
    ]
    for small, large in zip(flags, flags[1:], strict=False):
        assert (large | ~small).all()
    assert flags[0].sum() < flags[-1].sum()


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(sorted(ATTACKS)),
    st.floats(0, 300),
    st.integers(0, 10**6),
    st.sampled_from([0.0, 255.0, 127.3]),
)
def test_allowed_whatever_the_image(name, eps, seed, shade):
    """At the ends of the range, with any radius; `Attack` verifies and would raise."""
    model = Curved()
    images = torch.full((2, 3, 5, 5), shade)
    images[1] = 255 * torch.rand(3, 5, 5, generator=torch.Generator().manual_seed(seed))
    result = run(
        model, spec(name, EPS=eps, STEPS=3 if name != "apgd_schedule" else 5, SEED=seed), images, torch.tensor([0, 1])
    )
    assert torch.equal(result.success, model(result.images).argmax(dim=1) != torch.tensor([0, 1]))


@pytest.mark.parametrize("name", ["pgd", "apgd", "apgd_t", "fab"])
def test_zero_gradients_are_reported(name):
    class Flat(Linear):
        def forward(self, images):
            return super().forward(images).detach() + 0 * super().forward(images)

    model, images = Flat(), pictures(4)
    labels = model(images).argmax(dim=1)
    assert run(model, spec(name), images, labels).zero_gradient.all()
    assert not run(Linear(), spec(name), images, labels).zero_gradient.any()


@pytest.mark.parametrize("name", ["square", "square_l2", "noise"])
def test_black_box_attacks_use_no_gradient(name):
    class Detached(Linear):
        def forward(self, images):
            assert not torch.is_grad_enabled()
            return super().forward(images).detach()

    images = pictures(8)
    labels = Linear()(images).argmax(dim=1)
    result = run(Detached(), spec(name, EPS=60.0 if name != "square_l2" else 200.0, STEPS=60), images, labels)
    assert result.success.any() and result.backwards == 0 and not result.zero_gradient.any()


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("objective", ["dlr", "targeted_dlr", "fab"])
def test_two_and_three_classes(classes, objective, caplog):
    model, images = Linear(classes), pictures(8)
    labels = model(images).argmax(dim=1)
    node = {"NAME": "FAB"} if objective == "fab" else {"NAME": "APGD", "OBJECTIVE": objective}
    found = run(model, {**node, "STEPS": 20, "EPS": 30.0}, images, labels)
    exact = model.distances(images, labels, "linf")
    assert torch.equal(found.success, exact < 30.0)


def test_counts_and_history():
    model, images, labels = case(4)
    result = run(model, spec("pgd", STEPS=3, KEEP="last", RECORD_HISTORY=True), images, labels)
    assert (result.forwards, result.backwards) == (12, 12)
    assert result.success is None and result.history.shape == (3, 4) and torch.isfinite(result.history).all()
    asked = run(model, spec("pgd", STEPS=3, KEEP="last"), images, labels, scored=True)
    assert (asked.forwards, asked.backwards) == (16, 12) and asked.success is not None
    # One look at the original, one at the start, and one after each step, the last without gradient.
    result = run(model, spec("apgd", RECORD_HISTORY=True, RESTARTS=2), images, labels)
    assert (result.forwards, result.backwards) == (4 * (1 + 2 * 13), 4 * 2 * 12)
    assert result.history.shape == (24, 4)
    result = run(model, spec("apgd", RECORD_HISTORY=True, EARLY_STOP=True, COMPACT_EVERY=1), images, labels)
    assert torch.isnan(result.history[:, -1]).all(), "it left before the first step"


def test_specs_describe_themselves():
    cfg = get_part_robust_cfg()
    for name in cfg.ATTACK.SPECS:
        attack = build_attack(attack_spec(cfg, name))
        described = attack.describe()
        assert described["threat_model"]["eps"] == 8.0 and described["steps"] == attack.steps
        assert described["objective"] in OBJECTIVES
        assert ("targets_number" in described) == attack.objective.targeted
    described = build_attack(attack_spec(cfg, "sea_js")).describe()
    assert described["radius_schedule"] == [[2.0, 0.3], [1.5, 0.3], [1.0, 0.4]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"NAME": "APGD", "STEPS": 0}, "STEPS"),
        ({"NAME": "APGD", "RADIUS_SCHEDULE": ((2.0, 0.5), (1.5, 0.5))}, "RADIUS_SCHEDULE"),
        (
            {"NAME": "APGD", "RADIUS_SCHEDULE": ((2.0, 0.01), (1.0, 0.99)), "STEPS": 10},
            "RADIUS_SCHEDULE must give each stage a step",
        ),
        ({"NAME": "APGD", "APGD_MOMENTUM": 2.0}, "APGD_MOMENTUM"),
        ({"NAME": "APGD", "NUM_TARGETS": 0}, "NUM_TARGETS"),
        ({"NAME": "APGD", "TARGET_RANKING": "random"}, "TARGET_RANKING"),
        ({"NAME": "FAB", "FAB_OVERSHOOT": 0.5}, "FAB_OVERSHOOT"),
        ({"NAME": "Square", "SQUARE_AREA": 0.0}, "SQUARE_AREA"),
        ({"NAME": "PGD", "OBJECTIVE": "targeted_dlr"}, "APGD"),
        ({"NAME": "PGD", "EARLY_STOP": True}, "KEEP"),
        ({"NAME": "PGD", "COMPACT_EVERY": 0}, "COMPACT_EVERY"),
    ],
)
def test_impossible_values(values, message):
    with pytest.raises(ValueError, match=message):
        build_attack(values)


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if OBJECTIVES[name].needs_pixels])
@pytest.mark.parametrize("attack", ["pgd", "apgd", "apgd_schedule", "square"])
def test_part_objectives(objective, attack):
    model, images = DensePart(), pictures(5, side=8)
    labels = model(images).argmax(dim=1)
    labels[:, :2] = 255
    labels[4] = 65535  # nothing is labelled: nothing to attack, and no finding
    node = spec(attack, OBJECTIVE=objective, EPS=12.0, STEP_SIZE=3.0, STEPS=30)
    result = run(model, node, images, labels)
    counted = labels < 4
    wrong = ((model(result.images).argmax(dim=1) != labels) & counted).flatten(1).sum(dim=1)
    share = wrong / counted.flatten(1).sum(dim=1).clamp(min=1)
    assert (share[:4] > 0).all(), share
    assert share[4] == 0 and not result.zero_gradient[4]
    # Leaving early means no pixel is right: the same worst case.
    short = run(model, {**node, "EARLY_STOP": True, "COMPACT_EVERY": 3}, images, labels)
    again = ((model(short.images).argmax(dim=1) != labels) & counted).flatten(1).sum(dim=1)
    assert torch.equal(again, wrong)
