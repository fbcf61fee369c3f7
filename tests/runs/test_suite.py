"""Several runs at a time, in real processes: order, failures, and what is not repeated."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch

from part_robust.runs import scheduler
from part_robust.runs.measured import headline_numbers, matrix, measured
from part_robust.runs.run import Run, check_folders, states
from part_robust.runs.scheduler import default_slots, in_this_process, processes, schedule
from tests.evaluation.record_fixture import DATASET, first_schema, record
from tests.processes import ForkedCommand
from tests.toy import MODELS, TINY

SETS = [part for split in ("TRAIN", "VAL", "TEST") for part in (f"DATASETS.{split}", ("suite_toy",))]
ATTACK = ["ATTACK.EVAL", ["fgsm"], "ATTACK.EVAL_DURING_TRAINING", ["fgsm"], "ATTACK.TRAIN.STEPS", 1]


def run_all(runs: list[Run], slots: int = 1, **options) -> list[scheduler.Outcome]:
    """Executes runs in processes, as `part-robust reproduce` does."""
    with processes(slots) as start:
        return schedule(runs, start, slots, lambda run: run.record() is not None, **options)


@pytest.fixture
def runs(toy_data, tmp_path, monkeypatch) -> list[Run]:
    """Clean and adversarial runs of one iteration, and two of a config whose weights do not exist."""
    json_file, images = toy_data
    # That a run is found and started as a script is shown by tests/runs/test_reproduce.py.
    monkeypatch.setattr(scheduler.subprocess, "Popen", ForkedCommand)
    config = tmp_path / "toy.yaml"
    config.write_text("VERSION: 2\n")
    shared = [*TINY, *MODELS["resnet"], *SETS, *ATTACK, "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", ()]
    shared += ["DATASETS.REGISTER", [["suite_toy", str(json_file), str(images)]], "TEST.EVAL_PERIOD", 1]

    def run(name: str, weights: str, *opts) -> Run:
        opts = [*shared, "OUTPUT_DIR", tmp_path / name, "MODEL.WEIGHTS", weights, *opts]
        return Run(name, str(config), [str(value) for value in opts])

    adversarial = ["ATTACK.TRAIN.ENABLED", True]
    return [
        # The later run first: the order comes from the weights.
        run("toy_adv", str(tmp_path / "toy" / "model_best.pth"), *adversarial),
        run("toy", ""),
        run("broken", str(tmp_path / "nowhere.pth")),
        run("broken_adv", str(tmp_path / "broken" / "model_best.pth"), *adversarial),
    ]


def again(run: Run, *opts: str) -> Run:
    """The run with further KEY VALUE pairs."""
    return replace(run, opts=[*run.opts, *opts])


@pytest.mark.parametrize(
    ("given", "slots", "threads"),
    [
        ({}, 1, {"OMP_NUM_THREADS": "6", "MKL_NUM_THREADS": "6"}),
        ({}, 4, {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}),
        ({"OMP_NUM_THREADS": "2"}, 1, {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}),
        ({"MKL_NUM_THREADS": "3"}, 3, {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "3"}),
    ],
)
def test_threads_of_a_run(given, slots, threads, runs, monkeypatch):
    """What the user says holds for all libraries; without it the cores are shared out."""
    started = []
    monkeypatch.setattr(scheduler, "cores", lambda: 6)
    monkeypatch.setattr(scheduler.subprocess, "Popen", lambda command, env, **rest: started.append(env) or Mock())
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with processes(slots) as start:
        start(runs[1])
    assert {name: started[0].get(name) for name in threads} == threads


def test_runs_in_order_and_past_a_failure(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "AT_ONCE", 0.0)
    check_folders(runs)
    assert [run.after for run in runs] == [tmp_path / "toy", None, tmp_path, tmp_path / "broken"]
    assert default_slots(runs, ["0", "1", "2"]) == 3 and 1 <= default_slots(runs, []) <= 2
    assert set(states(runs)) == {"to do"}
    said, done = [], []
    outcomes = run_all(runs, 2, say=said.append, done=lambda outcome: done.append(outcome.run.title))
    assert [outcome.state for outcome in outcomes] == ["finished", "finished", "failed", "left out"], outcomes
    assert done.index("toy") < done.index("toy_adv") and done.index("broken") < done.index("broken_adv")
    assert "nowhere.pth" in outcomes[2].run.console.read_text() and outcomes[2].reason
    assert str(tmp_path / "broken") in outcomes[3].reason and not (tmp_path / "broken_adv").exists()
    assert any("1 of 4 done" in line and line.endswith(" min left") for line in said)
    assert "min left" not in said[-1] and any(line.startswith("broken_adv: left out") for line in said)
    # The adversarial run began from the clean one's weights.
    content = json.loads((tmp_path / "toy_adv" / "finished.json").read_text())
    assert str(tmp_path / "toy" / "model_best.pth") in content["config"]
    assert torch.load(tmp_path / "toy_adv" / "model_best.pth", weights_only=True)["model"]
    assert states(runs[:2]) == ["finished", "finished"]

    # Again: what is finished is not repeated; another config is another run.
    said.clear()
    repeated = run_all(runs[:2], say=said.append)
    assert [outcome.seconds for outcome in repeated] == [0.0, 0.0] and not any("begins" in line for line in said)
    assert states([runs[0], again(runs[1], "SOLVER.BASE_LR", "0.5")]) == ["after toy", "other config"]

    # Only the evaluation is another one: nothing is trained.
    before = (tmp_path / "toy_adv" / "model_best.pth").stat().st_mtime_ns
    other = again(runs[0], "ATTACK.EVAL", "['noise']")
    assert states([other, runs[1]]) == ["trained, evaluates again", "finished"]
    (outcome,) = run_all([other], say=said.append)
    assert outcome.state == "finished" and "Already trained" in other.console.read_text()
    assert (tmp_path / "toy_adv" / "model_best.pth").stat().st_mtime_ns == before
    assert list(other.record()["attacks"]) == ["noise"]


def test_one_process_executes_in_order_and_stops_at_an_error(runs):
    """As `--two-phase` and the demo do."""
    executed, said = [], []
    outcomes = schedule(runs, in_this_process(lambda run: executed.append(run.title)), say=said.append)
    assert executed == ["toy", "toy_adv", "broken", "broken_adv"]
    assert [outcome.run for outcome in outcomes] == runs
    assert said[1].endswith("1 of 4 done after 0 min"), "of runs that found at once that they are done no time is known"

    def fail(run: Run) -> None:
        executed.append(run.title)
        raise ValueError("no weights")

    executed.clear()
    with pytest.raises(ValueError, match="no weights"):
        schedule(runs, in_this_process(fail), say=said.append)
    assert executed == ["toy"]


def test_two_runs_in_one_folder_are_refused(runs):
    with pytest.raises(ValueError, match=r"OUTPUT_DIR.*toy.*own"):
        check_folders([runs[1], runs[1]])


@pytest.mark.parametrize("reason", [KeyboardInterrupt, ValueError])
def test_no_process_outlives_the_suite(tmp_path, monkeypatch, reason):
    (tmp_path / "toy.yaml").write_text("VERSION: 2\n")
    run = Run("sleeper", str(tmp_path / "toy.yaml"), ["OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS", ""])
    real, started = subprocess.Popen, []

    def start(command, **options) -> subprocess.Popen:
        started.append(real([sys.executable, "-c", "import time; time.sleep(60)"]))
        return started[0]

    def stop(seconds: float) -> None:
        raise reason

    monkeypatch.setattr(scheduler.subprocess, "Popen", start)
    monkeypatch.setattr(scheduler.time, "sleep", stop)
    with pytest.raises(reason):
        run_all([run], say=lambda line: None)
    assert started[0].returncode is not None


def test_headline_of_a_record_without_tiers():
    found = headline_numbers(first_schema())
    assert found == {
        "clean accuracy": 75.0,
        "robust accuracy": 41.0,
        "clean pixel accuracy": 80.0,
        "attacked pixel accuracy": 70.0,
    }
    assert measured(first_schema()).attack == "pgd100x5"


def test_headline_of_a_record_with_tiers():
    tiers = record()
    found = headline_numbers(tiers)
    # The worst case of the class tiers; the attack on the parts leaves fewer pixels than those on the class.
    assert found["robust accuracy"] == pytest.approx(100 * 400 / 1200)
    assert found["attacked pixel accuracy"] == 61.0
    # Images right when looked at once more do not count as robust.
    tiers["evaluation"][DATASET]["attack_matrix"][2]["accuracy"] = 99.0
    assert headline_numbers(tiers)["robust accuracy"] == pytest.approx(100 * 400 / 1200)
    worst, thesis = measured(tiers), measured(tiers, "thesis")
    assert worst.attack == "standard" and worst.attacked["pixel_accuracy"] == 72.0
    assert thesis.attacked["accuracy"] == pytest.approx(100 * 500 / 1200)
    assert measured(tiers, "unknown").attacked == {}


def test_headline_without_classes_and_without_attacks():
    tiers = record()
    for row in tiers["evaluation"][DATASET]["attack_matrix"]:
        row["accuracy"] = None
    tiers["evaluation"][DATASET]["tiers"] = {}
    assert headline_numbers(tiers)["robust accuracy"] is None and measured(tiers).attack == "segpgd"
    clean = first_schema()
    clean["attacks"], results = {}, clean["results"][DATASET]
    for name in [name for name in results if name.endswith("pgd100x5")]:
        del results[name]
    assert headline_numbers(clean)["robust accuracy"] is None and measured(clean).attacked == {}
    assert [row["attack"] for row in matrix(clean)] == ["clean"]
