"""Compares two evaluations image by image, or checks one against a bound.

    part-robust compare output/a output/b
    part-robust compare output/b --min-robust 40            # exit code 1 below 40 % (for CI)
    part-robust compare output/a output/b --not-worse       # exit code 1 if b is worse than a, p < 0.05

Both folders are OUTPUT_DIR of `tools/train_net.py --eval-only ... TEST.TIER ...` on the same images.
Exit codes: 0 fine, 1 a bound is missed, 2 there is nothing to compare.
"""

import argparse
import sys
from collections.abc import Sequence

from tabulate import tabulate

from part_robust.evaluation.compare import Evaluated, compare, load_evaluated, right_images
from part_robust.evaluation.statistics import wilson_interval
from part_robust.utils.errors import PREPARATION, user_errors


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", metavar="A", help="folder of an evaluation")
    parser.add_argument("second", metavar="B", nargs="?", help="folder of another one; differences are B - A")
    parser.add_argument("--tier", help='default: the strongest one of A; "clean" for clean images')
    parser.add_argument("--dataset", help="needed only where a folder has several")
    parser.add_argument("--min-robust", type=float, metavar="PERCENT", help="least accuracy of the last folder, 0..100")
    parser.add_argument("--not-worse", action="store_true", help="B must not be significantly worse than A")
    args = parser.parse_args(arguments)
    if args.min_robust is not None and not (args.min_robust == 0 or 1 <= args.min_robust <= 100):
        parser.error(f"--min-robust is in percent, 1..100; {args.min_robust:g} is not")
    if args.not_worse and not args.second:
        parser.error("--not-worse needs two folders")
    return args


def row(evaluated: Evaluated, tier: str) -> list:
    cells: list = [str(evaluated.folder)]
    for name in dict.fromkeys(("clean", tier)):
        right = right_images(evaluated, name)
        low, high = wilson_interval(int(right.sum()), len(right))
        cells += [100 * right.mean(), f"{100 * low:.1f} .. {100 * high:.1f}"]
    return [*cells, len(right)]


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    # 1 means that a bound is missed.
    with user_errors(*PREPARATION, code=2):
        loaded = [load_evaluated(folder, args.dataset) for folder in (args.first, args.second) if folder]
        tier = args.tier or loaded[0].evaluation["headline"]
        rows = [row(evaluated, tier) for evaluated in loaded]
        paired = compare(loaded[0], loaded[1], tier) if args.second else None
    headers = ["evaluation", *(h for name in dict.fromkeys(("clean", tier)) for h in (f"{name} %", "95 %")), "images"]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=".2f"))
    failed = False
    if paired:
        low, high = (100 * value for value in paired.interval)
        print(
            f"\n{tier}: B - A = {100 * paired.difference:+.2f} points, 95 % {low:+.2f} .. {high:+.2f}; "
            f"right in A alone {paired.only_first}, in B alone {paired.only_second}, in both {paired.both}; "
            f"exact McNemar p = {paired.p_value:.3g}"
        )
        if args.not_worse and paired.difference < 0 and paired.p_value < 0.05:
            print(f"B is worse than A (p = {paired.p_value:.3g})", file=sys.stderr)
            failed = True
    if args.min_robust is not None:
        accuracy = 100 * float(right_images(loaded[-1], tier).mean())
        if accuracy < args.min_robust:
            print(f"{tier} accuracy {accuracy:.2f} % is below {args.min_robust:g} %", file=sys.stderr)
            failed = True
    return int(failed)
