#!/usr/bin/env python
"""Writes a trained classifier without what its class does not need (optimizer, detection branch, decoder).

    python tools/export_model.py --config-file configs/paco/dino_two_headed_adv.yaml --output exported/dino \\
        MODEL.WEIGHTS output/paco/dino_two_headed_adv/model_best.pth

The folder then holds model.pth and config.yaml, which every tool takes as `--config-file`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from part_robust.config import get_part_robust_cfg
from part_robust.data import register_builtin, register_from_config
from part_robust.engine.export import export_classifier
from part_robust.engine.setup import import_modules


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="config of the training")
    parser.add_argument("--output", required=True, type=Path, help="folder to write to")
    parser.add_argument("opts", nargs="*", help="KEY VALUE pairs, MODEL.WEIGHTS above all")
    args = parser.parse_intermixed_args(arguments)
    cfg = get_part_robust_cfg(args.config_file, args.opts)
    import_modules(cfg)
    register_builtin()
    register_from_config(cfg)
    try:
        exported = export_classifier(cfg, args.output)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
    what = "the part branch is dropped" if exported.parts_dropped else "the class reads the parts: nothing is dropped"
    print(
        f"{exported.weights}: {exported.parameters_after / 1e6:.3f} of {exported.parameters_before / 1e6:.3f} M "
        f"parameters ({what})\nconfig: {exported.config}"
    )


if __name__ == "__main__":
    main()
