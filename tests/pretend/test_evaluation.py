"""Both ways of evaluation, and the tools that read one, on the pretend device as on the CPU."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from part_robust.engine import PartTrainer, evaluate
from part_robust.modeling.counts import with_counts
from tests.engine.test_robust_evaluation import comparable
from tests.pretend.device import assert_same_as_on_cpu, pretend_device
from tests.pretend.test_training import FAMILIES, SMALL
from tests.pretend.waits import ROOT
from tests.toy import tiny_cfg


def tool(name: str):
    """A script of tools/ as a module."""
    specification = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


SHORT = [
    *("ATTACK.SPECS.apgd_ce.STEPS", 2, "ATTACK.SPECS.apgd_t.STEPS", 2, "ATTACK.SPECS.fab_t.STEPS", 2),
    *("ATTACK.SPECS.square.STEPS", 2, "ATTACK.SPECS.pgd20.STEPS", 1),
    *("ATTACK.SPECS.sea_masked.STEPS", 3, "ATTACK.SPECS.sea_js.STEPS", 3),
    *("ATTACK.SPECS.apgd_part_loss.STEPS", 2, "ATTACK.SPECS.apgd_part_loss_fixed.STEPS", 2),
    *("TEST.TIERS.parts", ["sea_masked", "sea_js", "apgd_part_loss", "apgd_part_loss_fixed"]),
    *("TEST.CHECKS.IMAGES", 2, "TEST.CHECKS.STEPS", 2, "TEST.CHECKS.LONG_STEPS", 2, "TEST.CHECKS.NOISE_DRAWS", 2),
    *("TEST.CHECKS.DIRECTIONS", 1, "TEST.CHECKS.EOT_DRAWS", 2, "TEST.CHECKS.RESTARTS", 2),
    *("DATALOADER.TEST_BATCH_SIZE", 2, "TEST.NUM_IMAGES", 2),
]


def evaluation(folder: Path, model: str, device: str, data: tuple[Path, Path], *opts, seed: int = 0) -> str:
    """The record of an evaluation as text, without times and paths."""
    folder.mkdir(parents=True, exist_ok=True)
    own = ["MODEL.DEVICE", device, "OUTPUT_DIR", str(folder), "MODEL.WEIGHTS", str(folder / "model.pth")]
    register = ["DATASETS.REGISTER", [["toy_val", *map(str, data)]]]
    cfg = with_counts(tiny_cfg(model, *SMALL, *SHORT, *own, *register, "DATASETS.TEST", ("toy_val",), *opts))
    cfg.freeze()
    torch.manual_seed(seed)
    torch.save({"model": PartTrainer.build_model(cfg).state_dict()}, folder / "model.pth")
    evaluate(cfg)
    record = comparable(folder)
    for found in record["evaluation"].values():
        found.pop("device")
    return json.dumps({"results": record["results"], "evaluation": record["evaluation"]}, sort_keys=True, indent=1)


@pytest.mark.parametrize("model", FAMILIES)
def test_every_attack_on_every_image(toy_data, tmp_path, model):
    opts = ["ATTACK.EVAL", ["pgd20"]]
    assert_same_as_on_cpu(lambda device: evaluation(tmp_path / device, model, device, toy_data, *opts))


TIERS = [
    *("TEST.TIER", "standard,thesis,parts", "TEST.TIERS.thesis", ["pgd20"], "TEST.EPS", 8.0, "TEST.EPS_CURVE", (4,)),
    *("TEST.CHECKS.SIBLINGS", ""),
]
# A model of each kind, the way its attacked images are kept, and what it cannot do.
KINDS = {
    "resnet": ("png", ["TEST.TIER", "standard,thesis"]),
    "deeplab_segmenter": ("npz", ["TEST.TIER", "parts", "TEST.EPS_CURVE", ()]),
    "deeplab_two_headed": ("png", []),
    "dino_detector": ("png", ["TEST.TIER", "parts", "TEST.EPS_CURVE", ()]),
    "dino_sequential": ("npz", ["TEST.TIERS.standard", ["apgd_t", "square"]]),
    "mask_dino_simple": ("npz", ["TEST.TIERS.standard", ["apgd_ce", "fab_t"]]),
}


@pytest.mark.parametrize("model", KINDS)
def test_tiers(toy_data, tmp_path, model):
    """With radii, saved images and their verification."""
    kept, opts = KINDS[model]

    def case(device: str) -> str:
        text = evaluation(tmp_path / device, model, device, toy_data, *TIERS, "TEST.SAVE_ADVERSARIALS", kept, *opts)
        assert tool("verify_adversarials").main([str(tmp_path / device)]) == 0
        return text

    assert_same_as_on_cpu(case)


AUDIT = [
    *("TEST.TIER", "screen", "TEST.TIERS.screen", ["pgd20"], "TEST.AUDIT", True),
    *("TEST.NUM_IMAGES", 2, "TEST.CHECKS.IMAGES", 1),
]


def test_audit(toy_data, tmp_path):
    def case(device: str) -> str:
        return evaluation(tmp_path / device, "deeplab_two_headed", device, toy_data, *AUDIT)

    assert '"C21"' in assert_same_as_on_cpu(case)


def test_audit_of_a_detector(toy_data, tmp_path):
    """On the device alone: hundreds of passes."""
    with pretend_device():
        opts = [*AUDIT, "TEST.NUM_IMAGES", 1, "MODEL.DINO.DECODER_LAYERS", 1]
        assert '"C21"' in evaluation(tmp_path, "dino_sequential", "cuda", toy_data, *opts)


def test_images_of_siblings(toy_data, tmp_path):
    opts = ["TEST.TIER", "screen", "TEST.TIERS.screen", ["pgd20"], "TEST.SAVE_ADVERSARIALS", "npz"]
    opts += ["TEST.NUM_IMAGES", 0, "TEST.EPS", 0.01]  # some images must stay right

    def case(device: str) -> str:
        evaluation(tmp_path / device / "first", "resnet", device, toy_data, *opts, seed=1)
        return evaluation(tmp_path / device / "second", "resnet", device, toy_data, *opts)

    assert '"transfer"' in assert_same_as_on_cpu(case)
