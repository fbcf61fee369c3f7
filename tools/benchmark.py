#!/usr/bin/env python
"""Times; every ratio comes from one run in which the sides take turns.

python tools/benchmark.py dino --official /tmp/DINO
python tools/benchmark.py mask_dino --official /tmp/MaskDINO
python tools/benchmark.py ms_deform_attn
python tools/benchmark.py attack --images 1
python tools/benchmark.py data
python tools/benchmark.py gpu --minutes 9 --out DIR
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from benchmarks.attack import attack
from benchmarks.attention import attention
from benchmarks.data import data
from benchmarks.dino import dino
from benchmarks.gpu import add_command
from benchmarks.mask_dino import mask_dino
from benchmarks.timing import CLOCKS

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("dino", help=dino.__doc__)
    command.add_argument("--official", metavar="DIR", help="a checkout of IDEA-Research/DINO to time beside ours")
    command.add_argument("--layers", type=int, default=6, help="encoder and decoder layers")
    command.add_argument("--queries", type=int, default=900)
    command.add_argument("--parts", type=int, default=40)
    command.add_argument("--size", type=int, default=224, help="side in pixels")
    command.add_argument("--images", type=int, nargs="+", default=[1, 2])
    command.add_argument("--backend", default="auto", help="of multi-scale deformable attention")
    command.set_defaults(run=dino)
    mask = commands.add_parser("mask_dino", help=mask_dino.__doc__)
    mask.add_argument("--official", metavar="DIR", help="a checkout of IDEA-Research/MaskDINO to time beside ours")
    mask.add_argument("--layers", type=int, default=9, help="decoder layers")
    mask.add_argument("--encoder-layers", type=int, default=6)
    mask.add_argument("--queries", type=int, default=100)
    mask.add_argument("--parts", type=int, default=40)
    mask.add_argument("--size", type=int, default=224, help="side in pixels")
    mask.add_argument("--images", type=int, nargs="+", default=[1, 2])
    mask.add_argument("--mask-loss", choices=("dense", "points"), default="dense")
    mask.set_defaults(run=mask_dino)
    attend = commands.add_parser("ms_deform_attn", help=attention.__doc__)
    attend.add_argument("--size", type=int, default=224, help="side in pixels")
    attend.add_argument("--queries", type=int, nargs="+", default=[1045, 900, 100])
    attend.add_argument("--images", type=int, default=1)
    attend.set_defaults(run=attention)
    attacks = commands.add_parser("attack", help=attack.__doc__)
    models = [str(CONFIGS / "part_imagenet" / f"{name}.yaml") for name in ("deeplab_two_headed", "mask_dino_simple")]
    attacks.add_argument("--config-files", nargs="+", default=models, help="models whose passes are timed")
    attacks.add_argument("--size", type=int, default=224, help="side in pixels")
    attacks.add_argument("--images", type=int, default=2)
    attacks.add_argument("--steps", type=int, default=10)
    small = str(CONFIGS / "part_shapes" / "deeplab_two_headed.yaml")
    attacks.add_argument("--attacked-config", default=small, help="model whose images leave early")
    attacks.add_argument("--weights", default="", help="of that model, trained on PartShapes; default: random")
    attacks.add_argument("--attacked-size", type=int, default=64, help="side in pixels")
    attacks.add_argument("--attacked-images", type=int, default=32)
    attacks.add_argument("--long-steps", type=int, default=100, help="of the attacks that images leave")
    attacks.add_argument("--eps", type=float, default=0.0, help="0..255; default: about half of the images break")
    attacks.add_argument("--pyautoattack", action="store_true", help="also time its standard set beside ours")
    attacks.add_argument("--bound", type=float, default=0.0, help="points: also time tier bounded beside standard")
    attacks.add_argument("--bound-images", type=int, default=1000, help="of the small nets that it is timed on")
    attacks.set_defaults(run=attack)
    loading = commands.add_parser("data", help=data.__doc__)
    loading.add_argument("--json", type=Path, help="part json; default: drawn pictures")
    loading.add_argument("--image-root", type=Path, help="of that json")
    loading.add_argument("--photos", type=int, default=32, help="how many are loaded")
    loading.add_argument("--side", type=int, default=512, help="of drawn pictures, in pixels")
    loading.add_argument("--window", type=int, default=0, help="side of the part of a drawn picture that is one image")
    loading.add_argument("--size", type=int, default=224, help="side in pixels that the model sees")
    loading.add_argument("--augment", action="store_true", help="also time each augmentation")
    loading.set_defaults(run=data)
    for each in (command, mask, attend, attacks, loading):
        each.add_argument("--device", default="cpu")
        each.add_argument("--threads", type=int, default=1)
        each.add_argument("--repeats", type=int, default=5)
        each.add_argument(
            "--clock", choices=CLOCKS, default="wall", help="cpu: this process's own time (busy machines)"
        )
    add_command(commands)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    # Numbers next to zero are slow on many CPUs.
    torch.set_flush_denormal(True)
    args.run(args)


if __name__ == "__main__":
    main()
