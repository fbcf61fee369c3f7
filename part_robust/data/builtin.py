"""The data sets that ship with a name: where their files lie below $DETECTRON2_DATASETS (default: ./datasets)."""

from __future__ import annotations

import os
from pathlib import Path

from detectron2.data import DatasetCatalog

from part_robust.data.register import register_part_dataset

PREFIX = "part_robust_"  # never clashes with the names other packages use for the same data
SPLITS = ("train", "val", "test")

# name: (folder, image root inside it or None where the json says it, how to prepare it)
BUILTIN: dict[str, tuple[str, str | None, str]] = {
    "part_shapes": (
        "part_shapes",
        "images",
        "Draw it with: part-robust make-part-shapes --root {folder}",
    ),
    "paco": (
        "paco",
        None,
        "Prepare PACO with: part-robust prepare-paco --output {folder} (see datasets/README.md)",
    ),
    "part_imagenet": (
        "part_imagenet",
        None,
        "Prepare PartImageNet with: part-robust prepare-part-imagenet --output {folder} (see datasets/README.md)",
    ),
    "part_imagenet_158": (
        "part_imagenet_158",
        None,
        "Prepare it with: part-robust prepare-part-imagenet --classes imagenet --output {folder} "
        "(see datasets/README.md)",
    ),
    "car_parts": (
        "car_parts",
        "images",
        "With the Car Parts data set (docs/import_coco.md) in the folder RAW, import it with: "
        "part-robust import-coco --json RAW/trainingset/annotations.json RAW/testset/annotations.json "
        "--image-root RAW/trainingset/JPEGImages RAW/testset/JPEGImages --split fractions test "
        "--split-fractions 0.85 0.15 0 --group-by near --class-rule datasets/rules/car_view.yaml "
        "--class-part-share 0.1 --copy-images --output {folder}",
    ),
    "plants": (
        "plants",
        "images",
        "With the export (docs/import_coco.md) in the folder PLANTS, import it with: part-robust import-parts roboflow "
        "--source PLANTS --class-from 'name:^([a-z]+)_' --copy-images --output {folder}",
    ),
}


def register_builtin(root: str | Path | None = None) -> list[str]:
    """Registers `part_robust_<data>_<split>` lazily; names that exist already stay as they are.

    Args:
        root: folder of the data sets; default $DETECTRON2_DATASETS, else `datasets`.

    Returns:
        All built-in names.
    """
    root = Path(root or os.environ.get("DETECTRON2_DATASETS", "datasets"))
    names = []
    for data, (folder, images, hint) in BUILTIN.items():
        for split in SPLITS:
            name = f"{PREFIX}{data}_{split}"
            names.append(name)
            if name in DatasetCatalog.list():
                continue
            base = root / folder
            register_part_dataset(
                name,
                json_file=base / "annotations" / f"{split}.json",
                image_root=None if images is None else base / images,
                hint=hint.format(folder=base),
            )
    return names
