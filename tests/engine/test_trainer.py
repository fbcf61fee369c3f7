"""The real trainer on the toy data: files, schedules, resuming, two processes, kill -9."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import get_event_storage

from part_robust.engine import CheckpointMismatch, PartCheckpointer, PartTrainer, evaluate, train
from part_robust.engine.best_metric import best_metric
from part_robust.engine.resume import check_resumed
from part_robust.engine.setup import set_schedule
from part_robust.utils.errors import UserError
from tests.processes import ends_killed, kill_this_process, start_two
from tests.toy import ADVERSARIAL, RESNET_50, metric_lines, run_cfg, tiny_cfg


@pytest.fixture(scope="module")
def finished(toy_data, tmp_path_factory):
    """A run of 6 adversarial iterations with an evaluation every 3."""
    folder = tmp_path_factory.mktemp("run")
    cfg = run_cfg(folder, *RESNET_50, *ADVERSARIAL, "TEST.EVAL_PERIOD", 3, "SOLVER.CHECKPOINT_PERIOD", 3)
    seed_all_rng(0)
    return folder, cfg, train(cfg)


def test_files_and_metrics(finished):
    folder, _, results = finished
    names = {path.name for path in folder.iterdir()}
    wanted = {"model_final.pth", "model_0000002.pth", "model_best.pth", "last_checkpoint", "metrics.json"}
    assert wanted <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert not any(name.endswith(".tmp") for name in names)
    written = {key for line in metric_lines(folder) for key in line}
    for key in ("total_loss", "loss_cls", "loss_part_seg", "lr", "adv/attack_time", "adv/eps"):
        assert key in written, key
    assert set(results) >= {"classification", "classification_pgd20", "part_seg", "part_seg_pgd20"}
    assert 0 <= results["classification_pgd20"]["accuracy"] <= results["classification"]["accuracy"] <= 100


def test_best_checkpoint_is_chosen_by_attacked_accuracy(finished):
    folder, cfg, _ = finished
    assert best_metric(cfg) == "classification_pgd20/accuracy"
    record = json.loads((folder / "best_checkpoint.json").read_text())
    seen = [
        line["classification_pgd20/accuracy"]
        for line in metric_lines(folder)
        if "classification_pgd20/accuracy" in line
    ]
    assert record["value"] == max(seen)
    assert torch.load(folder / "model_best.pth")["iteration"] == record["iteration"]
    assert (folder / "last_checkpoint").read_text() == "model_final.pth", "--resume continues from the newest"


def test_evaluation_of_the_checkpoint_equals_the_training_run(finished):
    folder, cfg, during = finished
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(folder / "model_final.pth")
    cfg.ATTACK.EVAL = ["pgd20"]
    cfg.TEST.EXPECTED_RESULTS = [["classification", "accuracy", during["classification"]["accuracy"], 0.001]]
    after = evaluate(cfg)
    assert after == during
    record = json.loads((folder / "robustness.json").read_text())
    assert record["results"]["toy_val"]["classification_pgd20"] == during["classification_pgd20"]
    assert record["attacks"]["pgd20"]["threat_model"]["eps"] == 8.0
    assert len(record["checkpoint"]["sha256"]) == 64
    assert yaml.safe_load(record["config"])["ATTACK"]["EVAL"] == ["pgd20"]
    assert "classification_pgd20/accuracy" in metric_lines(folder)[-1]


def test_resume_goes_on_where_it_was(finished):
    folder, cfg, _ = finished
    best = json.loads((folder / "best_checkpoint.json").read_text())
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.MAX_ITER = 9
    trainer = PartTrainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 6
    assert trainer.scheduler.last_epoch == 6
    trainer.train()
    assert trainer.data_loader.iteration == 8
    assert trainer.data_loader.attack.scale == 1.0
    assert json.loads((folder / "best_checkpoint.json").read_text())["value"] >= best["value"]
    assert torch.load(folder / "model_final.pth")["iteration"] == 8


def test_a_training_killed_before_its_first_checkpoint_is_not_resumed_from_an_earlier_one(
    toy_data, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO")
    quiet = ["TEST.EVAL_PERIOD", 0, "DATASETS.VAL", (), "DATASETS.TEST", ()]
    train(run_cfg(tmp_path, *quiet, "SOLVER.MAX_ITER", 2, model="resnet"))
    assert (tmp_path / "last_checkpoint").is_file()

    with monkeypatch.context() as patch:
        patch.setattr(PartTrainer, "run_step", kill_this_process)
        ends_killed(train, run_cfg(tmp_path, *quiet, "SOLVER.BASE_LR", 0.5, model="resnet"))
    earlier = torch.load(tmp_path / "model_final.pth")["iteration"]
    train(run_cfg(tmp_path, *quiet, "SOLVER.BASE_LR", 0.5, "SOLVER.MAX_ITER", 4, model="resnet"), resume=True)
    assert "no checkpoint to resume from" in caplog.text
    assert earlier == 1 and torch.load(tmp_path / "model_final.pth")["iteration"] == 3
    changed = ["SOLVER.BASE_LR", 0.25, "SOLVER.MAX_ITER", 5]
    with pytest.raises(UserError, match=r"continues the training in .* another SOLVER.BASE_LR 0.25 \(was 0.5\)"):
        check_resumed(run_cfg(tmp_path, *quiet, *changed, model="resnet"))


@pytest.mark.parametrize(("iteration", "decay"), [(3, 0.0), (3, 0.9), (6, 0.0)])
def test_an_evaluation_that_was_killed_is_made_up_on_resume(toy_data, tmp_path, monkeypatch, iteration, decay):
    """The second of three evaluations, or the last, is the best: a training killed within it keeps the same
    model_best.pth.
    """
    accuracies, killed = {1: 10.0, 3: 30.0, 6: 20.0} | {iteration: 50.0}, set()

    def test(cfg, model, evaluators=None):
        now = get_event_storage().iter
        if now in killed:
            kill_this_process()
        return OrderedDict(classification={"accuracy": accuracies[now]})

    monkeypatch.setattr(PartTrainer, "test", staticmethod(test))
    options = ["TEST.EVAL_PERIOD", 2, "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.EMA.DECAY", decay]
    whole = run_cfg(tmp_path / "whole", *options, model="resnet")
    parts = run_cfg(tmp_path / "parts", *options, model="resnet")
    seed_all_rng(0)
    train(whole)
    killed.add(iteration)
    seed_all_rng(0)
    ends_killed(train, parts)
    killed.clear()
    train(parts, resume=True)
    records = [json.loads((tmp_path / name / "best_checkpoint.json").read_text()) for name in ("whole", "parts")]
    assert records[0] == records[1]
    assert (records[0]["value"], records[0]["iteration"], records[0]["evaluated"]) == (50.0, iteration, 6)
    best = [torch.load(tmp_path / name / "model_best.pth")["model"] for name in ("whole", "parts")]
    assert all(torch.equal(best[0][key], best[1][key]) for key in best[0])
    metrics = [json.loads(line) for line in (tmp_path / "parts" / "metrics.json").read_text().splitlines()]
    assert 50.0 in [line.get("classification/accuracy") for line in metrics]


def test_eps_warms_up(toy_data, tmp_path):
    cfg = run_cfg(tmp_path, *ADVERSARIAL, "TEST.EVAL_PERIOD", 0)
    trainer = PartTrainer(cfg)
    seen = []
    attack_batch = trainer.data_loader.attack_batch
    trainer.data_loader.attack_batch = lambda batch: (
        seen.append(trainer.data_loader.attack.scale) or attack_batch(batch)
    )
    trainer.train()
    assert seen == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_attacked_batches_are_what_is_trained_on(toy_data, tmp_path):
    """All images move, by no more than eps, and labels and part-free images stay."""
    trainer = PartTrainer(run_cfg(tmp_path, *ADVERSARIAL, "ATTACK.TRAIN.EPS_WARMUP_ITERS", 0))
    clean = next(iter(trainer.data_loader.loader))
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    attacked = trainer.data_loader.attack_batch(clean)
    assert trainer.model.training
    assert all(torch.equal(before[key], value) for key, value in trainer.model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in trainer.model.parameters())
    for old, new in zip(clean, attacked, strict=True):
        change = (new["image"] - old["image"].float()).abs().max()
        assert 0 < float(change) <= 8.0 + 1e-3
        assert {key: new[key] for key in ("image_id", "class_id")} == {
            key: old[key] for key in ("image_id", "class_id")
        }
        assert torch.equal(new["sem_seg"], old["sem_seg"])
    trainer.data_loader.fraction = 0.5
    half = trainer.data_loader.attack_batch(clean)
    moved = [not torch.equal(new["image"].float(), old["image"].float()) for old, new in zip(clean, half, strict=True)]
    assert moved == [True, True, False, False]


def test_training_learns_the_toy(toy_data, tmp_path):
    opts = ["SOLVER.MAX_ITER", 250, "SOLVER.BASE_LR", 0.3, "SOLVER.IMS_PER_BATCH", 6, "TEST.EVAL_PERIOD", 0]
    opts += ["INPUT.FLIP_PROB", 0.0, "INPUT.CROP_SCALE", (0.9, 1.0), "MODEL.PART_CLASSIFIER.SEG_LOSS_WEIGHT", 0.8]
    cfg = run_cfg(tmp_path, *opts, "ATTACK.EVAL", [])
    seed_all_rng(0)
    train(cfg)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    results = evaluate(cfg)
    assert results["classification"]["accuracy"] >= 90
    assert results["part_seg"]["pixel_accuracy"] >= 94, "nothing but background is 91.6"
    assert results["part_seg"]["mIoU"] >= 35, "nothing but background is 22.9"


def test_schedule_in_epochs(toy_data):
    cfg = tiny_cfg("resnet", "SOLVER.EPOCHS", 10.0, "SOLVER.STEP_EPOCHS", (8, 9), "SOLVER.EVAL_EPOCHS", 2.0)
    set_schedule(cfg)  # 12 images, 4 per batch
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (30, (24, 27))
    assert cfg.SOLVER.CHECKPOINT_PERIOD == cfg.TEST.EVAL_PERIOD == 6
    cfg = tiny_cfg("resnet", "SOLVER.EPOCHS", 10.0, "SOLVER.EVAL_EPOCHS", 5.0, "SOLVER.IMS_PER_BATCH", 8)
    set_schedule(cfg)
    assert (cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD) == (15, 8), "two evaluations, at 8 and at the end"


def test_foreign_and_missing_checkpoints_are_refused(finished, tmp_path):
    folder, cfg, _ = finished
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(tmp_path / "nothing.pth")
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth.*random"):
        evaluate(cfg)
    torch.save({"model": {"some.weight": torch.zeros(3)}}, tmp_path / "foreign.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "foreign.pth")
    with pytest.raises(CheckpointMismatch, match="another model"):
        evaluate(cfg)
    with pytest.raises(CheckpointMismatch, match="another model"):
        train(cfg)


def test_a_new_head_on_old_features_starts_with_a_warning(finished, caplog):
    folder, cfg, _ = finished
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.PART_CLASSIFIER.NUM_CLASSES = 5
    model = PartTrainer.build_model(cfg)
    PartCheckpointer(model).load(str(folder / "model_best.pth"), checkpointables=[])
    assert "head.layers (2 weights)" in caplog.text
    with pytest.raises(CheckpointMismatch):
        PartCheckpointer(model, strict=True).load(str(folder / "model_best.pth"))


def test_a_failed_save_keeps_the_old_file(finished, tmp_path, monkeypatch):
    _, cfg, _ = finished
    checkpointer = PartCheckpointer(PartTrainer.build_model(cfg), str(tmp_path))
    checkpointer.save("model", iteration=1)
    old = (tmp_path / "model.pth").read_bytes()

    def disk_full(data, file):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(OSError, match="No space"):
        checkpointer.save("model", iteration=2)
    assert (tmp_path / "model.pth").read_bytes() == old
    assert {path.name for path in tmp_path.iterdir()} == {"model.pth", "last_checkpoint"}


def _two_processes(folder: str) -> None:
    cfg = run_cfg(Path(folder), *ADVERSARIAL, "TEST.EVAL_PERIOD", 3, "SOLVER.IMS_PER_BATCH", 4)
    trainer = PartTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    weights = torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])
    everyone = comm.all_gather(weights)
    assert torch.equal(everyone[0], everyone[1]), "processes must stay in step"
    # Ordinary batch norm leaves each process with statistics of its own; evaluation must not see that.
    next(trainer.model.module.backbone.buffers()).add_(0.5 * comm.get_rank())
    results = PartTrainer.test(cfg, trainer.model)
    if comm.is_main_process():
        with open(os.path.join(folder, "results.json"), "w") as file:
            json.dump(results, file)


def test_two_gloo_processes_train_and_evaluate_like_one(toy_data, tmp_path):
    start_two(_two_processes, (str(tmp_path),))
    two = json.loads((tmp_path / "results.json").read_text())
    cfg = run_cfg(tmp_path, *ADVERSARIAL)
    model = PartTrainer.build_model(cfg)
    PartCheckpointer(model, strict=True).load(str(tmp_path / "model_final.pth"))
    one = PartTrainer.test(cfg, model)
    assert one.keys() == two.keys()
    for task, metrics in one.items():
        assert two[task] == pytest.approx(metrics, abs=1e-6), task
