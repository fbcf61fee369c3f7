"""Reads `images/<class>/<name>.jpg` with label maps `masks/<class>/<name>.png`."""

from __future__ import annotations

import csv
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from part_robust.data.importers.items import Item, ItemPart, MaskFile
from part_robust.data.preparation.report import Tally

_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_IGNORED = (255, 65535)  # labels that count nowhere, by custom


def read_folders(root: Path, names_file: Path, background: int, tally: Tally) -> list[Item]:
    """Items of a folder with `images/` and `masks/`.

    Args:
        root: the folder.
        names_file: csv with the columns `label` and `name`; or `red`, `green`, `blue` and `name` for coloured maps.
        background: label of the background (0, or the number of parts where it is the last); ignored for colours,
            where every colour that the csv does not name is background.
        tally: counts images without a mask, masks that cannot be read, labels without a name.

    Raises:
        FileNotFoundError: there is no `images/`.
        ValueError: the csv has other columns.
    """
    if not (root / "images").is_dir():
        raise FileNotFoundError(f"{root / 'images'} does not exist: images must lie in images/<class>/")
    names = read_names(names_file)
    items = []
    for path in sorted((root / "images").glob("*/*")):
        if path.suffix.lower() not in _IMAGE_ENDINGS:
            continue
        class_name, file_name = path.parent.name, path.relative_to(root / "images").as_posix()
        mask = root / "masks" / class_name / f"{path.stem}.png"
        parts = []
        if not mask.is_file():
            tally.add("no_mask", file_name)
        else:
            try:
                found = _values(str(mask))
            except OSError as error:
                tally.add("bad_mask", f"{mask}: {error}")
                found = []
            for value in found:
                if value in names:
                    parts.append(ItemPart(names[value], MaskFile(read_value, str(mask), value)))
                elif isinstance(value, int) and value != background and value not in _IGNORED:
                    tally.add("unknown_label", f"{mask}: {value}")
        items.append(Item(file_name, file_name, class_name, parts))
    return items


def read_names(path: Path) -> dict:
    """Part name by label, or by (red, green, blue)."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    columns = set(rows[0]) if rows else set()
    if {"label", "name"} <= columns:
        return {int(row["label"]): row["name"] for row in rows}
    if {"red", "green", "blue", "name"} <= columns:
        return {(int(row["red"]), int(row["green"]), int(row["blue"])): row["name"] for row in rows}
    raise ValueError(f"{path} must have the columns label,name or red,green,blue,name, has {sorted(columns)}")


@lru_cache(maxsize=1)
def _load(path: str) -> np.ndarray:
    """Labels (H, W), or colours (H, W, 3). The numbers of an indexed PNG are its labels, not its palette's colours."""
    with Image.open(path) as file:
        image = file.convert("RGB") if file.mode in ("RGBA", "RGB") else file
        return np.asarray(image)


def _values(path: str) -> list:
    pixels = _load(path)
    if pixels.ndim == 2:
        return [int(value) for value in np.unique(pixels)]
    return [tuple(int(v) for v in colour) for colour in np.unique(pixels.reshape(-1, 3), axis=0)]


def read_value(path: str, value) -> np.ndarray:
    """bool (H, W): pixels of one label or colour."""
    pixels = _load(path)
    return pixels == value if pixels.ndim == 2 else (pixels == np.asarray(value)).all(axis=2)
