"""Reads Label Studio's own JSON: rectangles with rotation, polygons, ellipses, brush strokes, bit masks, image choices.

Coordinates are percent of the image's width and height. A rectangle turns clockwise about its top left corner. Brush
strokes are a run-length code of an RGBA picture in words of 8 bits, bit masks a PNG as a data URL; the opacity of
either is the mask. Several results can be of one region, which has one id: its outline, its labels, and choices.
"""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from part_robust.data.importers.files import BROKEN_PICTURE, IMAGE_ENDINGS
from part_robust.data.importers.items import Contents, Item, plain_name, tool_contents
from part_robust.data.importers.numbers import as_number, as_side
from part_robust.data.importers.report import ImportCounts
from part_robust.data.importers.shapes import check_picture_size, ellipse, turned_rectangle
from part_robust.data.preparation.segmentation import encode

_NAMES_OF_IMAGE = ("image", "img", "url", "image_url")
# What describes a region; all results of one region have it alike.
_OUTLINE = frozenset(
    ("x", "y", "width", "height", "rotation", "radiusX", "radiusY", "points", "rle", "vertices", "imageDataURL")
)

# What a broken outline raises.
_BROKEN = (*BROKEN_PICTURE, KeyError, TypeError, IndexError, OverflowError, AttributeError)


def is_label_studio(data: Any) -> bool:
    """Return whether a json value is a list of tasks (and not Label Studio's COCO export)."""
    return isinstance(data, list) and all(isinstance(task, Mapping) and "data" in task for task in data)


def read_label_studio(path: Path, data: list, tally: ImportCounts) -> Contents:
    """Items of exported tasks; the class of an image is its choice.

    Args:
        path: the file, for messages.
        data: its json value.
        tally: counts what has no area, no label, several labels or several annotators, and what is broken.

    Raises:
        ValueError: a task names no image, or several without saying which one the results are on.
    """
    items: list[Item] = []
    tags = {str(result.get("to_name")) for task in data for result in _all_results(task) if _outline(result)}
    for index, task in enumerate(data):
        names = _images_of(task.get("data"), tags, f"{path}: task {index} (id {task.get('id')!r})")
        found = {place: Item(plain_name(name), source_id=task.get("id")) for place, name in names.items()}
        _add_results(found, _results(names, task, path.name, tally), path.name, tally)
        items += found.values()
    return tool_contents(items, sorted({raw["part"] for item in items for raw in item.raw}))


def _images_of(data: Any, tags: Set[str], where: str) -> dict[str, str]:
    """The images of a task by the place that its results name: "" is the only one.

    The only image is the value called so, else the first that looks like a file of one, else the only text. With
    regions on several image tags of a project these must be called as the keys of `data`; the pages of a list of
    images are "0", "1", ..., which results name by their `item_index`.

    Raises:
        ValueError: there is none, or it is unknown which of several the results are on.
    """
    data = data if isinstance(data, Mapping) else {}
    texts = {key: value for key, value in data.items() if isinstance(value, str) and value}
    files = list(dict.fromkeys(value for value in texts.values() if _is_image(value)))
    if len(tags) > 1 and len(files) > 1:
        if not tags <= set(texts):
            raise ValueError(
                f"{where} has several images, and results on {', '.join(sorted(tags))}: its `data` must have these as "
                "keys, or export a task for each image"
            )
        return {tag: texts[tag] for tag in sorted(tags)}
    named = [texts[key] for key in (*sorted(tags), *_NAMES_OF_IMAGE) if key in texts]
    single = next(iter([*named, *files, *(texts.values() if len(texts) == 1 else ())]), None)
    if single is not None:
        return {"": single}
    for pages in data.values():
        if isinstance(pages, list) and pages and all(isinstance(page, str) and _is_image(page) for page in pages):
            return {str(index): page for index, page in enumerate(pages)}
    raise ValueError(f"{where} has no image in its `data`")


def _is_image(text: str) -> bool:
    return text.partition("?")[0].lower().endswith(IMAGE_ENDINGS)


def _annotations(task: Mapping) -> list[Mapping]:
    return _mappings(task.get("annotations") or task.get("completions"))


def _all_results(task: Mapping) -> list[Mapping]:
    return [result for annotation in _annotations(task) for result in _mappings(annotation.get("result"))]


def _results(names: Mapping[str, str], task: Mapping, where: str, tally: ImportCounts) -> list[Mapping]:
    """Results of the ground truth, else of the first annotation that was not cancelled; the others are counted."""
    found = [entry for entry in _annotations(task) if not entry.get("was_cancelled")]
    found.sort(key=lambda entry: not entry.get("ground_truth"))
    for entry in found[1:]:
        tally.add("further_annotations", f"{where}: annotation {entry.get('id')!r} of {', '.join(names.values())}")
    return _mappings(found[0].get("result")) if found else []


def _mappings(value: Any) -> list[Mapping]:
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []


def _value(result: Mapping) -> Mapping:
    value = result.get("value")
    return value if isinstance(value, Mapping) else {}


def _texts(result: Mapping, key: Any) -> list[str]:
    """Labels or choices of a result."""
    found = _value(result).get(key) if isinstance(key, str) else None
    return [text for text in found if isinstance(text, str) and text.strip()] if isinstance(found, list) else []


def _outline(result: Mapping) -> dict:
    return {key: value for key, value in _value(result).items() if key in _OUTLINE}


