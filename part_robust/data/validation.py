"""Every rule of the part json, checked: what is wrong, where, and what to do about it.

The format is COCO instances json whose categories are parts, with `classes[]`, and `class_id` and
`part_supervision` per image: docs/data_format.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

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
    ids = [c["id"] for c in data["categories"] if isinstance(c, Mapping) and isinstance(c.get("id"), int)]
    if ids != sorted(ids):
        yield "categories: must be sorted by id, the index of a part is its rank"
    category_ids = set(ids)

    classes = data.get("classes")
    if classes is None:
        try:
            classes = derive_classes(data["categories"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            yield f"classes: cannot be derived from the categories: {error}"
            classes = []
    elif not isinstance(classes, list) or not classes:
        yield "classes: must be a list with at least one {id, name, part_category_ids}"
        classes = []
    else:
        yield from _check_entries(classes, "classes", ("name",))
        yield from _check_class_parts(classes, category_ids)
    class_ids = {c["id"] for c in classes if isinstance(c, Mapping) and isinstance(c.get("id"), int)}
    class_names = {c["name"] for c in classes if isinstance(c, Mapping) and isinstance(c.get("name"), str)}

    yield from _check_entries(data["images"], "images", ())
    images: dict[int, Mapping] = {}
    for index, image in enumerate(data["images"]):
        if isinstance(image, Mapping):
            if isinstance(image.get("id"), int):
                images[image["id"]] = image
            where = f"images[{index}] (id {image.get('id')})"
            yield from (f"{where}: {text}" for text in _check_image(image, class_ids, class_names))

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
        if not isinstance(identifier, int) or isinstance(identifier, bool) or identifier < 1:
            yield f"{key}[{index}]: id must be an integer from 1 on, is {identifier!r} (COCO tools misread 0)"
        for field in unique_names:
            if not isinstance(entry.get(field), str) or not entry[field]:
                yield f"{key}[{index}]: {field} must be a non-empty string, is {entry.get(field)!r}"
        for field, values in seen.items():
            value = entry.get(field)
            if isinstance(value, (int, str)):
                if value in values:
                    yield f"{key}[{index}]: {field} {value!r} is already used by {key}[{values[value]}]"
                else:
                    values[value] = index


def _is_one_of(value: Any, known: Any) -> bool:
    """Membership that takes any json value, lists and objects too."""
    return isinstance(value, (int, str)) and value in known


def _check_class_parts(classes: list, category_ids: set) -> Iterator[str]:
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


def _check_image(image: Mapping, class_ids: set, class_names: set) -> Iterator[str]:
    if not isinstance(image.get("file_name"), str) or not image["file_name"]:
        yield f"file_name must be a non-empty string, is {image.get('file_name')!r}"
    for key in ("width", "height"):
        value = image.get(key)
        if not isinstance(value, int) or value < 1:
            yield f"{key} must be a positive integer, is {value!r}"
    if "class_id" in image:
        if not _is_one_of(image["class_id"], class_ids):
            yield f"class_id {image['class_id']!r} is not the id of any entry of `classes`"
    elif "class_name" in image:
        if not _is_one_of(image["class_name"], class_names):
            yield f"class_name {image['class_name']!r} is not the name of any entry of `classes`"
    elif str(image.get("file_name")).split("/")[0] not in class_names:
        yield "has no class: give class_id, or class_name, or a file_name that begins with the class's folder"
    if not _is_one_of(image.get("part_supervision", "full"), PART_SUPERVISION):
        yield f"part_supervision must be one of {PART_SUPERVISION}, is {image['part_supervision']!r}"
    if image.get("ignore_segmentation") is not None:
        yield from (f"ignore_segmentation {text}" for text in _check_rle(image["ignore_segmentation"], image))
    source = image.get("source")
    crop = source.get("crop_xyxy") if isinstance(source, Mapping) else None
    if crop is not None:
        good = isinstance(crop, list) and len(crop) == 4 and all(isinstance(value, int) for value in crop)
        if not good:
            yield f"source.crop_xyxy must be four integers, is {crop!r}"
        elif (crop[2] - crop[0], crop[3] - crop[1]) != (image.get("width"), image.get("height")):
            yield f"source.crop_xyxy {crop} does not have the image's width and height"


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
    yield from _check_box(annotation.get("bbox"), image)
    if "segmentation" in annotation:
        yield from _check_segmentation(annotation["segmentation"], image)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_box(box: Any, image: Mapping) -> Iterator[str]:
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        yield f"bbox must be four finite numbers [x, y, width, height] in pixels, is {box!r}"
        return
    x, y, width, height = box
    if width <= 0 or height <= 0:
        yield f"bbox {box} must have positive width and height"
    if not (_is_number(image.get("width")) and _is_number(image.get("height"))):
        return
    inside_x = x >= -BOX_TOLERANCE and x + width <= image["width"] + BOX_TOLERANCE
    inside_y = y >= -BOX_TOLERANCE and y + height <= image["height"] + BOX_TOLERANCE
    if not (inside_x and inside_y):
        yield f"bbox {box} leaves the image of {image['width']} x {image['height']} pixels: clip it"


def _check_segmentation(segmentation: Any, image: Mapping) -> Iterator[str]:
    if isinstance(segmentation, Mapping):
        yield from (f"segmentation {text}" for text in _check_rle(segmentation, image))
    elif not isinstance(segmentation, list) or not segmentation:
        yield "segmentation is empty: leave the key out where there is only a box"
    else:
        for index, polygon in enumerate(segmentation):
            good = isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
            if not good or not all(_is_number(value) for value in polygon):
                yield f"segmentation[{index}] must be a polygon [x, y, x, y, ...] of 3 or more points"


def _check_rle(rle: Any, image: Mapping) -> Iterator[str]:
    if not isinstance(rle, Mapping) or not isinstance(rle.get("counts"), str):
        yield "must be a compressed RLE {size: [height, width], counts: string}"
    elif rle.get("size") != [image.get("height"), image.get("width")]:
        yield f"has size {rle.get('size')}, the image is [{image.get('height')}, {image.get('width')}]"
