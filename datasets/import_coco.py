"""Imports plain COCO part files plus a class per image, for part_robust (docs/import_coco.md).

Example, one file divided into train, val and test, classes from a table:

    python datasets/import_coco.py --json parts.json --image-root photos --class-csv classes.csv --output datasets/mine

Example, one file divided into train and val beside a given test split, classes from the annotated parts:

    python datasets/import_coco.py --json train.json test.json --image-root train test --split fractions test \\
        --split-fractions 0.85 0.15 0 --class-rule rule.yaml --output datasets/mine
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from part_robust.data.importers.classes import CsvClasses, class_from_folder, read_class_rule
from part_robust.data.importers.report import REASONS, Tally
from part_robust.data.importers.run import import_coco
from part_robust.data.importers.samples import DIVIDE, ImportSettings, Source


def build_parser() -> argparse.ArgumentParser:
    defaults = ImportSettings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, nargs="+", required=True, metavar="FILE", help="COCO instances of parts")
    parser.add_argument(
        "--image-root", type=Path, nargs="+", required=True, metavar="DIR", help="image folder, one for all or one each"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    classes = parser.add_mutually_exclusive_group(required=True)
    classes.add_argument("--class-csv", type=Path, metavar="FILE", help="table with the columns file_name and class")
    classes.add_argument("--class-from", choices=["folder"], help="the class is the folder an image lies in")
    classes.add_argument("--class-rule", type=Path, metavar="FILE", help="the class follows from the annotated parts")
    parser.add_argument("--classes", nargs="+", default=[], metavar="NAME", help="all classes, in their order")
    parser.add_argument("--skip-unclassed", action="store_true", help="leave out images that --class-csv has not")
    parser.add_argument(
        "--split", nargs="+", default=[DIVIDE], metavar="NAME",
        help=f"split of each json, one for all or one each; {DIVIDE!r} (default) divides it",
    )  # fmt: skip
    parser.add_argument(
        "--split-fractions", nargs=3, default=defaults.fractions, metavar=("TRAIN", "VAL", "TEST"),
        help="shares that sum to 1 (default 0.8 0.1 0.1)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=defaults.seed, help="another seed divides differently (default 0)")
    parser.add_argument(
        "--group-by", default=defaults.group_by, metavar="HOW",
        help="what never lies in two splits besides equal pictures: content (default, nothing else), near (pictures "
        "that look alike), folder, or a regular expression whose first group in the file name is the key",
    )  # fmt: skip
    parser.add_argument(
        "--class-parts", default=defaults.class_parts, metavar="HOW",
        help="parts of a class: training (those annotated in its training images), supercategory, a json or yaml "
        "file {class: [part, ...]}, or auto (default: supercategory where each one is a class, else training)",
    )  # fmt: skip
    parser.add_argument(
        "--class-part-share", type=float, default=defaults.class_part_share, metavar="SHARE",
        help="share of a class's training images a part must be annotated in to be one of its parts (default: any)",
    )  # fmt: skip
    parser.add_argument(
        "--crowd", choices=["part", "ignore"], default=defaults.crowd,
        help="iscrowd 1 is an ordinary part (default), or its pixels count nowhere",
    )  # fmt: skip
    parser.add_argument(
        "--unannotated", choices=["none", "full"], default=defaults.unannotated,
        help="images without annotations: their parts are unknown (none, default), or they have none (full)",
    )  # fmt: skip
    parser.add_argument("--skip-missing", action="store_true", help="leave out images whose file is missing")
    parser.add_argument("--copy-images", action="store_true", help="copy the images below --output instead")
    parser.add_argument("--force", action="store_true", help="replace split files that something else wrote")
    return parser


def one_each(parser: argparse.ArgumentParser, option: str, values: list, count: int) -> list:
    if len(values) not in (1, count):
        parser.error(f"{option} takes one value, or one for each of the {count} --json, not {len(values)}")
    return values * count if len(values) == 1 else values


def main(arguments: list[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    roots = one_each(parser, "--image-root", args.image_root, len(args.json))
    splits = one_each(parser, "--split", args.split, len(args.json))
    settings = ImportSettings(
        fractions=tuple(args.split_fractions),
        seed=args.seed,
        group_by=args.group_by,
        class_names=tuple(args.classes),
        class_parts=args.class_parts,
        class_part_share=args.class_part_share,
        crowd=args.crowd,
        unannotated=args.unannotated,
        skip_missing=args.skip_missing,
        copy_images=args.copy_images,
    )
    tally = Tally()
    try:
        if args.class_csv:
            class_source = CsvClasses(args.class_csv, tally, args.skip_unclassed)
        else:
            class_source = read_class_rule(args.class_rule) if args.class_rule else class_from_folder
        sources = [Source(*entry) for entry in zip(args.json, roots, splits, strict=True)]
        report = import_coco(sources, args.output, class_source, settings, tally, args.force)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for split, counts in report["images"].items():
        shown = ", ".join(f"{name} {count}" for name, count in counts.items())
        print(f"{split}: {sum(counts.values())} images ({shown}), {report['annotations'][split]} parts")
    for kind in ("skipped", "repaired", "noted"):
        for reason, entry in report[kind].items():
            print(f"{kind}: {entry['count']} {REASONS[reason][1]}")
    print(f"image root: {args.output / report['image_root']}")
    print(f"report: {args.output / 'report.md'}")


if __name__ == "__main__":
    main()
