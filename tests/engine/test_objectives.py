"""Objectives and attacks of adversarial training on every model; what each is for: test_objectives_on_a_toy.py."""

from __future__ import annotations

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from part_robust.attacks import KL_DIVERGENCE, AttackError
from part_robust.config import get_part_robust_cfg
from part_robust.configured_attacks import training_attack
from part_robust.engine import PartTrainer
from part_robust.losses.adversarial import TrainingObjective
from tests.commands import ROOT
from tests.toy import QUIET, RESNET_50, run_cfg

METHODS = ["adversarial", "mix", "trades", "mart"]
CLASSIFIERS = ["resnet", "deeplab_downsampled", "deeplab_bounding_box", "deeplab_two_headed", "deeplab_pixel"]
CLASSIFIERS += ["dino_sequential", "dino_two_headed", "mask_dino_simple"]
SEGMENTERS = ["deeplab_segmenter", "dino_detector", "mask_dino_segmenter"]


def one_step(folder, model: str, *opts):
    """The trainer after its first batch was attacked and differentiated, the batch, and its losses."""
    trainer = PartTrainer(run_cfg(folder, *QUIET, *opts, model=model))
    batch = next(iter(trainer.data_loader))
    losses = trainer.model(batch)
    sum(losses.values()).backward()
    return trainer, batch, losses


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", CLASSIFIERS)
def test_every_method_on_every_classifier(toy_data, tmp_path, model, method):
    trainer, batch, losses = one_step(tmp_path, model, "ATTACK.TRAIN.METHOD", method)
    assert all("image_clean" in item for item in batch) == (method != "adversarial")
    wanted = {"adversarial": set(), "mix": {"loss_cls_clean"}, "trades": {"loss_cls_robust"}}
    wanted["mart"] = wanted["trades"]
    assert {name for name in losses if name.startswith("loss_cls")} == {"loss_cls"} | wanted[method]
    assert any(name.startswith("loss_part") for name in losses) == (model != "resnet")
    assert all(torch.isfinite(loss) for loss in losses.values())
    without = [name for name, parameter in trainer.model.named_parameters() if parameter.grad is None]
    assert not without, "a parameter without gradient stops a distributed job"
    kl = trainer.data_loader.attack.objective is KL_DIVERGENCE
    assert kl == (method == "trades")


@pytest.mark.parametrize("model", CLASSIFIERS + SEGMENTERS)
def test_every_loss_teaches_the_backbone(toy_data, tmp_path, model):
    """Class and parts, of clean and attacked images: none of the terms is there for show."""
    method = "adversarial" if model in SEGMENTERS else "trades"
    opts = ["ATTACK.TRAIN.METHOD", method, "ATTACK.TRAIN.PART_LOSS_ON", "both"]
    opts += ["SOLVER.IMS_PER_BATCH", 6]  # five images have no parts
    trainer = PartTrainer(run_cfg(tmp_path, *QUIET, *opts, model=model))
    torch.manual_seed(0)
    with torch.no_grad():  # box heads begin at zero, which lets no gradient through
        for parameter in trainer.model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    losses = trainer.model(next(iter(trainer.data_loader)))
    weight = trainer.model.backbone.stem.conv1.weight
    for name, loss in losses.items():
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        assert float(loss.detach()) > 0 and torch.isfinite(gradient).all() and gradient.any(), name


@pytest.mark.parametrize("model", CLASSIFIERS)
def test_what_goes_with_every_method_goes_with_every_classifier(toy_data, tmp_path, model):
    """N-FGSM, weight perturbation and averaging, with the method that asks most of the model."""
    opts = ["ATTACK.TRAIN.NAME", "NFGSM", "ATTACK.TRAIN.METHOD", "trades", "ATTACK.TRAIN.AWP.GAMMA", 0.005]
    cfg = run_cfg(tmp_path, *RESNET_50, *QUIET, *opts, "SOLVER.EMA.DECAY", 0.9, "SOLVER.MAX_ITER", 2, model=model)
    trainer = PartTrainer(cfg)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    perturbed = []
    perturb = trainer._trainer.model.perturbation.perturb
    trainer._trainer.model.perturbation.perturb = lambda *args: perturbed.append(1) or perturb(*args)
    trainer.train()
    assert len(perturbed) == 2
    after = dict(trainer.model.named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name, p in before.items() if p.dim() > 1} & moved, "the step is not undone with the perturbation"
    assert len(moved) > 0.9 * len(before)
    averages = trainer.average.values
    assert any(not torch.equal(averages[name], after[name]) for name in moved)
    assert all(torch.isfinite(averages[name]).all() for name in moved)


