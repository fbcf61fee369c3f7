"""Reads Datumaro's own json (format version 1.0, also as CVAT exports it): polygons, boxes, masks, ellipses, labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from part_robust.data.importers.items import Contents, Item, plain_name, tool_contents
from part_robust.data.importers.numbers import as_name, as_side
from part_robust.data.importers.report import ImportCounts
from part_robust.data.importers.shapes import ellipse, rotation_of, turned
from part_robust.data.part_json import parse_json


def read_datumaro(path: Path, tally: ImportCounts) -> Contents:
    """Items of one annotations/<subset>.json; the class of an image is its annotation of type "label".

    Args:
        path: the file.
        tally: counts annotations without a known label or an area, and broken ones.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not Datumaro's json.
    """
    data = parse_json(path)
    try:
        names = [entry["name"] for entry in data["categories"]["label"]["labels"]]
        entries = list(data["items"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not Datumaro's json: it must have categories.label.labels and items") from error
    labels = [as_name(name, f"{path}: categories.label.labels[{index}]") for index, name in enumerate(names)]
    items = [_item(entry, f"{path}: items[{index}]") for index, entry in enumerate(entries)]
    classes = set()
    for item, entry in zip(items, entries, strict=True):
        for annotation in _mappings(entry.get("annotations")):
            where = f"{path.name}: annotation {annotation.get('id')!r} on {item.file_name}"
            kind, label = annotation.get("type"), annotation.get("label_id")
            if kind == "caption":
                continue  # is of no part
            if not isinstance(label, int) or not 0 <= label < len(labels):
                tally.add("unknown_category", f"{where}, label_id {label!r}")
                item.lost += kind != "label"
            elif kind == "label":
                item.name_class(labels[label], tally)
                classes.add(labels[label])
            else:
                _add(item, annotation, labels[label], where, tally)
    used = {raw["part"] for item in items for raw in item.raw}
    return tool_contents(items, [label for label in labels if label in used or label not in classes])


def _mappings(value: Any) -> list[Mapping]:
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, Sequence) else []


def _item(entry: Any, where: str) -> Item:
    """An image without its annotations.

    Raises:
        ValueError: it has no name.
    """
    found = entry if isinstance(entry, Mapping) else {}
    image: Mapping = next((found[key] for key in ("image", "media") if isinstance(found.get(key), Mapping)), {})
    name = image.get("path") or (f"{found['id']}.jpg" if found.get("id") not in (None, "") else "")
    if not name:
        raise ValueError(f"{where} names no image: it must have an id, and image.path")
    size = image.get("size")
    height, width = size if isinstance(size, list) and len(size) == 2 else (0, 0)
    return Item(plain_name(str(name)), as_side(width), as_side(height), found.get("id"))


def _add(item: Item, annotation: Mapping, part: str, where: str, tally: ImportCounts) -> None:
    kind, raw = annotation.get("type"), {"part": part, "where": where, "attributes": annotation.get("attributes") or {}}
    if kind == "polygon":
        raw |= {"segmentation": [annotation.get("points")], "no_box": True}
    elif kind == "bbox":
        raw = turned({**raw, "bbox": annotation.get("bbox")}, rotation_of(raw), tally)
    elif kind == "mask":
        raw |= {"segmentation": annotation.get("rle"), "no_box": True}
    elif kind == "ellipse":
        try:
            left, top, right, bottom = (float(value) for value in annotation.get("points") or ())
        except (TypeError, ValueError):
            tally.add("no_shape", where)
            item.lost += 1
            return
        outline = ellipse((left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2)
        raw |= {"segmentation": [outline], "no_box": True}
    else:
        item.add_without_area(part, f"{where} ({kind})", tally)
        return
    item.raw.append(raw)
