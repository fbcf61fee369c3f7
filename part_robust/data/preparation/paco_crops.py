"""Second pass over PACO: one image and its kept objects become crops with part masks.

Letters: H, W pixels of the source image; h, w of the crop.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from part_robust.data.preparation.images import check_image, read_rgb
from part_robust.data.preparation.paco_source import PacoAnnotation, PacoImage, is_good_box
from part_robust.data.preparation.segmentation import (
    SkippedError,
    TightMask,
    box_mask,
    decode,
    encode,
    part_annotation,
)
from part_robust.utils.files import write_bytes


@dataclass(frozen=True)
class CropRules:
    """Rules by which objects become crops; the thesis's choices and ours are listed in datasets/README.md.

    Attributes:
        expand: factor on the box's width and height about its centre.
        truncate: round the window's edges towards zero (thesis) instead of outwards.
        small_objects: parts of objects below the area limit are "paint"ed, are "background" (thesis), or "ignore"d.
        object_rest: pixels of an object that none of its parts covers are "background" or "ignore"d.
        partless: an object without parts has "none" as its part_supervision, so that nothing of its crop counts; or
            only its own pixels are ignored and the rest of the crop is supervised ("object", thesis).
        materialize: "none", or the format of the crops to write, "jpeg" or "png".
        long_side: of materialized crops, in pixels; 0 keeps the size.
        upsample: enlarge crops that are smaller than long_side.
        nearest: resize images without interpolation (thesis).
    """

    expand: float = 1.5
    truncate: bool = False
    small_objects: str = "paint"
    object_rest: str = "background"
    partless: str = "none"
    materialize: str = "none"
    long_side: int = 256
    upsample: bool = True
    nearest: bool = False


class Target(NamedTuple):
    """One object of an image: `kept` ones become crops, all may show in them."""

    annotation: PacoAnnotation
    parts: list[PacoAnnotation]
    kept: bool


class ImageUnit(NamedTuple):
    """Everything a worker needs for one source image."""

    key: str
    group: str
    split: str  # the file's own
    dataset: str
    image: PacoImage
    path: str  # to read
    file_name: str  # relative to the image root
    objects: list[Target]
    lost: Sequence = ()  # boxes of annotations that cannot be used


@dataclass
class _Painted:
    """An object as it shows in crops."""

    target: Target
    parts: list[tuple[int, TightMask]]  # (category id of the output, mask)
    ignore: TightMask | None
    lost: Sequence = ()  # boxes of its parts whose masks cannot be read


def crop_unit(
    unit: ImageUnit, rules: CropRules, class_ids: dict[int, int], part_ids: dict[int, int], output: Path
) -> dict:
    """All crops of one source image.

    Args:
        unit: the image and its objects.
        rules: how to crop.
        class_ids: source category id -> class id in the part json.
        part_ids: source category id -> part id in the part json; parts that are in neither are left out.
        output: where materialized crops go.

    Returns:
        A result of the pipeline (`Preparation.process`).
    """
    result: dict[str, Any] = {"samples": [], "skipped": [], "noted": [], "counts": {}, "files": []}
    height, width = unit.image.height, unit.image.width
    try:
        content = check_image(unit.path, width, height)
    except SkippedError as error:
        for target in unit.objects:
            if target.kept:
                result["skipped"].append([error.reason, f"{_key(unit, target)}: {error.detail}"])
        return result
    painted = [_paint(unit, target, rules, part_ids, result) for target in unit.objects]
    pixels = None
    for entry in sorted((p for p in painted if p.target.kept), key=lambda p: p.target.annotation.id):
        window = crop_window(entry.target.annotation.box, height, width, rules)
        if window is None:
            box = entry.target.annotation.box
            result["skipped"].append(["degenerate_box", f"{_key(unit, entry.target)}: bbox {box} outside the image"])
            continue
        sample = _sample(unit, entry, painted, window, rules, class_ids, part_ids, result["counts"])
        sample |= {"key": _key(unit, entry.target), "group": unit.group, "content": content, "source_split": unit.split}
        if rules.materialize != "none":
            if pixels is None:
                pixels = read_rgb(unit.path, width, height)
            result["files"].append(_write_crop(sample, pixels, window, rules, output))
        result["samples"].append(sample)
    return result


def _key(unit: ImageUnit, target: Target) -> str:
    return f"{unit.key}/{target.annotation.id:012d}"


def crop_window(box: Sequence[float], height: int, width: int, rules: CropRules) -> tuple[int, int, int, int] | None:
    """The enlarged box cut at the image's border, as (left, top, right, bottom); None where under a pixel is inside.

    Thesis section 3.2, its code's `truncate` included: int() of the edges.
    """
    x, y, w, h = box
    inside_w = min(x + w, width) - max(x, 0)
    inside_h = min(y + h, height) - max(y, 0)
    if inside_w < 1 or inside_h < 1:
        return None
    centre_x, centre_y = x + w / 2, y + h / 2
    edges = [
        centre_x - rules.expand * w / 2,
        centre_y - rules.expand * h / 2,
        centre_x + rules.expand * w / 2,
        centre_y + rules.expand * h / 2,
    ]
    if rules.truncate:
        left, top, right, bottom = map(int, edges)
    else:
        left, top = math.floor(edges[0]), math.floor(edges[1])
        right, bottom = math.ceil(edges[2]), math.ceil(edges[3])
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    return (left, top, right, bottom) if left < right and top < bottom else None


def _paint(unit: ImageUnit, target: Target, rules: CropRules, part_ids: dict[int, int], result: dict) -> _Painted:
    """Decodes what an object shows: its parts, or where to look away."""
    height, width = unit.image.height, unit.image.width
    if not target.kept and rules.small_objects == "background":
        return _Painted(target, [], None)
    parts, lost = [], []
    for part in target.parts:
        if part.category_id not in part_ids:
            continue
        try:
            mask, dropped = decode(part.segmentation, height, width)
        except SkippedError as error:
            result["skipped"].append([f"part_{error.reason}", f"{unit.key}: part {part.id}: {error.detail}"])
            lost.append(part.box)
            continue
        if dropped:
            result["noted"].append(["polygons_dropped", f"{unit.key}: part {part.id}: {dropped}"])
        parts.append((part_ids[part.category_id], mask))
    if not target.kept and rules.small_objects == "ignore":
        return _Painted(target, [], _object_mask(unit, target, result))
    if not parts or rules.object_rest == "ignore":
        return _Painted(target, parts, _object_mask(unit, target, result), lost)
    return _Painted(target, parts, None, lost)


def _object_mask(unit: ImageUnit, target: Target, result: dict) -> TightMask | None:
    """The object's pixels; all of its box where the file has no mask."""
    height, width = unit.image.height, unit.image.width
    try:
        return decode(target.annotation.segmentation, height, width)[0]
    except SkippedError as error:
        if error.reason != "no_mask":
            result["noted"].append([f"object_{error.reason}", f"{_key(unit, target)}: {error.detail}"])
        result["noted"].append(["object_box_for_mask", _key(unit, target)])
        return box_mask(target.annotation.box, height, width)


