"""Suites on PartShapes that compare trainings of one model: with augmentation, and the controls of the parts."""

from __future__ import annotations

import logging

import pytest

from part_robust.config import config_text
from part_robust.engine.fingerprint import different_keys
from part_robust.runs.suites import suite_runs
from part_robust.runs.tables import Tables
from tests.commands import ROOT
from tests.toy import TINY


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_every_recipe_with_augmentation_is_in_their_suite():
    runs = suite_runs("part_shapes_augmented")
    shared = {run.title: run for run in suite_runs("part_shapes_small")}
    own = [run for run in runs if run.title not in shared]
    assert all(run == shared[run.title] for run in runs if run not in own), "a run of both suites is made once"
    configs = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs/part_shapes/augmented").iterdir()}
    assert {run.config_file for run in own} == configs
    epochs = {run.leaf: run.config.SOLVER.EPOCHS for run in own}
    assert epochs.pop("deeplab_two_headed_nfgsm") == 8.0 and set(epochs.values()) == {4.0}


def test_controls_share_runs_with_the_small_suite_and_have_equally_many_passes():
    runs = suite_runs("part_shapes_controls")
    shared = {run.title: run for run in suite_runs("part_shapes_small")}
    both = [run for run in runs if run.title in shared]
    assert {run.leaf for run in both} == {"resnet50", "deeplab_two_headed"}
    assert all((run.config_file, run.opts) == (shared[run.title].config_file, shared[run.title].opts) for run in both)
    reference = {run.cells[2]: run.config for run in both if run.leaf == "deeplab_two_headed"}
    changes = {}
    for run in runs:
        plain = reference[run.cells[2]]
        assert (run.config.SOLVER.EPOCHS, run.config.ATTACK) == (plain.SOLVER.EPOCHS, plain.ATTACK)
        if run.leaf not in ("resnet50", "deeplab_two_headed"):
            changes.setdefault(run.leaf, set()).update(different_keys(config_text(plain), config_text(run.config)))
    keys = {"INPUT.PART_LABELS": 3, "DATASETS.PART_LABEL_SHARE": 1, "MODEL.PART_CLASSIFIER.SEG_LOSS_WEIGHT": 1}
    for key, count in keys.items():
        assert sum(found == {key, "OUTPUT_DIR", "MODEL.WEIGHTS"} for found in changes.values()) == count
    assert len(changes) == 5


def test_controls_run_on_a_toy(toy_data, tmp_path):
    small = ["SOLVER.EPOCHS", 0, "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", (), "TEST.EVAL_PERIOD", 1]
    sets = ["DATASETS.TRAIN", ("toy_train",), "DATASETS.VAL", ("toy_val",), "DATASETS.TEST", ("toy_val",)]
    opts = [str(word) for word in [*TINY, *sets, *small]]
    runs = suite_runs("part_shapes_controls", ["deeplab_two_headed_object"], opts, str(tmp_path))
    for run in runs:
        record = run.execute(logging.WARNING)
        assert record["results"] and run.state() == "finished"
    made = Tables(runs, tmp_path, "tables")
    made.write()
    assert "| Two-Headed, object with its class | masks         | adversarial" in made.markdown.read_text()
    words = "Two-Headed, object with its class, masks, clean: part scores are of INPUT.PART_LABELS object, so"
    assert words in made.markdown.read_text()