@pytest.mark.parametrize("model", ["deeplab_two_headed", "deeplab_segmenter", "dino_sequential"])
def test_part_losses_see_the_images_the_config_names(toy_data, tmp_path, model):
    """Made visible by attacked images that are black: their part losses are known."""
    found = {}
    for where in ("attacked", "clean", "both"):
        opts = ["ATTACK.TRAIN.PART_LOSS_ON", where, "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT", 0.0]
        trainer = PartTrainer(run_cfg(tmp_path, *QUIET, *opts, "MODEL.DINO.DENOISING_NUMBER", 0, model=model))
        torch.manual_seed(0)
        for parameter in trainer.model.parameters():
            nn.init.normal_(parameter, std=0.05 if model.startswith("dino") else 0.5)
        batch = next(iter(trainer.data_loader))
        assert ("image_clean" in batch[0]) == (where != "attacked")
        clean = next(iter(trainer.data_loader.loader))
        batch = [{**item, "image": torch.zeros(3, 32, 32)} for item in clean]
        if where != "attacked":
            batch = [{**item, "image_clean": old["image"]} for item, old in zip(batch, clean, strict=True)]
        losses = trainer.model(batch)
        found[where] = sum(float(loss.detach()) for name, loss in losses.items() if name.startswith("loss_part"))
    assert found["both"] == pytest.approx((found["attacked"] + found["clean"]) / 2, rel=1e-4)
    assert abs(found["attacked"] - found["clean"]) > 1e-4


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("pgd10_eps8", {"METHOD": "adversarial", "NAME": "PGD", "STEPS": 10, "STEP_SIZE": 1.0, "RANDOM_START": True}),
        ("trades_eps8", {"METHOD": "trades", "TRADES_BETA": 6.0, "STEPS": 10, "STEP_SIZE": 2.0}),
        ("mart_eps8", {"METHOD": "mart", "MART_BETA": 5.0, "STEPS": 10, "STEP_SIZE": 2.0}),
        ("nfgsm_eps8", {"METHOD": "adversarial", "NAME": "NFGSM", "NOISE": 2.0, "MIX_WEIGHT": 0.5}),
    ],
)
def test_defaults_are_the_papers(name, wanted):
    """As docs/training.md cites them; N-FGSM comes with its guard on."""
    node = get_part_robust_cfg(str(ROOT / "configs" / "attacks" / f"{name}.yaml")).ATTACK.TRAIN
    assert node.ENABLED and node.EPS == 8.0 and {key: node[key] for key in wanted} == wanted
    assert (node.GUARD.PERIOD > 0) == (name == "nfgsm_eps8")
    assert TrainingObjective() == TrainingObjective(
        adversarial_weight=node.MIX_WEIGHT, trades_beta=node.TRADES_BETA, mart_beta=node.MART_BETA
    )


def test_images_without_part_labels(toy_data, tmp_path):
    trainer, batch, _ = one_step(tmp_path, "deeplab_two_headed", "ATTACK.TRAIN.METHOD", "trades")
    for item in batch:
        item["part_supervision"] = "none"
        item["sem_seg"] = torch.full_like(item["sem_seg"], 255)
        item["instances"] = item["instances"][:0]
    losses = trainer.model(batch)
    assert float(losses["loss_part_seg"]) == 0.0 and float(losses["loss_cls"]) > 0


def test_a_part_of_the_batch_may_stay_clean(toy_data, tmp_path):
    _, batch, _ = one_step(tmp_path, "resnet", "ATTACK.TRAIN.METHOD", "mix", "ATTACK.TRAIN.FRACTION", 0.5)
    same = [torch.equal(item["image"].float(), item["image_clean"].float()) for item in batch]
    assert same == [False, False, True, True]


def test_methods_that_compare_classes_need_a_head(toy_data, tmp_path):
    with pytest.raises(ValueError, match=r"METHOD trades.*head"):
        PartTrainer(run_cfg(tmp_path, *QUIET, "ATTACK.TRAIN.METHOD", "trades", model="deeplab_segmenter"))


def test_trades_must_not_start_at_the_clean_image(toy_data, tmp_path):
    opts = ["ATTACK.TRAIN.METHOD", "trades", "ATTACK.TRAIN.RANDOM_START", False]
    with pytest.raises(ValueError, match="RANDOM_START"):
        PartTrainer(run_cfg(tmp_path, *QUIET, *opts, model="resnet"))


def test_the_objective_key_names_another_trades_attack(toy_data, tmp_path):
    cfg = run_cfg(tmp_path, *QUIET, "ATTACK.TRAIN.METHOD", "trades", "ATTACK.TRAIN.OBJECTIVE", "margin")
    assert training_attack(cfg).objective.name == "margin"


@pytest.mark.parametrize(
    ("model", "objective"),
    [
        *(("dino_sequential", name) for name in ("cross_entropy", "margin", "part_loss", "joint")),
        *(("deeplab_two_headed", name) for name in ("cross_entropy", "pixel_cross_entropy", "part_loss", "joint")),
        *(("mask_dino_simple", name) for name in ("cross_entropy", "pixel_cross_entropy", "part_loss", "joint")),
    ],
)
def test_attacks_of_training_have_gradients(toy_data, tmp_path, model, objective):
    """On the class, the parts and both together, on models that have both."""
    trainer = PartTrainer(run_cfg(tmp_path, *QUIET, "ATTACK.TRAIN.OBJECTIVE", objective, model=model))
    with EventStorage(0) as storage:
        next(iter(trainer.data_loader))
        assert storage.latest()["adv/zero_gradient"][0] < 0.5