def _add_results(items: Mapping[str, Item], results: Sequence[Mapping], source: str, tally: ImportCounts) -> None:
    """Adds class and parts of one annotation to the items that its results name, see `_images_of`."""
    regions: dict[tuple[str, str, str], list[Mapping]] = defaultdict(list)
    for result in results:
        page = result.get("item_index", None if result.get("type") == "choices" else 0)
        places = (str(result.get("to_name")), str(page), "")
        place = next((place for place in places if place in items), None)
        if place is None and result.get("type") != "choices":
            tally.add("unknown_image", f"{source}: result {result.get('id')!r} on {result.get('to_name')!r}")
            continue
        # A choice that is of none of the images is one of the task.
        chosen = list(items.values()) if place is None else [items[place]]
        for item in chosen:
            item.width = item.width or as_side(result.get("original_width"))
            item.height = item.height or as_side(result.get("original_height"))
        outline = _outline(result)
        if outline and place is not None:
            regions[place, str(result.get("id")), repr(sorted(outline.items()))].append(result)
        elif result.get("type") == "choices":
            for item in chosen:
                for choice in _texts(result, "choices"):
                    item.name_class(choice, tally)
        else:
            tally.add("shape_kind", _where(source, result, chosen[0]))
    for (place, _, _), region in regions.items():
        _add_region(items[place], region, _where(source, region[0], items[place]), tally)


def _where(source: str, result: Mapping, item: Item) -> str:
    return f"{source}: result {result.get('id')!r} on {item.file_name}"


def _add_region(item: Item, results: Sequence[Mapping], where: str, tally: ImportCounts) -> None:
    """Adds the part that the results of one region describe."""
    labels = [text for r in results if str(r.get("type")).endswith("labels") for text in _texts(r, r.get("type"))]
    attributes = {str(r.get("from_name")): text for r in results for text in _texts(r, "choices")[:1]}
    raw: dict[str, Any] = {"part": next(iter(labels), ""), "where": where, "no_box": True}
    raw |= {"attributes": attributes} if attributes else {}
    reason = "" if labels else "no_label"
    if any(as_number(result.get("image_rotation")) for result in results):
        reason = "turned_view"
    shape = None
    try:
        shape = None if reason else _shape(_value(results[0]), item, tally, where)
    except _BROKEN:
        reason = "no_shape"
    if reason:
        tally.add(reason, where)
        item.lost += 1
    elif shape is None:
        item.add_without_area(raw["part"], where, tally)
    else:
        if len(labels) > 1:
            tally.add("several_labels", f"{where}: {', '.join(labels)}")
        item.raw.append(raw | shape)


def _shape(value: Mapping, item: Item, tally: ImportCounts, where: str) -> dict | None:
    """The area that a value describes; None where it has none.

    Raises:
        KeyError, ValueError, TypeError, IndexError, OverflowError, AttributeError, OSError, SyntaxError,
            Image.DecompressionBombError: it is broken.
    """
    if not item.width or not item.height:
        raise ValueError("percent of an unknown size")
    across, down = item.width / 100, item.height / 100
    if "rle" in value:
        return {"segmentation": encode(brush_mask(value["rle"], item.height, item.width))}
    if "imageDataURL" in value:
        return {"segmentation": encode(bit_mask(value["imageDataURL"], item.height, item.width))}
    if "points" in value:
        return {"segmentation": [[v for x, y in value["points"] for v in (x * across, y * down)]]}
    angle = as_number(value.get("rotation")) or 0
    if "radiusX" in value:
        x, y = value["x"] * across, value["y"] * down
        return {"segmentation": [ellipse(x, y, value["radiusX"] * across, value["radiusY"] * down, angle)]}
    if not {"x", "y", "width", "height"} <= set(value):
        return None
    x, y, width, height = (
        value[key] * scale for key, scale in (("x", across), ("y", down), ("width", across), ("height", down))
    )
    if not angle:
        return {"bbox": [x, y, width, height]}
    tally.add("turned_box", where)
    return {"segmentation": [turned_rectangle(x, y, width, height, angle, (x, y))]}


def brush_mask(code: list[int], height: int, width: int) -> np.ndarray:
    """uint8 0/1 (H, W) of a brush stroke.

    The code is a stream of bits: 32 for the number of values, 5 for their width less one, four times 4 for the widths
    of run lengths less one; then runs: one bit tells a repeated value from a list, two choose the width of the
    length, the length less one, and the value or values.

    Raises:
        ValueError: the code is broken, or its picture has another size.
    """
    check_picture_size(height, width)
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


def bit_mask(url: str, height: int, width: int) -> np.ndarray:
    """uint8 0/1 (H, W) of a picture in a data URL, "data:image/png;base64,...": black on transparent ground.

    Raises:
        ValueError, OSError, SyntaxError, Image.DecompressionBombError: the picture is broken, has another size, or
            nothing in it can be transparent.
    """
    code = url.rpartition(",")[2]
    with Image.open(io.BytesIO(base64.b64decode(code, validate=True))) as file:
        if file.size != (width, height) or not file.has_transparency_data:
            raise ValueError(f"the mask is {file.size} in mode {file.mode}, the image {(width, height)}")
        opacity = np.asarray(file.convert("RGBA"))[:, :, 3]
    return (opacity > 127).astype(np.uint8)
