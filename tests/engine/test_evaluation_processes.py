"""Evaluations in two processes write what one process writes: record, flags and attacked images."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from part_robust.engine import PartTrainer, evaluate
from part_robust.evaluation import run
from part_robust.evaluation.tiers import Tier
from part_robust.modeling.counts import with_counts
from tests.evaluation.record_fixture import comparable
from tests.processes import start_two
from tests.toy import tiny_cfg

# Two processes make the same batches of 6 or 12 images as one, so that even the last digits agree.
SHORT = [
    *("DATALOADER.TEST_BATCH_SIZE", 3, "TEST.PART_BOX_AP", False, "TEST.CHECKS.SIBLINGS", ""),
    *("ATTACK.SPECS.apgd_ce.STEPS", 2, "ATTACK.SPECS.apgd_t.STEPS", 2, "ATTACK.SPECS.fab_t.STEPS", 2),
    *("ATTACK.SPECS.square.STEPS", 2, "ATTACK.SPECS.pgd20.STEPS", 1, "ATTACK.SPECS.pgd100x5.STEPS", 1),
    *("ATTACK.SPECS.square1000.STEPS", 2),
    *("ATTACK.SPECS.apgd_part_loss.STEPS", 2, "ATTACK.SPECS.apgd_part_loss_fixed.STEPS", 2),
    *("TEST.CHECKS.IMAGES", 2, "TEST.CHECKS.STEPS", 2, "TEST.CHECKS.LONG_STEPS", 2, "TEST.CHECKS.NOISE_DRAWS", 2),
    *("TEST.CHECKS.DIRECTIONS", 1, "TEST.CHECKS.EOT_DRAWS", 2, "TEST.CHECKS.RESTARTS", 2),
]
SCREEN = ["TEST.TIER", "screen", "TEST.TIERS.screen", ["pgd20"]]
SIBLING = ["resnet", *SCREEN, "TEST.EPS", 0.01, "TEST.SAVE_ADVERSARIALS", "npz", "MODEL.RESNETS.STEM_OUT_CHANNELS", 4]
RUNS = {
    "detector": [
        *("dino_sequential", "TEST.TIER", "standard,parts", "TEST.EPS_CURVE", (4,), "TEST.SAVE_ADVERSARIALS", "png"),
        *("TEST.PART_BOX_AP", True, "TEST.NUM_IMAGES", 6, "TEST.SAVE_PREDICTIONS", True),
    ],
    "random_weights": [
        *("deeplab_two_headed", "TEST.TIER", "thesis", "TEST.SAVE_ADVERSARIALS", "npz"),
        *("TEST.NUM_IMAGES", 6),
    ],
    # A radius so small that images stay right, for the sibling's images.
    "audit_and_sibling": ["resnet", *SCREEN, "TEST.EPS", 0.01, "TEST.AUDIT", True, "TEST.CHECKS.SIBLINGS", "sibling"],
    "smoothed": [
        *("resnet", *SCREEN, "TEST.NUM_IMAGES", 6, "TEST.NORM", "l2", "TEST.EPS", 9.0, "TEST.EPS_CURVE", (3,)),
        *("TEST.SMOOTHING.SIGMA", 15.0, "TEST.SMOOTHING.SAMPLES", 40, "TEST.SMOOTHING.IMAGES", 4),
    ],
    # Regions of boxes, of a detector.
    "local": ["dino_sequential", "TEST.TIER", "screen,local", "TEST.NUM_IMAGES", 6, "INPUT.PART_MASKS", "boxes"],
    "one_image": ["resnet", *SCREEN, "TEST.NUM_IMAGES", 1],
    # The last of one process's batches, of one image, is left to do.
    "resumed": ["deeplab_two_headed", *SCREEN, "TEST.NUM_IMAGES", 7, "TEST.THREATS", "linf:4/255 l2:1 l1:2"],
    "without_tier": ["deeplab_two_headed", "ATTACK.EVAL", ["pgd20"], "TEST.NUM_IMAGES", 6],
}
# Of the collectives of a job, and what one process's work takes in it.
TIMEOUT = timedelta(seconds=2)
PAUSE = 3.0


def make_config(folder: Path, model: str, *opts) -> str:
    """As text, which another process can read; of a random model with the same weights in every folder."""
    weights = folder.parent.parent / f"{folder.name}.pth"
    cfg = with_counts(tiny_cfg(model, *SHORT, "OUTPUT_DIR", str(folder), "DATASETS.TEST", ("toy_val",), *opts))
    if cfg.TEST.CHECKS.SIBLINGS:
        cfg.TEST.CHECKS.SIBLINGS = str(folder.parent.parent / "siblings" / cfg.TEST.CHECKS.SIBLINGS)
    folder.mkdir(parents=True)
    if folder.name != "random_weights":
        cfg.MODEL.WEIGHTS = str(weights)
        torch.manual_seed(0)
        torch.save({"model": PartTrainer.build_model(cfg).state_dict()}, weights)
    return cfg.dump()


def _evaluate_all(configs: list[str], resumed: str = "") -> None:
    for text in configs:
        cfg = CfgNode.load_cfg(text)
        cfg.freeze()
        torch.manual_seed(comm.get_rank())  # random weights are others in every process, as in a job
        evaluate(cfg, resume=cfg.OUTPUT_DIR == resumed)


@pytest.fixture(scope="module")
def folders(toy_data, tmp_path_factory) -> tuple[Path, Path]:
    """Folders with every run, of one process and of two."""
    root = tmp_path_factory.mktemp("processes")
    _evaluate_all([make_config(root / "siblings" / "sibling", *SIBLING)])
    _evaluate_all([make_config(root / "one" / name, *opts) for name, opts in RUNS.items()])
    configs = [make_config(root / "two" / name, *opts) for name, opts in RUNS.items()]
    interrupt(root / "one" / "resumed", root / "two" / "resumed")
    start_two(_evaluate_all, (configs, str(root / "two" / "resumed")))
    return root / "one", root / "two"


def interrupt(finished: Path, folder: Path) -> None:
    """Copies an evaluation as it was before its batch of one image."""
    shutil.copytree(finished / "journal_toy_val", folder / "journal_toy_val")
    (last,) = [path for path in folder.rglob("batch_*.npz") if len(np.load(path)["images.image_id"]) == 1]
    last.unlink()


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_write_what_one_writes(folders, name):
    one, two = (folder / name for folder in folders)
    records = [comparable(folder) for folder in (one, two)]
    devices = [record["evaluation"]["toy_val"].pop("device") for record in records]
    assert devices == ["1 x CPU", "2 x CPU"]
    assert records[0] == records[1]
    assert images_and_flags(one) == images_and_flags(two)


def images_and_flags(folder: Path) -> dict[str, bytes]:
    """What an evaluation has written about single images, by file, and by array of it."""
    files = [*folder.glob("adversarials_toy_val/*/*.png"), *folder.glob("predictions_toy_val/**/*.*")]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    arrays = (
        path
        for name in ("adversarials_toy_val/*/*", "flags_*", "smoothing_*", "local_*")
        for path in folder.glob(f"{name}.npz")
    )
    for path in arrays:
        with np.load(path) as file:
            names = [name for name in file.files if name != "seconds"]
            found |= {f"{path.relative_to(folder)}, {name}": file[name].tobytes() for name in names}
    return found


def test_the_runs_differ_in_what_they_write(folders):
    evaluations = {
        path.parent.name: json.loads(path.read_text())["evaluation"].get("toy_val", {})
        for path in folders[1].glob("*/robustness.json")
    }
    assert evaluations.keys() == RUNS.keys()
    assert set(evaluations["detector"]["tiers"]) == {"standard", "parts"} and evaluations["detector"]["eps_curve"]
    assert list(evaluations["random_weights"]["tiers"]) == ["thesis"]
    smoothed = evaluations["smoothed"]["smoothing"]
    assert (
        smoothed["num_images"] == 4
        and smoothed["trials"]
        and [p["eps"] for p in smoothed["attacked"]] == [0.0, 3.0, 9.0]
    )
    assert any(name.endswith("radius") for name in images_and_flags(folders[1] / "smoothed"))
    audited = evaluations["audit_and_sibling"]
    assert "C21" in {check["id"] for check in audited["checks"]}
    assert [row["images"] for row in audited["transfer"]["siblings"]] == [audited["transfer"]["standing"]] != [0]
    assert (evaluations["one_image"]["num_images"], evaluations["resumed"]["num_images"]) == (1, 7)
    local = evaluations["local"]["local"]
    assert [row["region"] for row in local["table"] if row["images"]] == [
        *("part:lamp:base", "part:lamp:shade", "part:sign:board", "object", "background", "patch:5px"),
    ]
    assert any("local_toy_val.npz, broken_by" in name for name in images_and_flags(folders[1] / "local"))
    names = images_and_flags(folders[1] / "detector")
    assert len([name for name in names if name.startswith("adversarials") and name.endswith(".png")]) == 2 * 6
    # Clean, two tiers and four attacks on the parts.
    assert len([name for name in names if "/results/" in name and name.endswith(".png")]) == 7 * 6
    assert "predictions_toy_val/results/parts/boxes.json" in names


def _main_process_takes_longer(configs: list[str]) -> None:
    if comm.is_main_process():
        Tier.run = after_a_pause(Tier.run)
        run.add_checks = after_a_pause(run.add_checks)
    _evaluate_all(configs)


def after_a_pause(function: Callable) -> Callable:
    return lambda *args: (time.sleep(PAUSE), function(*args))[1]


def test_processes_wait_longer_than_a_collective_may_take(toy_data, tmp_path):
    """For images that take long, and for the checks, of which an audit takes hours."""
    images = ["resnet", "ATTACK.EVAL", ["pgd20"], "TEST.NUM_IMAGES", 1]
    configs = [
        make_config(tmp_path / "two" / name, *opts)
        for name, opts in (("images", images), ("checks", RUNS["one_image"]))
    ]
    start_two(_main_process_takes_longer, (configs,), timeout=TIMEOUT)
    assert all((tmp_path / "two" / name / "robustness.json").is_file() for name in ("images", "checks"))
