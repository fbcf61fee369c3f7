"""PGD on models where the right answer is known, and what every attack promises its caller."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from part_robust.attacks import PGD, AttackError, ThreatModel, attack_mode, build_attack, get_objective


class Linear(nn.Module):
    """Logits linear in the pixels: the worst perturbation is known in closed form."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(classes, 3 * 4 * 4, generator=generator) / 100)

    def forward(self, images):
        return images.flatten(1) @ self.weight.T


def batch(count: int = 6):
    images = 100 + 50 * torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return images, torch.arange(count) % 4


def pgd(**values) -> PGD:
    defaults = {"threat_model": ThreatModel("linf", 8.0), "objective": get_objective("margin"), "steps": 20}
    return PGD(**{**defaults, "step_size": 2.0, **values})


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_reaches_the_optimum_of_a_two_class_linear_model(norm):
    model = Linear(2)
    images, _ = batch()
    labels = torch.zeros(6, dtype=torch.long)
    threat = ThreatModel(norm, 8.0)
    with attack_mode(model) as inner:
        result = pgd(threat_model=threat)(inner, images, labels, keys=torch.arange(6))
    slope = (model.weight[1] - model.weight[0]).detach()
    gain = 8.0 * slope.norm(p=1 if norm == "linf" else 2)
    with torch.no_grad():
        before, after = model(images), model(result.images)
    moved = (after[:, 1] - after[:, 0]) - (before[:, 1] - before[:, 0])
    torch.testing.assert_close(moved, gain.expand(6), rtol=1e-3, atol=1e-3)


def test_closed_form_of_one_fgsm_step():
    model = Linear()
    images, labels = batch()
    attack = build_attack({"NAME": "PGD", "STEPS": 1, "STEP_SIZE": 8.0, "RANDOM_START": False})
    with attack_mode(model) as inner:
        result = attack(inner, images, labels, keys=torch.arange(6))
    probability = model(images).softmax(dim=1).detach()
    probability[torch.arange(6), labels] -= 1.0
    expected = images + 8.0 * (probability @ model.weight.detach()).view_as(images).sign()
    torch.testing.assert_close(result.images, expected)


def test_leaves_no_trace():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 4))
    model.train()
    model[1].eval()  # a mixed state must come back as it was
    model[0].weight.requires_grad_(False)
    model[4].bias.grad = torch.ones(4)
    images, labels = batch()
    before_state = {key: value.clone() for key, value in model.state_dict().items()}
    before_flags = [module.training for module in model.modules()]
    before_grad = [parameter.requires_grad for parameter in model.parameters()]
    before_rng, original = torch.get_rng_state(), images.clone()
    with attack_mode(model) as inner:
        assert not any(module.training for module in inner.modules())
        pgd(restarts=2)(inner, images, labels, keys=torch.arange(6))
    assert [module.training for module in model.modules()] == before_flags
    assert [parameter.requires_grad for parameter in model.parameters()] == before_grad
    assert all(torch.equal(before_state[key], value) for key, value in model.state_dict().items())
    assert [p.grad is None for p in model.parameters()] == [True, True, True, True, True, False]
    assert torch.equal(model[4].bias.grad, torch.ones(4))
    assert torch.equal(torch.get_rng_state(), before_rng)
    assert torch.equal(images, original)


def test_state_comes_back_after_an_error():
    model = Linear()
    with pytest.raises(RuntimeError, match="boom"), attack_mode(model):
        raise RuntimeError("boom")
    assert model.training and model.weight.requires_grad


def test_works_inside_no_grad_and_inference_mode():
    model = Linear()
    images, labels = batch()
    attack = pgd()
    with attack_mode(model) as inner:
        expected = attack(inner, images, labels, keys=torch.arange(6)).images
    for context in (torch.no_grad(), torch.inference_mode()):
        with context, attack_mode(model) as inner:
            assert torch.equal(attack(inner, images, labels, keys=torch.arange(6)).images, expected)


def test_result_does_not_depend_on_the_batch():
    model = Linear()
    images, labels = batch()
    keys = torch.tensor([40, 3, 77, 12, 5, 6])
    attack = pgd(steps=3, restarts=2, keep="best")
    with attack_mode(model) as inner:
        together = attack(inner, images, labels, keys=keys).images
        for order in ([0], [5, 2], [3, 1, 4]):
            part = attack(inner, images[order], labels[order], keys=keys[order]).images
            torch.testing.assert_close(part, together[order])


class Bumpy(nn.Module):
    """Loss that oscillates along the way, so that the last iterate is not the worst one."""

    def forward(self, images):
        z = torch.sin(images.flatten(1).mean(dim=1))
        return torch.stack([-z, z], dim=1)


