#!/usr/bin/env python
"""Times of the detectors' parts; every ratio comes from one run in which the two sides take turns.

python tools/benchmark.py dino
python tools/benchmark.py dino --official /tmp/DINO
python tools/benchmark.py ms_deform_attn
"""

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from detectron2.modeling import build_model
from official_dino import load_official
from tabulate import tabulate

import part_robust.modeling  # noqa: F401  (registration)
from part_robust.config import get_part_robust_cfg
from part_robust.layers.ms_deform_attn import ms_deform_attn
from part_robust.modeling.gradients import full_gradient

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def best_times(
    sides: dict[str, Callable[[], object]], repeats: int, device: torch.device, clock: Callable[[], float]
) -> dict[str, float]:
    """Least milliseconds of each, after one call to warm up; the sides take turns, so that a busy machine slows all."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, run in sides.items():
            _wait(device)
            start = clock()
            run()
            _wait(device)
            if repeat:
                times[name].append(1000 * (clock() - start))
    return {name: min(own) for name, own in times.items()}


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def build_dino(layers: int, queries: int, parts: int, backend: str, device: str) -> torch.nn.Module:
    opts = [
        *("MODEL.DEVICE", device),
        *("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"]),
        *("MODEL.RESNETS.NORM", "FrozenBN"),
        *("MODEL.PART_CLASSIFIER.SEGMENTER", "DinoSegmenter"),
        *("MODEL.PART_CLASSIFIER.HEAD", ""),
        *("MODEL.PART_CLASSIFIER.NUM_PARTS", parts),
        *("MODEL.PART_CLASSIFIER.NUM_CLASSES", 11),
        *("MODEL.DINO.ENCODER_LAYERS", layers),
        *("MODEL.DINO.DECODER_LAYERS", layers),
        *("MODEL.DINO.NUM_QUERIES", queries),
        *("MODEL.DINO.MS_DEFORM_ATTN", backend),
    ]
    return build_model(get_part_robust_cfg(None, opts)).eval().requires_grad_(False)


def dino(args: argparse.Namespace) -> None:
    """Forward and backward to the input: a step of an attack."""
    device = torch.device(args.device)
    ours = build_dino(args.layers, args.queries, args.parts, args.backend, args.device)
    official = None
    if args.official:
        official, _ = load_official(
            args.official,
            num_classes=args.parts,
            enc_layers=args.layers,
            dec_layers=args.layers,
            num_queries=args.queries,
        )
        official = official.to(device).eval().requires_grad_(False)
        from util.misc import NestedTensor  # of the checkout

    rows = []
    for count in args.images:
        images = torch.randn(count, 3, args.size, args.size, device=device)
        mask = torch.zeros(count, args.size, args.size, dtype=torch.bool, device=device)

        def backward(logits: torch.Tensor, boxes: torch.Tensor, x: torch.Tensor) -> None:
            torch.autograd.grad(logits.square().mean() + boxes.square().mean(), x)

        def run_ours(images=images):
            x = images.clone().requires_grad_(True)
            output = ours.segmenter(ours.backbone(x), x.shape[-2:], class_only=True)
            backward(output.query_logits, output.query_boxes, x)

        def run_ours_whole():
            with full_gradient(ours):
                run_ours()

        def run_official(images=images, mask=mask):
            x = images.clone().requires_grad_(True)
            output = official(NestedTensor(x, mask))
            backward(output["pred_logits"], output["pred_boxes"], x)

        sides = {"ours": run_ours, "ours, whole gradient": run_ours_whole}
        if official is not None:
            sides["official"] = run_official
        times = best_times(sides, args.repeats, device, CLOCKS[args.clock])
        for name, value in times.items():
            rows.append([count, name, value, value / times["official"] if official is not None else None])
    print(
        f"DINO {args.layers}/{args.layers} layers, {args.queries} queries, {args.parts} parts, {args.size} px, "
        f"forward and backward to the input, {device}, {torch.get_num_threads()} threads, {args.clock} clock, "
        f"best of {args.repeats}"
    )
    print(tabulate(rows, ["images", "model", "ms", "ratio to official"], "github", (".0f", "", ".0f", ".2f")))


def attention(args: argparse.Namespace) -> None:
    """Multi-scale deformable attention alone, all backends of this machine."""
    device = torch.device(args.device)
    shapes = [(args.size // stride, args.size // stride) for stride in (8, 16, 32, 56)]
    tokens = sum(h * w for h, w in shapes)
    rows = []
    for queries in args.queries:
        arguments = [
            torch.randn(args.images, tokens, 8, 32, device=device),
            torch.rand(args.images, queries, 8, len(shapes), 4, 2, device=device),
            torch.rand(args.images, queries, 8, len(shapes), 4, device=device),
        ]

        def run(backend: str, backward: bool, arguments=arguments):
            value, locations, weights = (x.clone().requires_grad_(backward) for x in arguments)
            result = ms_deform_attn(value, shapes, locations, weights, backend)
            if backward:
                torch.autograd.grad(result.sum(), (value, locations, weights))

        for backward in (False, True):
            backends = ["embedding_bag", "gather", "sparse" if device.type == "cpu" else "triton"]
            sides = {name: lambda name=name, backward=backward: run(name, backward) for name in backends}
            times = best_times(sides, args.repeats, device, CLOCKS[args.clock])
            for name, value in times.items():
                memory = _peak_memory(sides[name], device)
                rows.append([queries, "forward + backward" if backward else "forward", name, value, memory])
    print(
        f"{args.images} images, {tokens} pixels, 8 heads of 32, 4 levels, 4 points, {device}, {args.clock} clock, "
        f"best of {args.repeats}"
    )
    print(tabulate(rows, ["queries", "what", "backend", "ms", "peak MB"], "github", floatfmt=".1f", missingval="-"))


def _peak_memory(run: Callable[[], object], device: torch.device) -> float | None:
    """Megabytes above what was held before; on the CPU, the largest sum that torch's profiler saw allocated."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    with torch.profiler.profile(profile_memory=True) as profile:
        run()
    held = peak = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 1e6


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
    attend = commands.add_parser("ms_deform_attn", help=attention.__doc__)
    attend.add_argument("--size", type=int, default=224, help="side in pixels")
    attend.add_argument("--queries", type=int, nargs="+", default=[1045, 900, 100])
    attend.add_argument("--images", type=int, default=1)
    attend.set_defaults(run=attention)
    for each in (command, attend):
        each.add_argument("--device", default="cpu")
        each.add_argument("--threads", type=int, default=1)
        each.add_argument("--repeats", type=int, default=5)
        each.add_argument(
            "--clock", choices=CLOCKS, default="wall", help="cpu: this process's own time (busy machines)"
        )
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    # Numbers next to zero are slow on many CPUs.
    torch.set_flush_denormal(True)
    args.run(args)


if __name__ == "__main__":
    main()
