"""Reads LabelMe (5.x): one json beside each image, with polygons, rectangles, circles and masks; image flags."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from part_robust.data.importers.files import BROKEN_PICTURE, ImageFolder
from part_robust.data.importers.items import Contents, Item, folder_of, plain_name, tool_contents
from part_robust.data.importers.numbers import as_side
from part_robust.data.importers.report import ImportCounts
from part_robust.data.importers.shapes import ellipse, pasted
from part_robust.data.part_json import parse_json


def read_labelme(folder: Path, images: Path, tally: ImportCounts) -> Contents:
    """Items of all jsons below a folder; the class of an image is its first flag that is set, else its folder.

    Args:
        folder: where the jsons are.
        images: image root; an image lies where its json's `imagePath` says, seen from the json, or beside the json.
        tally: counts shapes without an area, and broken files and shapes.

    Raises:
        FileNotFoundError: no json.
    """
    items, below = [], ImageFolder(images.resolve())
    for path in sorted(folder.rglob("*.json")):
        try:
            data = parse_json(path)
        except ValueError as error:
            tally.add("unreadable_annotation", str(error))
            continue
        image_path = _image_path(data) if isinstance(data, Mapping) else ""
        if not image_path or not isinstance(data.get("shapes"), list):
            tally.add("unreadable_annotation", f"{path}: must have `shapes`, and a file name as `imagePath`")
            continue
        found = _find_image(below, path.parent, image_path)
        width, height = as_side(data.get("imageWidth")), as_side(data.get("imageHeight"))
        item = Item(found or image_path, width, height, path.stem)
        flags = data.get("flags")
        if isinstance(flags, Mapping):
            for flag in (flag for flag, value in flags.items() if value is True):
                item.name_class(str(flag), tally)
        item.label = item.label or folder_of(found or "")
        for index, shape in enumerate(data["shapes"]):
            _add_shape(item, shape, f"{path.name}: shapes[{index}]", tally)
        items.append(item)
    if not items:
        raise FileNotFoundError(f"{folder} has no json of LabelMe: it must hold one for each image")
    return tool_contents(items, sorted({raw["part"] for item in items for raw in item.raw}))


def _image_path(data: Mapping) -> str:
    value = data.get("imagePath")
    return plain_name(value) if isinstance(value, str) else ""


def _find_image(images: ImageFolder, folder: Path, image_path: str) -> str | None:
    """Return the name below the image root of the file that a json in a folder means, None where there is none.

    A path of another machine, or of a folder that was moved since, means the file of that name beside the json.
    """
    for place in ((folder / image_path).resolve(), (folder / PurePosixPath(image_path).name).resolve()):
        if place.is_relative_to(images.root) and place.is_file():
            return place.relative_to(images.root).as_posix()
    return images.find(image_path)


def _add_shape(item: Item, shape: Any, where: str, tally: ImportCounts) -> None:
    label = shape.get("label") if isinstance(shape, Mapping) else ""
    if not isinstance(label, str) or not label.strip():
        tally.add("no_label", where)
        item.lost += 1
        return
    try:
        points = [(float(x), float(y)) for x, y in shape["points"]]
        raw: dict[str, Any] = {"part": label.strip(), "where": where, "no_box": True}
        kind = shape.get("shape_type") or "polygon"
        if kind in ("polygon", "oriented_rectangle", "rotation"):
            raw["segmentation"] = [[value for point in points for value in point]]
        elif kind == "rectangle":
            if len(points) not in (2, 4):
                raise ValueError("neither two opposite corners nor all four")
            (left, top), (right, bottom) = map(min, zip(*points, strict=True)), map(max, zip(*points, strict=True))
            raw["bbox"] = [left, top, right - left, bottom - top]
        elif kind == "circle":
            (x, y), rim = points
            raw["segmentation"] = [ellipse(x, y, math.dist((x, y), rim), math.dist((x, y), rim))]
        elif kind == "mask":
            raw["segmentation"] = _mask(item, points, shape["mask"])
        else:
            item.add_without_area(raw["part"], f"{where} ({kind})", tally)
            return
    except (*BROKEN_PICTURE, KeyError, TypeError, AttributeError, IndexError, OverflowError):
        tally.add("no_shape", where)
        item.lost += 1
        return
    item.raw.append(raw)


def _mask(item: Item, points: list[tuple[float, float]], code: str) -> dict:
    """A mask is a PNG of the box between two points."""
    with Image.open(io.BytesIO(base64.b64decode(code, validate=True))) as file:
        box = np.asarray(file.convert("L")) > 0
    return pasted(box, round(points[0][0]), round(points[0][1]), item.height, item.width)
