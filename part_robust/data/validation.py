"""Every rule of the part json, checked: what is wrong, where, and what to do about it.

The format is COCO instances json whose categories are parts, with `classes[]`, and `class_id` and
`part_supervision` per image: docs/data_format.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from part_robust.data.json_values import has_size, is_int, is_number, is_unicode
from part_robust.data.mask_validation import check_agreement, check_rle, check_segmentation, is_normalised
from part_robust.data.taxonomy import derive_classes

PART_SUPERVISION = ("full", "partial", "none")
# A box may stick out by this many pixels: annotation tools round.
BOX_TOLERANCE = 0.51
_IMAGE_ID_LIMIT = 1 << 63  # an int64 tensor holds it


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
    ids = [c["id"] for c in data["categories"] if isinstance(c, Mapping) and is_int(c.get("id"))]
    if ids != sorted(ids):
        yield "categories: must be sorted by id, the index of a part is its rank"
    category_ids = set(ids)
    yield from _check_classes(data, category_ids)
    classes = _known_classes(data)

    yield from _check_entries(data["images"], "images", ())
    images: dict[int, Mapping] = {}
    for index, image in enumerate(data["images"]):
        if isinstance(image, Mapping):
            if is_int(image.get("id")):
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
    normalised = sum(isinstance(entry, Mapping) and is_normalised(entry) for entry in data["annotations"])
    if normalised * 2 > len(data["annotations"]):
        yield (
            f"annotations: the coordinates of {normalised} of {len(data['annotations'])} lie between 0 and 1, so they "
            "look normalised: multiply them by the image's width and height"
        )


def _check_entries(entries: list, key: str, unique_names: tuple[str, ...]) -> Iterator[str]:
    """Each entry is an object with a unique integer id from 1 and unique, non-empty names."""
    seen: dict[str, dict] = {field: {} for field in ("id", *unique_names)}
    for index, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            yield f"{key}[{index}]: must be a json object, is {type(entry).__name__}"
            continue
        identifier = entry.get("id")
        if not is_int(identifier) or identifier < 1:
            yield f"{key}[{index}]: id must be an integer from 1 on, is {identifier!r} (COCO tools misread 0)"
        elif key == "images" and identifier >= _IMAGE_ID_LIMIT:
            yield f"{key}[{index}]: id must be below 2**63, is {identifier}"
        for field in unique_names:
            if not isinstance(entry.get(field), str) or not entry[field]:
                yield f"{key}[{index}]: {field} must be a non-empty string, is {entry.get(field)!r}"
            elif field == "name" and not is_unicode(entry[field]):
                yield f"{key}[{index}]: name must be text that can be written as UTF-8, is {entry[field]!r}"
        for field, values in seen.items():
            value = entry.get(field)
            if is_int(value) or isinstance(value, str):
                if value in values:
                    yield f"{key}[{index}]: {field} {value!r} is already used by {key}[{values[value]}]"
                else:
                    values[value] = index


def _is_one_of(value: Any, known: Any) -> bool:
    """Membership that takes any json value, lists and objects too."""
    return (is_int(value) or isinstance(value, str)) and value in known


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
            yield f"classes[{index}]: part_category_ids {unknown} are not category ids"
        elif len(set(parts)) < len(parts):
            yield f"classes[{index}]: part_category_ids {parts} name a category twice"


def _are_named(entries: list) -> bool:
    """Return whether there are entries and all of them have an id and a name."""
    named = (isinstance(e, Mapping) and is_int(e.get("id")) and isinstance(e.get("name"), str) for e in entries)
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
        if not is_int(image.get(key)) or image[key] < 1:
            yield f"{key} must be a positive integer, is {image.get(key)!r}"
    if not _is_one_of(image.get("part_supervision", "full"), PART_SUPERVISION):
        yield f"part_supervision must be one of {PART_SUPERVISION}, is {image['part_supervision']!r}"
    if image.get("ignore_segmentation") is not None:
        yield from (f"ignore_segmentation {text}" for text in check_rle(image["ignore_segmentation"], image))
    source = image.get("source")
    if source is not None and not isinstance(source, Mapping):
        yield f"source must be a json object, is {source!r}"
    elif source and source.get("crop_xyxy") is not None:
        yield from _check_crop(source["crop_xyxy"], image)


def _check_crop(crop: Any, image: Mapping) -> Iterator[str]:
    if not isinstance(crop, list) or len(crop) != 4 or not all(is_int(value) for value in crop):
        yield f"source.crop_xyxy must be four integers, is {crop!r}"
    elif crop[0] < 0 or crop[1] < 0:
        yield f"source.crop_xyxy {crop} leaves the source image: clip it"
    elif has_size(image) and (crop[2] - crop[0], crop[3] - crop[1]) != (image["width"], image["height"]):
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
    if not is_number(area) or not area > 0:
        yield f"area must be a positive number of pixels, is {area!r}"
    if not _is_one_of(annotation.get("is_target", 1), (0, 1)):
        yield f"is_target must be 0 or 1, is {annotation['is_target']!r}"
    yield from _check_box(annotation.get("bbox"), image)
    if "segmentation" in annotation:
        broken = list(check_segmentation(annotation["segmentation"], image))
        yield from broken
        if not broken and has_size(image) and not any(_check_box(annotation.get("bbox"), image)):
            yield from check_agreement(annotation, image)


def _check_box(box: Any, image: Mapping) -> Iterator[str]:
    if not isinstance(box, list) or len(box) != 4 or not all(is_number(value) for value in box):
        yield f"bbox must be four finite numbers [x, y, width, height] in pixels, is {box!r}"
        return
    x, y, width, height = box
    if width <= 0 or height <= 0:
        yield f"bbox {box} must have positive width and height"
    if not has_size(image):
        return
    inside_x = x >= -BOX_TOLERANCE and x + width <= image["width"] + BOX_TOLERANCE
    inside_y = y >= -BOX_TOLERANCE and y + height <= image["height"] + BOX_TOLERANCE
    if not (inside_x and inside_y):
        yield f"bbox {box} leaves the image of {image['width']} x {image['height']} pixels: clip it"
