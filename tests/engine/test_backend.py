"""--eval-only --backend autoattack: an evaluation whose attacks on the class are pyautoattack's."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng

from part_robust.attacks import Official, ThreatModel
from part_robust.engine import JournalMismatch, evaluate
from part_robust.evaluation.adversarials import load_adversarials
from part_robust.evaluation.compare import load_evaluated
from part_robust.evaluation.plan import build_curve, build_tiers
from part_robust.evaluation.record import describe_evaluation, flags_of, metrics_of, plan_warnings
from part_robust.evaluation.tiers import Tier
from part_robust.modeling.part_classifier import with_counts
from tests.evaluation import tier_fixture
from tests.evaluation.record_fixture import comparable
from tests.processes import start_two
from tests.toy import tiny_cfg

# The toy data have three classes, too few for apgd_t.
OPTS = [
    *("TEST.TIER", "mine,parts"),
    *("TEST.BACKEND", "autoattack"),
    *("TEST.EPS", 1.0),
    *("TEST.EPS_CURVE", (0, 0.5)),
    *("TEST.SAVE_ADVERSARIALS", "npz"),
    *("TEST.TIERS.parts", ["sea_js"]),
    *("ATTACK.SPECS.apgd_ce.STEPS", 6),
    *("ATTACK.SPECS.fab_t.STEPS", 4),
    *("ATTACK.SPECS.square.STEPS", 10),
    *("ATTACK.SPECS.sea_js.STEPS", 4),
    *("TEST.CHECKS.IMAGES", 3),
    *("TEST.CHECKS.STEPS", 2),
    *("TEST.CHECKS.LONG_STEPS", 2),
    *("DATALOADER.TEST_BATCH_SIZE", 5),
]


def make_config(*opts):
    cfg = tiny_cfg("deeplab_two_headed", *OPTS)
    cfg.TEST.TIERS.mine = ["apgd_ce", "fab_t", "square"]
    cfg.merge_from_list([str(opt) if isinstance(opt, Path) else opt for opt in opts])
    return with_counts(cfg)


@pytest.fixture(scope="module")
def installed():
    pytest.importorskip("pyautoattack", reason="pip install part_robust[aa]")


@pytest.fixture(scope="module")
def weights(toy_data, tmp_path_factory) -> Path:
    seed_all_rng(0)
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": build_model(tiny_cfg("deeplab_two_headed")).state_dict()}, path)
    return path


def run(folder: Path, weights: Path, *opts, resume: bool = False) -> dict:
    folder.mkdir(parents=True, exist_ok=True)
    cfg = make_config("OUTPUT_DIR", folder, "MODEL.WEIGHTS", weights, *opts)
    cfg.freeze()
    evaluate(cfg, resume=resume)
    return json.loads((folder / "robustness.json").read_text())


@pytest.fixture(scope="module")
def finished(installed, weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("official")
    return folder, run(folder, weights)


def test_the_record_says_whose_attacks_they_were(finished, weights, tmp_path):
    folder, record = finished
    evaluation = record["evaluation"]["toy_val"]
    backends = {name: attack["backend"] for name, attack in record["attacks"].items()}
    assert backends == {
        **dict.fromkeys(("apgd_ce", "fab_t", "square", "eps_curve_0.5"), "autoattack"),
        "sea_js": "own",
    }
    assert record["attacks"]["square"]["package"].startswith("pyautoattack")
    assert "BACKEND: autoattack" in record["config"]
    rows = {row["name"]: row["backend"] for tier in evaluation["tiers"].values() for row in tier["attacks"]}
    assert rows == {name: backends[name] for name in rows} and len(rows) == 4
    (note,) = [text for text in record["warnings"]["toy_val"] if "pyautoattack" in text]
    assert note.startswith("apgd_ce, fab_t, square, eps_curve_0.5:") and "batch" in note
    assert note.split(":")[1].strip()[:20] in (folder / "report.md").read_text()
    checks = {check["id"]: check["status"] for check in evaluation["checks"]}
    assert checks["C1"] == checks["C4"] == checks["C5"] == "pass" and "C13" in checks
    # Everything else is as it is with ours.
    ours = run(tmp_path, weights, "TEST.BACKEND", "own")
    theirs, own = evaluation, ours["evaluation"]["toy_val"]
    assert set(theirs) == set(own)
    for key in ("clean", "headline", "image_list_sha256", "num_images", "eps"):
        assert theirs[key] == own[key], key
    assert {attack["backend"] for attack in ours["attacks"].values()} == {"own"}
    assert not any("pyautoattack" in text for text in ours["warnings"]["toy_val"])
    for values in (theirs, own):
        rows = values["tiers"]["mine"]["attacks"]
        assert 0 < rows[-1]["attacked_images"] < rows[0]["attacked_images"], "some break, and some stand"
        for row in rows:
            assert row["forwards"] > 0 and (row["backwards"] > 0) == (row["name"] != "square"), row
    assert theirs["tiers"]["parts"]["robust"] == own["tiers"]["parts"]["robust"], "the attacks on the parts are ours"
    flags = [load_evaluated(where).flags["robust_mine"] for where in (folder, tmp_path)]
    # Attacks of a few steps: one image may fall by one of them alone.
    assert int((flags[0] != flags[1]).sum()) <= 1


def test_saved_images_are_allowed_and_keep_their_verdicts(finished, weights):
    folder, _ = finished
    flags = dict(np.load(folder / "flags_toy_val.npz"))
    robust = dict(zip(flags["image_id"].tolist(), flags["robust_mine"].tolist(), strict=True))
    seen = 0
    for saved in load_adversarials(folder / "adversarials_toy_val" / "mine"):
        right = saved["prediction"] == saved["label"]
        assert right.tolist() == [robust[image_id] for image_id in saved["image_id"].tolist()]
        seen += len(right)
    assert seen == len(robust)


def test_resume(finished, weights):
    folder, record = finished
    (folder / "journal_toy_val").joinpath("batch_x.tmp").touch()
    lost = sorted((folder / "journal_toy_val").glob("batch_*.npz"))[0]
    lost.unlink()
    again = run(folder, weights, resume=True)
    assert lost.exists()
    assert again["results"] == record["results"]
    for opts, words in (
        (["TEST.BACKEND", "own"], "backend, batches, tiers and attacks changed"),
        (["DATALOADER.TEST_BATCH_SIZE", 4], "batches changed"),
    ):
        with pytest.raises(JournalMismatch, match=words):
            run(folder, weights, *opts, resume=True)


def _evaluate(text: str) -> None:
    evaluate(CfgNode.load_cfg(text))


def test_two_processes_that_make_the_same_batches_as_one(installed, weights, tmp_path):
    records = []
    for name, start in (("one", lambda main, args: main(*args)), ("two", start_two)):
        own = ["OUTPUT_DIR", tmp_path / name, "MODEL.WEIGHTS", weights, "TEST.TIER", "mine", "TEST.EPS_CURVE", ()]
        (tmp_path / name).mkdir()
        start(_evaluate, (make_config(*own, "DATALOADER.TEST_BATCH_SIZE", 6).dump(),))
        records.append(comparable(tmp_path / name))
        records[-1]["evaluation"]["toy_val"].pop("device")
    assert records[0] == records[1]
    rows = records[0]["evaluation"]["toy_val"]["tiers"]["mine"]["attacks"]
    assert 0 < rows[-1]["attacked_images"] < rows[0]["attacked_images"], "some break, and some stand"


def test_letterboxed_images_and_the_audit(installed, weights, tmp_path):
    record = run(
        tmp_path, weights, "INPUT.TEST_TRANSFORM", "letterbox", "TEST.AUDIT", True, "TEST.TIER", "mine",
        "TEST.EPS_CURVE", (), "TEST.NORM", "l2", "TEST.EPS", 15.0,
    )  # fmt: skip
    checks = {check["id"]: check for check in record["evaluation"]["toy_val"]["checks"]}
    rows = record["evaluation"]["toy_val"]["tiers"]["mine"]["attacks"]
    assert 0 < rows[-1]["attacked_images"] < rows[0]["attacked_images"]
    for id in ("C4", "C5", "C11"):
        assert checks[id]["status"] == "pass", checks[id]
    assert {"C13", "C15", "C16", "C21"} <= set(checks)


def test_verdicts_of_both_on_a_model_of_four_classes(installed, tmp_path):
    """The whole standard set, through the protocol."""
    names = {
        "apgd_ce": {"OBJECTIVE": "cross_entropy", "STEPS": 20},
        "apgd_t": {"OBJECTIVE": "targeted_dlr", "STEPS": 15},
        "fab_t": {"NAME": "FAB", "OBJECTIVE": "targeted_margin", "STEPS": 12},
        "square": {"NAME": "Square", "OBJECTIVE": "margin", "STEPS": 60},
    }
    items = tier_fixture.make_items(tier_fixture.SmallPartModel(), 20)
    flags = {}
    for backend in ("own", "autoattack"):
        attacks = {}
        for name, values in names.items():
            values = {"NAME": "APGD", "EARLY_STOP": True, "EPS": tier_fixture.EPS, **values}
            attacks[name] = tier_fixture.build_attack(values)
            if backend == "autoattack":
                attacks[name] = Official(attacks[name])
        plan = tier_fixture.make_plan(tiers=[Tier("standard", "class", attacks)], curve={}, save_adversarials="npz")
        merged, _ = tier_fixture.run(tmp_path / backend, items, plan=plan)
        flags[backend] = flags_of(plan, merged)
        record = describe_evaluation(plan, merged, metrics_of(plan, merged, tier_fixture.evaluators()), "CPU")
        rows = record["tiers"]["standard"]["attacks"]
        assert rows[0]["attacked_images"] == record["clean"]["correct"]
        for earlier, later in zip(rows, rows[1:], strict=False):
            assert later["attacked_images"] == round(earlier["accuracy_after"] * 20 / 100), "broken images rest"
        assert any("pyautoattack" in text for text in plan_warnings(plan, merged)) == (backend == "autoattack")
        by_id = {item["image_id"]: item for item in items}
        for saved in load_adversarials(tmp_path / backend / "adversarials" / "standard"):
            clean = torch.stack([by_id[image_id]["image"] for image_id in saved["image_id"].tolist()]).float()
            ThreatModel("linf", tier_fixture.EPS).verify(torch.from_numpy(saved["images"]), clean)
    own, official = flags["own"]["robust_standard"], flags["autoattack"]["robust_standard"]
    assert 2 < int(own.sum()) < int(flags["own"]["clean_correct"].sum())
    np.testing.assert_array_equal(official, own)


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (["TEST.BACKEND", "theirs"], "TEST.BACKEND must be one of own, autoattack"),
        (["TEST.TIER", ""], "add a tier on the class"),
        (["TEST.TIER", "parts"], "add a tier on the class"),
        (["TEST.TIER", "standard"], "cannot run apgd_t.*at least 4 classes and the model has 3"),
        (["TEST.TIER", "thesis"], "cannot run pgd100x5.*no PGD.*TEST.BACKEND own"),
        (["ATTACK.SPECS.apgd_ce.RADIUS_SCHEDULE", ((2.0, 0.5), (1.0, 0.5))], "cannot run apgd_ce.*RADIUS_SCHEDULE"),
        (["TEST.EPS_CURVE_ATTACK", "apgd_margin"], "cannot run apgd_margin"),
        (["TEST.NORM", "l2", "INPUT.SIZE", 18], "cannot run square.*18 x 18"),
    ],
)
def test_refused_before_work(opts, words, installed, toy_data):
    with pytest.raises(ValueError, match=words):
        cfg = make_config(*opts)
        build_tiers(cfg), build_curve(cfg)


def test_missing_package_says_what_to_install(monkeypatch, toy_data):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(ImportError, match=r"pip install part_robust\[aa\]"):
        build_tiers(make_config())
    assert [tier.name for tier in build_tiers(make_config("TEST.BACKEND", "own"))] == ["mine", "parts"]
