"""AP of part boxes: perfect predictions, COCO's traps, the stock evaluator as reference, and ignored pixels."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from part_robust.attacks import build_attack
from part_robust.data import PartDatasetMapper, register_part_dataset
from part_robust.evaluation import (
    PartDetectionEvaluator,
    PartSegmentationEvaluator,
    build_evaluator,
)
from part_robust.evaluation.run import evaluate_in_training
from part_robust.evaluation.run_record import results_table
from tests.toy import PARTS, tiny_cfg, toy_json, write_toy

SIZE = (40, 60)
BACKGROUND = len(PARTS)


def make_item(image_id, boxes=(), classes=(), supervision="full"):
    truth = Instances(SIZE)
    truth.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    truth.gt_classes = torch.tensor(classes, dtype=torch.int64)
    sem_seg = torch.full(SIZE, BACKGROUND if supervision == "full" else 255)
    for (left, top, right, bottom), part in zip(boxes, classes, strict=True):
        sem_seg[top:bottom, left:right] = part
    return {"image_id": image_id, "part_supervision": supervision, "instances": truth, "sem_seg": sem_seg}


def make_output(boxes=(), classes=(), scores=()):
    found = Instances(SIZE)
    found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    found.pred_classes = torch.tensor(classes, dtype=torch.int64)
    found.scores = torch.tensor(scores or [0.9] * len(boxes))
    return {"instances": found}


def perfect_boxes(item):
    truth = item["instances"]
    output = make_output(truth.gt_boxes.tensor.tolist(), truth.gt_classes.tolist())
    output["instances"]._image_size = truth.image_size
    return output


def perfect_masks(item):
    labels = item["sem_seg"].where(item["sem_seg"] <= BACKGROUND, BACKGROUND)
    return {"sem_seg": 20.0 * torch.nn.functional.one_hot(labels, BACKGROUND + 1).permute(2, 0, 1).float()}


def box_metrics(items, outputs):
    evaluator = PartDetectionEvaluator(PARTS)
    evaluator.process(items, outputs)
    metrics = evaluator.evaluate()["part_box"]
    assert all(math.isfinite(value) for value in metrics.values())
    return metrics


ITEMS = [
    make_item(1, [(0, 0, 20, 10), (30, 5, 50, 30)], [0, 1]),
    make_item(2),
    make_item(3, [(10, 10, 40, 35)], [1]),
    make_item(4, supervision="none"),
]


@pytest.mark.parametrize("perfect", [perfect_boxes, perfect_masks])
def test_perfect_predictions(perfect):
    """With the first annotation there is (id 0 would count as unmatched) and images without parts or labels."""
    metrics = box_metrics(ITEMS, [perfect(item) for item in ITEMS])
    assert (metrics["AP"], metrics["AP50"]) == (pytest.approx(100), pytest.approx(100))
    assert metrics[f"AP-{PARTS[0]}"] == metrics[f"AP-{PARTS[1]}"] == pytest.approx(100)
    assert f"AP-{PARTS[2]}" not in metrics, "a part that never occurs has no AP"
    assert (metrics["num_images"], metrics["num_unlabelled_images"]) == (3.0, 1.0)
    assert list(metrics)[:2] == ["AP", "AP50"]


def test_numbers_only_where_they_are_defined():
    assert box_metrics([], []) == {"num_images": 0.0, "num_unlabelled_images": 0.0}
    assert box_metrics(ITEMS[3:], [make_output()]) == {"num_images": 0.0, "num_unlabelled_images": 1.0}
    # False alarms on an image without parts: nothing that recall could be measured on.
    assert box_metrics(ITEMS[1:2], [make_output([(0, 0, 9, 9)], [0])]) == {
        "num_images": 1.0,
        "num_unlabelled_images": 0.0,
    }


def test_no_prediction_at_all_is_zero():
    metrics = box_metrics(ITEMS, [make_output()] * 4)
    assert (metrics["AP"], metrics["AP50"]) == (0.0, 0.0)


def test_iou_thresholds():
    # 0.75 of the true box: passes IoU 0.5 .. 0.75, six of the ten thresholds.
    metrics = box_metrics([make_item(1, [(0, 0, 20, 20)], [0])], [make_output([(0, 0, 20, 15)], [0])])
    assert metrics["AP50"] == pytest.approx(100)
    assert metrics["AP"] == pytest.approx(60)


def test_the_wrong_part_and_double_detections_cost():
    item = make_item(1, [(0, 0, 20, 20)], [0])
    box = (0, 0, 20, 20)
    assert box_metrics([item], [make_output([box], [1])])["AP"] == 0.0
    # A false alarm ranked above the match halves the precision; below it costs nothing.
    above = make_output([(30, 20, 50, 40), box], [0, 0], [0.9, 0.8])
    below = make_output([(30, 20, 50, 40), box], [0, 0], [0.7, 0.8])
    assert box_metrics([item], [above])["AP"] == pytest.approx(50)
    assert box_metrics([item], [below])["AP"] == pytest.approx(100)
    two = make_item(1, [box, (30, 0, 50, 20)], [0, 0])
    twice = make_output([box, box, (30, 0, 50, 20)], [0, 0, 0], [0.9, 0.8, 0.7])
    # COCO's 101 recall levels: 51 at precision 1, 50 at precision 2 / 3.
    assert box_metrics([two], [twice])["AP"] == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)


def test_predictions_on_ignored_pixels_count_nowhere():
    item = make_item(1, [(0, 0, 20, 20)], [0])
    item["sem_seg"][:, 30:] = 255
    alarm, match = (32, 0, 50, 20), (0, 0, 20, 20)
    assert box_metrics([item], [make_output([alarm, match], [0, 0], [0.9, 0.8])])["AP"] == pytest.approx(100)
    # Less than half of it is on ignored pixels.
    assert box_metrics([item], [make_output([(20, 0, 38, 20), match], [0, 0], [0.9, 0.8])])["AP"] == pytest.approx(50)
    # What may be a match stays, wherever it lies, and so does its double.
    item["sem_seg"][:] = 255
    assert box_metrics([item], [make_output([match], [0])])["AP"] == pytest.approx(100)
    assert box_metrics([item], [make_output([match], [1])])["AP"] == 0.0


def test_partial_labels_do_not_punish_what_was_not_annotated():
    item = make_item(1, [(0, 0, 20, 20)], [0], supervision="partial")
    output = make_output([(30, 20, 50, 40), (0, 0, 20, 20)], [0, 0], [0.9, 0.8])
    assert box_metrics([item], [output])["AP"] == pytest.approx(100)


def test_boxes_beyond_the_image_are_cut_like_the_truth():
    item = make_item(1, [(40, 20, 60, 40)], [0])
    output = make_output([(40, 20, 90, 95)], [0])
    assert box_metrics([item], [output])["AP"] == pytest.approx(100)
    assert output["instances"].pred_boxes.tensor[0, 2] == 90, "the model's own boxes stay as they are"


def random_case(count=60, seed=0):
    """Images with up to four true boxes, found with some error, missed, confused, and with ties in the scores."""
    generator = torch.Generator().manual_seed(seed)
    items, outputs = [], []
    for index in range(count):
        number = int(torch.randint(0, 5, (1,), generator=generator))
        corner = torch.rand(number, 2, generator=generator) * torch.tensor([30.0, 20.0])
        side = 6 + torch.rand(number, 2, generator=generator) * torch.tensor([24.0, 14.0])
        boxes = torch.cat([corner, corner + side], dim=1).int()
        classes = torch.randint(0, len(PARTS), (number,), generator=generator)
        items.append(make_item(index + 1, boxes.tolist(), classes.tolist()))
        noisy = boxes + 2 * torch.randn(number, 4, generator=generator)
        noisy[:, 2:] = torch.maximum(noisy[:, 2:], noisy[:, :2] + 1)
        confused = torch.rand(number, generator=generator) < 0.2
        guess = classes.where(~confused, torch.zeros_like(classes))
        noisy[:, 0::2].clamp_(0, SIZE[1])
        noisy[:, 1::2].clamp_(0, SIZE[0])
        scores = (10 * torch.rand(number, generator=generator)).round() / 10
        keep = torch.rand(number, generator=generator) < 0.9
        outputs.append(make_output(noisy[keep].tolist(), guess[keep].tolist(), scores[keep].tolist()))
    return items, outputs


def test_agrees_with_the_stock_evaluator(tmp_path):
    """On data that has none of the cases it breaks on, with its official, slow implementation."""
    items, outputs = random_case()
    annotations = []
    for item in items:
        truth = item["instances"]
        for (left, top, right, bottom), part in zip(truth.gt_boxes.tensor.tolist(), truth.gt_classes, strict=True):
            box = [left, top, right - left, bottom - top]
            shared = {"bbox": box, "area": box[2] * box[3], "iscrowd": 0, "category_id": int(part)}
            annotations.append({"id": len(annotations) + 1, "image_id": item["image_id"], **shared})
    data = {
        "info": {},
        "images": [{"id": item["image_id"], "height": SIZE[0], "width": SIZE[1]} for item in items],
        "categories": [{"id": index, "name": name} for index, name in enumerate(PARTS)],
        "annotations": annotations,
    }
    (tmp_path / "stock.json").write_text(json.dumps(data))
    name = f"stock_{tmp_path.name}"
    MetadataCatalog.get(name).set(json_file=str(tmp_path / "stock.json"), thing_classes=list(PARTS))
    stock = COCOEvaluator(name, tasks=("bbox",), distributed=False, use_fast_impl=False)
    stock.reset()
    stock.process(items, outputs)
    expected = stock.evaluate()["bbox"]
    found = box_metrics(items, outputs)
    assert 5 < expected["AP"] < 95
    for key in ("AP", "AP50", *(f"AP-{part}" for part in PARTS)):
        assert found[key] == pytest.approx(expected[key], abs=1e-9), key


def test_order_batches_and_processes_do_not_matter(monkeypatch):
    items, outputs = random_case(seed=1)
    expected = box_metrics(items, outputs)
    first, second = PartDetectionEvaluator(PARTS), PartDetectionEvaluator(PARTS)
    for index in reversed(range(len(items))):
        (first if index % 3 else second).process(items[index : index + 1], outputs[index : index + 1])
    monkeypatch.setattr("part_robust.evaluation.mergeable.comm.get_world_size", lambda: 2)
    monkeypatch.setattr("part_robust.evaluation.mergeable.comm.gather", lambda data, dst: [data, first.partial()])
    assert second.evaluate()["part_box"] == expected
    assert second.evaluate()["part_box"] == expected, "gathering leaves each process's own images as they were"
    first.reset()
    assert not first._images


@pytest.fixture(scope="module")
def boxes_only(tmp_path_factory):
    """The toy data with boxes alone: what a converter's empty `segmentation: []` comes to."""
    folder = tmp_path_factory.mktemp("boxes_only")
    _, root = write_toy(folder)
    data, _ = toy_json()
    for annotation in data["annotations"]:
        del annotation["segmentation"]
    (folder / "toy.json").write_text(json.dumps(data))
    register_part_dataset("toy_boxes_only", folder / "toy.json", root)
    return "toy_boxes_only"


