"""Foreign COCO entries -> what the part format allows. Everything repaired or left out is counted.

Letters: h, w image height and width in pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from part_robust.data.importers.report import Tally
from part_robust.data.validation import violations

BOX_OFF = 2.0  # pixels between a given box and its mask's that still count as rounding


@dataclass
class ForeignImage:
    """One image of a source json with the annotations that are left of it."""

    file_name: str  # relative to the image root of its source, forward slashes
    width: int  # 0 where the json does not say
    height: int
    source_id: Any
    annotations: list[dict] = field(default_factory=list)  # raw, `part` added
    parts: list[dict] = field(default_factory=list)  # clean: part, bbox, area, segmentation
    ignore: list[dict] = field(default_factory=list)  # RLEs of crowd regions


def read_coco(path: Path) -> dict:
    """Parses a COCO json.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not json, or without images, annotations and categories.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--json {path} does not exist")
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid json: {error}") from error
    for key in ("images", "annotations", "categories"):
        entries = data.get(key) if isinstance(data, Mapping) else None
        if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
            raise ValueError(f"{path} is no COCO instances file: it has no list of objects {key!r}")
        required = {"images": "file_name", "annotations": "image_id", "categories": "name"}[key]
        for index, entry in enumerate(entries):
            if required not in entry or (key != "annotations" and "id" not in entry):
                raise ValueError(f"{path}: {key}[{index}] has no {'id' if required in entry else required!r}")
    return data


def _bad_id(value: Any) -> bool:
    return not isinstance(value, int) or isinstance(value, bool) or value < 1


def is_background(name: str) -> bool:
    """ "_background_", "__background__", "Background", "bg"."""
    return name.strip("_ ").lower() in ("background", "bg")


def part_names(path: Path, data: Mapping, tally: Tally) -> dict[Any, str | None]:
    """{category id: part name, None for background}, in the order of the ids.

    Raises:
        ValueError: one id has two names.
    """
    names: dict[Any, str | None] = {}
    seen: set[str] = set()
    for category in sorted(data["categories"], key=lambda c: (isinstance(c["id"], str), c["id"])):
        identifier, name = category["id"], str(category["name"]).strip()
        if is_background(name):
            tally.add("background_category", f"{path.name}: {name}")
            names[identifier] = None
            continue
        if identifier in names and names[identifier] != name:
            raise ValueError(f"{path}: category id {identifier!r} is both {names[identifier]!r} and {name!r}: mend it")
        if name in seen:
            tally.add("duplicate_category", f"{path.name}: {name}")
        elif _bad_id(identifier):
            tally.add("category_id", f"{path.name}: {name} has id {identifier!r}")
        seen.add(name)
        names[identifier] = name
    return names


def read_images(path: Path, data: Mapping, tally: Tally) -> list[ForeignImage]:
    """The images of a source with their raw annotations, sorted by file name.

    Raises:
        ValueError: one id stands for two files.
    """
    names = part_names(path, data, tally)
    by_id: dict[Any, ForeignImage] = {}
    by_name: dict[str, ForeignImage] = {}
    for entry in data["images"]:
        file_name = str(entry["file_name"])
        if "\\" in file_name:
            tally.add("backslash_in_file_name", file_name)
            file_name = file_name.replace("\\", "/")
        file_name = file_name.removeprefix("./")
        identifier = entry["id"]
        if _bad_id(identifier):
            tally.add("image_id", f"{file_name} has id {identifier!r}")
        if identifier in by_id and by_id[identifier].file_name != file_name:
            first = by_id[identifier].file_name
            raise ValueError(
                f"{path}: image id {identifier!r} is both {first} and {file_name}, so nobody can tell whose its "
                "annotations are: give one of them another id"
            )
        if file_name in by_name:
            tally.add("duplicate_image_entry", file_name)
        else:
            by_name[file_name] = ForeignImage(
                file_name, int(entry.get("width") or 0), int(entry.get("height") or 0), identifier
            )
        by_id[identifier] = by_name[file_name]
    _attach_annotations(path, data["annotations"], names, by_id, tally)
    return [by_name[name] for name in sorted(by_name)]


