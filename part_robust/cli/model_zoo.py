"""Writes the page of the model zoo from the records of evaluations.

part-robust zoo-page output/part_shapes --output output/zoo.md
part-robust zoo-page output/part_shapes_small --made-by "part-robust reproduce --suite part_shapes_small"

A folder means its robustness.json, or all below it. Models with a class head, the most robust first.
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from part_robust.evaluation.report import find_records, write_zoo
from part_robust.utils.errors import PREPARATION, user_errors


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="+", metavar="RECORD_OR_FOLDER", help="robustness.json, or a folder with some")
    parser.add_argument("--output", type=Path, default=Path("docs/zoo.md"), help="page to write")
    parser.add_argument(
        "--made-by",
        action="append",
        default=[],
        metavar="COMMAND",
        help="shown on the page, before the one that made it",
    )
    args = parser.parse_args(arguments)
    commands = [*args.made_by, shlex.join(["python", "tools/model_zoo.py", *args.records])] if args.made_by else []
    with user_errors(*PREPARATION):
        print(write_zoo(find_records(args.records), args.output, commands))
