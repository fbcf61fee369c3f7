#!/usr/bin/env python
"""Turns a public checkpoint of DINO (the authors' or detrex's) or Mask DINO (the authors') into one for MODEL.WEIGHTS.

    python tools/convert_checkpoint.py checkpoint0011_4scale.pth dino_r50.pth \\
        --config-file configs/part_imagenet/dino_detector.yaml

Every key of the file is accounted for. Heads for another number of parts start from random values.
"""

import argparse
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.modeling import build_model
from tabulate import tabulate

import part_robust.modeling  # noqa: F401  (registration)
from part_robust.config import get_part_robust_cfg
from part_robust.modeling.convert import LAYOUTS, convert, detect_layout

LOUD = ("re-initialised", "missing")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path, help="the public checkpoint")
    parser.add_argument("output", type=Path, help="the file to write")
    parser.add_argument("--config-file", required=True, help="of a model with a DINO or Mask DINO segmenter")
    parser.add_argument("--layout", choices=LAYOUTS, help="found out by default")
    parser.add_argument("opts", nargs="*", help="KEY VALUE pairs for the config")
    args = parser.parse_intermixed_args(arguments)
    if not args.input.is_file():
        parser.error(f"{args.input} does not exist")
    file = torch.load(args.input, map_location="cpu", weights_only=True)
    state = file.get("model", file)
    model = build_model(get_part_robust_cfg(args.config_file, ["MODEL.DEVICE", "cpu", *args.opts]))
    try:
        stripped = {key.removeprefix("module."): value for key, value in state.items()}
        layout = args.layout or detect_layout(stripped)
        weights, accounts = convert(state, model.state_dict(), layout)
    except ValueError as error:
        parser.error(str(error))
    print(f"layout: {layout}")
    rows = [[a.action, a.key, a.ours, a.reason] for a in accounts]
    print(tabulate(rows, ["action", "key", "our name", "why"], "github"))
    if extra := [key for key in file if key != "model"] if state is not file else []:
        print(f"left out of the file: {', '.join(extra)}")
    counts = Counter(a.action for a in accounts)
    print(", ".join(f"{count} {action}" for action, count in counts.items()))
    for action in LOUD:
        if counts[action]:
            print(f"WARNING: {counts[action]} weights {action}, they start from random values; see the table")
    temporary = args.output.with_suffix(args.output.suffix + ".tmp")
    torch.save({"model": weights}, temporary)
    os.replace(temporary, args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
