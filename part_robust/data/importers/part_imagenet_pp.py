"""Reads PartImageNet++ (Li et al., 2024): one COCO json per ImageNet class, `json/<wnid>.json`, ids local to each.

Part names become "<wnid>:<part>", as the same word names different parts in different classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from part_robust.data.importers.coco import read_tool_json
from part_robust.data.importers.items import Item
from part_robust.data.preparation.report import Tally


def read_part_imagenet_pp(root: Path, classes: Sequence[str], tally: Tally) -> list[Item]:
    """Items of the data set; images are expected at `<wnid>/<file name>`.

    Args:
        root: folder of `json/`.
        classes: wnids to use; empty takes all.
        tally: counts what cannot be used.

    Raises:
        FileNotFoundError: no json of a wanted class.
    """
    files = {path.stem: path for path in sorted((root / "json").glob("n*.json"))}
    missing = [wnid for wnid in classes if wnid not in files]
    if missing or not files:
        raise FileNotFoundError(
            f"{root / 'json'} lacks {', '.join(missing[:5]) or 'all'} <wnid>.json files: download PartImageNet++ from "
            "https://huggingface.co/datasets/lixiao20/PartImageNetPP"
        )
    items = []
    for wnid in tqdm(classes or list(files), desc="reading annotations", unit="class"):
        for item in read_tool_json(files[wnid], f"always:{wnid}", tally):
            name = f"{wnid}/{PurePosixPath(item.file_name).name}"
            parts = [part._replace(name=f"{wnid}:{part.name.split(':')[-1]}") for part in item.parts]
            items.append(item._replace(key=name, file_name=name, parts=parts))
    return items
