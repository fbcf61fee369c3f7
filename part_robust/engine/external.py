"""From the flags of `part-robust evaluate-model` to the config of an evaluation."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from part_robust.data import get_taxonomy
from part_robust.data.part_json import image_root_of, parse_json
from part_robust.evaluation.external import describe_preprocessing
from part_robust.modeling.external.classes import class_indices, read_output_names
from part_robust.modeling.external.preprocessing import Preprocessing, known_preprocessing
from part_robust.modeling.external.read import source_file
from part_robust.run_config import load_config
from part_robust.utils.errors import UserError

NAMED = ("timm", "torchvision", "callable")


def external_options(args: argparse.Namespace) -> tuple[list[Any], str]:
    """Return the KEY VALUE pairs that the flags mean, and who says how images are prepared.

    Args:
        args: of `part-robust evaluate-model`.

    Raises:
        ImportError: a package or module cannot be imported.
        FileNotFoundError, KeyError, ValueError: the data, the model or a flag is not as it should be.
    """
    kind, name, weights = find_model(args)
    pairs: list[Any] = [*data_pairs(args), "OUTPUT_DIR", f"output/{_stem(kind, name)}", "TEST.TIER", "standard"]
    # The number of classes is read from the data set below.
    cfg = load_config(None, ["MODEL.PART_CLASSIFIER.NUM_CLASSES", 1, *pairs, *args.opts])
    if not cfg.DATASETS.TEST:
        raise UserError("--dataset NAME or --json FILE must say which data set to evaluate on, got neither")
    classes = get_taxonomy(cfg.DATASETS.TEST[0]).class_names
    known = preprocessing(args, kind, name, weights)
    outputs = read_output_names(args.classes) if args.classes else known.classes
    pairs += [
        *("MODEL.BACKBONE.NAME", "build_pixel_backbone", "MODEL.PART_CLASSIFIER.HEAD", "ExternalHead"),
        *("MODEL.PART_CLASSIFIER.NUM_CLASSES", len(classes), "MODEL.WEIGHTS", weights),
        *("MODEL.EXTERNAL.KIND", kind, "MODEL.EXTERNAL.NAME", name if kind in NAMED else ""),
        *("MODEL.EXTERNAL.CHANNELS", args.channels, "MODEL.EXTERNAL.OUTPUT", args.output),
        *("MODEL.EXTERNAL.PROBABILITIES", args.probabilities, "MODEL.EXTERNAL.BATCH", args.batch),
        *("MODEL.EXTERNAL.CLASS_INDICES", class_indices(outputs, classes) if outputs else []),
        *("INPUT.SIZE", known.size, "INPUT.TEST_RESIZE", known.resize, "INPUT.TEST_INTERPOLATION", known.interpolation),
        *("INPUT.TEST_TRANSFORM", known.transform),
        *("MODEL.PIXEL_MEAN", known.pixel_mean, "MODEL.PIXEL_STD", known.pixel_std),
    ]
    return pairs, known.source


def _stem(kind: str, name: str) -> str:
    return name.replace(":", ".") if kind in NAMED else Path(name).stem


def find_model(args: argparse.Namespace) -> tuple[str, str, str]:
    """Return the kind of the model, its name and its file.

    Raises:
        ImportError, UserError: there is no such callable; --weights is missing, or too much.
    """
    kind = next(kind for kind in ("torchscript", "exported", *NAMED) if getattr(args, kind))
    name = getattr(args, kind)
    if kind not in NAMED:
        if args.weights:
            raise UserError(f"--weights must be left out with --{kind}, whose file holds the weights")
        return kind, name, name
    if kind == "callable":
        return kind, name, args.weights or str(source_file(name))
    if not args.weights:
        raise UserError(f"--weights must be the file of weights of --{kind} {name}, got none")
    return kind, name, args.weights


def data_pairs(args: argparse.Namespace) -> list[Any]:
    """Return the KEY VALUE pairs of --dataset, --json and --image-root.

    Raises:
        UserError: --image-root without --json.
    """
    if not args.json:
        if args.image_root:
            raise UserError("--image-root must go with --json, whose images it holds")
        return ["DATASETS.TEST", (args.dataset,)] if args.dataset else []
    root = args.image_root or str(image_root_of(parse_json(Path(args.json)), args.json))
    name = args.dataset or Path(args.json).stem
    return ["DATASETS.REGISTER", [[name, args.json, root]], "DATASETS.TEST", (name,)]


def preprocessing(args: argparse.Namespace, kind: str, name: str, weights: str) -> Preprocessing:
    """Return what is known of the model's preprocessing, changed by the flags."""
    known = known_preprocessing(kind, name, weights)
    changes: dict[str, Any] = {}
    if args.size:
        size = _side(args.size)
        # The share of the image that is cut out stays.
        changes |= {"size": size, "resize": round(known.resize * size / known.size)}
    if args.values and (args.values == "0..255") != (known.largest == 255.0):
        plain = args.values == "0..255"
        changes |= {"largest": 255.0, "mean": [0.0] * 3, "std": [1.0] * 3} if plain else {"largest": 1.0}
    if args.mean:
        changes["mean"] = args.mean[:: -1 if args.channels == "BGR" else 1]
    if args.std:
        changes["std"] = args.std[:: -1 if args.channels == "BGR" else 1]
    changes |= {key: value for key in ("resize", "interpolation") if (value := getattr(args, key)) is not None}
    if args.resize is not None:
        changes["transform"] = "center_crop"
    if changes:
        changes["source"] = f"{known.source}, and flags"
    return replace(known, **changes)


def _side(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise UserError(
            f"--size must be one number of pixels, the side of a square, got {text}: for a model of other images give "
            "--callable a function that cuts them out of the square"
        )
    return int(text)


def describe_images(cfg: CfgNode) -> str:
    """Return what is done to images, in one sentence."""
    how = describe_preprocessing(cfg)
    size = f"{how['size']} x {how['size']}"
    cut = f"short side to {how['resize']} pixels, the middle {size} is cut out"
    if how["transform"] == "letterbox":
        cut = f"long side to {how['size']} pixels, padded to {size}"
    elif how["transform"] == "stretch":
        cut = f"stretched to {size}"
    mean, std = (", ".join(f"{value:.4g}" for value in how[key]) for key in ("mean", "std"))
    return (
        f"Images: {cut}, {how['interpolation']}; attacks change these pixels, 0..255; the model takes "
        f"(pixels - [{mean}]) / [{std}] in the order {how['channels']}"
    )


def refuse_external(cfg: CfgNode, what: str) -> None:
    """Check that a config is of a model of this package.

    Args:
        cfg: complete.
        what: is to be done with the model, such as "a training".

    Raises:
        UserError: its model is from elsewhere.
    """
    if cfg.MODEL.EXTERNAL.KIND:
        raise UserError(
            f"MODEL.EXTERNAL.KIND must be '' for {what}, got {cfg.MODEL.EXTERNAL.KIND}: models from elsewhere are "
            "evaluated as they are"
        )
