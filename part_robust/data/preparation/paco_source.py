"""Reads one annotation file of PACO into objects with their parts.

The released files are several hundred megabytes: what is not needed is dropped while the json is parsed.
"""

from __future__ import annotations

import gc
import json
import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from part_robust.data.preparation.entries import as_id, check_entry
from part_robust.data.preparation.report import PreparationCounts

_KEPT_KEYS = ("images", "annotations", "categories")


class PacoImage(NamedTuple):
    """An image of the json, as far as it is read."""

    id: int
    file_name: str
    width: int
    height: int
    neg_category_ids: list[int]
    not_exhaustive_category_ids: list[int]


class PacoAnnotation(NamedTuple):
    """An annotation of the json, of an object or a part.

    Attributes:
        object_id: the annotation of the object that it belongs to.
        box: x, y, width, height in pixels; may leave the image.
        segmentation: polygons or a run-length code, or what the counts need of them.
    """

    id: int
    image_id: int
    category_id: int
    object_id: int | str
    box: list[float]
    segmentation: Any


@dataclass
class PacoObject:
    """An object and its parts; `order` is its place among the annotations of the file."""

    order: int
    annotation: PacoAnnotation
    parts: list[PacoAnnotation] = field(default_factory=list)

    @property
    def id(self) -> int:
        """The id of the object's annotation."""
        return self.annotation.id


@dataclass
class PacoFile:
    """One parsed file.

    Attributes:
        dataset: "lvis" or "ego4d".
        split: the file's own split.
        images: by id.
        objects: by image id, in file order.
        lost: boxes of annotations that fit nowhere, by image id.
        categories: entries of the json, in ascending id.
        instances: annotations per category id, as in the file.
        num_objects, num_parts: annotations in the file.
    """

    dataset: str
    split: str
    images: dict[int, PacoImage]
    objects: dict[int, list[PacoObject]]
    categories: list[dict]
    instances: Counter
    num_objects: int
    num_parts: int
    lost: dict[int, list] = field(default_factory=dict)

    def key(self, image_id: int, object_id: int | None = None) -> str:
        """Names an image or an object across all files: ids are unique within one file only."""
        unit = f"{self.dataset}/{self.split}/{image_id:012d}"
        return unit if object_id is None else f"{unit}/{object_id:012d}"


def read_paco_file(
    path: Path, dataset: str, split: str, masks: bool, tally: PreparationCounts | None = None
) -> PacoFile:
    """Parses one of the six files.

    Args:
        path: json.
        dataset: "lvis" or "ego4d".
        split: of the file.
        masks: keep the segmentations; else only whether there is one, and the size of a run-length code.
        tally: counts what is left out: duplicate_id, unknown_category, unknown_image, orphan_part, foreign_part.

    Raises:
        ValueError: not json, or not a PACO file.
    """
    with _no_garbage_collection():
        data = _parse(path, masks)
    missing = [key for key in _KEPT_KEYS if not isinstance(data.get(key), list)] if isinstance(data, dict) else ["it"]
    if missing:
        raise ValueError(f"{path} is not a PACO annotation file: it lacks {', '.join(missing)}")
    for key, kind_of_entry in (("images", PacoImage), ("annotations", PacoAnnotation), ("categories", dict)):
        for index, entry in enumerate(data[key]):
            if not isinstance(entry, kind_of_entry):
                raise ValueError(f"{path}: {key}[{index}] lacks what PACO's files have: download the file again")
    for index, category in enumerate(data["categories"]):
        for key in ("id", "name"):
            check_entry(category, key, f"{path}: categories[{index}]")
    categories = sorted(data["categories"], key=lambda c: c["id"])
    kind = {c["id"]: str(c.get("supercategory", "")).upper() for c in categories}
    if not {"OBJECT", "PART"} <= set(kind.values()):
        raise ValueError(
            f"{path} is not a PACO annotation file: its categories must have the supercategories OBJECT and PART"
        )
    images = {image.id: image for image in data["images"]}
    tally = tally if tally is not None else PreparationCounts()
    name = f"{dataset}/{split}"
    objects, lost = _group(data["annotations"], images, categories, kind, name, tally)
    instances = Counter(annotation.category_id for annotation in data["annotations"])
    count = Counter(kind.get(annotation.category_id) for annotation in data["annotations"])
    return PacoFile(dataset, split, images, objects, categories, instances, count["OBJECT"], count["PART"], lost)


def _parse(path: Path, masks: bool) -> Any:
    def slim(entry: dict) -> Any:
        if "category_id" in entry and "image_id" in entry:
            return _annotation(entry, masks, path)
        if "width" in entry and ("file_name" in entry or "coco_url" in entry):
            return _image(entry, path)
        if "annotations" in entry and "images" in entry:
            return {key: entry.get(key) for key in _KEPT_KEYS}
        return entry

    try:
        with open(path, encoding="utf-8-sig") as file:
            return json.load(file, object_hook=slim)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid json ({error}): was it unpacked completely?") from error


