"""Predictions as files: other readers find in them what the evaluation found."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluators
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from part_robust.data import PartDatasetMapper
from part_robust.evaluation import ClassificationEvaluator, PartDetectionEvaluator
from part_robust.evaluation.attacked_batch import AttackedBatch
from part_robust.evaluation.batch_arrays import describe_batch, evaluated_rows
from part_robust.evaluation.predictions import category_id, merge_predictions, replace_predictions, save_predictions
from part_robust.utils.errors import UserError
from tests.toy import CLASSES, PARTS, SIZE, tiny_cfg


class Approximate:
    """A detector of parts and masks that is roughly right, and a classifier."""

    def __init__(self, items) -> None:
        self.items = {float(item["image"].double().sum()): item for item in items}

    def preprocess(self, items):
        return torch.stack([item["image"] for item in items]).float(), None

    def inference(self, images, padding):
        return [self.predict(self.items[float(image.double().sum())]) for image in images]

    def predict(self, item):
        generator = torch.Generator().manual_seed(item["image_id"])
        truth, found = item["instances"], Instances((SIZE, SIZE))
        shifts = torch.randint(-1, 2, (len(truth), 2), generator=generator)
        masks = [
            torch.roll(mask, tuple(shift), (0, 1)) for mask, shift in zip(truth.gt_masks.tensor, shifts, strict=True)
        ]
        masks += [torch.zeros(SIZE, SIZE, dtype=torch.bool)]
        masks[-1][2:9, 3:11] = True
        found.pred_masks = torch.stack(masks)
        boxes = truth.gt_boxes.tensor + shifts.flip(1).repeat(1, 2)
        found.pred_boxes = Boxes(torch.cat([boxes, torch.tensor([[3.0, 2.0, 11.0, 9.0]])]))
        found.pred_classes = torch.cat([truth.gt_classes, torch.tensor([item["image_id"] % len(PARTS)])])
        found.scores = torch.rand(len(found.pred_classes), generator=generator)
        return {"instances": found, "class_logits": torch.randn(len(CLASSES), generator=generator)}


class Other(Approximate):
    """The same with one part of each image and another class."""

    def predict(self, item):
        output = super().predict(item)
        return {"instances": output["instances"][:1], "class_logits": -output["class_logits"]}


def written(folder, model, items, batch_size):
    """What an evaluation does with batches; returns the metrics it records."""
    evaluators = DatasetEvaluators([ClassificationEvaluator(CLASSES), PartDetectionEvaluator(PARTS)])
    whole = PartDetectionEvaluator(PARTS)
    for start in range(0, len(items), batch_size):
        batch = AttackedBatch(model, items[start : start + batch_size], len(PARTS))
        arrays = describe_batch(batch, {}, {}, evaluators, ())
        save_predictions(folder, batch, evaluated_rows(batch, {}), arrays, evaluators)
        whole.process(batch.items, batch.clean)
    ids = [item["image_id"] for item in items]
    return whole.score(), merge_predictions(folder, ids, ["clean"], PARTS, CLASSES)


@pytest.fixture(scope="module")
def items(toy_data):
    mapper = PartDatasetMapper(tiny_cfg("resnet"), is_train=False, dataset_name="toy_val")
    items = [mapper(record) for record in DatasetCatalog.get("toy_val")]
    items[0]["sem_seg"][10:14, 5:9] = 255  # cuts into both parts
    return items


@pytest.fixture(scope="module")
def predictions(items, tmp_path_factory):
    folder = tmp_path_factory.mktemp("predictions")
    return folder, *written(folder, Approximate(items), items, 5)


def average_precision(truth, results, kind):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(truth))
        evaluation = COCOeval(truth, truth.loadRes(str(results)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize(("task", "name", "kind"), [("part_box", "boxes", "bbox"), ("part_mask", "masks", "segm")])
def test_coco_reads_the_average_precision_of_the_record(predictions, task, name, kind):
    folder, recorded, _ = predictions
    found = average_precision(folder / "ground_truth.json", folder / "results" / "clean" / f"{name}.json", kind)
    assert 20 < recorded[task]["AP"] < 95, "neither perfect nor nothing"
    assert 100 * found.stats[0] == pytest.approx(recorded[task]["AP"], abs=1e-9)
    assert 100 * found.stats[1] == pytest.approx(recorded[task]["AP50"], abs=1e-9)
    precision = found.eval["precision"][:, :, :, 0, -1]
    for index, label in enumerate(found.params.catIds):
        own = precision[:, :, index]
        assert 100 * own.mean() == pytest.approx(recorded[task][f"AP-{PARTS[label - 1]}"], abs=1e-9)


def test_the_page_reads_them(predictions, capsys):
    folder, recorded, _ = predictions
    page = (Path(__file__).resolve().parents[2] / "docs" / "predictions.md").read_text()
    (snippet,) = re.findall(r"```python\n(from pycocotools.+?)```", page, re.DOTALL)
    snippet = snippet.replace("output/robust/predictions_part_shapes_test", str(folder)).replace("/parts/", "/clean/")
    exec(snippet, {})
    first = next(line for line in capsys.readouterr().out.splitlines() if "Average Precision" in line)
    assert float(first.split("=")[-1]) == pytest.approx(recorded["part_box"]["AP"] / 100, abs=5e-4)


def test_truth_and_images_are_what_the_network_sees(predictions, items):
    folder, _, count = predictions
    truth = json.loads((folder / "ground_truth.json").read_text())
    assert [category["name"] for category in truth["categories"]] == list(PARTS)
    assert [image["id"] for image in truth["images"]] == sorted(item["image_id"] for item in items)
    assert [a["id"] for a in truth["annotations"]] == list(range(1, len(truth["annotations"]) + 1))
    by_id = {item["image_id"]: item for item in items}
    for image in truth["images"]:
        item = by_id[image["id"]]
        pixels = np.asarray(Image.open(folder / image["file_name"]))
        assert np.array_equal(pixels, item["image"].permute(1, 2, 0).numpy())
        assert (image["class"], image["part_supervision"]) == (item["class_id"], item["part_supervision"])
        labels = np.asarray(Image.open(folder / "labels" / f"{image['id']}.png"))
        assert np.array_equal(labels, item["sem_seg"].numpy()) and labels.dtype == np.uint8
    assert sum(annotation["area"] for annotation in truth["annotations"] if annotation["image_id"] == 1) == 20 * 8 - 16
    kinds = {image["part_supervision"] for image in truth["images"]}
    assert kinds == {"full", "partial", "none"} and 255 in np.asarray(Image.open(folder / "labels" / "1.png"))
    for annotation in truth["annotations"]:
        labels = by_id[annotation["image_id"]]["sem_seg"].numpy()
        mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
        assert (category_id(labels[mask]) == annotation["category_id"]).all() and mask.sum() == annotation["area"]
    results = len(json.loads((folder / "results" / "clean" / "boxes.json").read_text()))
    masks = len(json.loads((folder / "results" / "clean" / "masks.json").read_text()))
    assert count == results + masks and results > 12


def test_classes_and_label_maps(predictions, items):
    folder, _, _ = predictions
    model = Approximate(items)
    found = json.loads((folder / "results" / "clean" / "classes.json").read_text())
    assert found["classes"] == list(CLASSES) and len(found["predictions"]) == len(items)
    for row, item in zip(found["predictions"], items, strict=True):
        probabilities = model.predict(item)["class_logits"].double().softmax(dim=0)
        assert (row["image_id"], row["label"]) == (item["image_id"], item["class_id"])
        assert row["prediction"] == int(probabilities.argmax()) and row["score"] == float(probabilities.max())
        labels = np.asarray(Image.open(folder / "results" / "clean" / "labels" / f"{item['image_id']}.png"))
        assert labels.shape == (SIZE, SIZE) and labels.max() <= len(PARTS), "background last, nothing ignored"


def test_batches_of_any_size_and_order_write_the_same_files(predictions, items, tmp_path):
    folder, recorded, count = predictions
    again, more = written(tmp_path, Approximate(items), items[::-1], 2)
    assert more == count and again == recorded
    names = {path.relative_to(folder) for path in folder.rglob("*.*")}
    assert names == {path.relative_to(tmp_path) for path in tmp_path.rglob("*.*")} and len(names) > 4 * len(items)
    assert all((folder / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)


def test_what_replaces_a_row_stays(items, tmp_path):
    """Also when the first predictions of the image are written once more."""
    written(tmp_path, Approximate(items), items, 5)
    before = {path.name: path.read_bytes() for path in (tmp_path / "results" / "clean").glob("*.json")}
    (item,) = [item for item in items if item["image_id"] == 3]
    evaluators = DatasetEvaluators([ClassificationEvaluator(CLASSES), PartDetectionEvaluator(PARTS)])
    batch = AttackedBatch(Other(items), [item], len(PARTS))
    arrays = describe_batch(batch, {}, {}, evaluators, ())
    replace_predictions(tmp_path, batch, "clean", batch.clean, arrays, evaluators)
    labels = (tmp_path / "results" / "clean" / "labels" / "3.png").read_bytes()
    written(tmp_path, Approximate(items), items, 4)
    assert (tmp_path / "results" / "clean" / "labels" / "3.png").read_bytes() == labels
    for name, key in (("boxes.json", None), ("classes.json", "predictions")):
        now = json.loads((tmp_path / "results" / "clean" / name).read_text())
        then = json.loads(before[name])
        now, then = (now, then) if key is None else (now[key], then[key])
        assert [one for one in now if one["image_id"] != 3] == [one for one in then if one["image_id"] != 3]
        assert [one for one in now if one["image_id"] == 3] != [one for one in then if one["image_id"] == 3] != []


def test_a_missing_or_cut_file_of_an_image_is_named(items, tmp_path):
    written(tmp_path, Approximate(items), items[:2], 2)
    path = tmp_path / "by_image" / f"{items[0]['image_id']}.json"
    for damage in (lambda: path.write_text(path.read_text()[:40]), path.unlink):
        damage()
        with pytest.raises(UserError, match=rf"{path.name} must be .* without --resume"):
            merge_predictions(tmp_path, [item["image_id"] for item in items[:2]], ["clean"], PARTS, CLASSES)
