"""Imports part annotations from other tools and layouts (plain COCO: part-robust import-coco).

    part-robust import-parts cvat --file annotations.xml --images photos
    part-robust import-parts cvat --json instances_default.json --images photos --class-from supercategory
    part-robust import-parts label-studio --file tasks.json --images export
    part-robust import-parts labelme --source photos
    part-robust import-parts datumaro --file annotations/default.json --images images/default
    part-robust import-parts yolo --yaml data.yaml --class-from 'name:^([a-z]+)_'
    part-robust import-parts roboflow --source export --class-from 'name:^([a-z]+)_'
    part-robust import-parts folders --source mine --names parts.csv
    part-robust import-parts pascal-part --source VOC --classes bird car cat dog aeroplane
    part-robust import-parts part-imagenet-pp --source PartImageNetPP --images imagenet/train

Each takes --output, the folder to write; register the jsons in it with part_robust.data.register_part_dataset.
"""

from __future__ import annotations

import logging

from part_robust.data.importers.command import build_parser, run_command
from part_robust.utils.errors import PREPARATION, user_errors


def main(arguments: list[str] | None = None) -> int:
    args = build_parser(__doc__ or "").parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    # RuntimeError: the folder holds another import.
    with user_errors(RuntimeError, *PREPARATION):
        lines = run_command(args)
    print("\n".join(lines))
    return 0