@pytest.mark.parametrize("perfect", [perfect_boxes, perfect_masks])
@pytest.mark.parametrize("masks_from", ["masks", "boxes"])
def test_perfect_predictions_through_mapper_and_every_evaluator(toy_data, boxes_only, perfect, masks_from):
    name = "toy_val" if masks_from == "masks" else boxes_only
    cfg = tiny_cfg("deeplab_segmenter", "INPUT.PART_MASKS", masks_from)
    mapper = PartDatasetMapper(cfg, is_train=False, dataset_name=name)
    items = [mapper(record) for record in DatasetCatalog.get(name)]
    evaluators = build_evaluator(cfg, name)
    assert {type(e) for e in evaluators._evaluators} == {PartSegmentationEvaluator, PartDetectionEvaluator}
    evaluators.reset()
    evaluators.process(items, [perfect(item) for item in items])
    results = evaluators.evaluate()
    assert results["part_box"]["AP"] == results["part_box"]["AP50"] == pytest.approx(100)
    assert results["part_seg"]["pixel_accuracy"] == results["part_seg"]["mIoU"] == 100
    for task in ("part_box", "part_seg"):
        assert (results[task]["num_images"], results[task]["num_unlabelled_images"]) == (11, 1)


def test_a_detectors_pixel_accuracy():
    evaluator = PartSegmentationEvaluator(PARTS)
    item = make_item(1, [(0, 0, 30, 40)], [0])
    # Two boxes of which the more confident is wrong over half of the part, and one that is not confident enough.
    output = make_output([(0, 0, 30, 40), (0, 0, 15, 40), (0, 0, 60, 40)], [0, 2, 1], [0.6, 0.7, 0.1])
    evaluator.process([item], [output])
    assert evaluator.evaluate()["part_seg"]["pixel_accuracy"] == pytest.approx(75)


