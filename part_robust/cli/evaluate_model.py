"""Evaluates a classifier that you have already, of any origin, as part models are evaluated.

    part-robust evaluate-model --torchscript now.ts --dataset part_robust_part_shapes_test
    part-robust evaluate-model --exported now.pt2 --json mine/test.json --image-root mine/images TEST.TIER screen
    part-robust evaluate-model --timm convnext_tiny --weights now.pth --dataset ... --classes imagenet.txt
    part-robust evaluate-model --torchvision resnet50 --weights now.pth --dataset ...
    part-robust evaluate-model --callable package.module:function --dataset ...

No training config is needed. Tiers, checks, robustness.json and the report are those of `part-robust evaluate`, and
`part-robust compare` compares the two folders. KEY VALUE pairs come last: TEST.TIER (default standard), TEST.EPS,
OUTPUT_DIR (default output/<name of the file or model>) and all others. See docs/evaluate_model.md.
"""

import argparse
import logging
from collections.abc import Sequence

import torch

from part_robust.engine import end_process_group, evaluate, launch
from part_robust.engine.external import describe_images, external_options
from part_robust.engine.setup import setup_run
from part_robust.utils.errors import as_user_errors

logger = logging.getLogger("part_robust.cli.evaluate_model")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # What the config and the launch of a run read beside the flags below.
    parser.set_defaults(config_file="", eval_only=True)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--torchscript", metavar="FILE", help="of torch.jit.save")
    model.add_argument("--exported", metavar="FILE", help="of torch.export.save; reading one can run code in it")
    model.add_argument("--timm", metavar="NAME", help="model of timm; with --weights")
    model.add_argument("--torchvision", metavar="NAME", help="classifier of torchvision; with --weights")
    model.add_argument(
        "--callable", metavar="MODULE:FUNCTION", help="function() or, with --weights, function(path) -> a model"
    )
    parser.add_argument("--weights", metavar="FILE", help="of --timm, --torchvision or --callable")
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", metavar="NAME", help="a registered data set, or the name of --json in the record")
    data.add_argument("--json", metavar="FILE", help="part json (docs/data_format.md)")
    data.add_argument("--image-root", metavar="DIR", help="of --json; default: what the json says")
    data.add_argument("--classes", metavar="FILE", help="name of each output of the model, one a line, or json")
    images = parser.add_argument_group("images; what is not given is what the library or the file says, or ImageNet's")
    images.add_argument("--size", metavar="PIXELS", help="side of the square input")
    images.add_argument("--resize", type=int, metavar="PIXELS", help="short side before the middle is cut out")
    images.add_argument("--interpolation", choices=["bilinear", "bicubic"])
    images.add_argument("--values", choices=["0..1", "0..255"], help="of pixels before --mean and --std")
    images.add_argument("--mean", type=three_numbers, help="R,G,B in the unit of --values, or one number for all")
    images.add_argument("--std", type=three_numbers, help="R,G,B in the unit of --values, or one number for all")
    images.add_argument("--channels", choices=["RGB", "BGR"], default="RGB", help="order that the model takes")
    output = parser.add_argument_group("output of the model")
    output.add_argument("--output", default="", metavar="NAME", help="the logits among several outputs: key or index")
    output.add_argument("--probabilities", action="store_true", help="it returns probabilities: attack their logarithm")
    output.add_argument("--batch", type=int, default=0, help="number of images that its graph is fixed to")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted evaluation in OUTPUT_DIR")
    processes = parser.add_argument_group("processes, as of part-robust evaluate (docs/scaling.md)")
    processes.add_argument("--num-gpus", type=int, default=1, help="processes on each machine")
    processes.add_argument("--num-machines", type=int, default=1)
    processes.add_argument("--machine-rank", type=int, default=0)
    processes.add_argument("--dist-url", default="auto", help="tcp://HOST:PORT of the first of several machines")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that change the config")
    return parser.parse_args(arguments)


def three_numbers(text: str) -> list[float]:
    """Parses one number, or three with commas between."""
    values = [float(word) for word in text.split(",")]
    if len(values) not in (1, 3):
        raise argparse.ArgumentTypeError(f"must be one number, or three with commas between, got {text}")
    return 3 * values if len(values) == 1 else values


def with_device(opts: Sequence[str]) -> list[str]:
    """Return the pairs, with MODEL.DEVICE cpu in front on a machine without a GPU: no config of the user names one."""
    gpu = torch.cuda.is_available()
    return list(opts) if gpu or "MODEL.DEVICE" in opts[0::2] else ["MODEL.DEVICE", "cpu", *opts]


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    args.opts = with_device(args.opts)
    launch(run, args)


def run(args: argparse.Namespace) -> None:
    """Evaluates in one process of the job."""
    with as_user_errors():
        options, source = external_options(args)
        args.opts = [*options, *args.opts]
        cfg, attacks = setup_run(args)
    logger.info("%s (%s)", describe_images(cfg), source)
    evaluate(cfg, args.resume, attacks)
    end_process_group()
