"""The commands: `part-robust NAME`, `python -m part_robust NAME`, and the scripts in tools/ and datasets/."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import part_robust


class Command(NamedTuple):
    """A command of `part-robust`.

    Attributes:
        module: below part_robust; its `main` is the command.
        summary: for the list of commands.
        first: words before the user's.
    """

    module: str
    summary: str
    first: tuple[str, ...] = ()


COMMANDS = {
    "train": Command("cli.train_net", "trains a part model, clean or adversarially"),
    "evaluate": Command(
        "cli.train_net", "train --eval-only: its numbers on clean and attacked images", ("--eval-only",)
    ),
    "evaluate-model": Command(
        "cli.evaluate_model", "evaluate, for a model of any origin: a file of a graph, timm, ..."
    ),
    "compare": Command("cli.compare", "compares two evaluations image by image, or one with a bound"),
    "report": Command("cli.report", "writes report.md and report.html of evaluations, and a leaderboard"),
    "verify-adversarials": Command("cli.verify_adversarials", "scores saved attacked images again, in a fresh process"),
    "corruptions": Command("cli.corruptions", "accuracy under noise, blur, weather and compression"),
    "demo": Command("cli.demo", "what a trained model sees in your images, and under attack"),
    "visualize-data": Command("cli.visualize_data", "draws images of a data set with their parts and classes"),
    "visualize-attack": Command("cli.visualize_attack", "draws what an attack does to a model"),
    "export": Command("cli.export_model", "writes a trained classifier as weights, TorchScript, pt2 or ONNX"),
    "convert-checkpoint": Command("cli.convert_checkpoint", "turns a public checkpoint into one for MODEL.WEIGHTS"),
    "reproduce": Command("cli.reproduce", "trains and evaluates every model of a table, and writes the tables"),
    "zoo-page": Command("cli.model_zoo", "writes the page of the model zoo from evaluations"),
    "make-part-shapes": Command("cli.make_part_shapes", "draws PartShapes, the built-in data set"),
    "check-data": Command("data.check", "finds every violation of the part format in a json"),
    "import-coco": Command("cli.import_coco", "imports plain COCO part files"),
    "import-parts": Command("cli.import_parts", "imports part annotations from other tools and layouts"),
    "export-annotations": Command("cli.export_annotations", "writes part annotations for CVAT or as plain COCO"),
    "preannotate": Command("cli.preannotate", "writes what a model finds as annotations to correct"),
    "prepare-paco": Command("cli.prepare_paco", "prepares PACO from its own files"),
    "prepare-part-imagenet": Command("cli.prepare_part_imagenet", "prepares PartImageNet from its own files"),
}


def main(arguments: Sequence[str] | None = None) -> int | None:
    """Runs a command.

    Args:
        arguments: its name, then its own arguments; those of this process if None.

    Returns:
        The exit code, None for 0.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        prog="part-robust",
        usage="%(prog)s COMMAND ...",
        description=f"{(part_robust.__doc__ or '').splitlines()[0]} `part-robust COMMAND --help` explains a command.",
        epilog="commands:\n" + "\n".join(f"  {name:22} {command.summary}" for name, command in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=part_robust.__version__)
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    # What follows the name is the command's own.
    name = parser.parse_args(words[:1]).command
    command = COMMANDS[name]
    # What its help and its messages call it.
    sys.argv[0] = f"part-robust {name}"
    return importlib.import_module(f"part_robust.{command.module}").main([*command.first, *words[1:]])
