"""Reads PartImageNet++ (Li et al., 2024): one COCO json per ImageNet class, `json/<wnid>.json`, ids local to each.

Part names become "<wnid>:<part>", as the same word names different parts in different classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from part_robust.data.importers.coco import coco_contents, read_coco
from part_robust.data.importers.items import Contents, Item, tool_contents
from part_robust.data.importers.report import ImportCounts


def read_part_imagenet_pp(root: Path, classes: Sequence[str], tally: ImportCounts) -> Contents:
    """Items of the data set; images are expected at `<wnid>/<file name>`.

    Args:
        root: folder of `json/`.
        classes: wnids to use; empty takes all.
        tally: counts what cannot be used.

    Raises:
        FileNotFoundError: no json of a wanted class.
        ValueError: a json is broken.
    """
    files = {path.stem: path for path in sorted((root / "json").glob("n*.json"))}
    missing = [wnid for wnid in classes if wnid not in files]
    if missing or not files:
        raise FileNotFoundError(
            f"{root / 'json'} lacks {', '.join(missing[:5]) or 'all'} <wnid>.json files: download PartImageNet++ from "
            "https://huggingface.co/datasets/lixiao20/PartImageNetPP"
        )
    items: list[Item] = []
    for wnid in tqdm(classes or list(files), desc="reading annotations", unit="class", disable=None):
        ids = ImportCounts()  # ids from 0 are the format's own, no defect
        found = coco_contents(files[wnid], read_coco(files[wnid]), ids)
        tally.extend(event for event in ids.events if event[0] not in ("image_id", "category_id", "annotation_id"))
        for item in found.items:
            item.file_name = f"{wnid}/{PurePosixPath(item.file_name).name}"
            item.label = wnid
            for raw in item.raw:
                raw["part"] = f"{wnid}:{raw['part'].split(':')[-1]}"
                raw["no_box"] = "bbox" not in raw
            items.append(item)
    return tool_contents(items, sorted({raw["part"] for item in items for raw in item.raw}))
