"""Reads Datumaro's own json (format version 1.0, also as CVAT exports it): polygons, boxes, masks, image labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from part_robust.data.importers.coco import turned_rectangle
from part_robust.data.importers.items import Contents, Item, plain_name, tool_contents
from part_robust.data.importers.numbers import as_number, as_side
from part_robust.data.importers.report import Tally
from part_robust.data.part_json import parse_json


def read_datumaro(path: Path, tally: Tally) -> Contents:
    """Items of one annotations/<subset>.json; the class of an image is its annotation of type "label".

    Raises:
        FileNotFoundError: no such file.
        ValueError: not Datumaro's json.
    """
    data = parse_json(path)
    try:
        labels = [str(entry["name"]) for entry in data["categories"]["label"]["labels"]]
        entries = list(data["items"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not Datumaro's json: it must have categories.label.labels and items") from error
    items, classes = [], set()
    for index, entry in enumerate(entries):
        image = entry.get("image") or entry.get("media") or {} if isinstance(entry, Mapping) else {}
        name = image.get("path") or (f"{entry['id']}.jpg" if isinstance(entry, Mapping) and "id" in entry else "")
        if not name:
            raise ValueError(f"{path}: items[{index}] names no image")
        size = image.get("size") or [0, 0]
        item = Item(plain_name(str(name)), as_side(size[1]), as_side(size[0]), entry.get("id"))
        for annotation in entry.get("annotations") or []:
            where = f"{path.name}: annotation {annotation.get('id')!r} on {item.file_name}"
            label = annotation.get("label_id")
            if not isinstance(label, int) or not 0 <= label < len(labels):
                tally.add("unknown_category", f"{where}, label_id {label!r}")
                item.lost += annotation.get("type") != "label"
            elif annotation.get("type") == "label":
                item.label = item.label or labels[label]
                classes.add(labels[label])
            else:
                _add(item, annotation, labels[label], where, tally)
        items.append(item)
    used = {raw["part"] for item in items for raw in item.raw}
    return tool_contents(items, [label for label in labels if label in used or label not in classes])


def _add(item: Item, annotation: Mapping, part: str, where: str, tally: Tally) -> None:
    kind, raw = annotation.get("type"), {"part": part, "where": where, "attributes": annotation.get("attributes") or {}}
    if kind == "polygon":
        raw |= {"segmentation": [annotation.get("points")], "no_box": True}
    elif kind == "bbox":
        raw["bbox"] = annotation.get("bbox")
        raw |= _turned(raw, tally)
    elif kind == "mask":
        raw |= {"segmentation": annotation.get("rle"), "no_box": True}
    else:
        tally.add("shape_kind", f"{where} ({kind})")
        return
    item.raw.append(raw)


def _turned(raw: Mapping[str, Any], tally: Tally) -> dict:
    angle, box = as_number(raw["attributes"].get("rotation")), raw["bbox"]
    if not angle or not isinstance(box, list) or len(box) != 4 or any(as_number(value) is None for value in box):
        return {}
    x, y, width, height = map(float, box)
    tally.add("turned_box", raw["where"])
    centre = (x + width / 2, y + height / 2)
    return {"segmentation": [turned_rectangle(x, y, width, height, angle, centre)], "no_box": True}
