"""What every importer of users' annotations has in common: items in, a prepared data set out.

A reader of a format yields `Item`s; here they get ids, splits and masks through the same pipeline as the public data
sets, so an import is resumable, leak-free by source and the same for any number of workers.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from part_robust.data.preparation.images import check_image
from part_robust.data.preparation.journal import dump
from part_robust.data.preparation.pipeline import Preparation, Sample, prepare
from part_robust.data.preparation.report import Tally
from part_robust.data.preparation.segmentation import SkippedError, box_mask, decode, part_annotation, tight
from part_robust.data.preparation.splits import RATIOS, check_ratios, join_groups, split_of_group


class MaskFile(NamedTuple):
    """A mask that lies in a file of its own; `read(path, key)` gives it as bool (H, W)."""

    read: Callable[[str, Any], np.ndarray]
    path: str
    key: Any


class ItemPart(NamedTuple):
    """One part: `segmentation` as COCO spells it, or a `MaskFile`, or None where only the XYWH `box` is known."""

    name: str
    segmentation: Any
    box: Sequence[float] | None = None
    is_target: int = 1
    object_id: int = 1


class Item(NamedTuple):
    """One image with its class and parts. `key` is unique; `file_name` is relative to the image root."""

    key: str
    file_name: str
    class_name: str
    parts: list[ItemPart]
    group: str = ""


def import_items(
    items: Sequence[Item],
    image_root: Path,
    output: Path,
    title: str,
    settings: dict,
    tally: Tally | None = None,
    seed: int = 0,
    ratios: Sequence[float] = RATIOS,
    workers: int = 1,
    restart: bool = False,
) -> dict[str, Path]:
    """Writes the part jsons of some items.

    Args:
        items: what a reader found.
        image_root: folder of the images; they stay there.
        output: folder to write.
        title: one line for the report.
        settings: json values that the items depend on (files and options of the reader).
        tally: what the reader left out.
        seed, ratios: of the random split by group.
        workers, restart: as of `pipeline.prepare`.

    Returns:
        The json of every split that has images.

    Raises:
        ValueError: there is no item, or the same key twice.
    """
    if not items:
        raise ValueError(f"{title}: no image with a class was found: {dict((tally or Tally()).counts)}")
    check_ratios(ratios)
    items = sorted(items, key=lambda item: item.key)
    for first, second in zip(items, items[1:], strict=False):
        if first.key == second.key:
            raise ValueError(f"{title}: the image {first.key} occurs twice")
    classes, categories = _label_space(items)
    class_ids = {c["name"]: c["id"] for c in classes}
    part_ids = {c["name"]: c["id"] for c in categories}
    root = os.path.relpath(image_root.resolve(), (output / "annotations").resolve())
    preparation = Preparation(
        output=output,
        title=title,
        settings={**settings, "seed": seed, "ratios": list(ratios), "image_root": root, "items": _digest(items)},
        header={"generator": "import", "split_unit": "group", "seed": seed, "image_root": root},
        classes=classes,
        categories=categories,
        units=lambda done: ((item.key, item) for item in items if item.key not in done),
        total=len(items),
        process=partial(item_sample, image_root=image_root, class_ids=class_ids, part_ids=part_ids),
        assign=partial(_assign, seed, tuple(ratios)),
        tallies={"In the annotations": tally or Tally()},
    )
    return prepare(preparation, workers, restart)


def _digest(items: Sequence[Item]) -> str:
    """Changes with everything that the reader found, mask files by their size."""
    state = hashlib.blake2b(digest_size=16)
    for item in items:
        parts = [
            part._replace(segmentation=[os.path.basename(mask.path), os.path.getsize(mask.path), mask.key])
            if isinstance(mask := part.segmentation, MaskFile)
            else part
            for part in item.parts
        ]
        state.update(dump(item._replace(parts=parts)).encode())
    return state.hexdigest()


def group_by_pattern(items: Iterable[Item], pattern: str | None) -> list[Item]:
    """Items with the group that a regular expression finds in the file name (its first group, else all it matches)."""
    if not pattern:
        return list(items)
    expression = re.compile(pattern)
    result = []
    for item in items:
        match = expression.search(item.file_name)
        found = (match.group(1) if expression.groups else match.group(0)) if match else item.group
        result.append(item._replace(group=found))
    return result


def _label_space(items: Sequence[Item]) -> tuple[list[dict], list[dict]]:
    """Names in alphabetical order; a part belongs to the classes in whose images it is a target's part."""
    owners: dict[str, set[str]] = defaultdict(set)
    for item in items:
        for part in item.parts:
            owners[part.name] |= {item.class_name} if part.is_target else set()
    class_names = sorted({item.class_name for item in items})
    part_ids = {name: rank for rank, name in enumerate(sorted(owners), start=1)}

    def owns(class_name: str, part: str) -> bool:
        # "car:wheel" says itself whose it is.
        prefix = part.split(":", 1)[0] if ":" in part else ""
        return prefix == class_name if prefix in class_names else class_name in owners[part]

    classes = [
        {"id": rank, "name": name, "part_category_ids": [part_ids[p] for p in sorted(owners) if owns(name, p)]}
        for rank, name in enumerate(class_names, start=1)
    ]
    categories = []
    for name in sorted(owners):
        of = [c for c in class_names if owns(c, name)]
        categories.append({"id": part_ids[name], "name": name, "supercategory": of[0] if len(of) == 1 else "shared"})
    return classes, categories


