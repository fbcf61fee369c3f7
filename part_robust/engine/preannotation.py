"""The parts and the class that a trained model finds in image files, as annotations for people to correct.

Letters: H, W pixels of an image file, h, w of what the model sees; P parts (label P is background).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode

from part_robust.data.image_file import read_image_file
from part_robust.data.preparation.segmentation import part_annotation
from part_robust.engine.demo import Demo

logger = logging.getLogger(__name__)

_MIN_PIXELS = 16  # smaller pieces of a part are noise of its edge


def preannotate(cfg: CfgNode, paths: Sequence[Path], image_root: Path, min_score: float = 0.3) -> dict:
    """A part json of what the model finds; its annotations have a `score`.

    Whole images are shown to the model, with INPUT.TEST_TRANSFORM letterbox where its evaluation crops. A segmentation
    model gives one annotation for each connected piece of a part, a detection model its boxes.

    Args:
        cfg: of the training, with MODEL.WEIGHTS of the trained model.
        paths: image files.
        image_root: folder that the file names are written relative to.
        min_score: of the boxes that count as found, and mean probability of a piece, 0..1.

    Raises:
        FileNotFoundError, ValueError: as `Demo`; or the model finds no parts and no class.
    """
    cfg = cfg.clone()
    cfg.defrost()
    if cfg.INPUT.TEST_TRANSFORM == "center_crop":
        cfg.INPUT.TEST_TRANSFORM = "letterbox"
    demo = Demo(cfg, min_score)
    if demo.model.segmenter is None:
        raise ValueError("MODEL.PART_CLASSIFIER.SEGMENTER must be set, got '': this model finds no parts to annotate")
    data: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": name} for i, name in enumerate(demo.part_names, start=1)],
        "classes": [
            {"id": i, "name": name, "part_category_ids": []}
            for i, name in enumerate(demo.class_names or ["any"], start=1)
        ],
    }
    for path in paths:
        try:
            height, width = read_image_file(path).shape[:2]
            item = demo.mapper(path)
        except ValueError as error:
            logger.error("%s", error)
            continue
        with torch.no_grad():
            images, padding = demo.model.preprocess([item])
            (output,) = demo.model.inference(images, padding)
        image = {"id": len(data["images"]) + 1, "width": width, "height": height, "class_id": 1}
        image["file_name"] = os.path.relpath(path.resolve(), image_root.resolve()).replace(os.sep, "/")
        if "class_logits" in output:
            image["class_id"] = int(output["class_logits"].argmax()) + 1
        data["images"].append(image)
        for found in _parts(output, item, (height, width), min_score):
            data["annotations"].append({"id": len(data["annotations"]) + 1, "image_id": image["id"], **found})
    return data


def _parts(output: dict, item: dict, size: tuple[int, int], min_score: float) -> Iterator[dict]:
    """Annotations of one image, in the pixels of its file."""
    inside = item.get("content_size", (item["height"], item["width"]))
    if "sem_seg" in output:
        yield from _pieces(output["sem_seg"][:, : inside[0], : inside[1]].float(), size, min_score)
        return
    instances = output["instances"]
    scale = np.array([size[1] / inside[1], size[0] / inside[0]] * 2)
    boxes = instances.pred_boxes.tensor.detach().cpu().numpy() * scale
    limits = np.array([size[1], size[0]] * 2)
    for box, score, category in zip(boxes, instances.scores.tolist(), instances.pred_classes.tolist(), strict=True):
        left, top, right, bottom = (float(value) for value in np.clip(box, 0, limits))
        if score >= min_score and right > left and bottom > top:
            sides = [left, top, right - left, bottom - top]
            yield {
                "category_id": category + 1,
                "bbox": sides,
                "area": sides[2] * sides[3],
                "iscrowd": 0,
                "score": score,
            }


def _pieces(scores: torch.Tensor, size: tuple[int, int], min_score: float) -> Iterator[dict]:
    """Connected pieces of the label map of (P+1, h, w) scores, at the size of the file."""
    # Logits can be negative; maps of several queries sum up to any value.
    shares = scores.softmax(dim=0) if (scores < 0).any() else scores / scores.sum(dim=0).clamp(min=1e-6)
    probabilities = shares.cpu().numpy()
    probabilities = cv2.resize(probabilities.transpose(1, 2, 0), size[::-1], interpolation=cv2.INTER_LINEAR)
    labels = probabilities.argmax(axis=2)
    for part in range(probabilities.shape[2] - 1):
        count, numbered = cv2.connectedComponents((labels == part).astype(np.uint8), connectivity=8)
        for piece in range(1, count):
            mask = numbered == piece
            score = float(probabilities[:, :, part][mask].mean())
            if mask.sum() >= _MIN_PIXELS and score >= min_score:
                annotation = part_annotation(mask, part + 1)
                yield {key: annotation[key] for key in ("category_id", "bbox", "area", "iscrowd", "segmentation")} | {
                    "score": score
                }
