"""Reads COCO instances jsons whose categories are parts: plain ones, and those of CVAT, Label Studio and Roboflow.

CVAT: drawn masks are run-length codes with lists of counts and `iscrowd` 1, though they are not crowds; the class can
be an attribute; a turned rectangle has its angle in the attribute `rotation`. Label Studio: all ids begin at 0,
rectangles have an empty `segmentation`. Roboflow: numbers as text, and a root category 0 that names the project.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from part_robust.data.importers.items import Contents, Item, is_background, origin_of, plain_name
from part_robust.data.importers.numbers import as_identifier, as_name, as_number, as_side, is_set
from part_robust.data.importers.report import ImportCounts
from part_robust.data.importers.shapes import rotation_of, turned
from part_robust.data.part_json import parse_json

_REQUIRED = {"images": "file_name", "annotations": "image_id", "categories": "name"}


def read_coco(path: Path) -> dict:
    """Parses a COCO json.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not json, or without images, annotations and categories.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--json {path} does not exist")
    data = parse_json(path)
    for key, required in _REQUIRED.items():
        entries = data.get(key) if isinstance(data, Mapping) else None
        if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
            raise ValueError(f"{path} is not a COCO instances file: it has no list of objects {key!r}")
        for index, entry in enumerate(entries):
            if required not in entry or (key != "annotations" and "id" not in entry):
                raise ValueError(f"{path}: {key}[{index}] has no {'id' if required in entry else required!r}")
    return data


def coco_contents(path: Path, data: Mapping, tally: ImportCounts, twins: str = "join") -> Contents:
    """Items and part names of a parsed COCO json.

    Args:
        path: for messages.
        data: what `read_coco` gave.
        tally: receives what was repaired or left out.
        twins: what two categories of one name are: one part ("join"), or, where their supercategories differ, two parts
            with the supercategory in front ("prefix").

    Raises:
        ValueError: two entries have one id, a name is empty, or the coordinates are not pixels.
    """
    names = part_names(path, data, tally, twins)
    items = _items(path, data, names, tally)
    _require_pixels(path, items)
    parts = list(dict.fromkeys(name for name in names.values() if name is not None))
    supercategories: dict[str, str] = {}
    for category in data["categories"]:
        part = names[as_identifier(category["id"], f"{path}: a category")]
        if part is not None and category.get("supercategory"):
            supercategories.setdefault(part, str(category["supercategory"]).strip())
    counts = {key: len(data[key]) for key in ("images", "annotations", "categories")}
    return Contents(items, parts, supercategories, data, counts)


def part_names(path: Path, data: Mapping, tally: ImportCounts, twins: str = "join") -> dict[int | str, str | None]:
    """{category id: part name, None for background and root categories}, in the order of the ids.

    Raises:
        ValueError: one id has two names, or a name is empty.
    """
    entries = []
    for index, category in enumerate(data["categories"]):
        where = f"{path}: categories[{index}]"
        identifier = as_identifier(category["id"], where)
        name = as_name(category["name"], f"{where} (id {category['id']!r})")
        entries.append((identifier, name, str(category.get("supercategory") or "").strip(), category["id"]))
    entries.sort(key=lambda entry: (isinstance(entry[0], str), entry[0]))
    parents: dict[str, set[str]] = {}
    for _, name, parent, _ in entries:
        parents.setdefault(name, set()).add(parent)
    roots = _root_ids(path, data, entries)
    names: dict[int | str, str | None] = {}
    listed: dict[int | str, str] = {}
    seen: set[str] = set()
    for identifier, bare, parent, given in entries:
        if listed.setdefault(identifier, bare) != bare:
            first = listed[identifier]
            raise ValueError(f"{path}: category id {given!r} is both {first!r} and {bare!r}: give one another id")
        if identifier in roots or is_background(bare):
            tally.add("root_category" if identifier in roots else "background_category", f"{path.name}: {bare}")
            names[identifier] = None
            continue
        name = f"{parent}:{bare}" if twins == "prefix" and len(parents[bare]) > 1 and parent else bare
        if name in seen:
            tally.add("duplicate_category", f"{path.name}: {name}")
        elif not isinstance(given, int) or given < 1:
            tally.add("category_id", f"{path.name}: {name} has id {given!r}")
        seen.add(name)
        names[identifier] = name
    return names


def _root_ids(path: Path, data: Mapping, entries: list) -> set[int | str]:
    """Roboflow's root: without annotations, without a parent, and the parent of other categories."""
    used = set()
    for annotation in data["annotations"]:
        if isinstance(annotation.get("category_id"), (str, int, float)):
            used.add(as_identifier(annotation["category_id"], str(path)))
    parents = {parent for _, name, parent, _ in entries if parent != name}
    return {
        identifier
        for identifier, name, parent, _ in entries
        if name in parents and parent.lower() in ("", "none") and identifier not in used
    }


