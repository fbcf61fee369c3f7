"""Every rule of the part json, checked: what is wrong, where, and what to do about it.

The format is COCO instances json whose categories are parts, with `classes[]`, and `class_id` and
`part_supervision` per image: docs/data_format.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from part_robust.data.taxonomy import derive_classes

PART_SUPERVISION = ("full", "partial", "none")
# A box may stick out by this many pixels: annotation tools round.
BOX_TOLERANCE = 0.51


def violations(data: Any) -> Iterator[str]:
    """Yields one sentence per broken rule, each beginning with its location in the json."""
    if not isinstance(data, Mapping):
        yield "the file: must be a json object with images, annotations and categories"
        return
    missing = [key for key in ("images", "annotations", "categories") if not isinstance(data.get(key), list)]
    if missing:
        yield f"the file: must have the lists {', '.join(missing)}"
        return
    if not data["images"]:
        yield "images: is empty"
    yield from _check_entries(data["categories"], "categories", ("name",))
    ids = [c["id"] for c in data["categories"] if isinstance(c, Mapping) and _is_int(c.get("id"))]
    if ids != sorted(ids):
        yield "categories: must be sorted by id, the index of a part is its rank"
    category_ids = set(ids)
    yield from _check_classes(data, category_ids)
    classes = _known_classes(data)

    yield from _check_entries(data["images"], "images", ())
    images: dict[int, Mapping] = {}
    for index, image in enumerate(data["images"]):
        if isinstance(image, Mapping):
            if _is_int(image.get("id")):
                images[image["id"]] = image
            where = f"images[{index}] (id {image.get('id')})"
            yield from (f"{where}: {text}" for text in _check_image(image))
            if classes:
                yield from (f"{where}: {text}" for text in _check_image_class(image, classes))

    yield from _check_entries(data["annotations"], "annotations", ())
    for index, annotation in enumerate(data["annotations"]):
        if isinstance(annotation, Mapping):
            where = f"annotations[{index}] (id {annotation.get('id')})"
            yield from (f"{where}: {text}" for text in _check_annotation(annotation, images, category_ids))


def _check_entries(entries: list, key: str, unique_names: tuple[str, ...]) -> Iterator[str]:
    """Each entry is an object with a unique integer id from 1 and unique, non-empty names."""
    seen: dict[str, dict] = {field: {} for field in ("id", *unique_names)}
    for index, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            yield f"{key}[{index}]: must be a json object, is {type(entry).__name__}"
            continue
        identifier = entry.get("id")
        if not _is_int(identifier) or identifier < 1:
            yield f"{key}[{index}]: id must be an integer from 1 on, is {identifier!r} (COCO tools misread 0)"
        for field in unique_names:
            if not isinstance(entry.get(field), str) or not entry[field]:
                yield f"{key}[{index}]: {field} must be a non-empty string, is {entry.get(field)!r}"
        for field, values in seen.items():
            value = entry.get(field)
            if _is_int(value) or isinstance(value, str):
                if value in values:
                    yield f"{key}[{index}]: {field} {value!r} is already used by {key}[{values[value]}]"
                else:
                    values[value] = index


def _is_int(value: Any) -> bool:
    """json's `true` is an int in Python, but no number in the file."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    """Python reads NaN and Infinity from json, and integers that no float can hold."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_one_of(value: Any, known: Any) -> bool:
    """Membership that takes any json value, lists and objects too."""
    return (_is_int(value) or isinstance(value, str)) and value in known


def _check_classes(data: Mapping, category_ids: set) -> Iterator[str]:
    classes = data.get("classes")
    if classes is None:
        if _are_named(data["categories"]):
            try:
                derive_classes(data["categories"])
            except ValueError as error:
                yield f"classes: cannot be derived from the categories: {error}"
        elif not data["categories"]:
            yield "classes: must be given where there are no categories"
        return
    if not isinstance(classes, list) or not classes:
        yield "classes: must be a list with at least one {id, name, part_category_ids}"
        return
    yield from _check_entries(classes, "classes", ("name",))
    for index, entry in enumerate(classes):
        if not isinstance(entry, Mapping):
            continue
        parts = entry.get("part_category_ids")
        if not isinstance(parts, list):
            yield f"classes[{index}]: part_category_ids must be a list (may be empty), is {parts!r}"
            continue
        unknown = [part for part in parts if not _is_one_of(part, category_ids)]
        if unknown:
            yield f"classes[{index}]: part_category_ids {unknown} are no category ids"
        elif len(set(parts)) < len(parts):
            yield f"classes[{index}]: part_category_ids {parts} name a category twice"


