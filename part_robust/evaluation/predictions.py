"""Predictions as files that other tools read: COCO's json, label maps and images, in the pixels that the network sees.

A folder for each data set (docs/predictions.md):

    ground_truth.json           COCO's instances, in the pixels of images/
    images/<image id>.png       the network's input before any attack
    labels/<image id>.png       true label maps
    results/<row>/boxes.json    COCO's results; masks.json of models with instance masks
    results/<row>/classes.json  predicted classes
    results/<row>/labels/       predicted label maps
    by_image/<image id>.json    what the other json files are merged from; by_image/<row>/ replaces a row of it

A row is "clean", a tier or an attack on the parts.

Letters: P parts (label P is background), H W pixels.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluators
from PIL import Image
from pycocotools import mask as coco_mask

from part_robust.evaluation.attacked_batch import AttackedBatch
from part_robust.evaluation.conversion import host_outputs, predicted_labels
from part_robust.evaluation.image_parts import ImageParts
from part_robust.evaluation.journal import BatchArrays
from part_robust.evaluation.merged import partials_of
from part_robust.evaluation.part_detection import PartDetectionEvaluator, parts_of, run_lengths
from part_robust.utils.errors import UserError
from part_robust.utils.files import read_json, replacing, write_text

logger = logging.getLogger(__name__)

# Kinds of results of parts, by the file that has them.
PARTS = {"boxes": "box", "masks": "mask"}


def save_predictions(
    folder: Path,
    batch: AttackedBatch,
    rows: Iterable[tuple[str, Sequence[Mapping]]],
    arrays: BatchArrays,
    evaluators: DatasetEvaluators,
) -> None:
    """Write the predictions of a batch, each file whole or not at all.

    Args:
        folder: of the data set.
        batch: where the images come from.
        rows: name and outputs of the model, by image.
        arrays: of the finished batch, with what each evaluator saw.
        evaluators: that saw it; boxes and masks are those that the average precision counts.
    """
    entries = [_truth(item, batch.num_parts) for item in batch.items]
    for item in batch.items:
        _write_png(folder / "images" / f"{item['image_id']}.png", item["image"].permute(1, 2, 0).numpy())
        if batch.num_parts:
            _write_labels(folder / "labels" / f"{item['image_id']}.png", item["sem_seg"].numpy(), batch.num_parts)
    for row, outputs in rows:
        for entry, found in zip(entries, _row(folder, batch, row, outputs, arrays, evaluators), strict=True):
            entry["rows"][row] = found
    for item, entry in zip(batch.items, entries, strict=True):
        write_text(_entry_path(folder, item["image_id"]), json.dumps(entry))


def replace_predictions(
    folder: Path,
    batch: AttackedBatch,
    row: str,
    outputs: Sequence[Mapping],
    arrays: BatchArrays,
    evaluators: DatasetEvaluators,
) -> None:
    """Write predictions of a row that take the place of those of `save_predictions`, also of those written later.

    Args:
        folder: of the data set.
        batch: the images whose predictions change.
        row: name of the tier.
        outputs: of the model, by image.
        arrays: as for `save_predictions`.
        evaluators: as for `save_predictions`.
    """
    found = _row(folder, batch, row, outputs, arrays, evaluators, replaces=True)
    for item, own in zip(batch.items, found, strict=True):
        write_text(_entry_path(folder, item["image_id"], row), json.dumps(own))


def _row(
    folder: Path,
    batch: AttackedBatch,
    row: str,
    outputs: Sequence[Mapping],
    arrays: BatchArrays,
    evaluators: DatasetEvaluators,
    replaces: bool = False,
) -> list[dict[str, Any]]:
    """Write the label maps of a row, and return its other predictions, by image."""
    parts = {name: _parts(kind, row, arrays, evaluators) for name, kind in PARTS.items()}
    entries = []
    for item, output in zip(batch.items, host_outputs(outputs), strict=True):
        image_id = item["image_id"]
        found: dict[str, Any] = {}
        if "class_logits" in output:
            score, prediction = output["class_logits"].double().softmax(dim=0).max(dim=0)
            found["class"] = {"prediction": int(prediction), "score": float(score)}
        found |= {name: _results(images.get(image_id)) for name, images in parts.items() if images is not None}
        if batch.has_parts and (replaces or not _entry_path(folder, image_id, row).exists()):
            labels = predicted_labels(output, batch.num_parts, tuple(item["sem_seg"].shape)).cpu().numpy()
            _write_labels(folder / "results" / row / "labels" / f"{image_id}.png", labels, batch.num_parts)
        entries.append(found)
    return entries


def merge_predictions(
    folder: Path, image_ids: Sequence[int], rows: Sequence[str], part_names: Sequence[str], class_names: Sequence[str]
) -> int:
    """Merge the predictions of all batches into COCO's files, sorted by image id; on the main process alone.

    Args:
        folder: of the data set.
        image_ids: that were evaluated.
        rows: "clean", tiers and attacks on the parts.
        part_names: of the data set.
        class_names: of the data set.

    Returns:
        Number of boxes and masks in all rows, which is logged with the others.

    Raises:
        UserError: the file of an image is missing or damaged.
    """
    images: list[dict] = []
    annotations: list[dict] = []
    classes: dict[str, list[dict]] = {row: [] for row in rows}
    lists: dict[Path, JsonList] = {}
    # One image at a time, as those of detectors have many boxes in every row.
    with contextlib.ExitStack() as files:
        for image_id in sorted(image_ids):
            entry = _read(_entry_path(folder, image_id))
            images.append(entry["image"])
            annotations += entry["annotations"]
            for row in rows:
                replaced = _entry_path(folder, image_id, row)
                found = _read(replaced, ()) if replaced.exists() else entry["rows"][row]
                if "class" in found:
                    classes[row].append({"image_id": image_id, "label": entry["image"]["class"], **found["class"]})
                for name in PARTS.keys() & found.keys():
                    path = folder / "results" / row / f"{name}.json"
                    if path not in lists:
                        lists[path] = files.enter_context(JsonList.writing(path))
                    lists[path].extend({"image_id": image_id, **part} for part in found[name])
    truth = {
        "info": {"description": "Parts in the pixels that the network sees"},
        "licenses": [],
        "images": images,
        "annotations": [{"id": number, **annotation} for number, annotation in enumerate(annotations, start=1)],
        "categories": [{"id": category_id(label), "name": name} for label, name in enumerate(part_names)],
        "classes": list(class_names),
    }
    write_text(folder / "ground_truth.json", json.dumps(truth) + "\n")
    for row, predictions in classes.items():
        if predictions:
            content = {"classes": list(class_names), "predictions": predictions}
            write_text(folder / "results" / row / "classes.json", json.dumps(content) + "\n")
    total = sum(own.length for own in lists.values())
    logger.info(
        "Predictions: %d images, %d annotations, %d boxes and masks in %d rows (%s): %s",
        len(images),
        len(annotations),
        total,
        len(rows),
        ", ".join(rows),
        folder,
    )
    return total


class JsonList:
    """A list in a json file, written entry by entry."""

    def __init__(self, file: TextIO) -> None:
        """Write to an open file."""
        self.file = file
        self.length = 0

    @classmethod
    @contextlib.contextmanager
    def writing(cls, path: Path) -> Iterator[JsonList]:
        """Write a file whole or not at all."""
        with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.write("[")
            yield cls(file)
            file.write("]\n")

    def extend(self, entries: Iterable[Mapping]) -> None:
        """Append entries to the list."""
        for entry in entries:
            self.file.write((",\n" if self.length else "") + json.dumps(entry))
            self.length += 1


def category_id(label: int) -> int:
    """Return COCO's category id of a part's label 0..P-1: ids begin with 1."""
    return label + 1


def _truth(item: Mapping, num_parts: int) -> dict[str, Any]:
    """One image and its annotations, without ids of annotations."""
    height, width = item["image"].shape[-2:]
    entry: dict[str, Any] = {
        "image": {
            "id": item["image_id"],
            "file_name": f"images/{item['image_id']}.png",
            "width": width,
            "height": height,
            "class": item["class_id"],
            "part_supervision": item["part_supervision"],
            "source_file_name": str(item.get("file_name", "")),
        },
        "annotations": [],
        "rows": {},
    }
    if not num_parts or item["part_supervision"] == "none":
        return entry
    instances = item["instances"].to(torch.device("cpu"))
    # As the average precision of masks has it: ignored pixels belong to no part.
    pixels = instances.gt_masks.tensor & (item["sem_seg"].cpu() <= num_parts)
    masks, areas = run_lengths(pixels), pixels.flatten(1).sum(dim=1).tolist()
    boxes = _xywh(instances.gt_boxes.tensor.double().numpy())
    for box, label, mask, area in zip(boxes, instances.gt_classes.tolist(), masks, areas, strict=True):
        annotation = {
            "image_id": item["image_id"],
            "category_id": category_id(label),
            "iscrowd": 0,
            "area": float(area),
        }
        entry["annotations"].append({**annotation, "bbox": box, "segmentation": _text(mask)})
    return entry


def _parts(kind: str, row: str, arrays: BatchArrays, evaluators: DatasetEvaluators) -> dict[int, ImageParts] | None:
    """Return the parts that an average precision counts, by image; None where none is computed."""
    for number, evaluator in enumerate(evaluators._evaluators):
        if isinstance(evaluator, PartDetectionEvaluator):
            found = [parts_of(partial, kind) for partial in partials_of(arrays, row, number)]
            known = [parts for parts in found if parts is not None]
            return dict(ChainMap(*known)) if known else None
    return None


def _results(parts: ImageParts | None) -> list[dict[str, Any]]:
    """Return the predictions of one image as COCO's results without the image."""
    if parts is None:
        return []
    places: list[dict[str, Any]] = (
        # FiftyOne reads no mask without a box.
        [{"bbox": coco_mask.toBbox(mask).tolist(), "segmentation": _text(mask)} for mask in parts.parts]
        if parts.parts.dtype == object
        else [{"bbox": box} for box in _xywh(parts.parts)]
    )
    return [
        {"category_id": category_id(label), **place, "score": score}
        for place, label, score in zip(places, parts.classes.tolist(), parts.scores.tolist(), strict=True)
    ]


def _xywh(boxes: np.ndarray) -> list[list[float]]:
    """Boxes (K, 4), XYXY, as COCO has them."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()


def _text(mask: Mapping) -> dict[str, Any]:
    """COCO's run lengths with text in place of bytes."""
    return {"size": [int(side) for side in mask["size"]], "counts": mask["counts"].decode()}


def _entry_path(folder: Path, image_id: int, row: str = "") -> Path:
    """Path of all predictions of an image, or of those that replace the ones of a row."""
    return folder / "by_image" / row / f"{image_id}.json"


def _read(path: Path, keys: Sequence[str] = ("image", "annotations", "rows")) -> dict[str, Any]:
    remedy = "the predictions of finished batches are gone, evaluate anew without --resume"
    if not path.is_file():
        raise UserError(f"{path} must be there for --resume, got no such file: {remedy}")
    return read_json(path, remedy, keys)


def _write_labels(path: Path, labels: np.ndarray, num_parts: int) -> None:
    """Write a label map (H, W) in 8 bits, in 16 where labels need it."""
    _write_png(path, labels.astype(np.uint8 if num_parts < 255 else np.uint16))


def _write_png(path: Path, pixels: np.ndarray) -> None:
    with replacing(path) as temporary:
        Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, format="PNG")
