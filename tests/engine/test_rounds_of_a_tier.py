"""--eval-only with TEST.TIER bounded: from the config to the record, the report and the saved images."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from part_robust.attacks import attack_mode
from part_robust.data import PartDatasetMapper
from part_robust.engine import JournalMismatch, evaluate
from part_robust.evaluation.adversarials import load_adversarials
from part_robust.evaluation.build import build_evaluator
from part_robust.evaluation.checks import from_record
from part_robust.evaluation.plan import build_tiers
from part_robust.evaluation.verification import recorded_config, verify
from part_robust.modeling.counts import with_counts
from part_robust.run_config import complete
from part_robust.utils.errors import UserError
from tests.evaluation.record_fixture import comparable
from tests.processes import start_two
from tests.toy import tiny_cfg

OPTS = [
    *("TEST.TIER", "bounded", "TEST.BOUND", 20.0, "TEST.RESTART_GAIN", 5.0, "TEST.PART_BOX_AP", True),
    *("TEST.RESTART_ATTACKS", []),
    *("TEST.TIERS.bounded", ["pgd20", "square"], "TEST.SAVE_ADVERSARIALS", "npz", "TEST.SAVE_PREDICTIONS", True),
    *("ATTACK.SPECS.pgd20.STEPS", 1, "ATTACK.SPECS.pgd20.STEP_SIZE", 0.01, "ATTACK.SPECS.square.STEPS", 30),
    *("TEST.CHECKS.IMAGES", 2, "TEST.CHECKS.STEPS", 2, "TEST.CHECKS.LONG_STEPS", 2, "TEST.CHECKS.NOISE_DRAWS", 2),
    *("TEST.CHECKS.DIRECTIONS", 1, "TEST.CHECKS.SIBLINGS", "", "DATALOADER.TEST_BATCH_SIZE", 5),
]

# At which some of the images fall to the sampled attack.
RADII = {"deeplab_two_headed": 4.0, "dino_sequential": 1.0}


def make_config(folder: Path, weights: Path, model: str, *opts) -> CfgNode:
    folder.mkdir(parents=True, exist_ok=True)
    own = ["OUTPUT_DIR", str(folder), "MODEL.WEIGHTS", str(weights), "TEST.EPS", RADII[model]]
    return with_counts(tiny_cfg(model, *OPTS, *own, *opts))


@pytest.fixture(scope="module")
def weights(toy_data, tmp_path_factory) -> dict[str, Path]:
    found = {}
    for seed, model in ((1, "deeplab_two_headed"), (0, "dino_sequential")):
        seed_all_rng(seed)
        found[model] = tmp_path_factory.mktemp("weights") / f"{model}.pth"
        torch.save({"model": build_model(tiny_cfg(model)).state_dict()}, found[model])
    return found


@pytest.fixture(scope="module", params=RADII)
def finished(request, weights, tmp_path_factory) -> tuple[Path, dict, CfgNode]:
    folder = tmp_path_factory.mktemp(request.param)
    cfg = make_config(folder, weights[request.param], request.param)
    evaluate(cfg)
    return folder, json.loads((folder / "robustness.json").read_text()), cfg


def test_every_metric_is_that_of_the_saved_images(finished):
    """Average precision and parts, too: a newly broken image replaces what evaluators saw of it before."""
    folder, record, cfg = finished
    evaluation = record["evaluation"]["toy_val"]
    by_id = {item["image_id"]: item for item in DatasetCatalog.get("toy_val")}
    mapper, judges, seen = PartDatasetMapper(cfg, False, "toy_val"), build_evaluator(cfg, "toy_val"), []
    model = build_model(cfg)
    model.load_state_dict(torch.load(cfg.MODEL.WEIGHTS)["model"])
    judges.reset()
    with attack_mode(model) as inner, torch.no_grad():
        for saved in load_adversarials(folder / "adversarials_toy_val" / "bounded"):
            batch = [mapper(by_id[image_id]) for image_id in saved["image_id"].tolist()]
            _, padding = inner.preprocess(batch)
            judges.process(batch, inner.inference(torch.from_numpy(saved["images"]), padding))
            seen += saved["image_id"].tolist()
    assert sorted(seen) == sorted(by_id)
    assert evaluation["tiers"]["bounded"]["bound"]["fell"] > 0, "else nothing was replaced"
    for task, expected in judges.evaluate().items():
        found = record["results"]["toy_val"][f"{task}_bounded"]
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, abs=1e-6, nan_ok=True), (task, name)


def test_predictions_are_those_of_the_last_round(finished):
    folder, record, _ = finished
    predictions, flags = folder / "predictions_toy_val", dict(np.load(folder / "flags_toy_val.npz"))
    rows = json.loads((predictions / "results" / "bounded" / "classes.json").read_text())["predictions"]
    found = {row["image_id"]: row["prediction"] for row in rows}
    assert found == dict(zip(flags["image_id"].tolist(), flags["attacked_prediction"].tolist(), strict=True))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(predictions / "ground_truth.json"))
        results = truth.loadRes(str(predictions / "results" / "bounded" / "boxes.json"))
        judge = COCOeval(truth, results, "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    assert 100 * judge.stats[0] == pytest.approx(record["results"]["toy_val"]["part_box_bounded"]["AP"], abs=1e-6)


def test_the_record_and_the_report_state_the_bound(finished):
    folder, record, _ = finished
    evaluation = record["evaluation"]["toy_val"]
    tier, flags = evaluation["tiers"]["bounded"], dict(np.load(folder / "flags_toy_val.npz"))
    bound = tier["bound"]
    assert bound["asked_for"] == 20.0 and bound["points"] <= 20.0
    assert (bound["confidence"] == 100.0) == (bound["images"] == bound["stood"] - bound["drawn"])
    assert bound["drawn"] == flags["sampled_bounded"].sum() and bound["attacks"] == ["square"]
    assert tier["restarts"]["number"] == len(tier["restarts"]["broke"]) >= 1
    assert record["autoattack_acc"] is None and record["reported"] == tier["robust"]["accuracy"]
    sure = "for certain" if bound["confidence"] == 100 else "with 95 % confidence"
    words = f"{sure} at most {bound['points']:.1f} points more would fall if square ran on all images"
    assert words in evaluation["verdict"] or not evaluation["reportable"]
    text = (folder / "report.md").read_text()
    assert words in text and f"on {bound['drawn']} of the {bound['stood']} images" in text
    assert {check.id: check.status for check in from_record(evaluation["checks"])}["C5"] == "pass"


def test_saved_images_are_verified(finished):
    folder, _, _ = finished
    cfg, record = recorded_config(folder)
    model = build_model(cfg)
    model.load_state_dict(torch.load(cfg.MODEL.WEIGHTS)["model"])
    (result,) = verify(folder, cfg, model, record)
    assert result.problems == [] and len(result.right) == record["evaluation"]["toy_val"]["num_images"]


def _evaluate(text: str) -> None:
    evaluate(CfgNode.load_cfg(text))


def test_two_processes_write_what_one_writes(weights, tmp_path):
    """With the batches of one process, so that even the last digits agree."""
    model, records = "deeplab_two_headed", []
    for name, start in (("one", lambda main, args: main(*args)), ("two", start_two)):
        cfg = make_config(tmp_path / name, weights[model], model, "DATALOADER.TEST_BATCH_SIZE", 1)
        start(_evaluate, (cfg.dump(),))
        records.append(comparable(tmp_path / name))
        records[-1]["evaluation"]["toy_val"].pop("device")
    assert records[0] == records[1]


def test_another_bound_is_another_evaluation(finished):
    _, _, cfg = finished
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TEST.BOUND = 3.0
    with pytest.raises(JournalMismatch, match="tiers and attacks"):
        evaluate(cfg, resume=True)


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (["TEST.SAMPLED_ATTACKS", ["fab_t"]], "TEST.SAMPLED_ATTACKS must name some, not all"),
        (["TEST.SAMPLED_ATTACKS", ["pgd20", "square"]], "TEST.SAMPLED_ATTACKS must name some, not all"),
        (["TEST.BACKEND", "autoattack"], "TEST.BACKEND must be own for tier 'bounded'"),
        (["TEST.RESTART_ATTACKS", ["noise"]], "TEST.RESTART_ATTACKS must name attacks on the class"),
        (["TEST.RESTART_ATTACKS", ["fgsm"]], "TEST.RESTART_ATTACKS must name attacks on the class"),
        (["TEST.RESTART_ATTACKS", ["sea_js"]], "TEST.RESTART_ATTACKS must name attacks on the class"),
    ],
)
def test_contradictions(opts, words, weights, tmp_path):
    cfg = make_config(tmp_path, weights["deeplab_two_headed"], "deeplab_two_headed", *opts)
    with pytest.raises(ValueError, match=words):
        build_tiers(cfg)


def test_wrong_values(weights, tmp_path):
    for key, value in (
        ("TEST.BOUND", -1.0),
        ("TEST.RESTART_GAIN", 101.0),
        ("TEST.RESTART_ATTACKS", ["a"]),
        ("TEST.SAMPLED_ATTACKS", ["square5"]),
    ):
        cfg = make_config(tmp_path, weights["deeplab_two_headed"], "deeplab_two_headed", key, value)
        with pytest.raises(UserError, match=f"{key} must "):
            complete(cfg)


def test_tiers_without_rounds_are_what_they_were(weights, tmp_path):
    """So that journals and records of earlier versions belong to the same evaluations."""
    cfg = make_config(tmp_path, weights["deeplab_two_headed"], "deeplab_two_headed", "TEST.RESTART_GAIN", 0.0)
    cfg.TEST.TIER, cfg.TEST.TIERS.standard = "standard,thesis", ["pgd20", "square"]
    assert [tier.rounds for tier in build_tiers(cfg)] == [None, None]
    cfg.TEST.RESTART_GAIN = 0.2
    standard, thesis = build_tiers(cfg)
    assert standard.rounds.restart_gain == 0.2 and thesis.rounds is None


def test_every_threat_model_has_its_own_sample(weights, tmp_path):
    cfg = make_config(tmp_path, weights["deeplab_two_headed"], "deeplab_two_headed", "TEST.EPS", -1.0)
    cfg.TEST.THREATS, cfg.TEST.RESTART_ATTACKS = "linf:8/255 l2:2", ["apgd_margin"]
    tiers = {tier.name: tier for tier in build_tiers(cfg)}
    assert list(tiers) == ["bounded_linf", "bounded_l2"]
    assert [tier.rounds.sampled for tier in tiers.values()] == [("square_linf",), ("square_l2",)]
    assert list(tiers["bounded_l2"].first_pass) == ["pgd20_l2"]
    assert [list(tier.rounds.added) for tier in tiers.values()] == [["apgd_margin_linf"], ["apgd_margin_l2"]]
    assert all(
        tier.rounds.added[f"apgd_margin{name[7:]}"].threat_model == tier.threat_model for name, tier in tiers.items()
    )
    cfg.TEST.TIERS.bounded = ["apgd_margin", "square"]
    assert [tier.rounds.added for tier in build_tiers(cfg)] == [{}, {}]