def _are_named(entries: list) -> bool:
    """Whether there are entries and all of them have an id and a name."""
    named = (isinstance(e, Mapping) and _is_int(e.get("id")) and isinstance(e.get("name"), str) for e in entries)
    return bool(entries) and all(named) and all(entry["name"] for entry in entries)


def _known_classes(data: Mapping) -> dict[str, set]:
    """Ids and names an image may give; empty where `classes` is broken: one sentence about that is enough."""
    classes = data.get("classes")
    if classes is None and _are_named(data["categories"]):
        try:
            classes = derive_classes(data["categories"])
        except ValueError:
            return {}
    if not isinstance(classes, list) or not _are_named(classes):
        return {}
    return {key: {entry[key] for entry in classes} for key in ("id", "name")}


def _check_image_class(image: Mapping, classes: Mapping[str, set]) -> Iterator[str]:
    for key, field in (("class_id", "id"), ("class_name", "name")):
        if key in image:
            if not _is_one_of(image[key], classes[field]):
                yield f"{key} {image[key]!r} is not the {field} of any entry of `classes`"
            return
    if str(image.get("file_name")).split("/")[0] not in classes["name"]:
        yield "has no class: give class_id, or class_name, or a file_name that begins with the class's folder"


def _check_image(image: Mapping) -> Iterator[str]:
    if not isinstance(image.get("file_name"), str) or not image["file_name"]:
        yield f"file_name must be a non-empty string, is {image.get('file_name')!r}"
    for key in ("width", "height"):
        if not _is_int(image.get(key)) or image[key] < 1:
            yield f"{key} must be a positive integer, is {image.get(key)!r}"
    if not _is_one_of(image.get("part_supervision", "full"), PART_SUPERVISION):
        yield f"part_supervision must be one of {PART_SUPERVISION}, is {image['part_supervision']!r}"
    if image.get("ignore_segmentation") is not None:
        yield from (f"ignore_segmentation {text}" for text in _check_rle(image["ignore_segmentation"], image))
    source = image.get("source")
    if source is not None and not isinstance(source, Mapping):
        yield f"source must be a json object, is {source!r}"
    elif source and source.get("crop_xyxy") is not None:
        yield from _check_crop(source["crop_xyxy"], image)


def _check_crop(crop: Any, image: Mapping) -> Iterator[str]:
    if not isinstance(crop, list) or len(crop) != 4 or not all(_is_int(value) for value in crop):
        yield f"source.crop_xyxy must be four integers, is {crop!r}"
    elif crop[0] < 0 or crop[1] < 0:
        yield f"source.crop_xyxy {crop} leaves the source image: clip it"
    elif _has_size(image) and (crop[2] - crop[0], crop[3] - crop[1]) != (image["width"], image["height"]):
        yield f"source.crop_xyxy {crop} does not have the image's width and height"


def _has_size(image: Mapping) -> bool:
    """Whether the image's own width and height make sense; where not, that is said once."""
    return all(_is_int(image.get(key)) and image[key] > 0 for key in ("width", "height"))


def _check_annotation(annotation: Mapping, images: Mapping, category_ids: set) -> Iterator[str]:
    if not _is_one_of(annotation.get("image_id"), images):
        yield f"image_id {annotation.get('image_id')!r} is not the id of any image"
        return
    image = images[annotation["image_id"]]
    if not _is_one_of(annotation.get("category_id"), category_ids):
        yield f"category_id {annotation.get('category_id')!r} is not the id of any category"
    if image.get("part_supervision") == "none":
        yield f"belongs to image {image.get('id')} whose part_supervision is 'none'"
    if annotation.get("iscrowd", 0) != 0:
        yield "iscrowd must be 0: put regions that count nowhere into the image's ignore_segmentation"
    area = annotation.get("area")
    if not _is_number(area) or not area > 0:
        yield f"area must be a positive number of pixels, is {area!r}"
    if not _is_one_of(annotation.get("is_target", 1), (0, 1)):
        yield f"is_target must be 0 or 1, is {annotation['is_target']!r}"
    yield from _check_box(annotation.get("bbox"), image)
    if "segmentation" in annotation:
        yield from _check_segmentation(annotation["segmentation"], image)


