"""Draws PartShapes, the built-in data set: no download needed.

Example: part-robust make-part-shapes --train 2000 --val 300 --test 500 --size 64 --workers 4
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from part_robust.data.part_shapes import make_part_shapes, write_contact_sheet
from part_robust.utils.errors import PREPARATION, user_errors


def main(arguments: list[str] | None = None) -> None:
    default_root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "part_shapes"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=default_root, help=f"folder to write (default {default_root})")
    parser.add_argument("--train", type=int, default=2000, help="training images (default 2000)")
    parser.add_argument("--val", type=int, default=300, help="validation images (default 300)")
    parser.add_argument("--test", type=int, default=500, help="test images (default 500)")
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels, 32..512 (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws another data set (default 0)")
    parser.add_argument("--workers", type=int, default=0, help="processes to draw with (default 0: this one only)")
    parser.add_argument(
        "--no-part-fraction", type=float, default=0.05, help="share of images without part labels (default 0.05)"
    )
    parser.add_argument("--force", action="store_true", help="replace images drawn with other settings")
    parser.add_argument("--contact-sheet", type=Path, metavar="FILE.jpg", help="also draw an overview")
    args = parser.parse_args(arguments)
    counts = {"train": args.train, "val": args.val, "test": args.test}
    with user_errors(*PREPARATION):
        files = make_part_shapes(
            args.root, counts, args.size, args.seed, args.no_part_fraction, args.workers, args.force
        )
    for split, path in files.items():
        print(f"{split}: {counts[split]} images, {path}")
    if args.contact_sheet:
        print(f"contact sheet: {write_contact_sheet(args.root, args.contact_sheet, next(iter(files)))}")