def _attach_annotations(
    path: Path, annotations: list, names: Mapping, by_id: Mapping[Any, ForeignImage], tally: Tally
) -> None:
    ids: set = set()
    contents: set[tuple] = set()
    for index, annotation in enumerate(annotations):
        identifier = annotation.get("id")
        where = f"{path.name}: annotation {identifier!r}"
        if identifier in ids:
            tally.add("duplicate_annotation_id", where)
        elif _bad_id(identifier):
            tally.add("annotation_id", f"{path.name}: annotations[{index}] has id {identifier!r}")
        ids.add(identifier)
        if annotation["image_id"] not in by_id:
            tally.add("unknown_image", f"{where}, image_id {annotation['image_id']!r}")
            continue
        category = annotation.get("category_id")
        if category not in names:
            tally.add("unknown_category", f"{where}, category_id {category!r}")
            continue
        if names[category] is None:
            tally.add("background_annotation", where)
            continue
        image = by_id[annotation["image_id"]]
        drawn = (annotation.get("segmentation"), annotation.get("bbox"), bool(annotation.get("iscrowd")))
        content = (image.file_name, names[category], json.dumps(drawn, sort_keys=True))
        if content in contents:
            tally.add("duplicate_annotation", where)
            continue
        contents.add(content)
        image.annotations.append({**annotation, "part": names[category], "where": f"{where} on {image.file_name}"})


def clean_annotations(image: ForeignImage, crowd: str, tally: Tally) -> None:
    """Fills `image.parts` (and `image.ignore`) from its raw annotations; needs its width and height.

    Args:
        image: changed in place.
        crowd: "part" takes iscrowd 1 as an ordinary part, "ignore" makes its pixels count nowhere.
        tally: receives what was repaired or left out.
    """
    for raw in image.annotations:
        where = raw["where"]
        segmentation = _clean_segmentation(raw, image.height, image.width, tally)
        box = _clean_box(raw.get("bbox"), image.height, image.width)
        if box is not None and box != [float(value) for value in raw["bbox"]] and segmentation is None:
            tally.add("box_clipped", where)
        area = None
        if segmentation is not None:
            rle = _as_rle(segmentation, image.height, image.width)
            area = float(coco_mask.area(rle))
            if area <= 0:
                tally.add("zero_area", where)
                continue
            from_mask = [float(value) for value in coco_mask.toBbox(rle)]
            _count_box_repair(raw.get("bbox"), from_mask, box, where, tally)
            box = from_mask
        if box is None:
            tally.add("degenerate_box", where)
            continue
        if raw.get("iscrowd"):
            if crowd == "ignore":
                tally.add("crowd_to_ignore", where)
                image.ignore.append(_as_rle(segmentation or [_box_polygon(box)], image.height, image.width))
                continue
            tally.add("crowd_to_part", where)
        part = {"part": raw["part"], "bbox": box, "area": area if area is not None else box[2] * box[3]}
        if segmentation is None:
            tally.add("box_only", where)
        else:
            part["segmentation"] = segmentation
        image.parts.append(part)


def ignored_region(image: ForeignImage) -> dict | None:
    """The union of the crowd regions as one RLE with string counts."""
    return _text(coco_mask.merge(image.ignore)) if image.ignore else None


def _text(rle: Mapping) -> dict:
    counts = rle["counts"]
    return {
        "size": [int(side) for side in rle["size"]],
        "counts": counts.decode() if isinstance(counts, bytes) else counts,
    }


def _as_rle(segmentation: Any, h: int, w: int) -> dict:
    if isinstance(segmentation, Mapping):
        return dict(segmentation)
    return coco_mask.merge(coco_mask.frPyObjects(segmentation, h, w))


