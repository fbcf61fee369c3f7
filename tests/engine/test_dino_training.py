"""DINO through the real trainer: adversarially, on boxes alone, with its optimizer."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from part_robust.config import get_part_robust_cfg
from part_robust.configured_attacks import build_attacks, build_model_attack
from part_robust.data import register_part_dataset
from part_robust.engine import train
from part_robust.engine.best_metric import best_metric
from part_robust.engine.optimizer import build_optimizer
from part_robust.engine.trainer import PartTrainer
from part_robust.evaluation.run import evaluate_in_training
from part_robust.modeling.counts import with_counts
from tests.toy import ADAMW, ADVERSARIAL, metric_lines, run_cfg, toy_json, write_toy

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "part_imagenet"


@pytest.mark.parametrize("model", ["dino_detector", "dino_sequential", "dino_two_headed"])
def test_adversarial_training(toy_data, tmp_path, model):
    cfg = run_cfg(tmp_path, *ADVERSARIAL, *ADAMW, "SOLVER.MAX_ITER", 3, "TEST.EVAL_PERIOD", 3, model=model)
    results = train(cfg)
    written = {key for line in metric_lines(tmp_path) for key in line}
    assert {"loss_part_class", "loss_part_box", "loss_part_giou", "loss_part_encoder_class", "adv/eps"} <= written
    assert set(results) >= {"part_seg", "part_seg_pgd20", "part_box", "part_box_pgd20"}
    assert ("classification_pgd20" in results) == (model != "dino_detector")
    for task in ("part_box", "part_box_pgd20"):
        assert 0 <= results[task]["AP"] <= results[task]["AP50"] <= 100
    assert best_metric(cfg) in written


@pytest.mark.parametrize("model", ["mask_dino_segmenter", "mask_dino_simple"])
def test_adversarial_training_of_mask_dino(toy_data, tmp_path, model):
    cfg = run_cfg(tmp_path, *ADVERSARIAL, *ADAMW, "SOLVER.MAX_ITER", 3, "TEST.EVAL_PERIOD", 3, model=model)
    results = train(cfg)
    written = {key for line in metric_lines(tmp_path) for key in line}
    assert {"loss_part_class", "loss_part_mask", "loss_part_dice", "loss_part_denoising_mask", "adv/eps"} <= written
    for task in ("part_box", "part_mask", "part_mask_pgd20"):
        assert 0 <= results[task]["AP"] <= results[task]["AP50"] <= 100
    assert ("classification_pgd20" in results) == (model == "mask_dino_simple")
    assert best_metric(cfg) in written


def test_attack_on_a_model_without_a_head_aims_at_its_boxes(toy_data, tmp_path):
    cfg = run_cfg(tmp_path, model="dino_detector")
    assert build_model_attack(cfg, cfg.ATTACK.TRAIN).objective.name == "part_loss"
    cfg = run_cfg(tmp_path, model="deeplab_segmenter")
    assert build_model_attack(cfg, cfg.ATTACK.TRAIN).objective.name == "pixel_cross_entropy"
    cfg = run_cfg(tmp_path, "ATTACK.TRAIN.OBJECTIVE", "joint", model="dino_sequential")
    assert build_model_attack(cfg, cfg.ATTACK.TRAIN).objective.name == "joint"


@pytest.mark.parametrize(("model", "full"), [("dino_two_headed", True), ("dino_two_headed", False), ("resnet", False)])
def test_attacks_on_a_cut_gradient_are_warned_of(toy_data, tmp_path, model, full):
    cfg = run_cfg(tmp_path, "ATTACK.FULL_GRADIENT", full, "ATTACK.SPECS.pgd20.STEPS", 1, model=model)
    warnings = warnings_of(cfg, build_attacks(cfg, ["pgd20"]))
    assert any("FULL_GRADIENT" in w for w in warnings) == (model != "resnet" and not full)


def test_one_attack_may_follow_the_cut_gradient_beside_another_that_does_not(toy_data, tmp_path):
    cfg = run_cfg(tmp_path, "ATTACK.SPECS.pgd20.STEPS", 1, "ATTACK.SPECS.pgd20_cut.STEPS", 1, model="dino_sequential")
    attacks = build_attacks(cfg, ["pgd20", "pgd20_cut"])
    assert [attack.describe()["full_gradient"] for attack in attacks.values()] == [True, False]
    (sentence,) = (w for w in warnings_of(cfg, attacks) if "FULL_GRADIENT" in w)
    assert sentence.startswith("pgd20_cut:")


def warnings_of(cfg, attacks) -> list[str]:
    """Evaluates a model with random weights, and returns the warnings."""
    loader, evaluator = PartTrainer.build_test_loader(cfg, "toy_val"), PartTrainer.build_evaluator(cfg, "toy_val")
    return evaluate_in_training(PartTrainer.build_model(cfg), "toy_val", attacks, loader, evaluator)[1]


@pytest.fixture(scope="module")
def boxes_only(tmp_path_factory):
    """The toy data without any mask."""
    folder = tmp_path_factory.mktemp("boxes")
    data, _ = toy_json(12)
    for annotation in data["annotations"]:
        del annotation["segmentation"]
    _, root = write_toy(folder)
    (folder / "toy.json").write_text(json.dumps(data))
    register_part_dataset("toy_boxes", folder / "toy.json", root)
    yield "toy_boxes"
    DatasetCatalog.remove("toy_boxes")
    MetadataCatalog.remove("toy_boxes")


def test_learns_from_boxes_alone(boxes_only, tmp_path):
    """A minute detector finds most parts of the images it has learned by heart."""
    cfg = run_cfg(
        tmp_path,
        *ADAMW,
        *("DATASETS.TRAIN", (boxes_only,)),
        *("DATASETS.VAL", (boxes_only,)),
        *("INPUT.PART_MASKS", "boxes"),
        *("INPUT.CROP_SCALE", (1.0, 1.0)),
        *("INPUT.CROP_RATIO", (1.0, 1.0)),
        *("INPUT.FLIP_PROB", 0.0),
        *("SOLVER.BASE_LR", 0.002),
        *("SOLVER.BACKBONE_MULTIPLIER", 1.0),
        *("SOLVER.IMS_PER_BATCH", 6),
        *("SOLVER.MAX_ITER", 100),
        *("TEST.EVAL_PERIOD", 100),
        model="dino_sequential",
    )
    results = train(cfg)
    assert results["part_box"]["AP50"] > 50
    assert results["part_seg"]["pixel_accuracy"] > 80


def test_two_learning_rates_and_decay_nowhere_it_should_not(toy_data, tmp_path):
    cfg = run_cfg(tmp_path, *ADAMW, "SOLVER.WEIGHT_DECAY_NORM", 0.0, model="dino_detector")
    model = PartTrainer.build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.AdamW)
    names = {id(p): name for name, p in model.named_parameters()}
    seen = set()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.add(name)
            assert group["lr"] == pytest.approx(0.0001 if name.startswith("backbone.") else 0.001)
            if ".norm" in name:
                assert group["weight_decay"] == 0.0
    assert seen == {name for name, p in model.named_parameters() if p.requires_grad}


def test_frozen_parameters_stay_out(toy_data, tmp_path):
    cfg = run_cfg(tmp_path, "MODEL.RESNETS.NORM", "FrozenBN", "MODEL.BACKBONE.FREEZE_AT", 2, model="dino_detector")
    model = PartTrainer.build_model(cfg)
    held = {id(p) for group in build_optimizer(cfg, model).param_groups for p in group["params"]}
    frozen = [name for name, p in model.named_parameters() if id(p) not in held]
    assert any(name.startswith("backbone.stem") for name in frozen)
    assert all(name.startswith("backbone.") for name in frozen)
    assert not any("norm" in name for name, _ in model.backbone.named_parameters()), "frozen norms are buffers"


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_gradients_are_clipped_together(toy_data, tmp_path, optimizer):
    cfg = run_cfg(tmp_path, *ADAMW, "SOLVER.OPTIMIZER", optimizer, model="resnet")
    model = PartTrainer.build_model(cfg)
    result = build_optimizer(cfg, model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    count = sum(p.numel() for p in model.parameters())
    result.step()
    for parameter in model.parameters():
        torch.testing.assert_close(
            parameter.grad, torch.full_like(parameter, 0.1 / math.sqrt(count)), rtol=1e-3, atol=0
        )


def test_detectron2s_clipping_still_works_and_unknown_optimizers_are_named(toy_data, tmp_path):
    cfg = run_cfg(tmp_path, *ADAMW, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value", model="resnet")
    model = PartTrainer.build_model(cfg)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    build_optimizer(cfg, model).step()
    assert all((p.grad == 0.1).all() for p in model.parameters())
    with pytest.raises(ValueError, match=r"SOLVER\.OPTIMIZER"):
        build_optimizer(run_cfg(tmp_path, "SOLVER.OPTIMIZER", "Adam", model="resnet"), model)


def test_sgd_recipe_of_the_thesis_is_a_config():
    cfg = get_part_robust_cfg(CONFIGS / "dino_sequential.yaml")
    assert (cfg.SOLVER.OPTIMIZER, cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE) == ("AdamW", "full_model")
    cfg.merge_from_file(str(CONFIGS / "schedule_dino_sgd.yaml"))
    assert (cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR, cfg.SOLVER.CLIP_GRADIENTS.ENABLED) == ("SGD", 1e-4, False)
    assert with_counts(cfg).MODEL.PART_CLASSIFIER.NUM_PARTS == 40