def _sample(
    unit: ImageUnit,
    entry: _Painted,
    painted: list[_Painted],
    window: tuple[int, int, int, int],
    rules: CropRules,
    class_ids: dict[int, int],
    part_ids: dict[int, int],
    counts: dict[str, int],
) -> dict:
    """Image and annotations of one crop, and its share in the pixel statistics."""
    left, top, right, bottom = window
    size = (bottom - top, right - left)
    ignore = np.zeros(size, dtype=bool)
    covered = np.zeros(size, dtype=bool)
    annotations = []
    # The target last: its parts lie on top of everything, also of what others ask to ignore.
    for other in [*(p for p in painted if p is not entry), entry]:
        if other.ignore is not None:
            ignore |= other.ignore.inside(window) > 0
        for category_id, mask in other.parts:
            pixels = mask.inside(window)
            if pixels.any():
                is_target = int(other is entry)
                annotations.append(part_annotation(pixels, category_id, other.target.annotation.id, is_target))
                covered |= pixels > 0
                if is_target:
                    ignore &= pixels == 0
    own_parts = any(annotation["is_target"] for annotation in annotations)
    lost = [*unit.lost, *(box for shown in painted for box in shown.lost)]
    # The pixels of a part that could not be read are not background.
    supervision = "partial" if any(_touches(box, window) for box in lost) else "full"
    if not own_parts and rules.partless == "none":
        annotations, supervision = [], "none"
    long_side = max(size)
    target_size = size
    if rules.materialize != "none" and rules.long_side and (rules.upsample or long_side > rules.long_side):
        height, width = (max(round(side * rules.long_side / long_side), 1) for side in size)
        target_size = height, width
        annotations, ignore, covered = _resize(annotations, ignore, covered, target_size)
    total = target_size[0] * target_size[1]
    parts_area = 0 if supervision == "none" else int((covered & ~ignore).sum())
    ignored = int(ignore.sum()) if supervision == "full" else total - parts_area
    for name, value in (("pixels", total), ("pixels_ignored", ignored), ("pixels_of_parts", parts_area)):
        counts[name] = counts.get(name, 0) + value
    box = entry.target.annotation.box
    inside = (min(box[0] + box[2], right) - max(box[0], left)) * (min(box[1] + box[3], bottom) - max(box[1], top))
    image = {
        "file_name": unit.file_name,
        "height": target_size[0],
        "width": target_size[1],
        "class_id": class_ids[entry.target.annotation.category_id],
        "part_supervision": supervision,
        "neg_category_ids": sorted(part_ids[i] for i in unit.image.neg_category_ids if i in part_ids),
        "not_exhaustive_category_ids": sorted(
            part_ids[i] for i in unit.image.not_exhaustive_category_ids if i in part_ids
        ),
        "source": {
            "dataset": f"paco_{unit.dataset}_v1",
            "split": unit.split,
            "image_id": unit.image.id,
            "ann_id": entry.target.annotation.id,
            "group": unit.group,
            "image_size": [unit.image.width, unit.image.height],
            "target_fraction": round(inside / (size[0] * size[1]), 4),
            "crop_xyxy": list(window),
        },
    }
    if ignore.any():
        image["ignore_segmentation"] = encode(ignore)
    return {"image": image, "annotations": annotations}


