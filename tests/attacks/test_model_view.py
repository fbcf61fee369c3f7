"""A model as attacks see it, for a batch that shrinks: padding, labels and true parts go along."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model

from part_robust.attacks import ModelView, attack_batch, attack_mode, build_attack, get_objective
from part_robust.engine import PartTrainer
from tests.toy import tiny_cfg


def batch_of(name: str) -> list[dict]:
    return next(iter(PartTrainer.build_test_loader(tiny_cfg(name, "DATALOADER.TEST_BATCH_SIZE", 6), "toy_val")))


def model_of(name: str) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model(tiny_cfg(name)).eval()


def targets(view: ModelView) -> torch.Tensor:
    return view.call_arguments(torch.arange(len(view.inputs.images)))["targets"]


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("deeplab_two_headed", "cross_entropy"),
        ("deeplab_two_headed", "masked_cross_entropy"),
        ("dino_two_headed", "joint"),
        ("dino_two_headed", "joint_fixed"),
    ],
)
def test_a_selection_sees_what_the_whole_sees(toy_data, name, objective):
    batch = batch_of(name)
    with attack_mode(model_of(name)) as inner, torch.no_grad():
        images, padding = inner.preprocess(batch)
        padding = torch.zeros(images.shape[0], *images.shape[2:], dtype=torch.bool)
        padding[2:4, :, 24:] = True
        view = ModelView(inner, get_objective(objective), batch, images, padding)
        index = torch.tensor([4, 2, 1])
        part = view.select(index).select(torch.tensor([1, 2]))
        moved = images + 3.0
        whole, half = view(moved), part(moved[[2, 1]])
        for one, other in zip(*((x if isinstance(x, tuple) else (x,)) for x in (whole, half)), strict=True):
            torch.testing.assert_close(other, one[[2, 1]], rtol=1e-3, atol=1e-3)
        assert torch.equal(targets(part), targets(view)[[2, 1]])


@pytest.mark.parametrize("objective", ["part_loss", "part_loss_fixed", "joint"])
def test_detectors_inside_apgd(toy_data, objective):
    """The detection loss grows, with the matching solved anew at each step or frozen."""
    batch, model = batch_of("dino_two_headed"), model_of("dino_two_headed")
    attack = build_attack({"NAME": "APGD", "OBJECTIVE": objective, "STEPS": 4, "EPS": 8.0, "EARLY_STOP": True})
    with attack_mode(model) as inner:
        result, padding = attack_batch(attack, inner, batch, torch.arange(6))
        images, _ = inner.preprocess(batch)
        view = ModelView(inner, attack.objective, batch, images, padding)
        with torch.no_grad():
            before, after = view(images)[1], view(result.images)[1]
    has_parts = torch.tensor([len(item["instances"]) > 0 for item in batch])
    assert has_parts.any() and after[has_parts].mean() > before[has_parts].mean()
    if objective == "part_loss":  # nothing but the loss decides what is kept, and the image itself competes
        assert (after >= before - 1e-4).all()
        assert not result.zero_gradient.any(), "no true parts, nothing to attack: no finding"
    attack.threat_model.verify(result.images, images)


def test_parts_of_a_batch_inside_sea(toy_data):
    batch, model = batch_of("deeplab_segmenter"), model_of("deeplab_segmenter")
    schedule = ((2.0, 0.3), (1.5, 0.3), (1.0, 0.4))
    node = {"NAME": "APGD", "OBJECTIVE": "masked_cross_entropy", "STEPS": 10, "EPS": 16.0, "RADIUS_SCHEDULE": schedule}
    with attack_mode(model) as inner:
        result, padding = attack_batch(build_attack(node), inner, batch, torch.arange(6))
        images, _ = inner.preprocess(batch)
        view = ModelView(inner, get_objective("masked_cross_entropy"), batch, images, padding)
        margin_score = get_objective("masked_cross_entropy").margin_score
        with torch.no_grad():
            before, after = (margin_score(view(x), targets(view)) for x in (images, result.images))
    assert (after >= before - 1e-6).all() and after.mean() > before.mean()
