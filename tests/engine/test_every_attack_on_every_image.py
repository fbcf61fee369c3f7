"""--eval-only without TEST.TIER: what the attacks of ATTACK.EVAL make of every image, in the record that tiers have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from part_robust.attacks import attack_batch, attack_mode
from part_robust.configured_attacks import build_attacks
from part_robust.engine import JournalMismatch, PartCheckpointer, PartTrainer, evaluate
from part_robust.evaluation import build_evaluator, verification
from part_robust.evaluation.attacked_batch import label_counts, margins
from part_robust.evaluation.checks import add
from part_robust.evaluation.compare import compare, load_evaluated
from part_robust.modeling.counts import with_counts
from tests.evaluation.record_fixture import comparable
from tests.toy import PARTS, tiny_cfg

SHORT = [
    *("DATALOADER.TEST_BATCH_SIZE", 5, "TEST.CHECKS.SIBLINGS", ""),
    *("ATTACK.SPECS.pgd20.STEPS", 2, "ATTACK.SPECS.pgd20_cut.STEPS", 2, "ATTACK.SPECS.pgd20_cut.SEED", 0),
    *(
        "ATTACK.SPECS.segpgd.STEPS",
        2,
        "ATTACK.SPECS.apgd_part_loss.STEPS",
        2,
        "ATTACK.SPECS.square.STEPS",
        3,
        "ATTACK.SPECS.noise.STEPS",
        2,
    ),
]
MODELS = {
    "resnet": ["noise", "pgd20", "square"],
    "deeplab_segmenter": ["pgd20", "fgsm"],
    "deeplab_two_headed": ["segpgd", "pgd20"],
    "dino_detector": ["apgd_part_loss", "pgd20"],
    "dino_sequential": ["pgd20", "pgd20_cut"],
    "mask_dino_simple": ["pgd20"],
}


@pytest.fixture(scope="module")
def make_config(toy_data, tmp_path_factory):
    json_file, root = toy_data
    folder = tmp_path_factory.mktemp("weights")

    def make(output: Path, model: str, *opts):
        weights = folder / f"{model}.pth"
        output.mkdir(parents=True, exist_ok=True)
        register = ["DATASETS.REGISTER", [["toy_val", str(json_file), str(root)]]]
        own = ["OUTPUT_DIR", str(output), "MODEL.WEIGHTS", str(weights), "ATTACK.EVAL", MODELS[model]]
        cfg = with_counts(tiny_cfg(model, *SHORT, *register, *own, *opts))
        if not weights.exists():
            torch.manual_seed(0)
            state = build_model(cfg).state_dict()
            # Fresh detectors do not move their boxes: no gradient to cut.
            noise = 0.05 if "dino" in model else 0.0
            torch.save({"model": {k: v + noise * torch.randn(v.shape) for k, v in state.items()}}, weights)
        cfg.freeze()
        return cfg

    return make


def by_hand(cfg) -> tuple[dict, dict[str, dict[int, float]]]:
    """Metrics, and of every image margin and right pixels under each attack."""
    model, evaluators = build_model(cfg).eval(), build_evaluator(cfg, "toy_val")
    model.load_state_dict(torch.load(cfg.MODEL.WEIGHTS)["model"])
    results, images = {}, {}
    for name, attack in {"": None, **build_attacks(cfg, cfg.ATTACK.EVAL)}.items():
        evaluators.reset()
        for batch in PartTrainer.build_test_loader(cfg, "toy_val"):
            keys = torch.tensor([item["image_id"] for item in batch])
            with attack_mode(model, attack is None or attack.full_gradient) as inner:
                attacked, padding = inner.preprocess(batch)
                if attack is not None:
                    attacked = attack_batch(attack, inner, batch, keys)[0].images
                with torch.no_grad():
                    outputs = inner.inference(attacked, padding)
            evaluators.process(batch, outputs)
            found = {}
            if "class_logits" in outputs[0]:
                labels = torch.tensor([item["class_id"] for item in batch])
                found["margin"] = margins(torch.stack([output["class_logits"] for output in outputs]), labels)[0]
            if cfg.MODEL.PART_CLASSIFIER.SEGMENTER:
                found["pixels_right"] = label_counts(outputs, batch, len(PARTS)).right
            for kind, values in found.items() if name else ():
                pairs = zip(keys.tolist(), values.tolist(), strict=True)
                images.setdefault(f"{kind}_{name}", {}).update(pairs)
        suffix = f"_{name}" if name else ""
        results |= {f"{task}{suffix}": metrics for task, metrics in evaluators.evaluate().items()}
    return results, images


@pytest.mark.parametrize("model", MODELS)
def test_numbers_are_those_of_each_attack_alone(make_config, tmp_path, model):
    cfg = make_config(tmp_path, model)
    results = evaluate(cfg)
    expected, images = by_hand(cfg)
    assert json.dumps(results) == json.dumps(expected), "in this order, to the last digit"
    flags = load_evaluated(tmp_path).flags
    for name, values in images.items():
        assert dict(zip(flags["image_id"].tolist(), flags[name].tolist(), strict=True)) == values, name
    if model == "dino_sequential":
        assert images["margin_pgd20"] != images["margin_pgd20_cut"], "each attack follows its own gradient"


def test_record_journal_and_report(make_config, tmp_path, caplog):
    cfg = make_config(tmp_path, "deeplab_two_headed", "TEST.SAVE_ADVERSARIALS", "npz")
    evaluate(cfg)
    record = json.loads((tmp_path / "robustness.json").read_text())
    evaluation = record["evaluation"]["toy_val"]
    assert list(evaluation["tiers"]) == ["segpgd", "pgd20"]
    assert [tier["objective"].split(",")[0] for tier in evaluation["tiers"].values()] == [
        "pixel accuracy",
        "class accuracy",
    ]
    assert {row["attack"]: row["head"] for row in evaluation["attack_matrix"]} == {
        "clean": None,
        "segpgd": "part",
        "pgd20": "class",
    }
    assert evaluation["headline"] == "pgd20", "an attack on the class comes before one on the parts"
    assert record["reported"] == pytest.approx(record["results"]["toy_val"]["classification_pgd20"]["accuracy"])
    assert (
        evaluation["per_class"] and evaluation["worst_case"] and list(evaluation["convergence"]) == ["segpgd", "pgd20"]
    )
    page = (tmp_path / "report.html").read_text()
    assert "right under tier pgd20" in evaluation["verdict"] and evaluation["verdict"] in page
    assert "Attacked by segpgd" in page
    checks = {check["id"]: check for check in evaluation["checks"]}
    assert checks["C1"]["status"] == "pass" and checks["C2"]["sentence"] == add.TOO_SHORT
    assert compare(load_evaluated(tmp_path), load_evaluated(tmp_path), "pgd20").p_value == 1

    before, journal = comparable(tmp_path), tmp_path / "journal_toy_val"
    sorted(journal.glob("batch_*.npz"))[0].unlink()
    kept = {path: path.stat().st_mtime_ns for path in journal.glob("batch_*.npz")}
    evaluate(cfg, resume=True)
    assert comparable(tmp_path) == before and len(kept) == 2
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())
    with pytest.raises(JournalMismatch, match="tiers and attacks changed"):
        evaluate(make_config(tmp_path, "deeplab_two_headed", "TEST.EPS", 4.0), resume=True)

    cfg, record = verification.recorded_config(tmp_path)
    model = PartTrainer.build_model(cfg)
    PartCheckpointer(model, strict=True).load(cfg.MODEL.WEIGHTS)
    found = verification.verify(tmp_path, cfg, model, record)
    assert [(each.tier, len(each.right), each.problems) for each in found] == [("segpgd", 12, []), ("pgd20", 12, [])]


def test_no_attack_at_all(make_config, tmp_path):
    """Of a model of classes and of one of parts alone."""
    for model in ("resnet", "deeplab_segmenter"):
        evaluate(make_config(tmp_path / model, model, "ATTACK.EVAL", []))
        evaluation = json.loads((tmp_path / model / "robustness.json").read_text())["evaluation"]["toy_val"]
        assert evaluation["headline"] is None and not evaluation["tiers"] and evaluation["reportable"]
        assert evaluation["clean"]["correct"] > 0 and "right without attack" in evaluation["verdict"]
        assert "right without attack" in (tmp_path / model / "report.html").read_text()


def test_checks_take_a_twentieth_of_the_passes(make_config, tmp_path, monkeypatch):
    """Of more images with longer attacks, and of as many as TEST.CHECKS says in an audit."""
    checked = []
    monkeypatch.setattr(add, "run_checks", lambda view, images, *rest, **options: checked.append(len(images)) or [])
    monkeypatch.setattr(add, "PASSES", 10)
    for steps, opts in ((2, []), (20, []), (2, ["TEST.AUDIT", True, "TEST.CHECKS.IMAGES", 7])):
        attack = ["ATTACK.EVAL", ["pgd20"], "ATTACK.SPECS.pgd20.STEPS", steps]
        evaluate(make_config(tmp_path / f"{steps}{opts[:1]}", "resnet", *attack, *opts))
    assert checked == [2, 7], "20 steps on 12 images are 516 passes, of which 2 checked images take a twentieth"


def test_the_attack_that_leaves_the_least_is_the_headline(make_config, tmp_path):
    """Whatever the order; with a threat model of its own."""
    cfg = make_config(tmp_path, "resnet", "ATTACK.EVAL", ["noise", "pgd20"], "ATTACK.SPECS.pgd20.EPS", 255.0)
    results = evaluate(cfg)
    record = json.loads((tmp_path / "robustness.json").read_text())
    evaluation = record["evaluation"]["toy_val"]
    left = {name: results[f"classification_{name}"]["accuracy"] for name in cfg.ATTACK.EVAL}
    assert left["pgd20"] < left["noise"]
    assert (evaluation["headline"], record["eps"]) == ("pgd20", 255.0)
    flags = load_evaluated(tmp_path).flags
    assert np.array_equal(flags["robust_pgd20"], flags["attacked_prediction"] == flags["label"])
