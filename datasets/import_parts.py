"""Imports part annotations from other tools and layouts (plain COCO: datasets/import_coco.py).

    python datasets/import_parts.py cvat --json instances_default.json --images photos --class-from supercategory
    python datasets/import_parts.py label-studio --json result.json --images export --class-from csv:classes.csv
    python datasets/import_parts.py folders --source mine --names parts.csv
    python datasets/import_parts.py pascal-part --source VOC --classes bird car cat dog aeroplane
    python datasets/import_parts.py part-imagenet-pp --source PartImageNetPP --images imagenet/train

Each takes --output, the folder to write; register the jsons in it with part_robust.data.register_part_dataset.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from part_robust.data.importers.coco import read_tool_json
from part_robust.data.importers.folders import read_folders
from part_robust.data.importers.items import group_by_pattern, import_items
from part_robust.data.importers.part_imagenet_pp import read_part_imagenet_pp
from part_robust.data.importers.pascal_part import image_folder, read_pascal_part
from part_robust.data.preparation.pipeline import default_workers, file_hash
from part_robust.data.preparation.report import Tally


def build_parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--output", type=Path, required=True, help="folder to write")
    common.add_argument("--seed", type=int, default=0, help="of the random split (default 0)")
    common.add_argument("--ratios", type=float, nargs=3, default=[0.8, 0.1, 0.1], metavar=("TRAIN", "VAL", "TEST"))
    common.add_argument("--group-by", metavar="REGEX", help="part of the file name that must stay in one split")
    common.add_argument("--workers", type=int, default=default_workers(), help="processes (default: all cores)")
    common.add_argument("--restart", action="store_true", help="replace what an earlier run left in the output")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    formats = parser.add_subparsers(dest="format", required=True)
    for name, default in (("cvat", "supercategory"), ("label-studio", "folder")):
        tool = formats.add_parser(name, parents=[common], help=f"COCO json exported by {name}")
        tool.add_argument("--json", type=Path, required=True, help="exported file")
        tool.add_argument("--images", type=Path, required=True, help="folder that its file names are relative to")
        tool.add_argument(
            "--class-from", default=default, help="folder, supercategory, attribute:NAME, always:CLASS or csv:FILE "
            f"(columns file_name, class); default {default}"
        )  # fmt: skip
    folders = formats.add_parser("folders", parents=[common], help="images/<class>/ and masks/<class>/ label maps")
    folders.add_argument("--source", type=Path, required=True, help="folder of images/ and masks/")
    folders.add_argument("--names", type=Path, required=True, help="csv: label,name or red,green,blue,name")
    folders.add_argument("--background", type=int, default=0, help="label of the background (default 0)")
    pascal = formats.add_parser("pascal-part", parents=[common], help="Annotations_Part/*.mat and JPEGImages/")
    pascal.add_argument("--source", type=Path, required=True, help="folder of both")
    pascal.add_argument("--classes", nargs="*", default=[], help="object classes to use (default all)")
    plus = formats.add_parser("part-imagenet-pp", parents=[common], help="PartImageNet++: json/<wnid>.json")
    plus.add_argument("--source", type=Path, required=True, help="folder of json/")
    plus.add_argument("--images", type=Path, required=True, help="ImageNet's train/ or the authors' img/")
    plus.add_argument("--classes", nargs="*", default=[], metavar="WNID", help="classes to use (default all)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    args = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tally = Tally()
    settings = {key: str(value) for key, value in sorted(vars(args).items()) if key in ("format", "class_from",
                "background", "classes", "group_by")}  # fmt: skip
    try:
        if args.format == "folders":
            images = args.source / "images"
            items = read_folders(args.source, args.names, args.background, tally)
            settings["names"] = file_hash(args.names)
        elif args.format == "part-imagenet-pp":
            images = args.images
            items = read_part_imagenet_pp(args.source, args.classes, tally)
        elif args.format == "pascal-part":
            items = read_pascal_part(args.source, tuple(args.classes), tally)
            images = image_folder(args.source)
        else:
            images = args.images
            items = read_tool_json(args.json, args.class_from, tally)
            settings["json"] = file_hash(args.json)
        items = group_by_pattern(items, args.group_by)
        written = import_items(
            items, images, args.output, f"Import from {args.format}", settings, tally,
            seed=args.seed, ratios=args.ratios, workers=args.workers, restart=args.restart,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError) as error:
        # What a user can mend needs a sentence, not a traceback.
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    for split, path in written.items():
        print(f"{split}: {path}")
    print(f"report: {args.output / 'report.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
