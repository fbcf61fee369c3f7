"""Early stopping by the metric of the best checkpoint: alike in one run, after a kill, and in two processes."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import get_event_storage

from part_robust.engine import PartTrainer, train
from tests.processes import ends_killed, kill_this_process, start_two
from tests.toy import ADVERSARIAL, metric_lines, run_cfg

# Evaluations after iterations 1, 3, 5, ...: the third is the best, and two follow it that are not better.
ACCURACIES = {1: 10.0, 3: 20.0, 5: 30.0, 7: 25.0, 9: 30.0}
BETTER = {"accuracy": 40.0}
PATIENT = ["TEST.EVAL_PERIOD", 2, "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.MAX_ITER", 14, "SOLVER.PATIENCE", 2]


def scripted(cfg, model, evaluators=None) -> OrderedDict:
    """Accuracy under an attack that is not the training's, of the main process alone, as from an evaluation."""
    accuracy = ACCURACIES[get_event_storage().iter]
    return OrderedDict(classification_noise={"accuracy": accuracy} if comm.is_main_process() else {})


def held_out(folder: Path, *opts):
    watched = ["ATTACK.EVAL_DURING_TRAINING", ["fgsm", "noise"], "TEST.BEST_METRIC", "classification_noise/accuracy"]
    return run_cfg(folder, *ADVERSARIAL, *PATIENT, *watched, *opts, model="resnet")


def fail(*args) -> None:
    raise AssertionError("nothing is left to do")


def left_in(folder: Path) -> tuple:
    """What a training has come to: its record of the best, and last and best weights with their iterations."""
    files = [torch.load(folder / name) for name in ("model_final.pth", "model_best.pth")]
    record = json.loads((folder / "best_checkpoint.json").read_text())
    return record, [file["iteration"] for file in files], [file["model"] for file in files]


def assert_alike(first: Path, second: Path) -> None:
    one, two = left_in(first), left_in(second)
    assert one[:2] == two[:2]
    for a, b in zip(one[2], two[2], strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("killed_after", [9, 8, 5])
def test_it_ends_where_the_uninterrupted_training_does(toy_data, tmp_path, monkeypatch, killed_after):
    """Killed in the evaluation that ends it, in the step before, and in the one that is the best."""
    monkeypatch.setattr(PartTrainer, "test", staticmethod(scripted))
    seed_all_rng(0)
    assert train(held_out(tmp_path / "whole")) == {"classification_noise": {"accuracy": 30.0}}
    record, iterations, _ = left_in(tmp_path / "whole")
    assert record == {"metric": "classification_noise/accuracy", "value": 30.0, "iteration": 5, "evaluated": 9}
    assert iterations == [9, 5]

    def test(cfg, model, evaluators=None) -> OrderedDict:
        if get_event_storage().iter == killed_after:
            kill_this_process()
        return scripted(cfg, model)

    own = PartTrainer.run_step

    def step(trainer: PartTrainer) -> None:
        if trainer.iter == killed_after and killed_after % 2 == 0:
            kill_this_process()
        own(trainer)

    parts = held_out(tmp_path / "parts")
    with monkeypatch.context() as patch:
        patch.setattr(PartTrainer, "test", staticmethod(test))
        patch.setattr(PartTrainer, "run_step", step)
        seed_all_rng(0)
        ends_killed(train, parts)
    train(parts, resume=True)
    assert_alike(tmp_path / "whole", tmp_path / "parts")


def test_what_has_ended_stays_so_until_there_is_more_patience(toy_data, tmp_path, monkeypatch):
    monkeypatch.setattr(PartTrainer, "test", staticmethod(scripted))
    train(held_out(tmp_path, "SOLVER.EMA.DECAY", 0.9))
    before = left_in(tmp_path)[:2]
    with monkeypatch.context() as patch:
        patch.setattr(PartTrainer, "run_step", fail)
        train(held_out(tmp_path, "SOLVER.EMA.DECAY", 0.9), resume=True)
    assert left_in(tmp_path)[:2] == before
    monkeypatch.setattr(PartTrainer, "test", staticmethod(lambda *args: OrderedDict(classification_noise=BETTER)))
    train(held_out(tmp_path, "SOLVER.EMA.DECAY", 0.9, "SOLVER.PATIENCE", 3), resume=True)
    record, iterations, _ = left_in(tmp_path)
    assert iterations == [13, 11] and (record["value"], record["evaluated"]) == (BETTER["accuracy"], 14)


def _two_processes(folder: str) -> None:
    PartTrainer.test = staticmethod(scripted)
    trainer = PartTrainer(held_out(Path(folder), "SOLVER.IMS_PER_BATCH", 4))
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert trainer.iter == 9, "every process ends"
    comm.synchronize()


def test_all_processes_end(toy_data, tmp_path):
    start_two(_two_processes, (str(tmp_path),))
    assert left_in(tmp_path)[1] == [9, 5]


def test_a_real_evaluation_under_an_attack_that_is_not_the_training_s(toy_data, tmp_path):
    train(held_out(tmp_path, "SOLVER.MAX_ITER", 4, "SOLVER.PATIENCE", 1))
    record = json.loads((tmp_path / "best_checkpoint.json").read_text())
    lines = {line["iteration"]: line for line in metric_lines(tmp_path) if "classification_noise/accuracy" in line}
    assert record["value"] == lines[record["iteration"]]["classification_noise/accuracy"]
    assert any("classification_fgsm/accuracy" in line for line in lines.values())
