"""One run as a process: `scheduler.py` starts one for each.

python -m part_robust.runs.experiment --config-file configs/part_shapes/resnet50.yaml [KEY VALUE ...]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detectron2.engine import default_argument_parser

from part_robust.engine.launch import launch
from part_robust.runs.run import Run
from part_robust.utils.errors import as_user_errors


def main(args: argparse.Namespace) -> None:
    """Trains and evaluates what the command line says."""
    run = Run(Path(args.config_file).stem, args.config_file, args.opts)
    with as_user_errors():
        run.complete_config()
    run.execute()


if __name__ == "__main__":
    launch(main, default_argument_parser().parse_args())