def _check_box(box: Any, image: Mapping) -> Iterator[str]:
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        yield f"bbox must be four finite numbers [x, y, width, height] in pixels, is {box!r}"
        return
    x, y, width, height = box
    if width <= 0 or height <= 0:
        yield f"bbox {box} must have positive width and height"
    if not _has_size(image):
        return
    inside_x = x >= -BOX_TOLERANCE and x + width <= image["width"] + BOX_TOLERANCE
    inside_y = y >= -BOX_TOLERANCE and y + height <= image["height"] + BOX_TOLERANCE
    if not (inside_x and inside_y):
        yield f"bbox {box} leaves the image of {image['width']} x {image['height']} pixels: clip it"


def _check_segmentation(segmentation: Any, image: Mapping) -> Iterator[str]:
    if isinstance(segmentation, Mapping):
        yield from (f"segmentation {text}" for text in _check_rle(segmentation, image, may_be_empty=False))
    elif not isinstance(segmentation, list) or not segmentation:
        yield "segmentation is empty: leave the key out where there is only a box"
    else:
        for index, polygon in enumerate(segmentation):
            good = isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
            if not good or not all(_is_number(value) for value in polygon):
                yield f"segmentation[{index}] must be a polygon [x, y, x, y, ...] of 3 or more points"
            elif _has_size(image) and not is_near(polygon, image["height"], image["width"]):
                size = f"{image['width']} x {image['height']}"
                yield f"segmentation[{index}] reaches far outside the image of {size} pixels: clip it"


def is_near(polygon: Sequence[float], height: int, width: int) -> bool:
    """Whether a polygon [x, y, ...] sticks out by at most a side of the image: beyond, it is another image's."""
    sides = ((polygon[0::2], width), (polygon[1::2], height))
    return all(-side <= min(values) and max(values) <= 2 * side for values, side in sides)


def _check_rle(rle: Any, image: Mapping, may_be_empty: bool = True) -> Iterator[str]:
    if not isinstance(rle, Mapping) or not isinstance(rle.get("counts"), str):
        yield "must be a compressed RLE {size: [height, width], counts: string}"
    elif not _has_size(image):
        return
    elif rle.get("size") != [image["height"], image["width"]] or not all(_is_int(side) for side in rle["size"]):
        yield f"has size {rle.get('size')}, the image is [{image['height']}, {image['width']}]"
    else:
        # pycocotools trusts the counts: it reads beyond the end of cut ones, and leaves pixels undefined.
        runs = _run_lengths(rle["counts"])
        if runs is None or runs.min() < 0 or runs.sum() != image["height"] * image["width"]:
            yield f"has counts that do not fill its {image['height']} x {image['width']} pixels: encode it again"
        elif not may_be_empty and not runs[1::2].any():
            yield "has no pixel: leave the annotation out"


def is_sound_rle(rle: Mapping, height: int, width: int) -> bool:
    """Whether a compressed RLE is one of an image of this size; pycocotools would read beyond the end of a cut one."""
    return not any(_check_rle(rle, {"height": height, "width": width}))


def _run_lengths(counts: str) -> np.ndarray | None:
    """int64 run lengths, background first, of COCO's compressed RLE; None if the string is none.

    A number is written in digits of 5 bits, the lowest first, as characters from "0" on; bit 32 says that another
    digit follows, bit 16 of the last digit is the sign. From the fourth number on they are differences to the number
    two places before.
    """
    codes = np.frombuffer(counts.encode("utf-8", "surrogatepass"), dtype=np.uint8).astype(np.int64) - ord("0")
    if not codes.size or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    digits = ends - starts + 1
    if digits.max() > 7:  # more than 32 bits
        return None
    places = 5 * (np.arange(codes.size) - np.repeat(starts, digits))
    values = np.add.reduceat((codes & 31) << places, starts)
    values -= np.where(codes[ends] & 16, 1 << (5 * digits), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
