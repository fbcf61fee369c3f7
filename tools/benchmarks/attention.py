"""The backends of multi-scale deformable attention beside one another."""

import argparse

import torch
from tabulate import tabulate

from benchmarks.timing import CLOCKS, best_times, peak_memory
from part_robust.layers.ms_deform_attn import ms_deform_attn


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
                memory = peak_memory(sides[name], device)
                rows.append([queries, "forward + backward" if backward else "forward", name, value, memory])
    print(
        f"{args.images} images, {tokens} pixels, 8 heads of 32, 4 levels, 4 points, {device}, {args.clock} clock, "
        f"best of {args.repeats}"
    )
    print(tabulate(rows, ["queries", "what", "backend", "ms", "peak MB"], "github", floatfmt=".1f", missingval="-"))
