"""The pieces of docs/extending.md run as they stand, in a model that trains, is attacked and evaluated; the config
of docs/backbones.md builds."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from part_robust.config import get_part_robust_cfg
from part_robust.engine import train
from part_robust.engine.setup import import_modules
from part_robust.engine.trainer import PartTrainer
from part_robust.modeling import CLASS_HEAD_REGISTRY, PART_SEGMENTER_REGISTRY
from tests.engine.test_trainer import ADVERSARIAL, run_cfg

TEXT_FOLDER = Path(__file__).resolve().parent.parent / "docs"
CONFIGS = TEXT_FOLDER.parent / "configs"
TEXT = (TEXT_FOLDER / "extending.md").read_text()
PIECES = re.findall(r"```python\n(.+?)```", TEXT, re.DOTALL)
REGISTRIES = (CLASS_HEAD_REGISTRY, PART_SEGMENTER_REGISTRY)


@pytest.fixture
def my_parts(tmp_path, monkeypatch):
    """The page's pieces as a user's module, taken out of the registries afterwards."""
    before = [dict(registry._obj_map) for registry in REGISTRIES]
    (tmp_path / "my_parts.py").write_text("\n\n".join(PIECES))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_parts"
    sys.modules.pop("my_parts", None)
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry._obj_map.clear()
        registry._obj_map.update(entries)


def test_pieces_are_short():
    assert len(PIECES) >= 2 and all(len(piece.splitlines()) < 40 for piece in PIECES)


def test_they_train_and_are_attacked(my_parts, toy_data, tmp_path):
    import_modules(get_part_robust_cfg(None, ["IMPORTS", [my_parts]]))
    (names,) = re.findall(r"PART_CLASSIFIER: \{SEGMENTER: \"(\w+)\", HEAD: \"(\w+)\"\}", TEXT)
    opts = ["MODEL.PART_CLASSIFIER.SEGMENTER", names[0], "MODEL.PART_CLASSIFIER.HEAD", names[1]]
    cfg = run_cfg(tmp_path, *ADVERSARIAL, *opts, "SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 2, model="deeplab_segmenter")
    results = train(cfg)
    assert {"classification", "classification_pgd20", "part_seg", "part_seg_pgd20"} <= set(results)
    model = PartTrainer.build_model(cfg)
    assert (type(model.segmenter).__name__, type(model.head).__name__) == names


def test_a_module_that_is_not_there_is_named():
    with pytest.raises(ImportError, match=r"IMPORTS.*no_such_parts.*PYTHONPATH"):
        import_modules(get_part_robust_cfg(None, ["IMPORTS", ["no_such_parts"]]))


BACKBONES = (TEXT_FOLDER / "backbones.md").read_text()


def test_backbone_config(tmp_path):
    """The page's config builds, at the sizes of its data set, and its commands name configs that exist."""
    pytest.importorskip("timm")
    shutil.copytree(CONFIGS, tmp_path / "configs")
    (text,) = re.findall(r"```yaml\n(_BASE_.+?)```", BACKBONES, re.DOTALL)
    path = tmp_path / "configs" / "mine" / "deeplab_swin.yaml"
    path.parent.mkdir()
    path.write_text(text)
    counts = ["MODEL.PART_CLASSIFIER.NUM_CLASSES", 11, "MODEL.PART_CLASSIFIER.NUM_PARTS", 40]
    # Nothing is downloaded here.
    cfg = get_part_robust_cfg(path, [*counts, "MODEL.DEVICE", "meta", "MODEL.TIMM.PRETRAINED", False])
    with torch.device("meta"):
        shapes = build_model(cfg).backbone.output_shape()
    assert [shapes[name].channels for name in ("res2", "res5")] == [96, 768]
    named = re.findall(r"configs/[\w/]+\.yaml", BACKBONES)
    assert len(named) >= 3 and all((CONFIGS.parent / name).is_file() for name in named)
