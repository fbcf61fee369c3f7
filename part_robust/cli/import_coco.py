r"""Imports plain COCO part files plus a class per image, for part_robust (docs/import_coco.md).

Example, one file divided into train, val and test, classes from a table:

    part-robust import-coco --json parts.json --image-root photos --class-csv classes.csv --output datasets/mine

Example, one file divided into train and val beside a given test split, classes from the annotated parts:

    part-robust import-coco --json train.json test.json --image-root train test --split fractions test \
        --split-fractions 0.85 0.15 0 --class-rule rule.yaml --output datasets/mine
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from part_robust.data.importers.command import (
    add_class_options,
    add_common_options,
    class_source_of,
    report_lines,
    settings_of,
)
from part_robust.data.importers.items import DIVIDE, Source
from part_robust.data.importers.report import ImportCounts
from part_robust.data.importers.run import import_coco
from part_robust.utils.errors import PREPARATION, user_errors


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, nargs="+", required=True, metavar="FILE", help="COCO instances of parts")
    parser.add_argument(
        "--image-root", type=Path, nargs="+", required=True, metavar="DIR", help="image folder, one for all or one each"
    )
    add_class_options(parser, required=True)
    parser.add_argument(
        "--split", nargs="+", default=[DIVIDE], metavar="NAME",
        help=f"split of each json, one for all or one each; {DIVIDE!r} (default) divides it",
    )  # fmt: skip
    add_common_options(parser, "auto")
    return parser


def one_each(parser: argparse.ArgumentParser, option: str, values: list, count: int) -> list:
    if len(values) not in (1, count):
        parser.error(f"{option} takes one value, or one for each of the {count} --json, not {len(values)}")
    return values * count if len(values) == 1 else values


def main(arguments: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    roots = one_each(parser, "--image-root", args.image_root, len(args.json))
    splits = one_each(parser, "--split", args.split, len(args.json))
    tally = ImportCounts()
    # RuntimeError: the folder holds another import.
    with user_errors(RuntimeError, *PREPARATION):
        classes = class_source_of(args, tally, "folder")
        sources = [Source(*entry) for entry in zip(args.json, roots, splits, strict=True)]
        report = import_coco(sources, args.output, classes, settings_of(args), tally, args.force, args.workers)
    print("\n".join(report_lines(report, args.output)))
    return 0
