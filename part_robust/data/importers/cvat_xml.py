"""Reads CVAT's own XML, "CVAT for images 1.1": polygons, rectangles with rotation, ellipses, masks, and image tags.

A mask is a run-length code of its own box: comma-separated run lengths by rows, background first.
"""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from part_robust.data.importers.coco import turned_rectangle
from part_robust.data.importers.items import Contents, Item, plain_name, tool_contents
from part_robust.data.importers.numbers import as_number, as_side
from part_robust.data.importers.report import Tally
from part_robust.data.preparation.segmentation import encode

_ELLIPSE_POINTS = 48


def read_cvat_xml(path: Path, tally: Tally) -> Contents:
    """Items of an annotations.xml; the class of an image is its tag.

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
    except (ElementTree.ParseError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid XML: {error}") from error
    if root.tag != "annotations" or root.find("track") is not None or root.find("image") is None:
        raise ValueError(f'{path} is not CVAT\'s XML for images: export the task as "CVAT for images 1.1"')
    items, tags = [], set()
    for image in root.iter("image"):
        item = Item(
            plain_name(image.get("name", "")),
            as_side(image.get("width")),
            as_side(image.get("height")),
            image.get("id"),
        )
        for index, shape in enumerate(image):
            label, where = shape.get("label", ""), f"{path.name}: {shape.tag} {index} on {item.file_name}"
            if shape.tag == "tag":
                item.label = item.label or label
                tags.add(label)
                continue
            _add_shape(item, shape, label, where, tally)
        items.append(item)
    labels = [name.text or "" for name in root.findall("./meta//labels/label/name")]
    used = {raw["part"] for item in items for raw in item.raw}
    parts = [label for label in labels if label in used or label not in tags]
    return tool_contents(items, [*parts, *sorted(used - set(parts))])


def _add_shape(item: Item, shape: ElementTree.Element, label: str, where: str, tally: Tally) -> None:
    raw: dict = {"part": label, "where": where, "attributes": _attributes(shape)}
    try:
        if shape.tag == "polygon":
            raw |= {"segmentation": [_points(shape.get("points", ""))], "no_box": True}
        elif shape.tag == "box":
            left, top, right, bottom = (_number(shape, key) for key in ("xtl", "ytl", "xbr", "ybr"))
            raw["bbox"] = [left, top, right - left, bottom - top]
            angle = as_number(shape.get("rotation")) or 0
            if angle:
                tally.add("turned_box", where)
                centre = ((left + right) / 2, (top + bottom) / 2)
                polygon = turned_rectangle(left, top, right - left, bottom - top, angle, centre)
                raw |= {"segmentation": [polygon], "no_box": True}
        elif shape.tag == "ellipse":
            raw |= {"segmentation": [_ellipse(shape)], "no_box": True}
        elif shape.tag == "mask":
            raw |= {"segmentation": _mask(shape, item), "no_box": True}
        else:
            tally.add("shape_kind", where)
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
    return [float(value) for point in text.split(";") for value in point.split(",")]


def _ellipse(shape: ElementTree.Element) -> list[float]:
    x, y, radius_x, radius_y = (_number(shape, key) for key in ("cx", "cy", "rx", "ry"))
    turn = math.radians(as_number(shape.get("rotation")) or 0)
    polygon = []
    for step in range(_ELLIPSE_POINTS):
        angle = 2 * math.pi * step / _ELLIPSE_POINTS
        right, down = radius_x * math.cos(angle), radius_y * math.sin(angle)
        polygon += [
            x + right * math.cos(turn) - down * math.sin(turn),
            y + right * math.sin(turn) + down * math.cos(turn),
        ]
    return polygon


def _mask(shape: ElementTree.Element, item: Item) -> dict:
    left, top, width, height = (int(_number(shape, key)) for key in ("left", "top", "width", "height"))
    runs = [int(run) for run in shape.get("rle", "").split(",")]
    if min(runs) < 0 or min(left, top) < 0 or left + width > item.width or top + height > item.height:
        raise ValueError("the mask leaves the image")
    box = np.repeat(np.arange(len(runs)) % 2, runs)
    if box.size != width * height:
        raise ValueError("the runs do not fill the box")
    pixels = np.zeros((item.height, item.width), dtype=np.uint8)
    pixels[top : top + height, left : left + width] = box.reshape(height, width)
    return encode(pixels)


def _attributes(shape: ElementTree.Element) -> dict:
    found: dict = {}
    for attribute in shape.findall("attribute"):
        text = (attribute.text or "").strip()
        found[attribute.get("name", "")] = {"true": True, "false": False}.get(text, text)
    return found
