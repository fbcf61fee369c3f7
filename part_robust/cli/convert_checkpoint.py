r"""Turns a public checkpoint into one for MODEL.WEIGHTS.

It is that of DINO (the authors' or detrex's), of Mask DINO (the authors'), of an ImageNet classifier for the backbone
(torchvision's or timm's layout), or of a published robust part model or detector (smp, mpm, mmdet; docs/backbones.md).

    part-robust convert-checkpoint checkpoint0011_4scale.pth dino_r50.pth \
        --config-file part_imagenet/dino_detector.yaml
    part-robust convert-checkpoint resnet50_linf_eps8.0.ckpt robust_r50.pth --layout torchvision \
        --config-file part_imagenet/deeplab_two_headed.yaml

Every key of the file is accounted for. Heads for another number of parts start from random values.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tabulate import tabulate

from part_robust import load_config
from part_robust.modeling import convert_imagenet, convert_part_models
from part_robust.modeling.convert import LAYOUTS, convert, detect_layout
from part_robust.modeling.part_to_class import part_to_class_matrix
from part_robust.utils.errors import PREPARATION, UserError, user_errors
from part_robust.utils.files import replacing
from part_robust.utils.safe_loading import load_state

LOUD = ("re-initialised", "missing")
# Where files keep the weights.
CONTAINERS = ("model", "state_dict", "model_state_dict")
# Averaged weights, which are the ones that the authors of layout mpm evaluate.
AVERAGED = "state_dict_ema"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path, help="the public checkpoint")
    parser.add_argument("output", type=Path, help="the file to write")
    parser.add_argument("--config-file", required=True, help="of the model that the weights are for")
    parser.add_argument(
        "--layout",
        choices=(*LAYOUTS, *convert_imagenet.LAYOUTS, *convert_part_models.LAYOUTS),
        help="found out by default",
    )
    parser.add_argument(
        "--part-order",
        choices=("by-class", "same"),
        default="by-class",
        help="of a file of layout smp: its parts are sorted by class (the default, as in the published models for "
        "PartImageNet; the order is read from the config's training set), or they have the order of the config's",
    )
    parser.add_argument(
        "--trust-normalisation",
        action="store_true",
        help="MODEL.PIXEL_MEAN and PIXEL_STD are those of an ImageNet classifier whose file does not say",
    )
    parser.add_argument("opts", nargs="*", help="KEY VALUE pairs for the config")
    args = parser.parse_intermixed_args(arguments)
    with user_errors(*PREPARATION):
        convert_file(args)


def convert_file(args: argparse.Namespace) -> None:
    """Write the converted checkpoint, and print the use of every key.

    Raises:
        FileNotFoundError, ImportError, KeyError, ValueError: the config, the file or the layout are not as they should
            be.
    """
    file = load_state(args.input)
    container = next((name for name in CONTAINERS if isinstance(file.get(name), dict)), None)
    state = file[container] if container else file
    cfg = load_config(args.config_file, ["MODEL.DEVICE", "cpu", *args.opts])
    model = build_model(cfg)
    layout = (
        args.layout
        or convert_imagenet.detect_imagenet_layout(state, model.state_dict())
        or convert_part_models.detect_part_model_layout(state)
    )
    if layout in convert_part_models.LAYOUTS:
        if layout == "mpm" and isinstance(file.get(AVERAGED), dict):
            container, state = AVERAGED, file[AVERAGED]
        weights, reports = convert_part_models.convert_part_model(
            state,
            model.state_dict(),
            layout,
            cfg,
            trust=args.trust_normalisation,
            part_order=part_order(cfg) if layout == "smp" and args.part_order == "by-class" else None,
        )
    elif layout in convert_imagenet.LAYOUTS:
        weights, reports = convert_imagenet.convert_imagenet(
            state, model.state_dict(), layout, cfg, trust=args.trust_normalisation
        )
    else:
        layout = layout or detect_layout({key.removeprefix("module."): value for key, value in state.items()})
        weights, reports = convert(state, model.state_dict(), layout)
    print(f"layout: {layout}")
    rows = [[a.action, a.key, a.ours, a.reason] for a in reports]
    print(tabulate(rows, ["action", "key", "our name", "why"], "github"))
    if extra := [key for key in file if key != container] if container else []:
        print(f"left out of the file: {', '.join(extra)}")
    counts = Counter(a.action for a in reports)
    print(", ".join(f"{count} {action}" for action, count in counts.items()))
    for action in LOUD:
        if counts[action]:
            print(f"WARNING: {counts[action]} weights {action}, they start from random values; see the table")
    if layout in (*convert_imagenet.LAYOUTS, *convert_part_models.LAYOUTS):
        mean, std = (
            ", ".join(f"{value:g}" for value in values) for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
        )
        print(f"the backbone sees RGB, (0..255 - [{mean}]) / [{std}]: keep INPUT.FORMAT and MODEL.PIXEL_* as they are")
    with replacing(args.output) as temporary:
        torch.save({"model": weights}, temporary)
    print(f"wrote {args.output}")


def part_order(cfg: CfgNode) -> list[int] | None:
    """Return the place of each of the config's parts among parts sorted by class; None where it reads no such parts.

    Raises:
        UserError: the config's training set is not there, or its parts have no one class each.
    """
    if cfg.MODEL.PART_CLASSIFIER.SEGMENTER != convert_part_models.SMP_SEGMENTER:
        return None
    try:
        matrix = part_to_class_matrix(cfg)
    except (FileNotFoundError, KeyError, ValueError) as error:
        raise UserError(
            "--part-order must be same where the config's training set is not there, got by-class: the published "
            f"models' parts are sorted by class, and it tells the classes ({error.args[0]})"
        ) from error
    return convert_part_models.parts_by_class(matrix)
