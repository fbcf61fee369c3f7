"""The command lines, from a training to its pictures, on the pretend device."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog

from part_robust.cli import compare, demo, export_model, train_net, visualize_attack, visualize_data
from part_robust.data.builtin import SPLITS, register_builtin
from part_robust.data.part_shapes import make_part_shapes
from tests.pretend.device import pretend_device
from tests.pretend.waits import ROOT
from tests.toy import TINY

QUICK = str(ROOT / "configs" / "quick_schedules" / "deeplab_two_headed_instant_test_adv.yaml")
SIZES = [str(value) for value in TINY[4:]]
SHORT = ["INPUT.TEST_RESIZE", "32", "SOLVER.IMS_PER_BATCH", "4", "TEST.EVAL_PERIOD", "0", "SOLVER.MAX_ITER", "2"]


def register(root: Path | None = None) -> None:
    """Registers PartShapes in another folder than the one it was found in when the package was imported."""
    for split in SPLITS:
        name = f"part_robust_part_shapes_{split}"
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)
    register_builtin(root)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Iterator[Path]:
    """Folder of a training on the device, beside its data."""
    root = tmp_path_factory.mktemp("pretend")
    make_part_shapes(root / "part_shapes", {"train": 8, "val": 3, "test": 3}, image_size=32)
    register(root)
    with pretend_device():
        train_net.main(
            ["--config-file", QUICK, "MODEL.DEVICE", "cuda", *SIZES, *SHORT, "OUTPUT_DIR", str(root / "run")]
        )
    yield root / "run"
    register()


@pytest.fixture(autouse=True)
def device(finished):
    with pretend_device():
        yield


def options(finished: Path, **changes: str) -> list[str]:
    opts = ["MODEL.WEIGHTS", str(finished / "model_final.pth"), *(x for pair in changes.items() for x in pair)]
    return ["--config-file", str(finished / "config.yaml"), *opts]


def test_evaluations_are_compared(finished, tmp_path, capsys):
    opts = ["TEST.TIER", "screen", "TEST.TIERS.screen", "['fgsm']", "TEST.CHECKS.IMAGES", "1", "TEST.CHECKS.STEPS", "1"]
    own = ["--config-file", str(finished / "config.yaml"), "--eval-only"]
    own += ["MODEL.WEIGHTS", str(finished / "model_final.pth"), "OUTPUT_DIR", str(tmp_path), *opts]
    train_net.main(own)
    record = json.loads((tmp_path / "robustness.json").read_text())
    assert yaml.safe_load(record["config"])["MODEL"]["DEVICE"] == "cuda"
    assert compare.main([str(tmp_path), str(tmp_path)]) == 0
    assert "exact McNemar" in capsys.readouterr().out


@pytest.mark.parametrize("attack", ["fgsm", "sea_js"])
def test_demo(finished, tmp_path, attack):
    pictures = str(finished.parent / "part_shapes" / "images" / "test")
    arguments = [pictures, "--run", str(finished), "--attack", attack, "--output", str(tmp_path)]
    assert demo.main([*arguments, "--opts", "ATTACK.SPECS.sea_js.STEPS", "4", "MODEL.DEVICE", "cuda"]) == 0
    assert len(list(tmp_path.iterdir())) == 3


def test_pictures_of_an_attack(finished, tmp_path):
    output = tmp_path / "attack.png"
    visualize_attack.main(
        [*options(finished)[:2], "--attack", "fgsm", "--count", "2", "--output", str(output), *options(finished)[2:]]
    )
    assert output.stat().st_size > 1000


def test_pictures_of_data(finished, tmp_path):
    output = tmp_path / "data.jpg"
    arguments = [*options(finished)[:2], "--source", "dataloader", "--count", "2", "--output", str(output)]
    visualize_data.main(arguments)
    assert output.stat().st_size > 1000


def test_export(finished, tmp_path, capsys):
    """Weights alone: the pretend device is not traced."""
    export_model.main([*options(finished)[:2], "--output", str(tmp_path), *options(finished)[2:]])
    weights = torch.load(tmp_path / "model.pth", weights_only=True)["model"]
    assert weights and all(value.device.type == "cpu" for value in weights.values())
    assert "the part branch is dropped" in capsys.readouterr().out
