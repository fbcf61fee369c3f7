"""Clean, then adversarial training by one command, interrupted in every way."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
import yaml

from part_robust.engine.begun import begin_training
from part_robust.runs.training import OtherRun, train_run
from part_robust.runs.two_phase import phases, prepare_two_phases
from tests.toy import ADVERSARIAL, MODELS, TINY, run_cfg


def text(opts) -> list[str]:
    return [str(value) for value in opts]


@pytest.fixture
def leaves(toy_data, tmp_path) -> Path:
    """toy.yaml and toy_adv.yaml, as the leaves in configs/ are."""
    sets = ["DATASETS.TRAIN", ("toy_train",), "DATASETS.VAL", ("toy_val",), "DATASETS.TEST", ("toy_val",)]
    opts = [*TINY, *MODELS["resnet"], *sets, "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", (), "TEST.EVAL_PERIOD", 2]
    opts += ["OUTPUT_DIR", str(tmp_path / "toy")]

    def nested(pairs):
        tree: dict = {}
        for key, value in zip(pairs[0::2], pairs[1::2], strict=True):
            node = tree
            *path, last = key.split(".")
            for name in path:
                node = node.setdefault(name, {})
            node[last] = list(value) if isinstance(value, tuple) else value
        return tree

    (tmp_path / "toy.yaml").write_text(yaml.safe_dump({"VERSION": 2, **nested(opts)}))
    attack = [*ADVERSARIAL, "MODEL.WEIGHTS", "nowhere.pth", "OUTPUT_DIR", str(tmp_path / "toy_adv")]
    (tmp_path / "toy_adv.yaml").write_text(yaml.safe_dump({"_BASE_": "toy.yaml", **nested(attack)}))
    return tmp_path


def arguments(config: Path, *opts, resume: bool = False) -> argparse.Namespace:
    return argparse.Namespace(config_file=str(config), opts=text(opts), resume=resume, eval_only=False, num_gpus=1)


def test_both_phases_and_again(leaves, monkeypatch):
    best = prepare_two_phases(arguments(leaves / "toy_adv.yaml"))()
    assert best == leaves / "toy_adv" / "model_best.pth"
    clean = yaml.safe_load((leaves / "toy" / "config.yaml").read_text())
    adversarial = yaml.safe_load((leaves / "toy_adv" / "config.yaml").read_text())
    assert not clean["ATTACK"]["TRAIN"]["ENABLED"] and clean["MODEL"]["WEIGHTS"] == ""
    assert adversarial["ATTACK"]["TRAIN"]["ENABLED"]
    assert adversarial["MODEL"]["WEIGHTS"] == str(leaves / "toy" / "model_best.pth")
    # Done: the same command finds that out. Interrupted in the second phase: only that one goes on.
    trained = []
    monkeypatch.setattr("part_robust.runs.training.train", lambda cfg, resume: trained.append((cfg.OUTPUT_DIR, resume)))
    prepare_two_phases(arguments(leaves / "toy_adv.yaml"))()
    assert trained == []
    (leaves / "toy_adv" / "trained.json").unlink()
    prepare_two_phases(arguments(leaves / "toy_adv.yaml"))()
    assert trained == [(str(leaves / "toy_adv"), True)]


def test_another_config_is_refused_by_its_keys_unless_asked_for(toy_data, tmp_path, monkeypatch):
    trained = []

    def train(cfg, resume):
        begin_training(cfg, resume)
        trained.append(resume)

    monkeypatch.setattr("part_robust.runs.training.train", train)
    first = run_cfg(tmp_path)
    train_run(first)
    (tmp_path / "trained.json").unlink()
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    second = run_cfg(tmp_path, "SOLVER.BASE_LR", 0.5)
    with pytest.raises(OtherRun, match=r"had another SOLVER\.BASE_LR\..*--resume"):
        train_run(second)
    train_run(second, go_on=True)
    (tmp_path / "started.yaml").unlink()
    (tmp_path / "trained.json").unlink()
    with pytest.raises(OtherRun, match="does not say its config"):
        train_run(second)
    train_run(second, restart=True)
    assert trained == [False, True, False]


def test_folders_and_opts_of_the_phases(leaves):
    opts = ["SOLVER.MAX_ITER", 7, "MODEL.WEIGHTS", "imagenet.pkl"]
    clean, adversarial = phases(arguments(leaves / "toy_adv.yaml", *opts))
    assert clean.config_file == str(leaves / "toy.yaml") and clean.config.MODEL.WEIGHTS == "imagenet.pkl"
    assert adversarial.config_file == str(leaves / "toy_adv.yaml") and adversarial.after == clean.output
    assert clean.config.SOLVER.MAX_ITER == adversarial.config.SOLVER.MAX_ITER == 7
    # Named by the user, or without a clean neighbour: folders of one folder.
    clean, adversarial = phases(arguments(leaves / "toy_adv.yaml", "OUTPUT_DIR", "out"))
    assert (str(clean.output), str(adversarial.output)) == ("out/clean", "out/adversarial")
    (leaves / "mine.yaml").write_text((leaves / "toy_adv.yaml").read_text())
    clean, adversarial = phases(arguments(leaves / "mine.yaml"))
    assert clean.config_file == adversarial.config_file == str(leaves / "mine.yaml")
    assert clean.output == leaves / "toy_adv" / "clean" and not clean.config.ATTACK.TRAIN.ENABLED


def test_mistakes_come_before_the_work(leaves):
    with pytest.raises(ValueError, match=r"toy\.yaml trains clean"):
        prepare_two_phases(arguments(leaves / "toy.yaml"))
    with pytest.raises(ValueError, match=r"ATTACK\.TRAIN\.METHOD"):
        prepare_two_phases(arguments(leaves / "toy_adv.yaml", "ATTACK.TRAIN.METHOD", "tradse"))
    with pytest.raises(ValueError, match="multiple of 1 processes x 3 pieces"):
        prepare_two_phases(arguments(leaves / "toy_adv.yaml", "SOLVER.ACCUMULATE", 3))
    assert not (leaves / "toy").exists()


def test_the_last_weights_where_nothing_was_evaluated(toy_data, tmp_path):
    cfg = run_cfg(tmp_path, "DATASETS.VAL", (), "DATASETS.TEST", (), "SOLVER.MAX_ITER", 1, "TEST.EVAL_PERIOD", 0)
    # What an earlier training in the folder has left is not this one's best.
    (tmp_path / "model_best.pth").touch()
    (tmp_path / "best_checkpoint.json").write_text(
        '{"metric": "classification/accuracy", "value": 1.0, "iteration": 0}'
    )
    assert train_run(cfg) == tmp_path / "model_final.pth"
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 0
