"""The figures of the thesis from records of tiny models on the toy data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from PIL import Image

from part_robust.modeling.counts import with_counts
from part_robust.runs.thesis import figures
from part_robust.visualize import part_colors
from tests.toy import tiny_cfg


@pytest.fixture
def make_record(toy_data, tmp_path):
    def make(model: str) -> dict:
        cfg = with_counts(tiny_cfg(model, "ATTACK.EVAL", ["pgd20"], "ATTACK.SPECS.pgd20.STEPS", 1))
        torch.manual_seed(0)
        path = tmp_path / f"{model}.pth"
        torch.save({"model": build_model(cfg).state_dict()}, path)
        results = {"part_seg": {"pixel_accuracy": 50.0, "num_images": 12}}
        if cfg.MODEL.PART_CLASSIFIER.HEAD:
            results |= {"classification": {"accuracy": 9.0}, "classification_pgd20": {"accuracy": 1.0}}
        return {
            "config": cfg.dump(),
            "checkpoint": {"path": str(path)},
            "results": {"toy_val": results},
            "attacks": {"pgd20": {"objective": "cross_entropy"}},
        }

    return make


def test_all_figures(make_record, tmp_path):
    records = {
        ("deeplab_segmenter_boxes", "clean"): make_record("deeplab_segmenter"),
        ("dino_detector", "clean"): make_record("dino_detector"),
        ("deeplab_two_headed", "adversarial"): make_record("deeplab_two_headed"),
    }
    written = figures.draw_figures(records, tmp_path / "figures")
    assert [path.name for path in written] == ["figure_2.4.png", "figure_3.3.png"]
    tall, wide = (np.asarray(Image.open(path).convert("RGB")) for path in written)
    assert tall.shape[0] > tall.shape[1] and len(np.unique(wide.reshape(-1, 3), axis=0)) > 50, "a blank picture"
    (vector,) = figures.draw_figures({key: records[key] for key in list(records)[2:]}, tmp_path, "svg")
    assert "<svg" in vector.read_text()


def test_predictions(make_record):
    model = figures.Model(make_record("deeplab_two_headed"), count=3)
    truth, clean, attacked = model.truth(), model.predict(), model.predict(attacked=True)
    assert all(item["sem_seg"].unique().numel() > 1 for item in model.items), "images without parts show nothing"
    assert all(len(boxes) > 0 for boxes in truth.boxes)
    assert (truth.images == clean.images).all()
    difference = np.abs(attacked.images.astype(int) - clean.images.astype(int)).max()
    assert 0 < difference <= 8
    assert len(clean.classes) == 3 and clean.classes[0].endswith("%")


def test_true_masks_beside_a_model_of_painted_boxes(make_record, monkeypatch):
    class Told(figures.PartDatasetMapper):
        """The toy's parts are their boxes: here painted ones are seen by a label."""

        def _paint(self, *arguments):
            labels = super()._paint(*arguments)
            return torch.zeros_like(labels) if self.masks_from == "boxes" else labels

    monkeypatch.setattr(figures, "PartDatasetMapper", Told)
    record = make_record("deeplab_two_headed")
    masks = figures.Model(record, count=3)
    record["config"] = record["config"].replace("PART_MASKS: masks", "PART_MASKS: boxes")
    painted = figures.Model(record, count=3)
    assert all((item["sem_seg"] == 0).all() for item in painted.items), "the model's own labels are boxes"
    assert all((item["sem_seg"] != 0).any() for item in masks.items)
    assert (painted.truth().labels == masks.truth().labels).all()


def test_missing_checkpoint_is_named(make_record):
    record = make_record("deeplab_segmenter")
    Path(record["checkpoint"]["path"]).unlink()
    with pytest.raises(FileNotFoundError, match=r"deeplab_segmenter\.pth"):
        figures.Model(record)


def test_outlines():
    found = Instances((32, 32))
    found.pred_boxes = Boxes(torch.tensor([[2.0, 2.0, 10.0, 10.0], [4.0, 16.0, 28.0, 30.0]]))
    found.scores, found.pred_classes = torch.tensor([0.1, 0.9]), torch.tensor([0, 1])
    image = np.zeros((32, 32, 3), np.uint8)
    first, second = part_colors(2)
    all_boxes = figures.outline_boxes(image, found, 2)
    assert all_boxes.shape == (256, 256, 3) and (image == 0).all()
    assert (all_boxes[2 * 8, 6 * 8] == first).all() and (all_boxes[16 * 8, 10 * 8] == second).all()
    assert (figures.outline_boxes(image, found, 2, top=1)[2 * 8, 6 * 8] == 0).all(), "the surest alone"
    assert (figures.outline_boxes(image, found[:0], 2) == 0).all()
