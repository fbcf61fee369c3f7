"""Evaluation under attack: the same numbers for any batch size, and numbers that mean what they say."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.modeling import build_model

from part_robust.attacks import build_attack
from part_robust.engine import PartTrainer
from part_robust.evaluation import build_evaluator
from part_robust.evaluation.local import LocalTier
from part_robust.evaluation.protocol import run_plan
from part_robust.evaluation.run import evaluate_in_training
from part_robust.evaluation.tiers import Tier
from part_robust.utils.errors import UserError
from tests.evaluation.tier_fixture import SmallPartModel, attack, evaluators, make_items, make_plan
from tests.toy import MODELS, tiny_cfg


@pytest.fixture(scope="module")
def model(trained_model):
    assert run(trained_model, {})["classification"]["accuracy"] >= 80, "these tests need a model that knows the toy"
    return trained_model


def loader(batch_size: int):
    return PartTrainer.build_test_loader(tiny_cfg("resnet", "DATALOADER.TEST_BATCH_SIZE", batch_size), "toy_val")


def run(model, attacks, batch_size=4, name="deeplab_two_headed"):
    return run_with_warnings(model, attacks, batch_size, name)[0]


def run_with_warnings(model, attacks, batch_size=4, name="deeplab_two_headed"):
    evaluator = build_evaluator(tiny_cfg(name), "toy_val")
    return evaluate_in_training(model, "toy_val", attacks, loader(batch_size), evaluator)


def test_batch_size_does_not_matter(model):
    attacks = {"pgd": build_attack({"STEPS": 5, "STEP_SIZE": 2.0, "RESTARTS": 2, "KEEP": "best"})}
    one, eight = run(model, attacks, 1), run(model, attacks, 8)
    assert one.keys() == eight.keys()
    for task in one:
        assert one[task] == pytest.approx(eight[task], abs=1e-6), task


def test_eps_zero_is_the_clean_result_and_more_eps_is_no_better(model):
    attacks = {
        f"eps{eps}": build_attack({"EPS": float(eps), "STEPS": 5, "STEP_SIZE": eps / 3, "KEEP": "best"})
        for eps in (0, 4, 64)
    }
    results = run(model, attacks)
    assert results["classification_eps0"] == results["classification"]
    assert results["part_seg_eps0"] == results["part_seg"]
    accuracies = [results[f"classification_eps{eps}"]["accuracy"] for eps in (0, 4, 64)]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] > accuracies[2]


def test_every_image_stays_in_the_ball_and_the_model_as_it_was(model):
    attack = build_attack({"STEPS": 2})
    seen = []
    inference = model.inference
    model.inference = lambda images, padding: seen.append(images) or inference(images, padding)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        run(model, {"pgd": attack})
        for batch, originals, attacked in zip(loader(4), seen[::2], seen[1::2], strict=True):
            clean = torch.stack([item["image"] for item in batch]).float()
            assert torch.equal(originals, clean)
            attack.threat_model.verify(attacked, clean)
            assert (attacked != clean).flatten(1).any(dim=1).all()
    finally:
        del model.inference
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_images_without_part_labels_do_not_count_as_zero_gradients_of_an_attack_on_the_parts(model):
    assert any(item["part_supervision"] == "none" for batch in loader(4) for item in batch)
    attacks = {"pgd": build_attack({"STEPS": 1, "OBJECTIVE": "pixel_cross_entropy"})}
    assert run_with_warnings(model, attacks)[1] == []


def test_attacks_with_a_zero_gradient_are_counted_and_warned_about(model):
    class Saturated(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def preprocess(self, batch):
            return self.inner.preprocess(batch)

        def class_logits(self, images, padding=None):
            return 1e8 * self.inner.class_logits(images, padding)

        def inference(self, images, padding):
            return self.inner.inference(images, padding)

        def forward(self, batch):
            return self.inner(batch)

    _, warnings = run_with_warnings(Saturated().eval(), {"pgd": build_attack({"STEPS": 2})})
    assert len(warnings) == 1 and "all-zero gradient" in warnings[0] and "of 12 images" in warnings[0]


@pytest.mark.parametrize("name", [name for name in MODELS if "segmenter" in MODELS[name][-3:] or name != "resnet"])
def test_part_objective_lowers_pixel_accuracy(name, toy_data):
    if not tiny_cfg(name).MODEL.PART_CLASSIFIER.SEGMENTER.startswith("DeepLab"):
        pytest.skip("dense segmenters only")
    torch.manual_seed(0)
    model = build_model(tiny_cfg(name)).eval()
    attack = build_attack({"OBJECTIVE": "pixel_cross_entropy", "STEPS": 10, "STEP_SIZE": 4.0, "EPS": 32.0})
    results = run(model, {"parts": attack}, name=name)
    assert results["part_seg_parts"]["pixel_accuracy"] < results["part_seg"]["pixel_accuracy"]


def test_an_evaluator_whose_state_cannot_be_merged_is_named(model):
    evaluator = DatasetEvaluators([DatasetEvaluator()])
    with pytest.raises(UserError, match=r"must be MergeableEvaluators .*, got DatasetEvaluator: define its partial"):
        evaluate_in_training(model, "toy_val", {}, loader(4), evaluator)


def test_wrong_data_set_is_named(toy_data):
    cfg = tiny_cfg("resnet", "MODEL.PART_CLASSIFIER.NUM_CLASSES", 7)
    with pytest.raises(ValueError, match="toy_val.*3 classes.*7"):
        build_evaluator(cfg, "toy_val")


class CutModel(SmallPartModel):
    """It cuts its gradient outside of `attack_gradient`; counts the gradients that are taken inside and outside."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.taken = False, Counter()

    @contextmanager
    def attack_gradient(self):
        assert not self.inside
        self.inside = True
        yield
        self.inside = False

    def _features(self, images):
        if images.requires_grad:
            self.taken[self.inside] += 1
        return super()._features(images)


@pytest.mark.parametrize("full", [True, False])
def test_gradients_are_taken_where_each_attack_wants_them(full):
    """Those of all tiers, of the curve, and of the place of a patch."""
    model, plan, items = CutModel(), make_plan(), make_items(SmallPartModel())
    patch = LocalTier("local", "local", {"ce_local": attack()}, regions=("patch",), patch_sides=(3,))
    plan = make_plan(tiers=[*plan.tiers, Tier("one", "full", {"one": attack("pixel_cross_entropy")}), patch])
    for single in (*plan.curve.values(), *(each for tier in plan.tiers for each in tier.attacks.values())):
        single.full_gradient = full
    run_plan(plan, model, lambda done: [items[:5], items[5:]], len(items), evaluators())
    assert set(model.taken) == {full} and not model.inside
