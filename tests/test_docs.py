"""The pieces of docs/extending.md run as they stand, in a model that trains, is attacked and evaluated."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from part_robust.config import get_part_robust_cfg
from part_robust.engine import train
from part_robust.engine.setup import import_modules
from part_robust.engine.trainer import PartTrainer
from part_robust.modeling import CLASS_HEAD_REGISTRY, PART_SEGMENTER_REGISTRY
from tests.engine.test_trainer import ADVERSARIAL, run_cfg

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "extending.md").read_text()
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
