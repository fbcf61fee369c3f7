"""Export: the same class logits from fewer weights, and only where nothing is missed."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model

from part_robust.config import get_part_robust_cfg
from part_robust.engine.checkpoint import CheckpointMismatch, PartCheckpointer
from part_robust.engine.export import export_classifier, load_trained
from tests.toy import run_cfg, save_run


@pytest.mark.parametrize("model", ["dino_two_headed", "deeplab_two_headed"])
def test_what_the_class_does_not_need_is_gone(toy_data, tmp_path, model):
    cfg, before = save_run(tmp_path / "run", model, move_statistics=True)
    exported = export_classifier(cfg, tmp_path / "exported")
    assert exported.parts_dropped and exported.parameters_after < exported.parameters_before
    assert set(torch.load(exported.weights, weights_only=True)) == {"model"}
    after = build_model(get_part_robust_cfg(exported.config)).eval()
    PartCheckpointer(after, strict=True).load(str(exported.weights))
    assert after.segmenter is None
    assert not any("segmenter" in key for key in torch.load(exported.weights, weights_only=True)["model"])
    images = 255 * torch.rand(3, 3, cfg.INPUT.SIZE, cfg.INPUT.SIZE)
    with torch.no_grad():
        assert torch.equal(after.class_logits(images), before.class_logits(images))
        assert set(after.inference(images, None)[0]) == {"class_logits"}


@pytest.mark.parametrize("model", ["dino_sequential", "deeplab_segmenter"])
def test_what_is_read_stays(toy_data, tmp_path, model):
    cfg, before = save_run(tmp_path / "run", model, move_statistics=True)
    exported = export_classifier(cfg, tmp_path / "exported")
    assert not exported.parts_dropped and exported.parameters_after == exported.parameters_before
    weights = torch.load(exported.weights, weights_only=True)["model"]
    assert weights.keys() == before.state_dict().keys()


def test_mistakes(toy_data, tmp_path, monkeypatch):
    cfg, _ = save_run(tmp_path / "run", "dino_two_headed", move_statistics=True)
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty"):
        export_classifier(run_cfg(tmp_path, "MODEL.WEIGHTS", "", model="dino_two_headed"), tmp_path / "exported")
    other = run_cfg(tmp_path, "MODEL.WEIGHTS", cfg.MODEL.WEIGHTS, model="deeplab_two_headed")
    with pytest.raises(CheckpointMismatch):
        export_classifier(other, tmp_path / "exported")

    def load_other(cfg):
        return load_trained(cfg) if cfg.MODEL.WEIGHTS == trained else build_model(cfg).eval()

    trained = cfg.MODEL.WEIGHTS
    monkeypatch.setattr("part_robust.engine.export.load_trained", load_other)
    with pytest.raises(RuntimeError, match="the exported model's class logits differ"):
        export_classifier(cfg, tmp_path / "moved")