def _touches(box: Any, window: tuple[int, int, int, int]) -> bool:
    """Return whether an XYWH box may show in a window; one that is broken may show anywhere."""
    if not is_good_box(box):
        return True
    left, top, right, bottom = window
    return box[0] < right and box[0] + box[2] > left and box[1] < bottom and box[1] + box[3] > top


def _resize(
    annotations: list[dict], ignore: np.ndarray, covered: np.ndarray, size: tuple[int, int]
) -> tuple[list[dict], np.ndarray, np.ndarray]:
    """Masks at another size, by nearest pixel; parts that vanish are left out."""

    def scaled(mask: np.ndarray) -> np.ndarray:
        return cv2.resize(mask.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)

    resized = []
    for annotation in annotations:
        height, width = annotation["segmentation"]["size"]
        mask = decode(annotation["segmentation"], height, width)[0].inside((0, 0, width, height))
        mask = scaled(mask)
        if mask.any():
            ids = (annotation["category_id"], annotation["object_id"], annotation["is_target"])
            resized.append(part_annotation(mask, *ids))
    return resized, scaled(ignore) > 0, scaled(covered) > 0


def _write_crop(
    sample: dict, pixels: np.ndarray, window: tuple[int, int, int, int], rules: CropRules, output: Path
) -> list:
    """Writes the crop's picture and points the sample at it; returns the journal's [name, size, crc32]."""
    left, top, right, bottom = window
    crop = pixels[top:bottom, left:right]
    image = sample["image"]
    size = (image["width"], image["height"])
    if size != (right - left, bottom - top):
        shrinks = size[0] < right - left
        interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        crop = cv2.resize(crop, size, interpolation=cv2.INTER_NEAREST if rules.nearest else interpolation)
    ending = "jpg" if rules.materialize == "jpeg" else "png"
    quality = [cv2.IMWRITE_JPEG_QUALITY, 95] if ending == "jpg" else []
    _, content = cv2.imencode(f".{ending}", np.ascontiguousarray(crop[:, :, ::-1]), quality)
    dataset, split, image_id, object_id = sample["key"].split("/")
    name = f"{dataset}_{split}/{image_id[-3:]}/{image_id}_{object_id}.{ending}"
    write_bytes(output / "images" / name, content.tobytes())
    source = image["source"]
    # Another key: `crop_xyxy` would tell the loader to cut once more.
    source["window_xyxy"] = source.pop("crop_xyxy")
    source["file_name"], image["file_name"] = image["file_name"], name
    return [f"images/{name}", len(content.tobytes()), zlib.crc32(content.tobytes())]