def _clean_segmentation(raw: Mapping, h: int, w: int, tally: Tally) -> list | dict | None:
    """Polygons of 3 or more distinct points, a compressed RLE of the image's size, or None: there is only a box."""
    segmentation, where = raw.get("segmentation"), raw["where"]
    if isinstance(segmentation, Mapping) and segmentation:
        rle, compressed = _clean_rle(segmentation, h, w)
        if rle is None:
            tally.add("rle_unusable", where)
        elif compressed:
            tally.add("rle_list_counts", where)
        return rle
    if not isinstance(segmentation, list) or not segmentation:
        if "segmentation" in raw:
            tally.add("empty_segmentation", where)
        return None
    if all(_is_number(value) for value in segmentation):
        tally.add("flat_polygon", where)
        segmentation = [segmentation]
    good = [polygon for polygon in segmentation if _is_polygon(polygon)]
    if len(good) < len(segmentation):
        tally.add("bad_polygon", where)
    if not good:
        tally.add("empty_segmentation", where)
        return None
    return good


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_polygon(polygon: Any) -> bool:
    if not isinstance(polygon, list) or len(polygon) % 2 or not all(_is_number(value) for value in polygon):
        return False
    return len(set(zip(polygon[::2], polygon[1::2], strict=True))) >= 3


def _clean_rle(rle: Mapping, h: int, w: int) -> tuple[dict | None, bool]:
    """(RLE with string counts or None, whether it had to be compressed)."""
    counts = rle.get("counts")
    if rle.get("size") != [h, w]:
        return None, False
    if isinstance(counts, list):
        usable = all(isinstance(run, int) and run >= 0 for run in counts) and sum(counts) == h * w
        return (
            (_text(coco_mask.frPyObjects({"size": [h, w], "counts": counts}, h, w)), True) if usable else (None, True)
        )
    if not isinstance(counts, str):
        return None, False
    clean = {"size": [h, w], "counts": counts}
    return (clean if _is_sound(clean, h, w) else None), False


def _is_sound(rle: Mapping, h: int, w: int) -> bool:
    """Whether the format's own check lets the RLE pass: pycocotools would read beyond the end of a cut one."""
    image = {"id": 1, "file_name": "x", "width": w, "height": h, "class_id": 1, "ignore_segmentation": rle}
    classes = [{"id": 1, "name": "x", "part_category_ids": []}]
    return not any(violations({"classes": classes, "categories": [], "images": [image], "annotations": []}))


def _clean_box(box: Any, h: int, w: int) -> list[float] | None:
    """XYWH inside the image, None where nothing of it is."""
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        return None
    left, top = max(float(box[0]), 0.0), max(float(box[1]), 0.0)
    # A box that is inside keeps its numbers to the bit.
    width = float(box[2]) if left == box[0] and box[0] + box[2] <= w else min(float(box[0] + box[2]), w) - left
    height = float(box[3]) if top == box[1] and box[1] + box[3] <= h else min(float(box[1] + box[3]), h) - top
    return [left, top, width, height] if width > 0 and height > 0 else None


def _count_box_repair(
    given: Any, from_mask: list[float], clipped: list[float] | None, where: str, tally: Tally
) -> None:
    if clipped is None:
        tally.add("box_replaced", where)
        return
    if any(abs(new - old) > 0.51 for new, old in zip(clipped, given, strict=True)):
        tally.add("box_clipped", where)
    ends = [from_mask[0] + from_mask[2], from_mask[1] + from_mask[3], clipped[0] + clipped[2], clipped[1] + clipped[3]]
    off = (from_mask[0] - clipped[0], from_mask[1] - clipped[1], ends[0] - ends[2], ends[1] - ends[3])
    if max(map(abs, off)) > BOX_OFF:
        tally.add("box_replaced", where)


def _box_polygon(box: list[float]) -> list[float]:
    x, y, width, height = box
    return [x, y, x + width, y, x + width, y + height, x, y + height]