def item_sample(item: Item, image_root: Path, class_ids: dict[str, int], part_ids: dict[str, int]) -> dict:
    """The sample of one item; a result of the pipeline (`Preparation.process`)."""
    result: dict[str, Any] = {"samples": [], "skipped": [], "noted": []}
    path = image_root / item.file_name
    try:
        with Image.open(path) as file:
            width, height = file.size
        content = check_image(path, width, height)
    except (SkippedError, OSError) as error:
        result["skipped"].append([getattr(error, "reason", "bad_image"), f"{path}: {error}"])
        return result
    annotations = []
    for part in item.parts:
        ids = (part_ids[part.name], part.object_id, part.is_target)
        try:
            annotations.append(_annotation(part, ids, height, width))
        except SkippedError as error:
            result["skipped"].append([f"part_{error.reason}", f"{item.key}: {part.name}: {error.detail}"])
    if not annotations:
        result["noted"].append(["image_without_parts", item.key])
    image = {
        "file_name": item.file_name,
        "width": width,
        "height": height,
        "class_id": class_ids[item.class_name],
        "part_supervision": "full" if annotations else "none",
    }
    sample = {"key": item.key, "group": item.group or item.key, "content": content, "source_split": ""}
    result["samples"].append({**sample, "image": image, "annotations": annotations})
    return result


def _annotation(part: ItemPart, ids: tuple[int, int, int], height: int, width: int) -> dict:
    if part.segmentation is None:
        mask = box_mask(part.box, height, width) if part.box is not None else None
        if mask is None:
            raise SkippedError("degenerate_box", f"bbox {part.box}")
        annotation = part_annotation(mask.inside((0, 0, width, height)), *ids)
        del annotation["segmentation"]  # a box is all that is known
        return annotation
    if isinstance(part.segmentation, MaskFile):
        pixels = part.segmentation.read(part.segmentation.path, part.segmentation.key)
        if pixels.shape != (height, width):
            raise SkippedError("size_mismatch", f"the mask is {pixels.shape}, the image {(height, width)}")
        found = tight(pixels)
        if found is None:
            raise SkippedError("empty_mask", part.segmentation.path)
        mask = found
    else:
        mask, _ = decode(part.segmentation, height, width)
    return part_annotation(mask.inside((0, 0, width, height)), *ids)


def _assign(seed: int, ratios: Sequence[float], samples: Sequence[Sample]) -> list[str]:
    joined = join_groups((sample.group, sample.content) for sample in samples)
    return [split_of_group(joined[sample.group], seed, ratios) for sample in samples]
