"""Imports part annotations from other tools and layouts (plain COCO: datasets/import_coco.py).

    python datasets/import_parts.py cvat --file annotations.xml --images photos
    python datasets/import_parts.py cvat --json instances_default.json --images photos --class-from supercategory
    python datasets/import_parts.py label-studio --file tasks.json --images export
    python datasets/import_parts.py labelme --source photos
    python datasets/import_parts.py datumaro --file annotations/default.json --images images/default
    python datasets/import_parts.py yolo --yaml data.yaml --class-from 'name:^([a-z]+)_'
    python datasets/import_parts.py roboflow --source export --class-from 'name:^([a-z]+)_'
    python datasets/import_parts.py folders --source mine --names parts.csv
    python datasets/import_parts.py pascal-part --source VOC --classes bird car cat dog aeroplane
    python datasets/import_parts.py part-imagenet-pp --source PartImageNetPP --images imagenet/train

Each takes --output, the folder to write; register the jsons in it with part_robust.data.register_part_dataset.
"""

from __future__ import annotations

import logging
import sys

from part_robust.data.importers.command import build_parser, run_command


def main(arguments: list[str] | None = None) -> int:
    args = build_parser(__doc__ or "").parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        lines = run_command(args)
    except (OSError, ValueError, RuntimeError) as error:
        # What a user can correct needs a sentence, not a traceback.
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