def test_part_box_ap_can_be_left_out(toy_data):
    evaluators = build_evaluator(tiny_cfg("deeplab_segmenter", "TEST.PART_BOX_AP", False), "toy_val")._evaluators
    assert [type(e) for e in evaluators] == [PartSegmentationEvaluator]
    assert not any(
        isinstance(e, PartDetectionEvaluator) for e in build_evaluator(tiny_cfg("resnet"), "toy_val")._evaluators
    )


def test_clean_and_attacked_in_one_table(toy_data):
    cfg = tiny_cfg("deeplab_pixel")
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    mapper = PartDatasetMapper(cfg, is_train=False, dataset_name="toy_val")
    loader = [[mapper(record) for record in DatasetCatalog.get("toy_val")]]
    attacks = {"mine": build_attack({"STEPS": 1})}
    results, _ = evaluate_in_training(model, "toy_val", attacks, loader, build_evaluator(cfg, "toy_val"))
    assert 0 <= results["part_box"]["AP"] <= 100 and 0 <= results["part_box_mine"]["AP50"] <= 100
    header, _, *rows = results_table({"toy_val": results}, attacks).splitlines()
    columns = [cell.strip() for cell in header.split("|")]
    assert len(rows) == 2
    for row, task in zip(rows, ("part_box", "part_box_mine"), strict=True):
        cells = [cell.strip() for cell in row.split("|")]
        assert cells[columns.index("AP")] == f"{results[task]['AP']:.2f}"
        assert cells[columns.index("AP50")] == f"{results[task]['AP50']:.2f}"


