"""Several runs at a time, in real processes: order, failures, and what is not repeated."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from part_robust.runs import suite
from part_robust.runs.experiment import Phase, finished_record, headline, matrix, measured
from part_robust.runs.suite import _terminate_on_exit, default_processes, plan, run_jobs, states
from tests.evaluation.record_fixture import DATASET, first_schema, record
from tests.processes import ForkedCommand
from tests.toy import MODELS, TINY

SETS = [part for split in ("TRAIN", "VAL", "TEST") for part in (f"DATASETS.{split}", ("suite_toy",))]
ATTACK = ["ATTACK.EVAL", ["fgsm"], "ATTACK.EVAL_DURING_TRAINING", ["fgsm"], "ATTACK.TRAIN.STEPS", 1]


@pytest.fixture
def phases(toy_data, tmp_path, monkeypatch) -> list[Phase]:
    """Clean and adversarial runs of one iteration, and two of a config whose weights do not exist."""
    json_file, images = toy_data
    # That a run is found and started as a script is shown by tests/runs/test_reproduce.py.
    monkeypatch.setattr(suite.subprocess, "Popen", ForkedCommand)
    config = tmp_path / "toy.yaml"
    config.write_text("VERSION: 2\n")
    shared = [*TINY, *MODELS["resnet"], *SETS, *ATTACK, "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", ()]
    shared += ["DATASETS.REGISTER", [["suite_toy", str(json_file), str(images)]], "TEST.EVAL_PERIOD", 1]

    def phase(name: str, weights: str, *opts) -> Phase:
        opts = [*shared, "OUTPUT_DIR", tmp_path / name, "MODEL.WEIGHTS", weights, *opts]
        return Phase(name, str(config), [str(value) for value in opts])

    adversarial = ["ATTACK.TRAIN.ENABLED", True]
    return [
        # The later run first: the order comes from the weights.
        phase("toy_adv", str(tmp_path / "toy" / "model_best.pth"), *adversarial),
        phase("toy", ""),
        phase("broken", str(tmp_path / "nowhere.pth")),
        phase("broken_adv", str(tmp_path / "broken" / "model_best.pth"), *adversarial),
    ]


def test_runs_in_order_and_past_a_failure(phases, tmp_path):
    jobs = plan(phases)
    assert [job.after for job in jobs] == [tmp_path / "toy", None, None, tmp_path / "broken"]
    assert default_processes(jobs, ["0", "1", "2"]) == 3 and 1 <= default_processes(jobs, []) <= 2
    assert set(states(jobs)) == {"to do"}
    said, done = [], []
    outcomes = run_jobs(jobs, 2, say=said.append, done=lambda outcome: done.append(outcome.job.phase.title))
    assert [outcome.state for outcome in outcomes] == ["finished", "finished", "failed", "left out"], outcomes
    assert done.index("toy") < done.index("toy_adv") and done.index("broken") < done.index("broken_adv")
    assert "nowhere.pth" in outcomes[2].job.console.read_text() and outcomes[2].reason
    assert str(tmp_path / "broken") in outcomes[3].reason and not (tmp_path / "broken_adv").exists()
    assert any("of 4 done" in line for line in said)
    # The adversarial run began from the clean one's weights.
    content = json.loads((tmp_path / "toy_adv" / "finished.json").read_text())
    assert str(tmp_path / "toy" / "model_best.pth") in content["config"]
    assert torch.load(tmp_path / "toy_adv" / "model_best.pth", weights_only=True)["model"]
    assert states(jobs[:2]) == ["finished", "finished"]

    # Again: what is finished is not repeated; another config is another run.
    said.clear()
    again = run_jobs(jobs[:2], 1, say=said.append)
    assert [outcome.seconds for outcome in again] == [0.0, 0.0] and not any("begins" in line for line in said)
    (other,) = plan([Phase("toy", phases[1].config_file, [*phases[1].opts, "SOLVER.BASE_LR", "0.5"])])
    assert states([jobs[0], other]) == ["after toy", "other config"]

    # Only the evaluation is another one: nothing is trained.
    before = (tmp_path / "toy_adv" / "model_best.pth").stat().st_mtime_ns
    (other,) = plan([Phase("toy_adv", phases[0].config_file, [*phases[0].opts, "ATTACK.EVAL", "['noise']"])])
    assert states([other, jobs[1]]) == ["trained, evaluates again", "finished"]
    (outcome,) = run_jobs([other], 1, say=said.append)
    assert outcome.state == "finished" and "Already trained" in other.console.read_text()
    assert (tmp_path / "toy_adv" / "model_best.pth").stat().st_mtime_ns == before
    assert list(finished_record(other.phase)["attacks"]) == ["noise"]


def test_two_runs_in_one_folder_are_refused(phases):
    with pytest.raises(ValueError, match=r"OUTPUT_DIR.*toy.*own"):
        plan([phases[1], phases[1]])


@pytest.mark.parametrize("reason", [KeyboardInterrupt, ValueError])
def test_no_process_outlives_the_suite(reason):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with pytest.raises(reason), _terminate_on_exit({process: None}):
        raise reason
    assert process.returncode is not None


def test_headline_of_a_record_without_tiers():
    found = headline(first_schema())
    assert found == {
        "clean accuracy": 75.0,
        "robust accuracy": 41.0,
        "clean pixel accuracy": 80.0,
        "attacked pixel accuracy": 70.0,
    }
    assert measured(first_schema()).attack == "pgd100x5"


def test_headline_of_a_record_with_tiers():
    tiers = record()
    found = headline(tiers)
    # The worst case of the class tiers; the attack on the parts leaves fewer pixels than those on the class.
    assert found["robust accuracy"] == pytest.approx(100 * 400 / 1200)
    assert found["attacked pixel accuracy"] == 61.0
    # Images right when looked at once more do not count as robust.
    tiers["evaluation"][DATASET]["attack_matrix"][2]["accuracy"] = 99.0
    assert headline(tiers)["robust accuracy"] == pytest.approx(100 * 400 / 1200)
    worst, thesis = measured(tiers), measured(tiers, "thesis")
    assert worst.attack == "standard" and worst.attacked["pixel_accuracy"] == 72.0
    assert thesis.attacked["accuracy"] == pytest.approx(100 * 500 / 1200)
    assert measured(tiers, "unknown").attacked == {}


def test_headline_without_classes_and_without_attacks():
    tiers = record()
    for row in tiers["evaluation"][DATASET]["attack_matrix"]:
        row["accuracy"] = None
    tiers["evaluation"][DATASET]["tiers"] = {}
    assert headline(tiers)["robust accuracy"] is None and measured(tiers).attack == "segpgd"
    clean = first_schema()
    clean["attacks"], results = {}, clean["results"][DATASET]
    for name in [name for name in results if name.endswith("pgd100x5")]:
        del results[name]
    assert headline(clean)["robust accuracy"] is None and measured(clean).attacked == {}
    assert [row["attack"] for row in matrix(clean)] == ["clean"]
