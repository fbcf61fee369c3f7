"""Images made for other models, tried on this one: found beside it, and left out where they do not fit."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from part_robust.attacks import ThreatModel
from part_robust.engine import evaluate
from part_robust.evaluation.checks.record import check_siblings
from part_robust.evaluation.siblings import find_siblings, sibling_folders
from tests.toy import RESNET_50, tiny_cfg

EPS = 60.0
# What the attack under check leaves out is all that it could do.
NO_STEPS = ["ATTACK.SPECS.pgd20.STEPS", 0, "ATTACK.SPECS.pgd20.RANDOM_START", False]
ABLE = ["ATTACK.SPECS.pgd20.STEPS", 20, "ATTACK.SPECS.pgd20.STEP_SIZE", 12.0, "ATTACK.SPECS.pgd20.KEEP", "best"]


def config(folder: Path, weights: Path, *opts):
    own = ["OUTPUT_DIR", str(folder), "MODEL.WEIGHTS", str(weights), "DATALOADER.TEST_BATCH_SIZE", 5]
    tier = ["TEST.TIERS.screen", ["pgd20"], "TEST.TIER", "screen", "TEST.EPS", EPS, "TEST.PART_BOX_AP", False]
    return tiny_cfg("deeplab_two_headed", *RESNET_50, *own, *tier, "TEST.CHECKS.IMAGES", 2, "ATTACK.EVAL", [], *opts)


def evaluated(*arguments) -> tuple[dict, dict | None]:
    """The evaluation and its C14."""
    cfg = config(*arguments)
    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    evaluate(cfg)
    record = json.loads((Path(cfg.OUTPUT_DIR) / "robustness.json").read_text())["evaluation"]["toy_val"]
    return record, next((check for check in record["checks"] if check["id"] == "C14"), None)


@pytest.fixture(scope="module")
def sibling(trained_weights, tmp_path_factory):
    """Folder of a model much like the trained one, with the images of an attack that works."""
    folder = tmp_path_factory.mktemp("models") / "sibling"
    state = torch.load(trained_weights)
    generator = torch.Generator().manual_seed(0)
    for value in state["model"].values():
        if value.ndim > 1:
            value += 1e-3 * value.std() * torch.randn(value.shape, generator=generator)
    weights = folder.parent / "sibling.pth"
    torch.save(state, weights)
    record, check = evaluated(folder, weights, *ABLE, "TEST.SAVE_ADVERSARIALS", "npz")
    assert check is None and "transfer" not in record, "nothing is beside it yet"
    assert record["clean"]["correct"] - record["tiers"]["screen"]["robust"]["correct"] > 3
    return folder


def test_siblings_images_show_that_an_attack_had_no_gradient(sibling, trained_weights):
    record, check = evaluated(sibling.parent / "no_steps", trained_weights, *NO_STEPS)
    (row,) = record["transfer"]["siblings"]
    assert (row["name"], row["tier"], row["images"]) == ("sibling", "screen", record["transfer"]["standing"])
    assert row["broke"] == record["transfer"]["broke"] > 3
    assert check["status"] == "fail" and check["level"] == "warning" and "made for sibling broke" in check["sentence"]
    assert "worst case" in check["remedy"]


def test_an_attack_that_leaves_nothing_standing_gets_no_verdict(sibling, trained_weights):
    record, check = evaluated(sibling.parent / "able", trained_weights, *ABLE)
    assert record["transfer"]["standing"] == 0 and check["status"] == "skipped", "0 of 0 images show nothing"


def test_who_is_no_sibling(sibling, trained_weights, caplog):
    caplog.set_level(logging.INFO)
    parent, ball = sibling.parent, ThreatModel("linf", EPS)
    for name in ("young", "plain"):
        shutil.copytree(sibling, parent / name, dirs_exist_ok=True)
    (parent / "young" / "robustness.json").unlink()
    (parent / "plain" / "robustness.json").write_text("[]")
    cfg = config(parent / "own", trained_weights)
    sha = json.loads((sibling / "robustness.json").read_text())["checkpoint"]["sha256"]

    def names(*arguments):
        return [found.name for found in find_siblings(*arguments) if found.name == "sibling"]

    assert "young" not in sibling_folders(cfg) and "plain" in sibling_folders(cfg)
    assert names(cfg, "toy_val", ball, "another") == ["sibling"]
    assert names(config(sibling, trained_weights), "toy_val", ball, "another") == []
    for arguments, words in (
        (("toy_val", ball, sha), "same weights"),
        (("toy_train", ball, "another"), "was not evaluated"),
        (("toy_val", ThreatModel("linf", EPS / 2), "another"), f"threat model is linf, eps {EPS:g}"),
        (("toy_val", ThreatModel("l2", 900.0), "another"), "threat model is linf"),
    ):
        caplog.clear()
        assert names(cfg, *arguments) == [] and words in caplog.text
    assert "plain is left out: no such record" in caplog.text
    assert sibling_folders(config(parent / "own", trained_weights, "TEST.CHECKS.SIBLINGS", "")) == {}
    chosen = config(parent / "own", trained_weights, "TEST.CHECKS.SIBLINGS", f"{sibling}, {parent / 'plain'}")
    assert list(sibling_folders(chosen)) == [str(sibling), str(parent / "plain")]
    with pytest.raises(FileNotFoundError, match="SIBLINGS names .*young"):
        evaluate(config(parent / "own", trained_weights, "TEST.CHECKS.SIBLINGS", str(parent / "young")))
    assert not (parent / "own").exists(), "before any work"


MISFITS = {
    "cropped": (
        lambda arrays: {**arrays, "images": arrays["images"][:, :, 1:]},
        "other sizes, 31x32 and 32x32 pixels",
    ),
    "too_far": (lambda arrays: {**arrays, "images": arrays["images"] + 2 * EPS}, "distance"),
    "lost_pngs": (lambda arrays: {name: arrays[name] for name in arrays if name != "images"}, "No such file"),
    "nothing": (None, "holds no adversarial images"),
}


def test_images_that_do_not_fit_end_no_evaluation(sibling, trained_weights, tmp_path, caplog):
    for name, (change, _) in MISFITS.items():
        shutil.copytree(sibling, tmp_path / name)
        for path in (tmp_path / name / "adversarials_toy_val" / "screen").glob("batch_*.npz"):
            if change is None:
                path.unlink()
                continue
            with np.load(path) as file:
                arrays = change({key: file[key] for key in file.files})
            np.savez(path, **arrays)
    record, check = evaluated(tmp_path / "own", trained_weights, *NO_STEPS)
    assert check is None and "transfer" not in record
    for name, (_, words) in MISFITS.items():
        (message,) = [line for line in caplog.messages if f"made for {name} are left out" in line]
        assert words in message


def test_images_of_which_none_was_tried_are_no_pass():
    rows = [{"name": "other", "images": 0, "broke": 0}]
    check = check_siblings({"num_images": 9, "transfer": {"standing": 0, "broke": 0, "siblings": rows}})
    assert check.status == "skipped" and "of none of the 0 images that were not broken" in check.sentence
    rows[0]["images"] = 3
    check = check_siblings({"num_images": 9, "transfer": {"standing": 5, "broke": 0, "siblings": rows}})
    assert check.status == "pass" and "0 of the 5 images that were not broken (at most 3 were tried)" in check.sentence


def test_random_weights_make_no_sibling(sibling, trained_weights, caplog):
    parent = sibling.parent
    random = parent / "random"
    shutil.copytree(sibling, random)
    record = json.loads((random / "robustness.json").read_text())
    record["checkpoint"]["sha256"] = None
    (random / "robustness.json").write_text(json.dumps(record))
    cfg = config(parent / "own", trained_weights, "TEST.CHECKS.SIBLINGS", str(random))
    with caplog.at_level(logging.WARNING):
        assert find_siblings(cfg, "toy_val", ThreatModel("linf", EPS), "another") == []
    assert "random is left out: its weights are random" in caplog.text
