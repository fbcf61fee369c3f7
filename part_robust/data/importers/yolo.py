"""Reads YOLO folders (Ultralytics 8, also as CVAT and Roboflow write them): data.yaml, images and labels.

A line is the number of the part and, as shares of the image's sides, the middle, width and height of a box, or the
points of a polygon; a score or the number of a track may follow.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from part_robust.data.importers.class_rule import read_declaration
from part_robust.data.importers.files import BROKEN_PICTURE, IMAGE_ENDINGS, ImageFolder
from part_robust.data.importers.items import DIVIDE, Contents, Item, Source, origin_of, plain_name, tool_contents
from part_robust.data.importers.numbers import as_name
from part_robust.data.importers.report import ImportCounts

# Keys of a data.yaml; Ultralytics takes `validation` for `val`, and Roboflow has written `valid`.
_SPLITS = (("train", "train"), ("val", "val"), ("valid", "val"), ("validation", "val"), ("test", "test"))


def read_yolo(path: Path, tally: ImportCounts) -> list[tuple[Source, Contents]]:
    """Source and contents of every split that a data.yaml names, by folders of images or lists of them (txt).

    Args:
        path: data.yaml.
        tally: counts images without labels, lines that are broken or of an unknown part.

    Raises:
        FileNotFoundError: the file, a folder or a list does not exist.
        ValueError: not a data.yaml.
    """
    data = read_declaration(path, "--yaml")
    parts = _parts(path, data)
    boxes = "kpt_shape" in data  # the key points of a pose follow its box
    images: dict[str, list[Path]] = {}
    for key, split in _SPLITS:
        if data.get(key) and split not in images:
            values = data[key] if isinstance(data[key], list) else [data[key]]
            images[split] = list(dict.fromkeys(image for value in values for image in _images(path, data, str(value))))
    if not images:
        raise ValueError(f"{path} names no folder of images: it must have `train`, `val` or `test`")
    _count_orphans([image for files in images.values() for image in files], tally)
    found = []
    for split, files in images.items():
        if not files:
            raise ValueError(f"{path}: {split} has no image (endings {', '.join(IMAGE_ENDINGS)})")
        root = Path(os.path.commonpath([file.parent for file in files]))
        if not root.is_dir():
            raise FileNotFoundError(f"{path}: {root}, where the images of {split} should be, does not exist")
        items = [_item(image, root, parts, boxes, tally) for image in files]
        source = Source(path, root, split if len(images) > 1 else DIVIDE)
        found.append((source, tool_contents(items, [parts[i] for i in sorted(parts)])))
    return found


def _parts(path: Path, data: Any) -> dict[int, str]:
    """{number: part}."""
    names = data.get("names") if isinstance(data, Mapping) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, Mapping) or not names or not all(str(number).isdecimal() for number in names):
        raise ValueError(f"{path} must have `names`, a list of the parts or {{number: part}}")
    return {int(number): as_name(name, f"{path}: names[{number}]") for number, name in names.items()}


def _images(path: Path, data: Mapping, value: str) -> Iterator[Path]:
    """Images of a folder, of a list of file names, or a single one."""
    place = _place(path, data, value)
    if place.is_dir():
        yield from (image for image in sorted(place.rglob("*")) if _is_image(image))
    elif place.suffix.lower() in IMAGE_ENDINGS:
        yield place
    else:
        # Names are relative to the list or to the file, and older versions write another folder in front.
        folders = [ImageFolder(root) for root in dict.fromkeys((place.parent, path.parent))]
        for line in _lines(place):
            name = plain_name(line.strip())
            found = (
                folder.root / file
                for folder in folders
                for spelled in (name, name.removeprefix("data/"))
                if (file := folder.find(spelled))
            )
            yield next(found, place.parent / name)  # a missing image is counted with the others


def _place(path: Path, data: Mapping, value: str) -> Path:
    """A folder or list: below `path`, or beside the file, also where a tool wrote "../" too many."""
    base = Path(str(data.get("path") or ""))
    places = [base / value if base.is_absolute() else path.parent / base / value, path.parent / value]
    places.append(path.parent / value.removeprefix("../"))
    for place in places:
        if place.exists():
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


def _count_orphans(images: Sequence[Path], tally: ImportCounts) -> None:
    """Counts label files in the folders of the images' own that no image there has."""
    folders = {(image.parent, label.parent) for image in images if (label := _label_file(image)).parent != image.parent}
    for folder, labels in sorted(folders):
        if labels.is_dir() and folder.is_dir():
            stems = {entry.stem for entry in folder.iterdir() if entry.suffix.lower() in IMAGE_ENDINGS}
            for label in sorted(labels.glob("*.txt")):
                if label.stem not in stems and label.name != "classes.txt":
                    tally.add("mask_without_image", str(label))


def _lines(path: Path) -> list[str]:
    """Lines of a text file that are not empty.

    Raises:
        ValueError: not UTF-8.
    """
    try:
        return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error.reason}") from error


def _item(image: Path, root: Path, parts: Mapping[int, str], boxes: bool, tally: ImportCounts) -> Item:
    item, label = Item(image.relative_to(root).as_posix(), source_id=image.stem), _label_file(image)
    item.origin = origin_of(item.file_name)
    if not label.is_file():
        tally.add("no_mask", f"{item.file_name} ({label} does not exist)")
        return item
    try:
        with Image.open(image) as file:
            item.width, item.height = file.size
            if file.getexif().get(274, 1) in (5, 6, 7, 8):  # Ultralytics turns images as the camera says
                item.width, item.height = item.height, item.width
    except BROKEN_PICTURE:
        return item  # counted as unreadable when its pixels are read
    for index, line in enumerate(_lines(label), start=1):
        _add(item, line.split(), f"{label.name}, line {index}", parts, boxes, tally)
    return item


def _add(item: Item, words: list[str], where: str, parts: Mapping[int, str], boxes: bool, tally: ImportCounts) -> None:
    try:
        number, values = int(float(words[0])), [float(word) for word in words[1:]]
    except (OverflowError, ValueError):
        number, values = -1, []
    if number not in parts:
        tally.add("unknown_category", f"{where}: {' '.join(words[:5])}")
        item.lost += 1
        return
    raw: dict[str, Any] = {"part": parts[number], "where": where}
    if len(values) in (4, 5) or (boxes and len(values) > 5):
        x, y, width, height = (v * side for v, side in zip(values[:4], (item.width, item.height) * 2, strict=True))
        raw["bbox"] = [x - width / 2, y - height / 2, width, height]
    elif len(values) >= 6:
        values = values[: len(values) // 2 * 2]
        sides = (item.width, item.height) * (len(values) // 2)
        raw |= {"segmentation": [[v * side for v, side in zip(values, sides, strict=True)]], "no_box": True}
    else:
        tally.add("no_shape", f"{where}: {len(values)} numbers")
        item.lost += 1
        return
    item.raw.append(raw)
