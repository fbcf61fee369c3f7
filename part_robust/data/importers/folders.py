"""Reads `images/<class>/<name>.jpg` with label maps `masks/<class>/<name>.png`."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from part_robust.data.importers.classes import read_table
from part_robust.data.importers.files import BROKEN_PICTURE, IMAGE_ENDINGS
from part_robust.data.importers.items import Contents, Item, MaskFile, is_background, tool_contents
from part_robust.data.importers.report import ImportCounts

_IGNORED = (255, 65535)  # labels that count nowhere, by custom
_MASK_ENDINGS = (".png", ".tif", ".tiff", ".bmp")
_NO_MASKS = (".gif", ".jpeg", ".jpg", ".npy", ".npz", ".webp")  # other pictures and arrays, by mistake
_UNKNOWN_SHARE = 0.02  # of a mask's pixels in unnamed colours; more is a mask whose colours were changed


def read_folders(root: Path, names_file: Path, background: int, tally: ImportCounts) -> Contents:
    """Items of a folder with `images/` and `masks/`.

    Args:
        root: the folder.
        names_file: csv with the columns `label` and `name`; or `red`, `green`, `blue` and `name` for coloured maps.
        background: label of the background (0, or the number of parts where it is the last); ignored for colours,
            where the csv names it, or the most frequent colour that it does not name is the background.
        tally: counts images without a mask, masks without an image, masks that cannot be read, labels without a name.

    Raises:
        FileNotFoundError: there is no `images/`.
        ValueError: the csv has other columns, or most masks have colours that it does not name.
    """
    if not (root / "images").is_dir():
        raise FileNotFoundError(f"{root / 'images'} does not exist: images must lie in images/<class>/")
    names = read_names(names_file)
    _check_background(names_file, names, background)
    masks = _mask_files(root / "masks", tally)
    items = []
    for path in sorted((root / "images").rglob("*")):
        if path.suffix.lower() not in IMAGE_ENDINGS or not path.is_file():
            continue
        name = path.relative_to(root / "images")
        label = name.parts[0] if len(name.parts) > 1 else None
        item = Item(name.as_posix(), label=label, has_size=False)
        stem = name.with_suffix("").as_posix()
        if stem not in masks:
            tally.add("no_mask", f"{name.as_posix()} ({root / 'masks' / stem}.png does not exist)")
        else:
            _read_map(item, masks.pop(stem), names, background, tally)
        items.append(item)
    if not items:
        raise ValueError(f"{root / 'images'} has no image (endings {', '.join(IMAGE_ENDINGS)})")
    for mask in sorted(masks.values()):
        tally.add("mask_without_image", str(mask))
    return tool_contents(items, sorted(set(names.values())))


def _mask_files(folder: Path, tally: ImportCounts) -> dict[str, Path]:
    """{name without ending: mask} of a folder; counts what cannot be one."""
    masks: dict[str, Path] = {}
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for ending in _MASK_ENDINGS:
        for path in (path for path in files if path.suffix.lower() == ending):
            stem = path.relative_to(folder).with_suffix("").as_posix()
            if masks.setdefault(stem, path) != path:
                tally.add("mask_without_image", f"{path} (there is {masks[stem].name})")
    for path in (path for path in files if path.suffix.lower() in _NO_MASKS):
        tally.add("mask_unreadable", f"{path}: save it as PNG")
    return masks


def _check_background(table: Path, names: dict, background: int) -> None:
    """Raise ValueError where the table of names has a part for the label of the background."""
    name = names.get(background, "background")
    if not is_background(name):
        raise ValueError(
            f"{table} names label {background} {name!r}, and --background {background} says that it is the background: "
            "remove the row, or give --background the label of the background (-1 where there is none)"
        )


def _read_map(item: Item, mask: Path, names: dict, background: int, tally: ImportCounts) -> None:
    """Adds the parts of one label map to an item."""
    coloured = any(isinstance(value, tuple) for value in names)
    try:
        found, counts = _values(str(mask), coloured)
    except BROKEN_PICTURE as error:
        tally.add("mask_unreadable", f"{mask}: {error}")
        item.lost += 1
        return
    unknown = [value for value in found if value not in names]
    if coloured:
        nameless = not any(is_background(name) for name in names.values())
        if unknown and nameless:
            unknown.remove(max(unknown, key=lambda value: (counts[value], value)))
        share = sum(counts[value] for value in unknown) / sum(counts.values())
        if share > _UNKNOWN_SHARE:
            raise ValueError(
                f"{mask}: {share:.0%} of the pixels have colours that the table of names does not have, first "
                f"{unknown[0]}: save the masks without loss (PNG), and name all colours"
            )
        if unknown:
            tally.add("unknown_colour", f"{mask}: {len(unknown)} colours, first {unknown[0]}")
    else:
        unknown = [value for value in unknown if value != background]
        for value in unknown:
            if value not in _IGNORED:
                tally.add("unknown_label", f"{mask}: {value}")
    for value in found:
        where = f"{mask}: {value}"
        if value in names and not is_background(names[value]):
            item.raw.append(
                {"part": names[value], "where": where, "segmentation": MaskFile(read_value, str(mask), value)}
            )
    if unknown:
        key = ("any", tuple(unknown))
        item.raw.append(
            {"part": "", "where": str(mask), "segmentation": MaskFile(read_value, str(mask), key), "ignore": True}
        )


def read_names(path: Path) -> dict:
    """Part name by label, or by (red, green, blue).

    Raises:
        FileNotFoundError: no such file.
        ValueError: other columns, a label that is not a number, one without a name, or one with two names.
    """
    keys: tuple[str, ...]
    try:
        keys, rows = ("label",), read_table(path, ("label", "name"), "--names")
    except ValueError as error:
        if "columns" not in str(error):
            raise
        try:
            keys, rows = ("red", "green", "blue"), read_table(path, ("red", "green", "blue", "name"), "--names")
        except ValueError:
            raise ValueError(f"{str(error).replace('label and name', 'label,name or red,green,blue,name')}") from None
    names: dict[Any, str] = {}
    for line, row in rows:
        try:
            numbers = tuple(int(row[key]) for key in keys)
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {', '.join(keys)} must be whole numbers, got {row}") from error
        if not row["name"]:
            raise ValueError(f"{path}, line {line}: the name is empty")
        value = numbers if len(keys) == 3 else numbers[0]
        if names.setdefault(value, row["name"]) != row["name"]:
            raise ValueError(f"{path}, line {line}: {value} is both {names[value]!r} and {row['name']!r}")
    if not names:
        raise ValueError(f"{path} has no row")
    return names


@lru_cache(maxsize=1)
def _load(path: str, coloured: bool) -> np.ndarray:
    """Labels (H, W), or colours (H, W, 3). The numbers of an indexed PNG are its labels, unless colours are requested.

    Raises:
        ValueError: a coloured mask, where the table has labels.
    """
    with Image.open(path) as file:
        if coloured:
            return np.asarray(file.convert("RGB"))
        pixels = np.asarray(file)
    if pixels.ndim == 2:
        return pixels.astype(np.int64) if pixels.dtype == bool else pixels
    colours = pixels[:, :, : pixels.shape[2] - (pixels.shape[2] in (2, 4))]  # without the opacity
    if (colours != colours[:, :, :1]).any():
        raise ValueError("is a coloured mask, and the table of names has labels: give it red,green,blue,name")
    return colours[:, :, 0]


def _values(path: str, coloured: bool) -> tuple[list, dict]:
    """The labels or colours of a map in ascending order, and the number of pixels of each."""
    pixels = _load(path, coloured)
    if coloured:
        values, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
        found: list = [tuple(int(v) for v in colour) for colour in values]
    else:
        values, counts = np.unique(pixels, return_counts=True)
        found = [int(value) for value in values]
    return found, dict(zip(found, map(int, counts), strict=True))


def read_value(path: str, value: Any) -> np.ndarray:
    """Return bool (H, W), the pixels of one label or colour, or of any of ("any", values)."""
    several = value[1] if isinstance(value, tuple) and value[0] == "any" else (value,)
    coloured = isinstance(several[0], tuple)
    pixels = _load(path, coloured)
    if coloured:
        return np.logical_or.reduce([(pixels == np.asarray(colour)).all(axis=2) for colour in several])
    return np.isin(pixels, several)
