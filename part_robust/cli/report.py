"""Writes report.md and report.html beside each record of an evaluation, and a leaderboard of several.

    part-robust report output/part_shapes/deeplab_two_headed_adv
    part-robust report output/part_shapes --output output/leaderboard

The pages need no network and no other file. A folder means its robustness.json, or all below it.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from part_robust.evaluation.report import find_records, write_leaderboard, write_report
from part_robust.utils.errors import PREPARATION, user_errors


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="+", metavar="RECORD_OR_FOLDER", help="robustness.json, or a folder with some")
    parser.add_argument("--output", help="folder of the leaderboard; default: the folder that holds all records")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    with user_errors(*PREPARATION):
        records = find_records(args.records)
        for record in records:
            print(*write_report(record), sep="\n")
        if len(records) > 1:
            folder = args.output or os.path.commonpath([record.resolve().parent for record in records])
            print(*write_leaderboard(records, Path(folder)), sep="\n")
