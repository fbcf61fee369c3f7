#!/usr/bin/env python
"""Writes the page of the model zoo from the records of evaluations.

python tools/model_zoo.py output/part_shapes --output output/zoo.md

A folder stands for its robustness.json, or for all below it. Models with a class head, the most robust first.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from part_robust.evaluation.html_report import find_records, write_zoo


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="+", metavar="RECORD_OR_FOLDER", help="robustness.json, or a folder with some")
    parser.add_argument("--output", type=Path, default=Path("docs/zoo.md"), help="page to write")
    args = parser.parse_args(arguments)
    print(write_zoo(find_records(args.records), args.output))


if __name__ == "__main__":
    try:
        main()
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
