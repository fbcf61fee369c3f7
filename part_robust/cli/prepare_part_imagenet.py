"""Makes the part-classification data set of PartImageNet, from its OOD or its Seg version.

Where the files go and what comes out: datasets/README.md.

    part-robust prepare-part-imagenet --unpack             # unpacks the zips first
    part-robust prepare-part-imagenet --dry-run            # counts only; needs the jsons
    part-robust prepare-part-imagenet --mode official --output datasets/part_imagenet_official
    part-robust prepare-part-imagenet --classes imagenet   # 158 classes, to ROOT/part_imagenet_158
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from part_robust.data.preparation.part_imagenet import prepare_part_imagenet
from part_robust.data.preparation.part_imagenet_files import find_part_imagenet, unpack
from part_robust.data.preparation.part_imagenet_scan import (
    CLASS_KINDS,
    MODES,
    PartImageNetOptions,
    count_part_imagenet,
)
from part_robust.data.preparation.pipeline import default_workers
from part_robust.data.preparation.report import scan_text
from part_robust.utils.errors import PREPARATION, user_errors


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=root, help=f"folder of all data sets (default {root})")
    parser.add_argument("--source", type=Path, help="folder of the downloaded files (default ROOT/part_imagenet)")
    parser.add_argument("--images", type=Path, help="another folder of images, for example ImageNet's train/")
    parser.add_argument("--output", type=Path, help="folder to write (default ROOT/part_imagenet or ..._158)")
    parser.add_argument("--mode", choices=MODES, default="thesis", help="which splits (default thesis)")
    parser.add_argument("--classes", choices=CLASS_KINDS, default="super", help="11 super-categories or 158 classes")
    parser.add_argument("--boxes", choices=["annotation", "component"], default="annotation", help="what is one part")
    parser.add_argument("--seed", type=int, default=0, help="of the split (default 0)")
    parser.add_argument("--unpack", action="store_true", help="unpack the zips in the source folder first")
    parser.add_argument("--dry-run", action="store_true", help="print the count table and stop; needs no images")
    parser.add_argument("--workers", type=int, default=default_workers(), help="processes (default: all cores)")
    parser.add_argument("--restart", action="store_true", help="replace what an earlier run left in the output")
    parser.add_argument("--allow-missing", action="store_true", help="count and skip images that do not exist")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    source = args.source or args.root / "part_imagenet"
    output = args.output or args.root / ("part_imagenet" if args.classes == "super" else "part_imagenet_158")
    options = PartImageNetOptions(
        mode=args.mode,
        classes=args.classes,
        boxes=args.boxes,
        seed=args.seed,
        allow_missing=args.allow_missing,
    )
    # RuntimeError: counts that are not the published ones, or a folder that another run writes to.
    with user_errors(RuntimeError, *PREPARATION):
        if args.unpack:
            print(f"{unpack(source)} files unpacked in {source}")
        files = find_part_imagenet(source, args.images)
        if args.dry_run:
            scan = count_part_imagenet(files, options)
            print(scan_text(scan.checks, (scan.tally, scan.noted), scan.notes))
            return 0
        written = prepare_part_imagenet(files, output, options, args.workers, args.restart)
    for split, path in written.items():
        print(f"{split}: {path}")
    print(f"report: {output / 'report.md'}")
    return 0