def test_joint_attack_on_dense_parts_follows_the_training_loss(toy_data, tmp_path):
    """Its loss, averaged over images of the same number of labelled pixels, is the loss that is trained with."""
    opts = ["ATTACK.TRAIN.OBJECTIVE", "joint", "MODEL.PART_CLASSIFIER.SEG_LOSS_WEIGHT", 0.3, "SOLVER.IMS_PER_BATCH", 12]
    trainer = PartTrainer(run_cfg(tmp_path, *QUIET, *opts, model="deeplab_two_headed"))
    batch = [item for item in next(iter(trainer.data_loader.loader)) if bool((item["sem_seg"] != 255).all())]
    assert len(batch) > 1
    model = trainer.model.eval()
    images, padding = model.preprocess(batch)
    with torch.no_grad():
        logits, loss = model.part_loss_view(batch, images, padding, joint=True, fixed=True)(images)
        _, parts = model.part_loss_view(batch, images, padding, joint=False, fixed=False)(images)
        trained = model.losses(images, padding, batch)
        nothing = {**batch[0], "sem_seg": torch.full_like(batch[0]["sem_seg"], 255)}
        _, none = model.part_loss_view([nothing], images[:1], None, joint=False, fixed=False)(images[:1])
    assert logits.shape == (len(batch), 3) and float(none) == 0.0
    assert float(loss.mean()) == pytest.approx(float(sum(trained.values())), rel=1e-4)
    assert 0.3 * float(parts.mean()) == pytest.approx(float(trained["loss_part_seg"]), rel=1e-4)


@pytest.mark.parametrize(
    ("model", "objective", "remedy"),
    [
        ("resnet", "cross_entropy", "let eps grow (ATTACK.TRAIN.EPS_WARMUP_ITERS)"),
        ("deeplab_two_headed", "part_loss", "part losses need images with part labels"),
    ],
)
def test_an_attack_without_gradient_is_named_and_refused_in_the_end(
    toy_data, tmp_path, caplog, monkeypatch, model, objective, remedy
):
    trainer = PartTrainer(run_cfg(tmp_path, *QUIET, "ATTACK.TRAIN.OBJECTIVE", objective, model=model))
    loader = trainer.data_loader
    for name, parameter in trainer.model.named_parameters():
        if not name.startswith("backbone") and parameter.dim() > 1:
            nn.init.zeros_(parameter)
    monkeypatch.setattr("part_robust.engine.adversarial_loader.BATCH_LIMIT", 3)
    monkeypatch.setattr("detectron2.utils.logger._LOG_TIMER", {})  # another test may have made it say so just now
    batches = iter(loader)
    next(batches)
    assert f"ATTACK.TRAIN.OBJECTIVE {objective} was zero for every image" in caplog.text
    assert remedy in caplog.text
    next(batches)
    with pytest.raises(AttackError, match="3 batches in a row"):
        next(batches)


def test_failure_of_an_attack_names_the_images(toy_data, tmp_path):
    trainer = PartTrainer(run_cfg(tmp_path, *QUIET, model="resnet"))
    batch = next(iter(trainer.data_loader.loader))
    batch[1]["image"] = torch.full((3, 32, 32), float("nan"))
    with pytest.raises(AttackError, match=r"iteration 0.*\.png"):
        trainer.data_loader.attack_batch(batch)


def test_pieces_are_attacked_alike(toy_data, tmp_path):
    """Attacked in one go or image by image: the same result."""
    trainer = PartTrainer(run_cfg(tmp_path, *QUIET, model="resnet"))
    loader = trainer.data_loader
    batch = next(iter(loader.loader))
    whole = loader.attack_batch(batch)
    loader.pieces = 4
    for one, other in zip(whole, loader.attack_batch(batch), strict=True):
        assert torch.allclose(one["image"], other["image"], atol=1e-3)


def test_bfloat16_attack_stays_in_the_ball(toy_data, tmp_path):
    trainer = PartTrainer(run_cfg(tmp_path, *QUIET, "ATTACK.TRAIN.PRECISION", "bfloat16", model="resnet"))
    seen = []
    trainer.model.head.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    batch = next(iter(trainer.data_loader.loader))
    attacked = trainer.data_loader.attack_batch(batch)
    assert seen == [torch.bfloat16]
    for old, new in zip(batch, attacked, strict=True):
        assert new["image"].dtype == torch.float32
        assert float((new["image"] - old["image"].float()).abs().max()) <= 8.0 + 1e-3