def test_best_iterate_and_restarts_never_lose():
    images, _ = batch()
    labels = torch.zeros(6, dtype=torch.long)
    model = Bumpy()
    losses = {}
    for name, values in {
        "last": {"steps": 5},
        "best": {"steps": 5, "keep": "best"},
        "restarts": {"steps": 5, "keep": "best", "restarts": 4},
    }.items():
        with attack_mode(model) as inner:
            attack = pgd(**values, step_size=3.0)
            adversarial = attack(inner, images, labels, keys=torch.arange(6)).images
        losses[name] = get_objective("margin").loss(model(adversarial), labels)
    assert (losses["best"] >= losses["last"] - 1e-6).all()
    assert (losses["restarts"] >= losses["best"] - 1e-6).all()
    assert (losses["restarts"] > losses["last"] + 1e-3).any(), "the toy must tell them apart"


def test_an_image_that_is_wrong_already_stays_wrong():
    """A run's steps can carry an image back to the right side; the image itself competes with them."""
    images, _ = batch()
    model = Linear()
    labels = (model(images).argmax(dim=1) + 1) % 4

    class Trap(nn.Module):
        """Right about everything but the images themselves."""

        def forward(self, x):
            moved = (x - images).abs().flatten(1).amax(dim=1) > 0
            bonus = moved[:, None] * 100.0 * nn.functional.one_hot(labels, 4)
            return model(x) + bonus

    success = get_objective("margin").success
    for keep, expected in (("best", True), ("last", False)):
        with attack_mode(Trap()) as inner:
            result = pgd(keep=keep, steps=3)(inner, images, labels, keys=torch.arange(6))
            assert not result.zero_gradient.any()
            assert bool(success(inner(result.images), labels).all()) == expected


def test_zero_gradient_is_reported(caplog, monkeypatch):
    # The warning comes at most once a minute; another test may have had it.
    monkeypatch.setattr("detectron2.utils.logger._LOG_TIMER", {})

    class Saturated(Linear):
        def forward(self, images):
            return 1e6 * super().forward(images)

    images, _ = batch()
    model = Saturated()
    labels = model(images).argmax(dim=1)
    with attack_mode(model) as inner:
        result = pgd(objective=get_objective("cross_entropy"), step_size=0.01)(
            inner, images, labels, keys=torch.arange(6)
        )
        assert result.zero_gradient.all()
        assert "all-zero gradient" in caplog.text
        assert not pgd()(inner, images, labels, keys=torch.arange(6)).zero_gradient.any(), "the margin sees through"


def test_cut_gradient_is_an_error():
    images, labels = batch()
    for forward in (lambda x: Linear()(x).detach(), lambda x: torch.zeros(6, 4, requires_grad=True) * 2):
        with pytest.raises(AttackError, match="do not depend on the image"):
            pgd()(forward, images, labels, keys=torch.arange(6))


def test_padding_stays():
    images, labels = batch()
    padding = torch.zeros(6, 4, 4, dtype=torch.bool)
    padding[:, :, 3] = True
    for norm in ("linf", "l2"):
        with attack_mode(Linear()) as inner:
            attack = pgd(threat_model=ThreatModel(norm, 8.0), restarts=2)
            result = attack(inner, images, labels, keys=torch.arange(6), padding=padding).images
        assert torch.equal(result[..., 3], images[..., 3])
        assert (result[..., :3] != images[..., :3]).any()


def test_scale_shrinks_radius_and_step():
    images, labels = batch()
    attack = pgd(steps=1, random_start=False, step_size=4.0)
    attack.scale = 0.25
    with attack_mode(Linear()) as inner:
        result = attack(inner, images, labels, keys=torch.arange(6)).images
    torch.testing.assert_close((result - images).abs().amax(), torch.tensor(1.0))
    attack.scale = 0.0
    with attack_mode(Linear()) as inner:
        assert torch.equal(attack(inner, images, labels, keys=torch.arange(6)).images, images)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": -1}, "STEPS"),
        ({"keep": "first"}, "KEEP"),
        ({"restarts": 0}, "RESTARTS must be at least 1, got 0"),
        ({"restarts": 3, "random_start": False}, "RESTARTS"),
    ],
)
def test_impossible_values(values, message):
    with pytest.raises(ValueError, match=message):
        pgd(**values)


def test_unknown_names():
    with pytest.raises(KeyError):
        build_attack({"NAME": "PDG"})
    with pytest.raises(ValueError, match="margin"):
        build_attack({"OBJECTIVE": "ce"})