def perfect_instances(item):
    """Boxes and masks as the truth has them."""
    output = perfect_boxes(item)
    output["instances"].pred_masks = item["instances"].gt_masks.tensor.clone()
    return output


def with_masks(item):
    boxes, parts = item["instances"].gt_boxes.tensor.int().tolist(), item["instances"].gt_classes
    masks = torch.zeros(len(parts), *SIZE, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    item["instances"].gt_masks = BitMasks(masks)
    return item


def mask_results(items, outputs):
    evaluator = PartDetectionEvaluator(PARTS)
    evaluator.process(items, outputs)
    return evaluator.evaluate()


def mask_items():
    return [
        with_masks(make_item(*arguments, **options))
        for arguments, options in (
            ((1, [(0, 0, 20, 10), (30, 5, 50, 30)], [0, 1]), {}),
            ((2,), {}),
            ((3, [(10, 10, 40, 35)], [1]), {}),
            ((4,), {"supervision": "none"}),
        )
    ]


def test_perfect_masks_have_100():
    items = mask_items()
    results = mask_results(items, [perfect_instances(item) for item in items])
    for task in ("part_box", "part_mask"):
        assert (results[task]["AP"], results[task]["AP50"]) == (pytest.approx(100), pytest.approx(100))
        assert (results[task]["num_images"], results[task]["num_unlabelled_images"]) == (3, 1)
    assert results["part_mask"][f"AP-{PARTS[0]}"] == pytest.approx(100)
    assert "part_mask" not in mask_results(items, [perfect_boxes(item) for item in items]), "no masks, no number"


def test_masks_are_not_their_boxes():
    """A triangle in its box: the box is right, the mask has IoU 1 / 2, which only AP50's threshold takes."""
    items = mask_items()[2:3]
    outputs = [perfect_instances(items[0])]
    mask = outputs[0]["instances"].pred_masks
    mask[:, 10:35, 25:40] = False
    results = mask_results(items, outputs)
    assert results["part_box"]["AP"] == pytest.approx(100)
    assert results["part_mask"]["AP50"] == pytest.approx(100) and results["part_mask"]["AP"] == pytest.approx(10)


def test_masks_on_ignored_pixels():
    """What lies there is neither a false alarm nor part of a mask."""
    items = mask_items()[2:3]
    items[0]["sem_seg"][:, 40:] = 255
    output = make_output([(41, 0, 60, 40), (10, 10, 40, 35)], [1, 1], [0.95, 0.9])
    masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    masks[0, :, 41:] = True
    masks[1, 10:35, 10:60] = True
    output["instances"].pred_masks = masks
    assert mask_results(items, [output])["part_mask"]["AP"] == pytest.approx(100)


def test_mask_ap_equals_the_stock_evaluator():
    """COCO's own accumulation over all images and parts at once, on random masks."""
    generator = torch.Generator().manual_seed(0)
    items, outputs = [], []
    for number in range(6):
        corners = torch.randint(0, 25, (4, 2), generator=generator)
        boxes = [(x, y, x + 15, y + 12) for x, y in corners.tolist()]
        items.append(with_masks(make_item(number + 1, boxes, [0, 1, 2, 0])))
        output = perfect_instances(items[-1])
        output["instances"].pred_masks = output["instances"].pred_masks.roll((number, number // 2), dims=(1, 2))
        output["instances"].scores = torch.rand(4, generator=generator)
        outputs.append(output)
    coco = COCO()
    found: list[dict] = []
    coco.dataset = {"images": [], "categories": [{"id": part + 1} for part in range(3)], "annotations": []}
    for item, output in zip(items, outputs, strict=True):
        coco.dataset["images"].append({"id": item["image_id"], "height": SIZE[0], "width": SIZE[1]})
        for kind, masks in (("true", item["instances"].gt_masks.tensor), ("found", output["instances"].pred_masks)):
            for row, mask in enumerate(masks):
                length = coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
                entry = {
                    "image_id": item["image_id"],
                    "category_id": int(item["instances"].gt_classes[row]) + 1,
                    "segmentation": length,
                    "area": float(coco_mask.area(length)),
                    "iscrowd": 0,
                }
                if kind == "true":
                    coco.dataset["annotations"].append({**entry, "id": len(coco.dataset["annotations"]) + 1})
                else:
                    found.append({**entry, "score": float(output["instances"].scores[row])})
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(found), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    metrics = mask_results(items, outputs)["part_mask"]
    assert metrics["AP"] == pytest.approx(100 * evaluation.stats[0]) and 0 < metrics["AP"] < 100
    assert metrics["AP50"] == pytest.approx(100 * evaluation.stats[1])


@pytest.mark.parametrize("with_instances", [perfect_instances, perfect_boxes])
def test_what_a_file_keeps_of_a_batch_gives_the_same_numbers(tmp_path, with_instances):
    """As arrays without objects, batch by batch and in any order."""
    items = mask_items()
    outputs = [with_instances(item) for item in items]
    whole, joined = PartDetectionEvaluator(PARTS), PartDetectionEvaluator(PARTS)
    whole.process(items, outputs)
    for number in reversed(range(len(items))):
        one = PartDetectionEvaluator(PARTS)
        one.process(items[number : number + 1], outputs[number : number + 1])
        np.savez(tmp_path / f"{number}.npz", **one.partial())
        with np.load(tmp_path / f"{number}.npz", allow_pickle=False) as file:
            joined.absorb({name: file[name] for name in file.files})
    assert joined.evaluate() == whole.evaluate()