def _items(path: Path, data: Mapping, names: Mapping, tally: ImportCounts) -> list[Item]:
    """The images of a source with their raw annotations, sorted by file name.

    Raises:
        ValueError: two files have one id.
    """
    by_id: dict[int | str, Item] = {}
    by_name: dict[str, Item] = {}
    for index, entry in enumerate(data["images"]):
        if not isinstance(entry["file_name"], str) or not entry["file_name"].strip():
            raise ValueError(f"{path}: images[{index}] has the file_name {entry['file_name']!r}: it must be a text")
        if "\\" in entry["file_name"]:
            tally.add("backslash_in_file_name", entry["file_name"])
        file_name = plain_name(entry["file_name"])
        given = entry["id"]
        identifier = as_identifier(given, f"{path}: images[{index}] ({file_name})")
        if not isinstance(given, int) or given < 1:
            tally.add("image_id", f"{file_name} has id {given!r}")
        if identifier in by_id and by_id[identifier].file_name != file_name:
            first = by_id[identifier].file_name
            raise ValueError(
                f"{path}: image id {given!r} is both {first} and {file_name}, so it is unknown which image its "
                "annotations belong to: give one of them another id"
            )
        if file_name in by_name:
            tally.add("duplicate_image_entry", file_name)
        else:
            by_name[file_name] = Item(file_name, as_side(entry.get("width")), as_side(entry.get("height")), given)
            by_name[file_name].origin = origin_of(file_name)
        by_id[identifier] = by_name[file_name]
    _attach(path, data, names, by_id, tally)
    return [by_name[name] for name in sorted(by_name)]


def _attach(path: Path, data: Mapping, names: Mapping, by_id: Mapping[int | str, Item], tally: ImportCounts) -> None:
    parents = {
        as_identifier(category["id"], str(path)): str(category.get("supercategory") or "").strip()
        for category in data["categories"]
    }
    ids: set = set()
    contents: set[tuple] = set()
    for index, annotation in enumerate(data["annotations"]):
        given = annotation.get("id")
        where = f"{path.name}: annotation {given!r}"
        identifier = _identifier_or_none(given)
        if identifier is not None and identifier in ids:
            tally.add("duplicate_annotation_id", where)
        elif not isinstance(given, int) or isinstance(given, bool) or given < 1:
            tally.add("annotation_id", f"{path.name}: annotations[{index}] has id {given!r}")
        ids.add(identifier)
        image_id = _identifier_or_none(annotation["image_id"])
        item = None if image_id is None else by_id.get(image_id)
        if item is None:
            tally.add("unknown_image", f"{where}, image_id {annotation['image_id']!r}")
            continue
        category = _identifier_or_none(annotation.get("category_id"))
        if category is None or category not in names:
            tally.add("unknown_category", f"{where}, category_id {annotation.get('category_id')!r}")
            item.lost += 1
            continue
        if names[category] is None:
            tally.add("background_annotation", where)
            continue
        crowd = is_set(annotation.get("iscrowd", 0))
        drawn = (annotation.get("segmentation"), annotation.get("bbox"), crowd)
        content = (item.file_name, names[category], json.dumps(drawn, sort_keys=True))
        if content in contents:
            tally.add("duplicate_annotation", where)
            continue
        contents.add(content)
        raw = {**annotation, "part": names[category], "where": f"{where} on {item.file_name}"}
        item.raw.append({**turned(raw, rotation_of(raw), tally), "supercategory": parents[category]})


def _identifier_or_none(value: Any) -> int | str | None:
    try:
        return as_identifier(value, "")
    except ValueError:
        return None


def _require_pixels(path: Path, items: list[Item]) -> None:
    """Raises ValueError where most coordinates lie between 0 and 1, or boxes are given by two corners."""
    kinds: Counter[str] = Counter()
    for item in items:
        for raw in item.raw:
            kinds[_kind(raw)] += 1
    total = sum(kinds.values())
    if kinds["normalised"] * 2 > total:
        raise ValueError(
            f"{path}: the coordinates of {kinds['normalised']} of {total} annotations lie between 0 and 1, so they "
            "look normalised: multiply them by the image's width and height"
        )
    if kinds["corners"] and kinds["corners"] * 2 > kinds["corners"] + kinds["sides"]:
        raise ValueError(
            f"{path}: the area of {kinds['corners']} boxes is that of [left, top, right, bottom], not of COCO's "
            "[left, top, width, height]: subtract the corner"
        )


def _kind(raw: Mapping) -> str:
    """Return "normalised" for such coordinates, or a box without mask as "corners" or "sides" by its area; else ""."""
    segmentation, box = raw.get("segmentation"), raw.get("bbox")
    values: list = []
    if isinstance(segmentation, list):
        for polygon in segmentation:
            values += polygon if isinstance(polygon, list) else [polygon]
    if not values and not segmentation and isinstance(box, list) and len(box) == 4:
        values = box
    numbers = [number for number in map(as_number, values) if number is not None]
    if len(numbers) >= 4 and min(numbers) >= 0 and max(numbers) <= 1 and any(n != int(n) for n in numbers):
        return "normalised"
    area = as_number(raw.get("area"))
    if segmentation or values is not box or len(numbers) != 4 or not area:
        return ""
    x, y, right, bottom = numbers
    if abs(right * bottom - area) <= 0.02 * area:
        return "sides"
    return "corners" if abs((right - x) * (bottom - y) - area) <= 0.02 * area else ""
