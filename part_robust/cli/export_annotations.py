"""Writes part annotations for correction in an annotation tool, or as plain COCO.

    part-robust export-annotations datasets/mine/annotations/train.json --format cvat --output train.xml
    part-robust export-annotations datasets/mine/annotations/train.json --format coco --output train.json

After the correction import the tool's file again (part-robust import-parts cvat --file ...).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from part_robust.data.export import FORMATS, write_annotations
from part_robust.data.part_json import read_part_json
from part_robust.utils.errors import PREPARATION, user_errors


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="part json")
    parser.add_argument("--format", choices=FORMATS, default="cvat", help="default: cvat")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="file to write")
    args = parser.parse_args(arguments)
    with user_errors(*PREPARATION):
        data = read_part_json(args.file)
        write_annotations(data, args.output, args.format)
    print(f"{len(data['images'])} images, {len(data['annotations'])} parts: {args.output}")
    return 0
