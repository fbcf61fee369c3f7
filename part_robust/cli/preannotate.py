"""Writes what a trained model finds in images as annotations, so that people correct instead of drawing.

    part-robust preannotate photos/ --run output/part_shapes/deeplab_two_headed --format cvat --output parts.xml
    part-robust preannotate photos/ --run output/part_shapes/dino_two_headed --format coco-results --output parts.json

coco is an instances file with scores; coco-results the list that COCO's tools read as predictions, beside it
FILE.images.json with the images and categories that its ids mean; cvat an XML with the predicted class as a tag.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from part_robust import load_config
from part_robust.data.export import FORMATS, write_annotations
from part_robust.data.image_file import find_image_files
from part_robust.engine.demo import run_files
from part_robust.engine.preannotation import preannotate
from part_robust.utils.errors import PREPARATION, UserError, user_errors


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER")
    parser.add_argument("--run", required=True, help="OUTPUT_DIR of a training, or folder of an export")
    parser.add_argument("--weights", help="instead of those of --run")
    parser.add_argument(
        "--image-root", type=Path, help="folder the file names are relative to (default: the first one)"
    )
    parser.add_argument("--min-score", type=float, default=0.3, help="parts count from here on, 0..1 (default 0.3)")
    parser.add_argument("--format", choices=FORMATS, default="coco", help="default: coco")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="file to write")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs, the last argument")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with user_errors(*PREPARATION):
        if args.output.is_dir():
            raise UserError(f"--output must be a file to write, got the folder {args.output}")
        paths = find_image_files(args.images)
        config, weights = run_files(args.run)
        cfg = load_config(config, args.opts)
        cfg.MODEL.WEIGHTS = str(args.weights or weights)
        first = Path(args.images[0])
        root = args.image_root or (first if first.is_dir() else first.parent)
        data = preannotate(cfg, paths, root, args.min_score)
        write_annotations(data, args.output, args.format)
        if args.format == "coco-results":
            write_annotations({**data, "annotations": []}, args.output.with_suffix(".images.json"), "coco")
    print(f"{len(data['images'])} images, {len(data['annotations'])} parts: {args.output}")
    return 0 if len(data["images"]) == len(paths) else 1
