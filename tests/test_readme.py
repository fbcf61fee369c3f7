"""What the README tells a user to write works as written."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from part_robust.data import register_from_config
from tests.commands import ROOT, call, succeeded
from tests.toy import TINY, tiny_cfg, write_toy

README = (ROOT / "README.md").read_text()


def test_own_data(tmp_path, monkeypatch):
    """The config of the section on own data, on the toy, at toy size."""
    (text,) = re.findall(r"```yaml\n(_BASE_.+?)```", README, re.DOTALL)
    _, images = write_toy(tmp_path)
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val", "test"):
        # Paths in the config are relative to the working directory, which is the repository for `call`.
        shutil.copy(tmp_path / "toy.json", tmp_path / "annotations" / f"{split}.json")
        text = text.replace(f"annotations/{split}.json", str(tmp_path / "annotations" / f"{split}.json"))
    config = tmp_path / "mine.yaml"
    config.write_text(text.replace('"images"', json.dumps(str(images))))
    opts = [*TINY, "SOLVER.EPOCHS", 1.0, "ATTACK.EVAL_DURING_TRAINING", "['fgsm']", "OUTPUT_DIR", tmp_path / "out"]
    text = succeeded(call("train_net", "--config-file", config, *opts))
    assert "classification_fgsm" in text
    assert (tmp_path / "out" / "model_best.pth").is_file()


def test_links_lead_somewhere():
    """Of every page; and the README leads to each of them."""
    pages = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        *ROOT.glob("docs/*.md"),
        ROOT / "datasets" / "README.md",
        ROOT / "configs" / "README.md",
    ]
    targets = {}
    for page in pages:
        links = re.findall(r"\]\(([^)#\s]+)[^)]*\)|<img src=\"([^\"]+)\"", page.read_text())
        local = [link for pair in links for link in pair if link and "://" not in link]
        targets[page] = {(page.parent / link).resolve() for link in local}
        assert all(target.exists() for target in targets[page]), page
    assert set(pages[1:]) <= targets[pages[0]]


def test_register_from_config(tmp_path):
    path, root = write_toy(tmp_path)
    entry = ["readme_train", str(path), str(root)]
    cfg = tiny_cfg("resnet", "DATASETS.REGISTER", [entry])
    register_from_config(cfg)
    register_from_config(cfg)
    with pytest.raises(ValueError, match="readme_train.*already registered"):
        register_from_config(tiny_cfg("resnet", "DATASETS.REGISTER", [["readme_train", "other.json", str(root)]]))
    with pytest.raises(ValueError, match="name, part json, image root"):
        register_from_config(tiny_cfg("resnet", "DATASETS.REGISTER", [["readme_train", str(path)]]))
