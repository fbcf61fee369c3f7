"""A backbone that keeps its weights for the first iterations, through the real trainer."""

from __future__ import annotations

import pytest
import torch

from part_robust.engine import PartTrainer
from part_robust.engine.setup import check_training, set_schedule
from part_robust.modeling.counts import with_counts
from tests.toy import ADAMW, ADVERSARIAL, run_cfg, tiny_cfg

FREEZE = ["SOLVER.BACKBONE_FREEZE_ITERS", 3, "SOLVER.CHECKPOINT_PERIOD", 2, "TEST.EVAL_PERIOD", 2]
OPTIMIZERS = {"SGD": ["SOLVER.WEIGHT_DECAY", 0.1], "AdamW": [*ADAMW, "SOLVER.WEIGHT_DECAY", 0.1]}


def start(cfg) -> PartTrainer:
    torch.manual_seed(0)
    trainer = PartTrainer(cfg)
    trainer.resume_or_load(resume=False)
    return trainer


def saved(folder, iteration: int) -> dict:
    return torch.load(folder / f"model_{iteration:07d}.pth")["model"]


def optimizer(path) -> dict:
    """Index of the parameter -> its state."""
    return torch.load(path)["trainer"]["_trainer"]["optimizer"]["state"]


@pytest.fixture(scope="module", params=list(OPTIMIZERS))
def run(request, toy_data, tmp_path_factory):
    """Six iterations, the first three with a frozen backbone, evaluations in between; and the weights at the start."""
    folder = tmp_path_factory.mktemp(request.param)
    cfg = run_cfg(folder, *ADVERSARIAL, *OPTIMIZERS[request.param], *FREEZE)
    trainer = start(cfg)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.train()
    return folder, cfg, trainer, before


def test_weights_and_statistics_stay_and_then_do_not(run):
    folder, _, trainer, before = run
    for key, value in saved(folder, 1).items():
        if key.startswith("backbone."):
            assert torch.equal(value, before[key]), key
    heads = [key for key, value in saved(folder, 1).items() if not torch.equal(value, before[key])]
    assert any(key.startswith("segmenter.") for key in heads) and any(key.startswith("head.") for key in heads)
    learning = [not torch.equal(value, before[key]) for key, value in saved(folder, 3).items() if "backbone." in key]
    assert sum(learning) > 0.9 * len(learning), "but for gradients too small to count"
    assert all(p.requires_grad for p in trainer.model.parameters()) and trainer.model.backbone.training


def test_the_optimizer_begins_with_the_backbone(run):
    """Its state: nothing while the backbone is frozen; AdamW then counts its steps from there."""
    folder, cfg, trainer, _ = run
    count = sum(p.numel() for p in trainer.model.backbone.parameters())
    total = sum(p.numel() for p in trainer.model.parameters())
    frozen, learning = (optimizer(folder / name) for name in ("model_0000001.pth", "model_final.pth"))

    def held(state: dict) -> int:
        name = "exp_avg" if cfg.SOLVER.OPTIMIZER == "AdamW" else "momentum_buffer"
        return sum(own[name].numel() for own in state.values() if own.get(name) is not None)

    assert held(frozen) == total - count and held(learning) == total
    if cfg.SOLVER.OPTIMIZER == "AdamW":
        assert {int(own["step"]) for own in learning.values()} == {6, 3}


@pytest.mark.parametrize("last", [1, 3])
def test_resumed_before_and_after_the_boundary(run, tmp_path, last):
    """As the uninterrupted run, bit by bit."""
    folder, cfg, _, _ = run
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(tmp_path)
    name = f"model_{last:07d}.pth"
    (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "last_checkpoint").write_text(name)
    torch.manual_seed(5)
    trainer = PartTrainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == last + 1
    trainer.train()
    paths = [place / "model_final.pth" for place in (tmp_path, folder)]
    for found, wanted in ([torch.load(p)["model"] for p in paths], [tensors(optimizer(p)) for p in paths]):
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            assert torch.equal(found[key], value), key


def tensors(state: dict) -> dict:
    return {(i, key): value for i, own in state.items() for key, value in own.items() if torch.is_tensor(value)}


def test_with_weight_perturbation_averages_and_pieces(toy_data, tmp_path):
    more = ["ATTACK.TRAIN.AWP.GAMMA", 0.01, "SOLVER.EMA.DECAY", 0.9, "SOLVER.ACCUMULATE", 2]
    cfg = run_cfg(tmp_path, *ADVERSARIAL, *FREEZE, *more, "SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 0)
    trainer = start(cfg)
    before = {key: value.clone() for key, value in trainer.model.backbone.state_dict().items()}
    trainer.train()
    assert all(torch.equal(value, before[key]) for key, value in trainer.model.backbone.state_dict().items())


def test_what_is_frozen_for_good_stays_so(toy_data, tmp_path):
    frozen = ["MODEL.BACKBONE.FREEZE_AT", 2, *FREEZE, "SOLVER.BACKBONE_FREEZE_ITERS", 1, "SOLVER.MAX_ITER", 2]
    trainer = start(run_cfg(tmp_path, *frozen, "TEST.EVAL_PERIOD", 0, model="resnet"))
    trainer.train()
    left = {name.split(".")[0] for name, p in trainer.model.backbone.named_parameters() if not p.requires_grad}
    assert left == {"stem", "res2"}


def test_epochs_and_impossible_values(toy_data):
    cfg = with_counts(tiny_cfg("resnet", "SOLVER.EPOCHS", 4.0, "SOLVER.BACKBONE_FREEZE_EPOCHS", 1.5))
    set_schedule(cfg)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BACKBONE_FREEZE_ITERS) == (12, 4), "12 images, 4 per batch"
    check_training(cfg)
    with pytest.raises(ValueError, match="needs SOLVER.EPOCHS"):
        check_training(tiny_cfg("resnet", "SOLVER.BACKBONE_FREEZE_EPOCHS", 1.0))
    with pytest.raises(ValueError, match="must not be negative"):
        check_training(tiny_cfg("resnet", "SOLVER.BACKBONE_FREEZE_ITERS", -1))
