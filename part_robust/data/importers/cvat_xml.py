"""Reads CVAT's own XML, "CVAT for images 1.1": polygons, rectangles with rotation, ellipses, masks, and image tags.

A mask is a run-length code of its own box: comma-separated run lengths by rows, background first. In the export of a
project each image says its subset.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from part_robust.data.importers.items import Contents, Item, plain_name, tool_contents
from part_robust.data.importers.numbers import as_number, as_side
from part_robust.data.importers.report import ImportCounts
from part_robust.data.importers.shapes import ellipse, pasted, turned
from part_robust.data.mask_validation import is_near

# CVAT's own names of subsets, and what people type: split.
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_SPLITS |= dict.fromkeys(("val", "valid", "validation"), "val")


def read_cvat_xml(path: Path, tally: ImportCounts) -> Contents:
    """Items of an annotations.xml; the class of an image is its tag, its split its subset.

    Args:
        path: the file.
        tally: counts shapes without an area, and broken ones.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not XML, or not CVAT's for images.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, LookupError, UnicodeDecodeError) as error:  # LookupError: an unknown encoding
        raise ValueError(f"{path} is not valid XML: {error}") from error
    if root.tag != "annotations" or root.find("track") is not None or root.find("image") is None:
        raise ValueError(f'{path} is not CVAT\'s XML for images: export the task as "CVAT for images 1.1"')
    labels = {(entry.findtext("name") or ""): entry.findtext("type") for entry in root.findall("./meta//labels/label")}
    items, tags = [], {name for name, kind in labels.items() if kind == "tag"}
    for image in root.iter("image"):
        item = Item(
            plain_name(image.get("name", "")),
            as_side(image.get("width")),
            as_side(image.get("height")),
            image.get("id"),
            split=_SPLITS.get(image.get("subset", "").strip().lower()),
        )
        for index, shape in enumerate(image):
            label, where = shape.get("label", ""), f"{path.name}: {shape.tag} {index} on {item.file_name}"
            if shape.tag == "tag":
                item.name_class(label, tally)
                tags.add(label)
                continue
            if label:
                _add_shape(item, shape, label, where, tally)
            else:
                tally.add("no_label", where)
                item.lost += 1
        items.append(item)
    used = {raw["part"] for item in items for raw in item.raw}
    parts = [label for label in labels if label in used or label not in tags]
    return tool_contents(items, [*parts, *sorted(used - set(parts))])


def _add_shape(item: Item, shape: ElementTree.Element, label: str, where: str, tally: ImportCounts) -> None:
    raw: dict = {"part": label, "where": where, "attributes": _attributes(shape)}
    try:
        if shape.tag == "polygon":
            raw |= {"segmentation": [_points(shape.get("points", ""))], "no_box": True}
        elif shape.tag == "box":
            left, top, right, bottom = (_number(shape, key) for key in ("xtl", "ytl", "xbr", "ybr"))
            raw["bbox"] = [left, top, right - left, bottom - top]
            raw = turned(raw, shape.get("rotation"), tally)
        elif shape.tag == "ellipse":
            raw |= {"segmentation": [_ellipse(shape)], "no_box": True}
        elif shape.tag == "mask":
            raw |= {"segmentation": _mask(shape, item), "no_box": True}
        else:
            item.add_without_area(label, where, tally)
            return
    except (ValueError, IndexError):
        tally.add("no_shape", where)
        item.lost += 1
        return
    item.raw.append(raw)


def _number(shape: ElementTree.Element, key: str) -> float:
    number = as_number(shape.get(key))
    if number is None:
        raise ValueError(key)
    return float(number)


def _points(text: str) -> list[float]:
    """Turn "x,y;x,y" into [x, y, x, y]."""
    points = [[float(value) for value in point.split(",")] for point in text.split(";")]
    if any(len(point) != 2 for point in points):
        raise ValueError("a point is not x,y")
    return [value for point in points for value in point]


def _ellipse(shape: ElementTree.Element) -> list[float]:
    x, y, radius_x, radius_y = (_number(shape, key) for key in ("cx", "cy", "rx", "ry"))
    return ellipse(x, y, radius_x, radius_y, as_number(shape.get("rotation")) or 0)


def _mask(shape: ElementTree.Element, item: Item) -> dict:
    left, top, width, height = (int(_number(shape, key)) for key in ("left", "top", "width", "height"))
    runs = [int(run) for run in shape.get("rle", "").split(",")]
    if min(width, height, *runs) < 0 or sum(runs) != width * height:
        raise ValueError("the runs do not fill the box")
    if not is_near([left, top, left + width, top + height], item.height, item.width):
        raise ValueError("the box is far outside of the image: expanding the runs could take all memory")
    box = np.repeat((np.arange(len(runs)) % 2).astype(np.uint8), runs)
    return pasted(box.reshape(height, width), left, top, item.height, item.width)


def _attributes(shape: ElementTree.Element) -> dict:
    found: dict = {}
    for attribute in shape.findall("attribute"):
        text = (attribute.text or "").strip()
        found[attribute.get("name", "")] = {"true": True, "false": False}.get(text, text)
    return found
