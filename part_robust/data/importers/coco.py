"""Reads the COCO jsons of CVAT (and Datumaro) and of Label Studio, whose habits COCO's own tools do not expect.

CVAT: drawn masks are run-length codes with lists of counts and `iscrowd` 1, though they are no crowds; the class can be
an attribute. Label Studio: all ids begin at 0, rectangles have an empty `segmentation`, brush masks are not exported.
"""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from part_robust.data.importers.items import Item, ItemPart
from part_robust.data.preparation.report import Tally


def read_tool_json(path: Path, class_from: str, tally: Tally) -> list[Item]:
    """Items of one exported json.

    Args:
        path: json.
        class_from: where an image's class is: "folder" (the one its file lies in), "supercategory" (that of most of its
            parts), "attribute:NAME" (of its annotations), "csv:FILE" (columns file_name and class), or "always:CLASS".
        tally: counts images without a class and annotations without an image, a category or a shape.

    Raises:
        ValueError: the json or the csv is broken, or `class_from` is none of these.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        categories = {c["id"]: c for c in data["categories"]}
        images = {i["id"]: i for i in data["images"]}
        annotations = data["annotations"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no COCO json ({type(error).__name__}: {error})") from error
    class_of = _class_finder(class_from)
    by_image: dict[Any, list[dict]] = defaultdict(list)
    for annotation in annotations:
        where = f"annotation {annotation.get('id')}"
        if annotation.get("image_id") not in images:
            tally.add("unknown_image", where)
        elif annotation.get("category_id") not in categories:
            tally.add("unknown_category", where)
        elif not annotation.get("segmentation") and not annotation.get("bbox"):
            tally.add("no_shape", where)
        else:
            by_image[annotation["image_id"]].append(annotation)
    items = []
    for identifier, image in images.items():
        name = PurePosixPath(str(image["file_name"]).replace("\\", "/")).as_posix()
        found = class_of(name, by_image[identifier], categories)
        if not found:
            tally.add("no_class", name)
            continue
        parts = [
            ItemPart(_part_name(categories, a["category_id"]), a.get("segmentation") or None, a.get("bbox"))
            for a in by_image[identifier]
        ]
        items.append(Item(name, name, found, parts))
    return items


def _part_name(categories: dict, identifier: Any) -> str:
    """The category's name, with its parent's in front where the name alone would not be unique."""
    name, parent = str(categories[identifier]["name"]), str(categories[identifier].get("supercategory") or "")
    twins = sum(str(c["name"]) == name for c in categories.values())
    return f"{parent}:{name}" if twins > 1 and parent else name


def _class_finder(class_from: str) -> Callable[[str, list[dict], dict], str]:
    kind, _, value = class_from.partition(":")
    if class_from == "folder":
        return lambda name, annotations, categories: PurePosixPath(name).parent.name
    if class_from == "supercategory":
        return lambda name, annotations, categories: _most_common(
            str(categories[a["category_id"]].get("supercategory") or "") for a in annotations
        )
    if kind == "attribute" and value:
        return lambda name, annotations, categories: _most_common(_attribute(a, value) for a in annotations)
    if kind == "csv" and value:
        table = _read_table(Path(value))
        return lambda name, annotations, categories: table.get(name) or table.get(PurePosixPath(name).name, "")
    if kind == "always" and value:
        return lambda name, annotations, categories: value
    raise ValueError(
        f"class-from must be folder, supercategory, attribute:NAME, csv:FILE or always:CLASS, is {class_from!r}"
    )


def _attribute(annotation: dict, name: str) -> str:
    """Text of a text attribute, name of a check box that is ticked."""
    value = (annotation.get("attributes") or {}).get(name)
    return name if value is True else str(value) if value not in (None, False, "") else ""


def _most_common(values) -> str:
    """Of several equally common ones the first in the alphabet."""
    counts = Counter(value for value in values if value)
    return min(counts, key=lambda value: (-counts[value], value), default="")


def _read_table(path: Path) -> dict[str, str]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if not {"file_name", "class"} <= set(rows.fieldnames or ()):
            raise ValueError(f"{path} must have the columns file_name and class, has {rows.fieldnames}")
        return {row["file_name"]: row["class"] for row in rows}
