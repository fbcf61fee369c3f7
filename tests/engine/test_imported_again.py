"""A data set that was imported again, with other splits, after a model was trained on it."""

from __future__ import annotations

import pytest

from part_robust.config import get_part_robust_cfg
from part_robust.data import register_part_dataset
from part_robust.engine.begun import IMPORTS, begin_training, imported_again
from part_robust.utils.errors import UserError
from tests.data.coloured import coco, run

DIVIDED = ("--split-fractions", "0.4", "0.3", "0.3")


@pytest.fixture
def cfg(tmp_path):
    """Config of a training on an import of 12 images, begun in tmp_path/output."""
    assert run("coco", tmp_path, coco(tmp_path, 12), *DIVIDED) == 0
    cfg = get_part_robust_cfg(None, ["OUTPUT_DIR", str(tmp_path / "output")])
    for split in ("train", "val", "test"):
        name = f"{tmp_path.name}_{split}"
        register_part_dataset(name, tmp_path / f"out_coco/annotations/{split}.json", tmp_path / "photos")
        cfg.DATASETS[split.upper()] = (name,)
    begin_training(cfg, resume=False)
    return cfg


@pytest.mark.parametrize("resume", [True, False])
def test_another_division_is_told(tmp_path, cfg, resume):
    cfg.MODEL.WEIGHTS = "" if resume else str(tmp_path / "output" / "model_best.pth")
    assert imported_again(cfg, resume) == []
    assert run("coco", tmp_path, coco(tmp_path, 12), *DIVIDED, "--seed", "1") == 0
    told = imported_again(cfg, resume)
    assert [sentence.split("'")[1] for sentence in told] == [f"{tmp_path.name}_{s}" for s in ("train", "val", "test")]
    assert all("was imported again since the training in" in sentence for sentence in told)
    cfg.MODEL.WEIGHTS = str(tmp_path / "elsewhere" / "model_best.pth")
    assert imported_again(cfg, resume=False) == []


def test_the_note_is_of_the_training_that_began_last(tmp_path, cfg):
    assert run("coco", tmp_path, coco(tmp_path, 12), *DIVIDED, "--seed", "1") == 0
    (tmp_path / "output" / "last_checkpoint").write_text("model_0000001.pth")
    begin_training(cfg, resume=True)
    assert len(imported_again(cfg, resume=True)) == 3, "the weights are those of the earlier division"
    begin_training(cfg, resume=False)
    assert imported_again(cfg, resume=True) == []
    (tmp_path / "output" / IMPORTS).write_text("{")
    with pytest.raises(UserError, match=f"{IMPORTS}.*delete it"):
        imported_again(cfg, resume=True)
    cfg.DATASETS.TRAIN = ()
    begin_training(cfg, resume=False)
    assert not (tmp_path / "output" / IMPORTS).exists()
