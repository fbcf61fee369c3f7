"""Common corruptions: the loader, the tool, and what is said where the package is missing."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng

from part_robust.evaluation.corruptions import CorruptedLoader, corrupted, corruption_names, mean_over
from tests.toy import tiny_cfg

TOOL = Path(__file__).resolve().parent.parent / "tools" / "corruptions.py"


@pytest.fixture
def stand_in(monkeypatch):
    """The package's two functions: noise from numpy's global generator, or everything black."""

    def corrupt(image, corruption_name, severity):
        assert image.dtype == np.uint8 and image.shape[2] == 3
        if corruption_name == "black":
            return np.zeros_like(image)
        return np.clip(image + 10 * severity * np.random.normal(size=image.shape), 0, 255).astype(np.uint8)  # noqa: NPY002

    package = SimpleNamespace(corrupt=corrupt, get_corruption_names=lambda subset="common": ["noise", "black"])
    monkeypatch.setitem(sys.modules, "imagecorruptions", package)


def image(seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (3, 40, 36), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_noise_belongs_to_the_image(stand_in):
    np.random.seed(5)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first = corrupted(image(), "noise", 3, key=7)
    assert first.dtype == torch.uint8 and first.shape == (3, 40, 36) and not torch.equal(first, image())
    assert torch.equal(first, corrupted(image(), "noise", 3, key=7))
    assert not torch.equal(first, corrupted(image(), "noise", 3, key=8))
    assert (np.random.get_state()[1] == state).all(), "others' random numbers stay"  # noqa: NPY002


def test_loader_changes_images_alone(stand_in):
    batches = [[{"image": image(i), "image_id": i, "class_id": 1}] for i in range(3)]
    loader = CorruptedLoader(batches, "noise", 2)
    assert len(loader) == 3
    for before, after in zip(batches, loader, strict=True):
        assert after[0].keys() == before[0].keys() and after[0]["class_id"] == 1
        assert torch.equal(before[0]["image"], image(before[0]["image_id"])), "the original stays"
    with pytest.raises(ValueError, match="severity"):
        CorruptedLoader(batches, "noise", 6)
    assert mean_over([{"accuracy": 40.0}, {"accuracy": 60.0, "mIoU": 1.0}], ["accuracy", "mIoU"]) == {"accuracy": 50.0}


@pytest.fixture
def tool():
    specification = importlib.util.spec_from_file_location("corruptions_tool", TOOL)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_tool(stand_in, tool, toy_data, tmp_path, monkeypatch, capsys):
    seed_all_rng(0)
    cfg = tiny_cfg("deeplab_two_headed")
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    opts = ["MODEL.WEIGHTS", str(tmp_path / "model.pth"), "OUTPUT_DIR", str(tmp_path)]
    tool.main(["--config-file", str(tmp_path / "config.yaml"), "--severities", "1,5", *opts])
    record = json.loads((tmp_path / "corruptions.json").read_text())["datasets"]["toy_val"]
    assert [(row["corruption"], row["severity"]) for row in record["rows"]] == [
        ("none", 0),
        *(("noise", 1), ("noise", 5), ("black", 1), ("black", 5)),
    ]
    # Black images are all of one class, a third of the toy data's.
    assert record["rows"][-1]["accuracy"] == pytest.approx(100 / 3)
    assert record["mean"]["accuracy"] == pytest.approx(np.mean([row["accuracy"] for row in record["rows"][1:]]))
    assert "mean of the corrupted" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no corruption rain"):
        tool.main(["--config-file", str(tmp_path / "config.yaml"), "--corruptions", "rain"])
    with pytest.raises(SystemExit, match="--severities"):
        tool.main(["--config-file", str(tmp_path / "config.yaml"), "--severities", "0"])


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install part_robust\[corruptions\]"):
        corruption_names()


def test_the_package_itself():
    pytest.importorskip("imagecorruptions")
    assert len(corruption_names()) == 15
    for name in ("gaussian_noise", "snow", "jpeg_compression"):
        assert torch.equal(corrupted(image(), name, 3, key=1), corrupted(image(), name, 3, key=1))
