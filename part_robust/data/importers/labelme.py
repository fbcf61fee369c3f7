"""Reads LabelMe (5.x): one json beside each image, with polygons, rectangles, circles and masks; image flags."""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from part_robust.data.importers.items import Contents, Item, plain_name, tool_contents
from part_robust.data.importers.numbers import as_side
from part_robust.data.importers.report import Tally
from part_robust.data.part_json import parse_json
from part_robust.data.preparation.segmentation import encode

_CIRCLE_POINTS = 48


def read_labelme(folder: Path, images: Path, tally: Tally) -> Contents:
    """Items of all jsons below a folder; the class of an image is its first flag that is set, else its folder.

    Args:
        folder: where the jsons are.
        images: image root; an image lies where its json's `imagePath` says, seen from the json.
        tally: counts shapes without an area, and broken files and shapes.

    Raises:
        FileNotFoundError: no json.
    """
    items = []
    for path in sorted(folder.rglob("*.json")):
        try:
            data = parse_json(path)
        except ValueError as error:
            tally.add("unreadable_annotation", str(error))
            continue
        if not isinstance(data, Mapping) or not isinstance(data.get("shapes"), list) or "imagePath" not in data:
            tally.add("unreadable_annotation", f"{path}: has no `shapes` and `imagePath`")
            continue
        beside = (path.parent / plain_name(str(data["imagePath"]))).resolve()
        base = images.resolve()
        name = (
            beside.relative_to(base).as_posix() if beside.is_relative_to(base) else plain_name(str(data["imagePath"]))
        )
        item = Item(name, as_side(data.get("imageWidth")), as_side(data.get("imageHeight")), path.stem)
        flags = data.get("flags")
        if isinstance(flags, Mapping):
            item.label = next((str(flag) for flag, value in flags.items() if value is True), None)
        if item.label is None and "/" in name:
            item.label = name.split("/")[-2]
        for index, shape in enumerate(data["shapes"]):
            _add_shape(item, shape, f"{path.name}: shapes[{index}]", tally)
        items.append(item)
    if not items:
        raise FileNotFoundError(f"{folder} has no json of LabelMe: it must hold one for each image")
    return tool_contents(items, sorted({raw["part"] for item in items for raw in item.raw}))


def _add_shape(item: Item, shape: Any, where: str, tally: Tally) -> None:
    try:
        points = [(float(x), float(y)) for x, y in shape["points"]]
        raw = {"part": str(shape["label"]).strip(), "where": where, "no_box": True}
        kind = shape.get("shape_type") or "polygon"
        if kind == "polygon":
            raw["segmentation"] = [[value for point in points for value in point]]
        elif kind == "rectangle":
            (x0, y0), (x1, y1) = points
            raw["bbox"] = [min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0)]
        elif kind == "circle":
            raw["segmentation"] = [_circle(*points)]
        elif kind == "mask":
            raw["segmentation"] = _mask(item, points, shape["mask"])
        else:
            tally.add("shape_kind", f"{where} ({kind})")
            return
        if not raw["part"]:
            raise ValueError("no label")
    except (KeyError, ValueError, TypeError, OSError, AttributeError, binascii.Error):
        tally.add("no_shape", where)
        item.lost += 1
        return
    item.raw.append(raw)


def _circle(centre: tuple[float, float], rim: tuple[float, float]) -> list[float]:
    radius = math.dist(centre, rim)
    angles = [2 * math.pi * step / _CIRCLE_POINTS for step in range(_CIRCLE_POINTS)]
    return [v for a in angles for v in (centre[0] + radius * math.cos(a), centre[1] + radius * math.sin(a))]


def _mask(item: Item, points: list[tuple[float, float]], code: str) -> dict:
    """A mask is a PNG of the box between two points."""
    with Image.open(io.BytesIO(base64.b64decode(code, validate=True))) as file:
        box = np.asarray(file.convert("L")) > 0
    left, top = int(points[0][0]), int(points[0][1])
    pixels = np.zeros((item.height, item.width), dtype=np.uint8)
    if left < 0 or top < 0 or left + box.shape[1] > item.width or top + box.shape[0] > item.height:
        raise ValueError("the mask leaves the image")
    pixels[top : top + box.shape[0], left : left + box.shape[1]] = box
    return encode(pixels)
