"""--eval-only with tiers, from the config to the record, and its resumption."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from part_robust.data.sample import sample_records
from part_robust.engine import JournalMismatch, evaluate
from part_robust.evaluation.compare import load_evaluated
from part_robust.evaluation.plan import build_curve, build_tiers, tier_names
from part_robust.modeling.counts import with_counts
from part_robust.utils.errors import UserError
from tests.evaluation.record_fixture import comparable
from tests.processes import start_two
from tests.toy import tiny_cfg

ROOT = Path(__file__).resolve().parent.parent.parent
OPTS = [
    *("TEST.TIER", "parts, screen"),
    *("TEST.EPS", 12.0),
    *("TEST.EPS_CURVE", (0, 4, 12)),
    *("TEST.SAVE_ADVERSARIALS", "npz", "TEST.SAVE_PREDICTIONS", True),
    *("MODEL.PRETRAINING", "of nothing"),
]


@pytest.fixture(scope="module")
def finished(quick_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    results = evaluate(quick_config(folder, *OPTS))
    return folder, results, json.loads((folder / "robustness.json").read_text())


def test_record_and_files(finished, untrained):
    folder, results, record = finished
    evaluation = record["evaluation"]["toy_val"]
    assert record["schema"] == 2 and record["dataset"] == "toy_val"
    assert (record["eps"], record["norm"], record["autoattack_acc"]) == (12.0, "linf", None)
    assert record["clean_acc"] == results["classification"]["accuracy"]
    assert record["reported"] == evaluation["tiers"]["screen"]["robust"]["accuracy"]
    assert record["reported"] == results["classification_screen"]["accuracy"] < record["clean_acc"]
    assert record["unreliable"] == (not evaluation["reportable"])
    assert record["architecture"] == "DeepLabSegmenter + TwoHeadedHead"
    state = torch.load(untrained)["model"]
    count = sum(value.numel() for name, value in state.items() if "running" not in name and "tracked" not in name)
    assert record["parameters"] == record["trainable_parameters"] == count and record["pretraining"] == "of nothing"
    assert record["attacks"]["apgd_ce"]["threat_model"]["eps"] == 12.0
    assert record["attacks"]["eps_curve_4"]["threat_model"]["eps"] == 4.0
    assert "apgd_part_loss" not in record["attacks"], "for detectors"
    assert evaluation["headline"] == "screen" and evaluation["verdict"]
    checks = {check["id"]: check["status"] for check in evaluation["checks"]}
    assert checks["C1"] == checks["C4"] == checks["C5"] == checks["C19"] == "pass" and checks["C20"] == "fail"
    assert set(results) >= {"part_seg_parts", "part_seg_sea_js", "part_box_parts", "part_box_sea_masked"}
    assert results["part_seg_parts"]["pixel_accuracy"] == pytest.approx(
        evaluation["tiers"]["parts"]["robust"]["accuracy"]
    )
    assert evaluation["attack_matrix"][-1]["AP"] is not None
    loaded = load_evaluated(folder)
    assert loaded.flags["robust_screen"].sum() == evaluation["tiers"]["screen"]["robust"]["correct"]
    assert (folder / evaluation["files"]["pictures"]).is_file()
    assert evaluation["verdict"].removeprefix("toy_val") in (folder / "report.md").read_text()
    assert (folder / "report.html").stat().st_size > 10_000
    assert not list(folder.rglob("*.tmp"))


def test_predictions_of_every_row_have_the_average_precision_of_the_record(finished):
    folder, results, record = finished
    files = record["evaluation"]["toy_val"]["files"]
    truth = COCO(str(folder / files["predictions"] / "ground_truth.json"))
    rows = ["clean", "screen", "parts", "sea_masked", "sea_js"]
    assert sorted(path.name for path in (folder / files["predictions"] / "results").iterdir()) == sorted(rows)
    for row in rows:
        own = folder / files["predictions"] / "results" / row
        found = COCOeval(truth, truth.loadRes(str(own / "boxes.json")), "bbox")
        found.evaluate(), found.accumulate(), found.summarize()
        suffix = "" if row == "clean" else f"_{row}"
        assert 100 * found.stats[0] == pytest.approx(results[f"part_box{suffix}"]["AP"], abs=1e-9)
        classes = json.loads((own / "classes.json").read_text())["predictions"]
        right = np.mean([one["label"] == one["prediction"] for one in classes])
        assert 100 * right == pytest.approx(results[f"classification{suffix}"]["accuracy"])
        assert len(list((own / "labels").glob("*.png"))) == 12


def files_of(folder: Path) -> dict[str, bytes]:
    root = folder / "predictions_toy_val"
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.*")}


def test_resume(finished, quick_config, caplog):
    folder, _, _ = finished
    before, predictions = comparable(folder), files_of(folder)
    journal = folder / "journal_toy_val"
    lost = sorted(journal.glob("batch_*.npz"))[0]
    lost.unlink()
    kept = {path.name: path.stat().st_mtime_ns for path in journal.glob("batch_*.npz")}
    (folder / "predictions_toy_val" / "ground_truth.json").unlink()
    evaluate(quick_config(folder, *OPTS), resume=True)
    assert comparable(folder) == before and files_of(folder) == predictions
    assert lost.exists()
    assert all((journal / name).stat().st_mtime_ns == stamp for name, stamp in kept.items())
    with pytest.raises(JournalMismatch, match="tiers and attacks changed"):
        evaluate(quick_config(folder, *OPTS, "TEST.EPS", 4.0), resume=True)
    with pytest.raises(JournalMismatch, match="saved predictions changed"):
        evaluate(quick_config(folder, *OPTS, "TEST.SAVE_PREDICTIONS", False), resume=True)
    with pytest.raises(JournalMismatch, match="config changed"):
        evaluate(quick_config(folder, *OPTS, "MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0]), resume=True)
    assert comparable(folder) == before, "refused before any work"


@pytest.mark.parametrize(
    ("model", "opts", "error", "words"),
    [
        ("resnet", ["TEST.TIER", "strong"], KeyError, "no tier 'strong'.*standard"),
        ("resnet", ["TEST.TIER", "parts"], ValueError, "predicts none"),
        ("deeplab_segmenter", ["TEST.TIER", "standard"], ValueError, "no class head"),
        ("deeplab_two_headed", ["TEST.TIERS.screen", ["apgd_ce", "sea_js"]], ValueError, "one attack per head"),
        ("deeplab_two_headed", ["TEST.TIERS.screen", ["apgd_xx"]], KeyError, "apgd_xx"),
        ("deeplab_two_headed", ["ATTACK.SPECS.apgd_t.EPS", 4.0], ValueError, "different threat models"),
        ("resnet", ["TEST.EPS_CURVE", (-1, 2)], ValueError, "negative"),
        ("resnet", ["TEST.EPS_CURVE", (2,), "TEST.EPS_CURVE_ATTACK", "sea_js"], ValueError, "class accuracy"),
        ("resnet", ["TEST.TIER", "", "ATTACK.EVAL", ["screen"]], ValueError, "ATTACK.EVAL must name no tier.*'screen'"),
    ],
)
def test_impossible_settings(model, opts, error, words, toy_data):
    cfg = tiny_cfg(model, "TEST.TIER", "screen", *opts)
    with pytest.raises(error, match=words):
        build_tiers(cfg), build_curve(cfg)


def test_tiers_of_the_config(toy_data):
    cfg = tiny_cfg(
        "dino_two_headed", "TEST.TIER", " parts,thesis ,standard,mine,screen", "TEST.NORM", "l2", "TEST.EPS", 99.0
    )
    cfg.TEST.TIERS.mine = ["pgd20"]
    assert tier_names(cfg) == ["standard", "screen", "mine", "thesis", "parts"]
    tiers = {tier.name: tier for tier in build_tiers(cfg)}
    assert list(tiers["standard"].attacks) == ["apgd_ce", "apgd_t", "fab_t", "square"], "AutoAttack's order"
    assert [tiers[name].kind for name in ("standard", "mine", "thesis", "parts")] == ["class", "class", "full", "parts"]
    of_parts = ["apgd_part_loss", "apgd_part_loss_fixed", "apgd_part_class", "apgd_part_box"]
    assert list(tiers["parts"].attacks) == of_parts
    for tier in tiers.values():
        assert (tier.threat_model.norm, tier.threat_model.eps) == ("l2", 99.0)
    assert tiers["thesis"].attacks["pgd100x5"].restarts == 5
    curve = build_curve(tiny_cfg("resnet", "TEST.TIER", "screen", "TEST.EPS_CURVE", (8, 0, 2, 8)))
    assert {eps: attack.threat_model.eps for eps, attack in curve.items()} == {0.0: 0.0, 2.0: 2.0, 8.0: 8.0}


def test_smoothing_beside_the_attacks(quick_config, tmp_path, caplog):
    opts = [
        *("TEST.TIER", "screen", "TEST.EPS", 0.5, "TEST.NUM_IMAGES", 5),
        *("TEST.SMOOTHING.SIGMA", 20.0, "TEST.SMOOTHING.SAMPLES", 30, "TEST.SMOOTHING.IMAGES", 3),
    ]
    with caplog.at_level("INFO"):
        evaluate(quick_config(tmp_path, *opts))
    assert "sigma 20 of 255 levels (0.0784314 where pixels are 0..1), 100 + 30 draws of each of 3 images" in caplog.text
    assert "This is the smoothed model, not the one that was attacked" in caplog.text
    before = comparable(tmp_path)
    entry = before["evaluation"]["toy_val"]
    smoothing = entry["smoothing"]
    assert (smoothing["num_images"], smoothing["forwards"], smoothing["attacked"]) == (3, 390, [])
    assert smoothing["attacked_norms"] == ["linf"]
    with np.load(tmp_path / smoothing["file"]) as file:
        assert set(file["image_id"]) < set(np.load(tmp_path / "flags_toy_val.npz")["image_id"])
        assert smoothing["abstained"] == (file["prediction"] < 0).sum()
        holding = (file["radius"] > 5.0) & (file["certified"] == file["label"])
        (point,) = [point for point in smoothing["certified"] if point["eps"] == 5.0]
        assert point["correct"] == holding.sum() and (file["votes"].sum(axis=1) == 30).all()
    assert "C22" in {check["id"] for check in entry["checks"]}
    assert "certify the smoothed model and not the model" in (tmp_path / "report.md").read_text()
    journal = tmp_path / "smoothing_journal_toy_val"
    sorted(journal.glob("batch_*.npz"))[0].unlink()
    kept = {path.name: path.stat().st_mtime_ns for path in journal.glob("batch_*.npz")}
    evaluate(quick_config(tmp_path, *opts), resume=True)
    assert comparable(tmp_path) == before
    assert {path.name: path.stat().st_mtime_ns for path in journal.glob("batch_*.npz")}.items() > kept.items()
    with pytest.raises(JournalMismatch, match="smoothing changed"):
        evaluate(quick_config(tmp_path, *opts, "TEST.SMOOTHING.SIGMA", 21.0), resume=True)


def test_smoothing_and_predictions_without_any_attack(quick_config, tmp_path):
    smoothing = ["TEST.SMOOTHING.SIGMA", 20.0, "TEST.SMOOTHING.SAMPLES", 30]
    cfg = quick_config(tmp_path, "ATTACK.EVAL", (), "TEST.NUM_IMAGES", 2, *smoothing, "TEST.SAVE_PREDICTIONS", True)
    evaluate(cfg)
    entry = comparable(tmp_path)["evaluation"]["toy_val"]
    assert entry["smoothing"]["num_images"] == 2 and entry["smoothing"]["attacked_norms"] == []
    assert [path.name for path in (tmp_path / entry["files"]["predictions"] / "results").iterdir()] == ["clean"]


def test_smoothing_without_a_class(toy_data, tmp_path):
    smoothing = ["OUTPUT_DIR", str(tmp_path), "TEST.SMOOTHING.SIGMA", 20.0]
    cfg = with_counts(tiny_cfg("deeplab_segmenter", *smoothing, "TEST.TIER", "parts"))
    with pytest.raises(UserError, match="SIGMA must be 0 for a model without a class head, got 20"):
        evaluate(cfg)


def test_a_sample_of_the_images(quick_config, tmp_path):
    """The same images with and without tiers, and the record says that they are a sample."""
    notes, accuracies = [], []
    for name, opts in {"tiers": ["TEST.TIER", "screen"], "attacks": ["ATTACK.EVAL", ["fgsm"]]}.items():
        results = evaluate(quick_config(tmp_path / name, *opts, "TEST.NUM_IMAGES", 4))
        assert results["classification"]["num_images"] == 4  # one of which has no part labels
        assert results["part_seg"]["num_images"] == 3
        record = json.loads((tmp_path / name / "robustness.json").read_text())
        notes.append(record["warnings"]["toy_val"][0])
        accuracies.append(results["classification"]["accuracy"])
    assert notes[0] == notes[1] and "a sample of 4 of the" in notes[0] and accuracies[0] == accuracies[1]


def test_samples_are_nested_and_of_image_ids_alone():
    records = [{"image_id": number} for number in range(50)]
    small, large = sample_records(records, 10), sample_records(records, 20)
    assert len(small) == 10 and len(large) == 20 and all(record in large for record in small)
    turned = sample_records(records[::-1], 10)
    assert turned == small[::-1]
    assert sample_records(records, 0) == sample_records(records, 99) == records
    with pytest.raises(ValueError, match=r"TEST\.NUM_IMAGES"):
        sample_records(records, -1)


def _evaluate_in_one_of_two(text: str) -> None:
    evaluate(CfgNode.load_cfg(text))


def test_two_processes_write_the_record_of_one(finished, quick_config, toy_data, tmp_path):
    """Tiers, parts, curve, saved images and checks; a tier evaluation used to wait for ever after its last image."""
    cfg = quick_config(tmp_path, *OPTS)
    start_two(_evaluate_in_one_of_two, (cfg.dump(),))
    one, two = comparable(finished[0]), comparable(tmp_path)
    assert two["evaluation"]["toy_val"].pop("device") == "2 x CPU"
    assert one["evaluation"]["toy_val"].pop("device") == "1 x CPU"
    assert_close(one, two)


def assert_close(one, two, where: str = "") -> None:
    """Equal but for the rounding of numbers, which depends on what is in a batch together."""
    if isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_close(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(two), where
        for index, (left, right) in enumerate(zip(one, two, strict=True)):
            assert_close(left, right, f"{where}[{index}]")
    elif isinstance(one, float):
        assert two == pytest.approx(one, rel=1e-4, abs=1e-4, nan_ok=True), where
    else:
        assert one == two, where
