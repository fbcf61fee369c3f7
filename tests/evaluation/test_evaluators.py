"""Evaluators against numbers computed by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from detectron2.evaluation import print_csv_format
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

from part_robust.attacks import build_attack
from part_robust.evaluation import ClassificationEvaluator, PartDetectionEvaluator, PartSegmentationEvaluator
from part_robust.evaluation.part_segmentation import confusion
from part_robust.evaluation.run_record import build_record, results_table
from part_robust.utils.files import write_json


def classify(truth, guess, names=("a", "b", "c"), ids=None):
    evaluator = ClassificationEvaluator(names)
    for index, (t, g) in enumerate(zip(truth, guess, strict=True)):
        logits = torch.zeros(len(names))
        logits[g] = 1.0
        item = {"image_id": index if ids is None else ids[index], "class_id": t}
        evaluator.process([item], [{"class_logits": logits}])
    return evaluator.evaluate()["classification"]


def test_accuracy():
    metrics = classify([0, 0, 0, 1], [0, 0, 1, 1])
    assert metrics["accuracy"] == 75.0
    assert metrics["accuracy-a"] == pytest.approx(200 / 3)
    assert metrics["class_mean_accuracy"] == pytest.approx((200 / 3 + 100) / 2), "class c has no image"
    assert metrics["num_images"] == 4.0
    assert "accuracy-c" not in metrics


def test_an_image_counts_once():
    assert classify([0, 0, 1], [0, 0, 0], ids=[7, 7, 8])["num_images"] == 2.0


def test_scoring_merged_batches_communicates_with_no_process(monkeypatch):
    """Rank 0 scores the batches of all processes alone: a collective there would wait for ever."""
    evaluators = [ClassificationEvaluator("ab"), PartSegmentationEvaluator("xy"), PartDetectionEvaluator("xy")]
    partials = [evaluator.partial() for evaluator in evaluators]
    partials[0] = {"records": np.array([[7, 0, 0], [8, 1, 0]])}
    partials[1] = {"entries": np.array([[0, 0, 3], [1, 0, 1]]), "images": np.array([2, 1])}

    def collective(*args, **kwargs):
        raise AssertionError("a collective")

    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    for name in ("gather", "all_gather", "synchronize"):
        monkeypatch.setattr(comm, name, collective)
    classes, pixels, boxes = (
        evaluator.score_merged([partial]) for evaluator, partial in zip(evaluators, partials, strict=True)
    )
    assert classes["classification"]["accuracy"] == 50.0
    assert pixels["part_seg"]["pixel_accuracy"] == 75.0 and pixels["part_seg"]["num_unlabelled_images"] == 1.0
    assert boxes["part_box"]["num_images"] == 0.0
    with pytest.raises(AssertionError, match="a collective"):
        evaluators[1].evaluate()


def test_an_empty_data_set_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        ClassificationEvaluator(["a"]).evaluate()


def segment(predictions, truths, supervision=None, parts=("x", "y")):
    evaluator = PartSegmentationEvaluator(parts)
    for index, (prediction, truth) in enumerate(zip(predictions, truths, strict=True)):
        scores = torch.nn.functional.one_hot(torch.tensor(prediction), len(parts) + 1).permute(2, 0, 1).float()
        item = {
            "sem_seg": torch.tensor(truth),
            "part_supervision": supervision[index] if supervision else "full",
        }
        evaluator.process([item], [{"sem_seg": scores}])
    return evaluator.evaluate()["part_seg"]


def test_pixel_accuracy_and_miou_are_over_the_data_set():
    metrics = segment([[[0, 0], [2, 2]], [[0, 2], [2, 2]]], [[[0, 2], [2, 2]], [[0, 255], [255, 255]]])
    # Five labelled pixels, four right; label 0: 2 of 3 in the union, background: 2 of 3; label 1 never occurs.
    assert metrics["pixel_accuracy"] == pytest.approx(80.0)
    assert metrics["IoU-x"] == pytest.approx(200 / 3)
    assert metrics["mIoU"] == pytest.approx(200 / 3)
    assert metrics["num_labels"] == 2.0
    assert "IoU-y" not in metrics


def test_unlabelled_images_are_left_out_and_counted():
    metrics = segment([[[0]], [[1]]], [[[0]], [[255]]], ["full", "none"])
    assert metrics["pixel_accuracy"] == 100.0
    assert (metrics["num_images"], metrics["num_unlabelled_images"]) == (1.0, 1.0)


def test_confusion_against_numpy():
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randint(0, 5, (30, 20), generator=generator)
    truth = torch.randint(0, 7, (30, 20), generator=generator)
    expected = np.zeros((5, 5), dtype=int)
    for t, p in zip(truth.flatten().tolist(), prediction.flatten().tolist(), strict=True):
        if t < 5:
            expected[t, p] += 1
    assert np.array_equal(confusion(prediction, truth, 5).numpy(), expected)


def test_results_suit_detectron2_and_the_report(tmp_path, caplog):
    results = {"data": {"classification": classify([0, 1], [0, 0]), "classification_mine": classify([0, 1], [1, 0])}}
    assert all(isinstance(value, float) for value in flatten_results_dict(results).values())
    print_csv_format(results["data"])
    attacks = {"mine": build_attack({"EPS": 4.0})}
    table = results_table(results, attacks)
    assert "| clean" in table and "linf 4/255" in table and "50.00" in table
    record = build_record(results=results, attacks=attacks, warnings={}, checkpoint="", config="a: 1\n")
    write_json(tmp_path / "deep" / "record.json", record)
    assert json.loads((tmp_path / "deep" / "record.json").read_text()) == json.loads(json.dumps(record))
    assert record["checkpoint"]["sha256"] is None
