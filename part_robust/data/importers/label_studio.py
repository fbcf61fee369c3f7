"""Reads Label Studio's own JSON: rectangles with rotation, polygons, ellipses, brush strokes, and image choices.

Coordinates are percent of the image's width and height. A rectangle turns clockwise about its top left corner. Brush
strokes are a run-length code of an RGBA picture in words of 8 bits; its opacity is the mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from part_robust.data.importers.coco import turned_rectangle
from part_robust.data.importers.items import Contents, Item, plain_name, tool_contents
from part_robust.data.importers.numbers import as_number, as_side
from part_robust.data.importers.report import Tally
from part_robust.data.preparation.segmentation import encode

_ELLIPSE_POINTS = 48


def is_label_studio(data: Any) -> bool:
    """Whether a json value is a list of tasks (and not Label Studio's COCO export)."""
    return isinstance(data, list) and all(isinstance(task, Mapping) and "data" in task for task in data)


def read_label_studio(path: Path, data: list, tally: Tally) -> Contents:
    """Items of exported tasks; the class of an image is its first choice.

    Args:
        path: the file, for messages.
        data: its json value.
        tally: counts results without an area, and broken ones.

    Raises:
        ValueError: a task names no image.
    """
    items = []
    for index, task in enumerate(data):
        name = _image_of(task.get("data") or {})
        if name is None:
            raise ValueError(f"{path}: task {index} (id {task.get('id')!r}) has no image in its `data`")
        item = Item(plain_name(name), source_id=task.get("id"))
        for result in _results(task):
            _add_result(item, result, f"{path.name}: result {result.get('id')!r} on {item.file_name}", tally)
        items.append(item)
    return tool_contents(items, sorted({raw["part"] for item in items for raw in item.raw}))


def _image_of(data: Mapping) -> str | None:
    """The task's image: the value called so, else the only text."""
    texts = {key: value for key, value in data.items() if isinstance(value, str) and value}
    for key in ("image", "img", "url", "image_url"):
        if key in texts:
            return texts[key]
    return next(iter(texts.values()), None)


def _results(task: Mapping) -> Iterator[Mapping]:
    """Results of the first annotation that was not cancelled."""
    for annotation in task.get("annotations") or task.get("completions") or []:
        if isinstance(annotation, Mapping) and not annotation.get("was_cancelled"):
            yield from (result for result in annotation.get("result") or [] if isinstance(result, Mapping))
            return


def _add_result(item: Item, result: Mapping, where: str, tally: Tally) -> None:
    value, kind = result.get("value") or {}, result.get("type")
    item.width = item.width or as_side(result.get("original_width"))
    item.height = item.height or as_side(result.get("original_height"))
    if kind == "choices":
        item.label = item.label or next(iter(value.get("choices") or []), None)
        return
    labels = value.get(kind) if isinstance(kind, str) else None
    if not labels or kind not in ("rectanglelabels", "polygonlabels", "ellipselabels", "brushlabels"):
        tally.add("shape_kind", where)
        return
    raw = {"part": str(labels[0]), "where": where, "no_box": True}
    try:
        raw |= _shape(kind, value, item, tally, where)
    except (KeyError, ValueError, TypeError, IndexError):
        tally.add("no_shape", where)
        item.lost += 1
        return
    item.raw.append(raw)


def _shape(kind: str, value: Mapping, item: Item, tally: Tally, where: str) -> dict:
    if not item.width or not item.height:
        raise ValueError("percent of an unknown size")
    if kind == "brushlabels":
        return {"segmentation": encode(brush_mask(value["rle"], item.height, item.width))}
    across, down = item.width / 100, item.height / 100
    if kind == "polygonlabels":
        return {"segmentation": [[v for x, y in value["points"] for v in (x * across, y * down)]]}
    x, y = value["x"] * across, value["y"] * down
    angle = as_number(value.get("rotation")) or 0
    if kind == "ellipselabels":
        return {"segmentation": [_ellipse(x, y, value["radiusX"] * across, value["radiusY"] * down, angle)]}
    width, height = value["width"] * across, value["height"] * down
    if not angle:
        return {"bbox": [x, y, width, height]}
    tally.add("turned_box", where)
    return {"segmentation": [turned_rectangle(x, y, width, height, angle, (x, y))]}


def _ellipse(x: float, y: float, radius_x: float, radius_y: float, degrees: float) -> list[float]:
    turn, polygon = math.radians(degrees), []
    for step in range(_ELLIPSE_POINTS):
        angle = 2 * math.pi * step / _ELLIPSE_POINTS
        right, down = radius_x * math.cos(angle), radius_y * math.sin(angle)
        polygon += [
            x + right * math.cos(turn) - down * math.sin(turn),
            y + right * math.sin(turn) + down * math.cos(turn),
        ]
    return polygon


def brush_mask(code: list[int], height: int, width: int) -> np.ndarray:
    """uint8 0/1 (H, W) of a brush stroke.

    The code is a stream of bits: 32 for the number of values, 5 for their width less one, four times 4 for the widths
    of run lengths less one; then runs: one bit tells a repeated value from a list, two choose the width of the
    length, the length less one, and the value or values.

    Raises:
        ValueError: the code is broken, or its picture has another size.
    """
    bits = np.unpackbits(np.asarray(code, dtype=np.uint8))
    position = 0

    def take(count: int) -> int:
        nonlocal position
        if position + count > bits.size:
            raise ValueError("the code is cut")
        number = int("".join(map(str, bits[position : position + count])), 2)
        position += count
        return number

    total, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    if total != height * width * 4:
        raise ValueError(f"the code has {total} values, the image {height * width * 4}")
    values = np.zeros(total, dtype=np.uint8)
    done = 0
    while done < total:
        repeated = take(1)
        length = take(sizes[take(2)]) + 1
        if repeated:
            values[done : done + length] = take(word) & 255
        else:
            values[done : done + length] = [take(word) & 255 for _ in range(length)]
        done += length
    return (values.reshape(height, width, 4)[:, :, 3] > 127).astype(np.uint8)
