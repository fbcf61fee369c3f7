"""Fixtures: an untrained model, and configs of its short evaluations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng

from part_robust.modeling.counts import with_counts
from tests.toy import tiny_cfg

QUICK = [
    *("ATTACK.SPECS.apgd_ce.STEPS", 4),
    *("ATTACK.SPECS.apgd_t.STEPS", 2),
    *("ATTACK.SPECS.sea_masked.STEPS", 4),
    *("ATTACK.SPECS.sea_js.STEPS", 4),
    *("TEST.TIERS.parts", ["sea_masked", "sea_js", "apgd_part_loss"]),
    *("TEST.CHECKS.IMAGES", 3),
    *("TEST.CHECKS.STEPS", 2),
    *("TEST.CHECKS.LONG_STEPS", 2),
    *("DATALOADER.TEST_BATCH_SIZE", 5),
]


@pytest.fixture(scope="module")
def untrained(toy_data, tmp_path_factory) -> Path:
    """Weights of an untrained model, which puts all images into one class."""
    seed_all_rng(0)
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    model = build_model(tiny_cfg("deeplab_two_headed"))
    torch.save({"model": model.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def quick_config(toy_data, untrained):
    """Return a function that makes the config of a short evaluation of that model in a folder, with KEY VALUE pairs."""
    json_file, root = toy_data

    def make(folder: Path, *opts):
        folder.mkdir(parents=True, exist_ok=True)
        own = ["OUTPUT_DIR", str(folder), "MODEL.WEIGHTS", str(untrained)]
        # A fresh process finds the data set in the record.
        register = ["DATASETS.REGISTER", [["toy_val", str(json_file), str(root)]]]
        cfg = with_counts(tiny_cfg("deeplab_two_headed", *QUICK, *own, *register, *opts))
        cfg.freeze()
        return cfg

    return make
