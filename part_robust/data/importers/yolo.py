"""Reads YOLO folders (Ultralytics): data.yaml, images/ and labels/ side by side, segmentation or detection lines.

A line is the number of the part and, as shares of the image's sides, the middle, width and height of a box, or the
points of a polygon.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from part_robust.data.importers.class_rule import read_declaration
from part_robust.data.importers.files import IMAGE_ENDINGS
from part_robust.data.importers.items import DIVIDE, Contents, Item, Source, tool_contents
from part_robust.data.importers.report import Tally

_SPLITS = (("train", "train"), ("val", "val"), ("valid", "val"), ("test", "test"))


def read_yolo(path: Path, tally: Tally) -> list[tuple[Source, Contents]]:
    """Source and contents of every split that a data.yaml names.

    Raises:
        FileNotFoundError: the file, or the folder of a split does not exist.
        ValueError: not a data.yaml.
    """
    data = read_declaration(path, "--yaml")
    names = data.get("names") if isinstance(data, Mapping) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, Mapping) or not names or not all(isinstance(number, int) for number in names):
        raise ValueError(f"{path} must have `names`, a list of the parts or {{number: part}}")
    parts = {number: str(name).strip() for number, name in names.items()}
    found: list[tuple[Source, Contents]] = []
    for key, split in _SPLITS:
        if isinstance(data.get(key), str) and split not in [source.split for source, _ in found]:
            folder = _folder(path, data, data[key])
            images = {image: _label_file(image) for image in sorted(folder.rglob("*")) if _is_image(image)}
            items = [_item(image, label, folder, parts, tally) for image, label in images.items()]
            found.append((Source(path, folder, split), tool_contents(items, [parts[i] for i in sorted(parts)])))
    if not found:
        raise ValueError(f"{path} names no folder of images: it must have `train`, `val` or `test`")
    if len(found) == 1:
        found = [(Source(path, found[0][0].image_root, DIVIDE), found[0][1])]
    return found


def _folder(path: Path, data: Mapping, value: str) -> Path:
    """The images of a split: below `path`, or beside the file, also where a tool wrote "../" too many."""
    base = Path(str(data.get("path") or ""))
    places = [base / value if base.is_absolute() else path.parent / base / value, path.parent / value]
    places.append(path.parent / value.removeprefix("../"))
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(f"{path}: the folder of images {value} does not exist, looked for {places[0]}")


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_ENDINGS and path.is_file()


def _label_file(image: Path) -> Path:
    """images/ becomes labels/, the last of that name."""
    parts = list(image.parts)
    for index in reversed(range(len(parts) - 1)):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _item(image: Path, label: Path, folder: Path, parts: Mapping[int, str], tally: Tally) -> Item:
    item = Item(image.relative_to(folder).as_posix(), source_id=image.stem)
    if not label.is_file():
        tally.add("no_mask", f"{item.file_name} ({label} does not exist)")
        return item
    try:
        with Image.open(image) as file:
            item.width, item.height = file.size
            if file.getexif().get(274, 1) in (5, 6, 7, 8):  # Ultralytics turns images as the camera says
                item.width, item.height = item.height, item.width
    except (OSError, SyntaxError, ValueError):
        return item  # counted as unreadable when its pixels are read
    for index, line in enumerate(label.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if line.strip():
            _add(item, line.split(), f"{label.name}, line {index}", parts, tally)
    return item


def _add(item: Item, words: list[str], where: str, parts: Mapping[int, str], tally: Tally) -> None:
    try:
        number, values = int(float(words[0])), [float(word) for word in words[1:]]
    except ValueError:
        number, values = -1, []
    if number not in parts:
        tally.add("unknown_category", f"{where}: {' '.join(words[:5])}")
        item.lost += 1
        return
    raw: dict[str, Any] = {"part": parts[number], "where": where}
    if len(values) == 4:
        x, y, width, height = (v * side for v, side in zip(values, (item.width, item.height) * 2, strict=True))
        raw["bbox"] = [x - width / 2, y - height / 2, width, height]
    elif len(values) >= 6 and len(values) % 2 == 0:
        sides = (item.width, item.height) * (len(values) // 2)
        raw |= {"segmentation": [[v * side for v, side in zip(values, sides, strict=True)]], "no_box": True}
    else:
        tally.add("no_shape", f"{where}: {len(values)} numbers")
        item.lost += 1
        return
    item.raw.append(raw)
