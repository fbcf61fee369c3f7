"""Which keys make another training, which only another evaluation; and that weights do not depend on the latter."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from detectron2.utils.env import seed_all_rng

from part_robust.config import config_text, get_part_robust_cfg
from part_robust.engine.begun import begin_training
from part_robust.engine.fingerprint import WEIGHTS_SHA256, different_keys, fingerprint, same_run, same_training
from part_robust.runs.run import Run, states
from part_robust.runs.training import OtherRun, train_run
from tests.toy import ADVERSARIAL, MODELS, TINY, run_cfg

# Written out once more: a key that moves from one side to the other should not do so unseen.
EVALUATION = {
    "ATTACK": {"EVAL"},
    "MODEL": {"PRETRAINING"},
    "TEST": {
        *("AUDIT", "CHECKS", "EPS", "EPS_CURVE", "EPS_CURVE_ATTACK", "LOCAL", "NORM", "NUM_IMAGES"),
        *("BOUND", "RESTART_ATTACKS", "RESTART_GAIN", "SAMPLED_ATTACKS"),
        *("FULL_TIERS", "SAVE_ADVERSARIALS", "SAVE_PREDICTIONS", "SMOOTHING", "THREATS", "TIER", "TIERS"),
    },
    "DATASETS": {"TEST"},
}


def test_every_key_on_its_side():
    cfg = get_part_robust_cfg(None, ["DATASETS.VAL", ("some_val",)])
    text = fingerprint(cfg)
    training, evaluation = set(), set()

    def change(node: dict, path: tuple[str, ...] = ()) -> dict:
        """Every value but those that say what others are for."""
        found = {}
        for key, value in node.items():
            here = (*path, key)
            if isinstance(value, dict):
                found[key] = change(value, here)
            elif ".".join(here) in ("ATTACK.EVAL_DURING_TRAINING", "DATASETS.VAL"):
                found[key] = value
            else:
                found[key] = "another value"
                unwatched = here[:2] == ("ATTACK", "SPECS") and here[2] not in cfg.ATTACK.EVAL_DURING_TRAINING
                side = evaluation if unwatched or here[1:2] and here[1] in EVALUATION.get(here[0], ()) else training
                side.add(".".join(here))
        return found

    other = yaml.safe_dump(change(yaml.safe_load(text)))
    assert different_keys(text, other) == sorted(training) and len(training) > 300
    assert {tuple(key.split(".")[:2]) for key in evaluation} == {
        ("ATTACK", "SPECS"),
        *((top, key) for top, keys in EVALUATION.items() for key in keys),
    }
    assert not same_training(text, other) and not same_run(text, other)


def test_what_watches_the_training_is_the_trainings():
    def text(*opts) -> str:
        return fingerprint(get_part_robust_cfg(None, opts))

    # DATASETS.TEST chooses the best checkpoint where there is no VAL.
    assert different_keys(text("DATASETS.TEST", ("a",)), text("DATASETS.TEST", ("b",))) == ["DATASETS.TEST"]
    watched, unwatched = "ATTACK.SPECS.pgd20.STEPS", "ATTACK.SPECS.pgd50.STEPS"
    assert different_keys(text(), text(watched, 7)) == [watched] and same_training(text(), text(unwatched, 7))
    assert different_keys(text(), text("ATTACK.EVAL_DURING_TRAINING", ["pgd50"])) == ["ATTACK.EVAL_DURING_TRAINING"]
    both = ["ATTACK.EVAL_DURING_TRAINING", ["pgd20", "pgd50"]]
    assert different_keys(text(*both), text(*both, unwatched, 7)) == [unwatched]


def test_a_key_of_a_later_version():
    """A folder of before the key is the same run's as long as the key has its default, and another's else."""
    older = yaml.safe_load(fingerprint(get_part_robust_cfg(None, [])))
    del older["SOLVER"]["EMA"], older["SOLVER"]["PATIENCE"], older["TEST"]["SMOOTHING"]
    del older["ATTACK"]["SPECS"]["apgd_soft_pixels"]
    older = yaml.safe_dump(older)

    def newer(*opts) -> str:
        return fingerprint(get_part_robust_cfg(None, opts))

    assert same_run(older, newer()) and same_run(newer(), older)
    assert different_keys(older, newer("SOLVER.EMA.DECAY", 0.5, "SOLVER.PATIENCE", 2)) == [
        *("SOLVER.EMA.DECAY", "SOLVER.PATIENCE")
    ]
    samples = ("TEST.SMOOTHING.SAMPLES", 7)
    for opts in (samples, ("ATTACK.SPECS.apgd_soft_pixels.STEPS", 7)):
        assert same_training(older, newer(*opts)) and not same_run(older, newer(*opts))
    # Of a later version, seen from this one.
    assert different_keys(older + "NEW_KEY: 1\n", older) == ["NEW_KEY"]


def test_other_weights_of_the_same_name(tmp_path):
    weights = tmp_path / "weights.pth"
    cfg = get_part_robust_cfg(None, ["MODEL.WEIGHTS", str(weights)])
    nothing = fingerprint(cfg)
    weights.write_bytes(b"one")
    one = fingerprint(cfg)
    weights.write_bytes(b"two")
    two = fingerprint(cfg)
    assert different_keys(one, two) == [WEIGHTS_SHA256] and not same_run(one, two)
    # Of before there were hashes, or the weights are gone.
    assert nothing == config_text(cfg) and same_run(nothing, one) and same_run(two, nothing)


def test_weights_do_not_depend_on_keys_of_the_evaluation(toy_data, tmp_path):
    """A training with every one of them changed, from the same seed."""
    changed = [
        *("ATTACK.EVAL", ["apgd_ce"], "MODEL.PRETRAINING", "none", "TEST.AUDIT", True, "TEST.CHECKS.IMAGES", 3),
        *("TEST.EPS", 2.0, "TEST.EPS_CURVE", (1.0,), "TEST.EPS_CURVE_ATTACK", "apgd_margin", "TEST.NORM", "l2"),
        *("TEST.NUM_IMAGES", 1, "TEST.SAVE_ADVERSARIALS", "npz", "TEST.TIER", "screen", "TEST.TIERS.screen", ["noise"]),
        *("ATTACK.SPECS.pgd50.EPS", 1.0, "DATASETS.TEST", ("toy_train",), "TEST.RESTART_GAIN", 1.0, "TEST.BOUND", 5.0),
    ]
    found = []
    for name, opts in (("one", []), ("two", changed)):
        cfg = run_cfg(tmp_path / name, *ADVERSARIAL, "SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 1, *opts)
        seed_all_rng(0)  # as `setup` does
        found.append(torch.load(train_run(cfg), weights_only=True)["model"])
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


@pytest.fixture
def phase(toy_data, tmp_path):
    """Makes a phase of one iteration in the folder "run", or of the name given, with KEY VALUE pairs on top."""
    json_file, images = toy_data
    config = tmp_path / "toy.yaml"
    config.write_text("VERSION: 2\n")
    sets = [part for split in ("TRAIN", "VAL", "TEST") for part in (f"DATASETS.{split}", ("fingerprint_toy",))]
    shared = [*TINY, *MODELS["resnet"], *sets, "DATASETS.REGISTER", [["fingerprint_toy", str(json_file), str(images)]]]
    shared += ["SOLVER.MAX_ITER", 1, "SOLVER.STEPS", (), "TEST.EVAL_PERIOD", 1, "MODEL.WEIGHTS", ""]
    shared += ["ATTACK.EVAL", ["fgsm"], "ATTACK.EVAL_DURING_TRAINING", ["fgsm"], "ATTACK.TRAIN.STEPS", 1]

    def make(*opts, name: str = "run") -> Run:
        opts = [*shared, "OUTPUT_DIR", tmp_path / name, *opts]
        return Run(name, str(config), [str(value) for value in opts])

    return make


def attacks(record: dict) -> set[str]:
    return set(record["attacks"])


def test_another_evaluation_keeps_the_training(phase, tmp_path, monkeypatch):
    assert attacks(phase().execute()) == {"fgsm"}
    weights = (tmp_path / "run" / "model_best.pth").read_bytes()
    trained = []
    monkeypatch.setattr("part_robust.runs.training.train", lambda cfg, resume: trained.append(resume))
    noise = phase("ATTACK.EVAL", ["noise"])
    assert noise.record() is None and states([noise]) == ["trained, evaluates again"]
    assert attacks(noise.execute()) == {"noise"} == attacks(noise.record())
    assert states([noise]) == ["finished"] and states([phase()]) == ["trained, evaluates again"]
    # With a journal: interrupted in the middle, and then another tier than the journal's.
    names = ["TEST.TIERS.screen", ["fgsm"], "TEST.TIERS.standard", ["noise"], "TEST.TIER"]
    first, second = phase(*names, "screen"), phase(*names, "standard")
    first.execute()
    record = second.execute()
    assert first.record() is None and list(record["evaluation"]["fingerprint_toy"]["tiers"]) == ["standard"]
    assert trained == [] and (tmp_path / "run" / "model_best.pth").read_bytes() == weights
    # Trained, and never evaluated; weights deleted to save room.
    (tmp_path / "run" / "finished.json").unlink()
    assert states([second]) == ["trained, evaluates"]
    for file in (tmp_path / "run").glob("*.pth"):
        file.unlink()
    assert states([second]) == ["begun"]
    with pytest.raises(FileNotFoundError):  # `train` does nothing here
        second.execute()
    assert trained == [False], "from the start: there is nothing to go on from"


def test_a_folder_of_before_hashes(phase, tmp_path):
    """The files hold the plain config then."""
    first = phase()
    record = first.execute()
    weights = str(tmp_path / "run" / "model_best.pth")
    second = phase("MODEL.WEIGHTS", weights, name="second")
    second.execute()
    folder = tmp_path / "second"
    for name in ("finished.json", "trained.json"):
        content = json.loads((folder / name).read_text())
        config, digest, _ = content["config"].partition(WEIGHTS_SHA256)
        assert digest, name
        (folder / name).write_text(json.dumps({**content, "config": config}))
    (folder / "started.yaml").write_text(config)
    assert states([first, second]) == ["finished", "finished"]
    other = phase("MODEL.WEIGHTS", weights, "TEST.NUM_IMAGES", 1, name="second")
    assert states([other]) == ["trained, evaluates again"]
    assert first.record() == record


def test_what_begins_from_a_training_that_is_to_be_done_again(phase, tmp_path):
    adversarial = ["MODEL.WEIGHTS", tmp_path / "run" / "model_best.pth", "ATTACK.TRAIN.ENABLED", True]
    second = phase(*adversarial, name="second")
    assert states([second, phase()]) == ["to do", "to do"]
    phase().execute(), second.execute()
    assert states([second, phase()]) == ["finished", "finished"]
    other = phase("SOLVER.BASE_LR", 0.5)
    third = phase("MODEL.WEIGHTS", tmp_path / "second" / "model_best.pth", "ATTACK.TRAIN.ENABLED", True, name="third")
    assert states([second, other, third]) == ["after run", "other config", "to do"]
    other.execute()
    assert states([second, other]) == ["other config", "finished"], "its weights are others now"
    second.execute()
    assert states([second, other]) == ["finished", "finished"]


def test_killed_before_its_first_checkpoint_it_does_not_take_the_other_runs(toy_data, tmp_path, monkeypatch):
    train_run(run_cfg(tmp_path, "SOLVER.MAX_ITER", 1))
    assert (tmp_path / "last_checkpoint").is_file()
    trained = []

    def killed(cfg, resume):
        begin_training(cfg, resume)
        trained.append((resume, (tmp_path / "last_checkpoint").is_file()))
        raise KeyboardInterrupt

    monkeypatch.setattr("part_robust.runs.training.train", killed)
    other = run_cfg(tmp_path, "SOLVER.MAX_ITER", 1, "SOLVER.BASE_LR", 0.5)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train_run(other, restart=True)
    # The second time it goes on, from nothing: not from the first run's last checkpoint.
    assert trained == [(False, False), (True, False)]


def test_other_weights_are_refused_by_name(toy_data, tmp_path, monkeypatch):
    monkeypatch.setattr("part_robust.runs.training.train", begin_training)
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"one")
    folder = tmp_path / "run"
    cfg = run_cfg(folder, "MODEL.WEIGHTS", str(weights))
    folder.mkdir(exist_ok=True)
    train_run(cfg)
    (folder / "last_checkpoint").write_text("model_0000001.pth")
    weights.write_bytes(b"two")
    with pytest.raises(OtherRun, match="had another MODEL.WEIGHTS sha256"):
        train_run(cfg)