def _annotation(entry: dict, masks: bool, path: Path) -> PacoAnnotation:
    where = f"{path}: annotation {entry.get('id')!r}"
    for key in ("id", "image_id", "category_id", "bbox"):
        check_entry(entry, key, where)
    segmentation = entry.get("segmentation")
    return PacoAnnotation(
        entry["id"],
        entry["image_id"],
        entry["category_id"],
        as_id(entry.get("obj_ann_id", entry["id"]), f"{where}, obj_ann_id"),
        entry["bbox"],
        _compact(segmentation) if masks else _outline(segmentation),
    )


def _image(entry: dict, path: Path) -> PacoImage:
    where = f"{path}: image {entry.get('id')!r}"
    for key in ("id", "width", "height", *(["file_name"] if entry.get("file_name") else [])):
        check_entry(entry, key, where)
    # LVIS has web addresses: http://images.cocodataset.org/train2017/000000000009.jpg
    name = entry.get("file_name") or "/".join(str(entry.get("coco_url") or "").split("/")[-2:])
    if not name:
        raise ValueError(f"{where} has no 'file_name': download the file again")
    return PacoImage(
        entry["id"],
        name,
        entry["width"],
        entry["height"],
        entry.get("neg_category_ids") or [],
        entry.get("not_exhaustive_category_ids") or [],
    )


def _compact(segmentation: Any) -> Any:
    """Polygons as arrays, a quarter of the memory of lists of floats."""
    if isinstance(segmentation, list):
        try:
            return tuple(array("d", polygon) for polygon in segmentation)
        except TypeError:
            return segmentation
    return segmentation


def _outline(segmentation: Any) -> Any:
    """Return what the counts need: nothing, the size of a run-length code, or that there are polygons."""
    if not segmentation:
        return None
    return tuple(segmentation.get("size") or ()) if isinstance(segmentation, dict) else "polygons"


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Parsing makes millions of objects and no garbage: searching for some takes longer than the parsing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _group(
    annotations: list[PacoAnnotation],
    images: dict[int, PacoImage],
    categories: list[dict],
    kind: dict[int, str],
    name: str,
    tally: PreparationCounts,
) -> tuple[dict[int, list[PacoObject]], dict[int, list]]:
    """Objects by image with their parts; whatever fits nowhere is counted, its boxes by image come second."""
    names = {category["id"]: category["name"] for category in categories}
    found: dict[int | str, PacoObject] = {}
    by_image: dict[int, list[PacoObject]] = defaultdict(list)
    lost: dict[int, list] = defaultdict(list)
    seen: set[int] = set()
    parts = []
    for order, annotation in enumerate(annotations):
        where = f"{name}: annotation {annotation.id}"
        if annotation.id in seen:
            tally.add("duplicate_id", where)
        elif annotation.category_id not in kind:
            tally.add("unknown_category", f"{where} has category_id {annotation.category_id}")
            lost[annotation.image_id].append(annotation.box)
        elif annotation.image_id not in images:
            tally.add("unknown_image", f"{where} has image_id {annotation.image_id}")
        elif kind[annotation.category_id] == "PART":
            parts.append(annotation)
        elif not is_good_box(annotation.box):
            tally.add("degenerate_box", f"{where} has bbox {annotation.box}")
        else:
            found[annotation.id] = PacoObject(order, annotation)
            by_image[annotation.image_id].append(found[annotation.id])
        seen.add(annotation.id)
    for part in parts:
        owner = found.get(part.object_id)
        where = f"{name}: annotation {part.id}"
        if owner is None or owner.annotation.image_id != part.image_id:
            tally.add("orphan_part", f"{where} belongs to no object of its image (obj_ann_id {part.object_id})")
        elif names[part.category_id].split(":", 1)[0] != names[owner.annotation.category_id]:
            tally.add(
                "foreign_part", f"{where} is a {names[part.category_id]} of a {names[owner.annotation.category_id]}"
            )
        else:
            owner.parts.append(part)
            continue
        lost[part.image_id].append(part.box)
    if parts and not any(entry.parts for entry in found.values()):
        raise ValueError(
            f"{name}: none of {len(parts)} parts belongs to an object of its image, first: annotation {parts[0].id} "
            f"with obj_ann_id {parts[0].object_id}: download the file again"
        )
    return by_image, lost


def is_good_box(box: Any) -> bool:
    """Return whether a json value is a box of four finite numbers."""
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(value, (int, float)) and math.isfinite(value) for value in box)
    )
