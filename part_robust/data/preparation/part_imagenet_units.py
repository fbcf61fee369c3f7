"""One image of PartImageNet: broken polygons out, the rest as masks.

Letters: H, W pixels of the image.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from part_robust.data.preparation.images import check_image
from part_robust.data.preparation.segmentation import SkippedError, decode, part_annotation

_BACKGROUND = 40  # in the label maps of the Seg version


class ImageUnit(NamedTuple):
    """Everything a worker needs for one image."""

    key: str  # file name without ending
    split: str  # the data set's own
    name: str
    wnid: str
    image_id: int
    width: int
    height: int
    annotations: list[tuple[Any, int, Any]]  # (id, source category id, segmentation)
    dataset: str
    path: str = ""
    file_name: str = ""  # relative to the image root
    label_map: str | None = None
    lost: int = 0  # annotations of a part that the json does not list


def image_sample(unit: ImageUnit, class_ids: dict[str, int], part_ids: dict[int, int], components: bool) -> dict:
    """The sample of one image.

    Args:
        unit: image and annotations.
        class_ids: wnid -> class id.
        part_ids: source category id -> category id.
        components: one annotation per 4-connected component of the label map instead of per source annotation.

    Returns:
        A result of the pipeline (`Preparation.process`). Without any usable part its part_supervision is
        "none", and "partial" where some cannot be used.
    """
    result: dict[str, Any] = {"samples": [], "skipped": [], "noted": [], "counts": {}}
    try:
        content = check_image(unit.path, unit.width, unit.height)
    except SkippedError as error:
        result["skipped"].append([error.reason, error.detail])
        return result
    window = (0, 0, unit.width, unit.height)
    masks: list[tuple[int, np.ndarray]] = []
    lost = unit.lost
    for identifier, category_id, segmentation in unit.annotations:
        where = f"{unit.split}/{unit.name}: annotation {identifier}"
        try:
            mask, dropped = decode(segmentation, unit.height, unit.width)
        except SkippedError as error:
            result["skipped"].append([f"part_{error.reason}", f"{where}: {error.detail}"])
            lost += 1
            continue
        if dropped:
            result["noted"].append(["polygons_dropped", f"{where}: {dropped} of fewer than 3 points"])
        masks.append((category_id, mask.inside(window)))
    if unit.label_map is not None:
        _vote(unit, masks, result)
    covered = np.zeros((unit.height, unit.width), dtype=bool)
    for _, pixels in masks:
        covered |= pixels > 0
    result["counts"] |= {"pixels": covered.size, "pixels_of_parts": int(covered.sum())}
    if not masks:
        result["noted"].append(["image_without_parts", f"{unit.split}/{unit.name}"])
    if components:
        masks = _components(masks, (unit.height, unit.width))
    image = {
        "file_name": unit.file_name,
        "width": unit.width,
        "height": unit.height,
        "class_id": class_ids[unit.wnid],
        # The pixels of a part that could not be read are not background.
        "part_supervision": "none" if not masks else "partial" if lost else "full",
        "source": {
            "dataset": unit.dataset,
            "split": unit.split,
            "image_id": unit.image_id,
            "group": f"imagenet:{unit.key}",
            "wnid": unit.wnid,
        },
    }
    sample = {"key": unit.key, "group": f"imagenet:{unit.key}", "content": content, "source_split": unit.split}
    annotations = [part_annotation(pixels, part_ids[category_id]) for category_id, pixels in masks]
    result["samples"].append({**sample, "image": image, "annotations": annotations})
    return result


def _vote(unit: ImageUnit, masks: list[tuple[int, np.ndarray]], result: dict) -> None:
    """Counts which label most pixels of each part have in the PNG."""
    assert unit.label_map is not None
    try:
        with Image.open(unit.label_map) as file:
            labels = np.asarray(file)
    except OSError as error:
        result["noted"].append(["bad_label_map", f"{unit.label_map}: {error}"])
        return
    if labels.shape != (unit.height, unit.width):
        result["noted"].append(["bad_label_map", f"{unit.label_map}: is {labels.shape[::-1]}"])
        return
    for category_id, pixels in masks:
        inside = labels[(pixels > 0) & (labels != _BACKGROUND)]
        if inside.size:
            name = f"vote {category_id} {int(np.bincount(inside.ravel()).argmax())}"
            result["counts"][name] = result["counts"].get(name, 0) + 1


def _components(masks: list[tuple[int, np.ndarray]], size: tuple[int, int]) -> list[tuple[int, np.ndarray]]:
    """Connected components of each category; where parts overlap, small ones lie on top of large ones."""
    labels = np.full(size, -1, dtype=np.int32)
    for category_id, pixels in sorted(masks, key=lambda entry: -int(entry[1].sum())):
        labels[pixels > 0] = category_id
    found = []
    for category_id in sorted({category_id for category_id, _ in masks}):
        count, numbered = cv2.connectedComponents((labels == category_id).astype(np.uint8), connectivity=4)
        found += [(category_id, (numbered == index).astype(np.uint8)) for index in range(1, count)]
    return found
