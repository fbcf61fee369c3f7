"""Shows what a trained model sees in your images, and what an attack makes of it.

    part-robust demo photo.jpg folder/ --run output/part_shapes/deeplab_two_headed_adv
    part-robust demo photo.jpg --run output/part_shapes/deeplab_two_headed_adv --attack pgd20
    part-robust demo photo.jpg --config-file paco/dino_sequential.yaml --weights model_best.pth

Images of any size, cropped and resized as in evaluation. A line for each, and a sheet in the folder --output: the
image, the parts found and the most probable classes; with --attack also the perturbation, the attacked image and what
the model sees in it. The attack leads away from the predicted class, or from --class; attacks on parts lead away from
the parts the model has found.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from part_robust import load_config
from part_robust.data.image_file import find_image_files
from part_robust.engine.demo import Demo, build_demo_attack, run_files
from part_robust.utils.errors import PREPARATION, UserError, user_errors


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER")
    parser.add_argument("--run", help="OUTPUT_DIR of a training, or folder of an export: its config and best weights")
    parser.add_argument("--config-file", help="instead of that of --run")
    parser.add_argument("--weights", help="instead of those of --run, or of MODEL.WEIGHTS")
    parser.add_argument("--attack", help="name in ATTACK.SPECS, such as pgd20")
    parser.add_argument("--class", dest="class_name", help="class the attack leads away from; default: the predicted")
    parser.add_argument("--min-score", type=float, default=0.3, help="boxes of parts count from here on, 0..1")
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="folder of the sheets")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs, the last argument")
    args = parser.parse_args(arguments)
    if not args.run and not args.config_file:
        parser.error("--run or --config-file says which model")
    if args.class_name and not args.attack:
        parser.error("--class is where an attack begins: it needs --attack")
    return args


def prepare(args: argparse.Namespace) -> tuple[Demo, list[Path], dict]:
    """Everything that can be refused, before the first image is computed."""
    if args.output.exists() and not args.output.is_dir():
        raise UserError(f"--output must be a folder, got the file {args.output}")
    paths = find_image_files(args.images)
    config, weights = run_files(args.run) if args.run and not (args.config_file and args.weights) else (None, None)
    cfg = load_config(args.config_file or config, args.opts)
    if args.weights or weights:
        cfg.MODEL.WEIGHTS = str(args.weights or weights)
    attack = build_demo_attack(cfg, args.attack) if args.attack else None
    demo = Demo(cfg, args.min_score)
    return demo, paths, {"attack": attack, "label": demo.label(args.class_name) if args.class_name else None}


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    failed = False
    with user_errors(*PREPARATION):
        demo, paths, options = prepare(args)
        for path, line in demo.run(paths, args.output, **options):
            failed |= not line
            if line:
                print(f"{path}: {line}")
    return int(failed)
