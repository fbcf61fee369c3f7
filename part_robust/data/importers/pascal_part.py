"""Reads Pascal-Part (Chen et al., 2014): `Annotations_Part/*.mat` and VOC 2010's `JPEGImages/*.jpg`.

An image's class is that of its largest object, as in Sitawarin et al. (2023); the parts of the others are neighbours.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat
from tqdm import tqdm

from part_robust.data.importers.items import Contents, Item, MaskFile, tool_contents
from part_robust.data.importers.report import ImportCounts

_NUMBER = re.compile(r"_\d+$")


def read_pascal_part(root: Path, classes: tuple[str, ...], tally: ImportCounts) -> Contents:
    """Items of the data set.

    Args:
        root: folder of `Annotations_Part/` and `JPEGImages/` (or `VOC2010/JPEGImages/`).
        classes: object classes to use; empty takes all.
        tally: counts files that cannot be read and images whose largest object is of no wanted class.

    Raises:
        FileNotFoundError: a folder is missing; says where to get it.
    """
    files = sorted((root / "Annotations_Part").glob("*.mat"))
    if not files:
        raise FileNotFoundError(
            f"no .mat files in {root / 'Annotations_Part'}: unpack trainval.tar.gz of Pascal-Part (roozbehm.info) there"
        )
    items = []
    for path in tqdm(files, desc="reading annotations", unit="file", disable=None):
        try:
            objects = _objects(str(path))
        except Exception as error:  # scipy raises many types for a broken file; all of them mean this one
            tally.add("unreadable_annotation", f"{path}: {error}")
            continue
        target = max(range(len(objects)), key=lambda i: (int(objects[i]["mask"].sum()), -i), default=None)
        if target is None:
            tally.add("no_class", f"{path.name}: no object")
            continue
        name = objects[target]["class"]
        if classes and name not in classes:
            tally.add("class_not_wanted", f"{path.name}: {name}")
            continue
        raw = [
            {
                "part": f"{entry['class']}:{part}",
                "where": f"{path.name}: {part} of object {i + 1}",
                "segmentation": MaskFile(read_part, str(path), (i, j)),
                "is_target": int(i == target),
                "object_id": i + 1,
            }
            for i, entry in enumerate(objects)
            if not classes or entry["class"] in classes
            for j, part in enumerate(entry["names"])
        ]
        items.append(Item(f"{path.stem}.jpg", label=name, raw=raw, key=path.stem, has_size=False))
    return tool_contents(items, sorted({raw["part"] for item in items for raw in item.raw}))


def image_folder(root: Path) -> Path:
    """Return the folder of VOC's images.

    Raises:
        FileNotFoundError: it does not exist.
    """
    for folder in (root / "JPEGImages", root / "VOC2010" / "JPEGImages", root / "VOCdevkit" / "VOC2010" / "JPEGImages"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"{root / 'JPEGImages'} does not exist: unpack the images of VOC 2010 there")


@lru_cache(maxsize=1)
def _objects(path: str) -> list[dict[str, Any]]:
    """Return for every object its class, mask (H, W), and the names and masks of its parts.

    The number of a part that occurs several times ("wheel_2") is left out of its name.
    """
    annotation = loadmat(path, squeeze_me=True, struct_as_record=False)["anno"]
    found = []
    for entry in np.atleast_1d(annotation.objects):
        parts = [part for part in np.atleast_1d(entry.parts) if hasattr(part, "part_name")]
        found.append(
            {
                "class": str(getattr(entry, "class")),
                "mask": np.atleast_2d(entry.mask) > 0,
                "names": [_NUMBER.sub("", str(part.part_name)) for part in parts],
                "masks": [np.atleast_2d(part.mask) > 0 for part in parts],
            }
        )
    return found


def read_part(path: str, key: tuple[int, int]) -> np.ndarray:
    """Return bool (H, W), the mask of one part, (object, part) counted from 0."""
    return _objects(path)[key[0]]["masks"][key[1]]
