"""Compares two evaluations image by image, or checks one against a bound.

    part-robust compare output/a output/b
    part-robust compare output/b --min-robust 40            # exit code 1 below 40 % (for CI)
    part-robust compare output/a output/b --not-worse       # exit code 1 if b is worse than a, p < 0.05
    part-robust compare output/a output/seed_*/a --with output/b output/seed_*/b    # several seeds of each

Folders are OUTPUT_DIR of `tools/train_net.py --eval-only ... TEST.TIER ...` on the same images.
Exit codes: 0 fine, 1 a bound is missed, 2 there is nothing to compare.
"""

import argparse
import sys
from collections.abc import Sequence

from tabulate import tabulate

from part_robust.evaluation.compare import Evaluated, Pairs, compare, load_evaluated, pair_seeds, right_images
from part_robust.evaluation.statistics import Paired, Spread, spread, wilson_interval
from part_robust.utils.errors import PREPARATION, user_errors


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", metavar="A", nargs="+", help="folder of an evaluation A; and of B, without --with")
    parser.add_argument(
        "--with", dest="second", metavar="B", nargs="+", default=[], help="runs of B, where A has several (seeds)"
    )
    parser.add_argument("--tier", help='default: the strongest one of A; "clean" for clean images')
    parser.add_argument("--dataset", help="needed only where a folder has several")
    parser.add_argument(
        "--min-robust", type=float, metavar="PERCENT", help="least accuracy of the last model, mean over seeds, 0..100"
    )
    parser.add_argument("--not-worse", action="store_true", help="B must not be significantly worse than A")
    args = parser.parse_intermixed_args(arguments)
    if args.min_robust is not None and not (args.min_robust == 0 or 1 <= args.min_robust <= 100):
        parser.error(f"--min-robust is in percent, 1..100; {args.min_robust:g} is not")
    args.first = args.folders
    if not args.second:
        if len(args.folders) > 2:
            parser.error("several runs of A need those of B behind --with: A A A --with B B B")
        args.first, args.second = args.folders[:1], args.folders[1:]
    if args.not_worse and not args.second:
        parser.error("--not-worse needs two folders")
    return args


def row(evaluated: Evaluated, tier: str) -> list:
    cells: list = [str(evaluated.folder)]
    for name in dict.fromkeys(("clean", tier)):
        right = right_images(evaluated, name)
        low, high = wilson_interval(int(right.sum()), len(right))
        cells += [accuracy(evaluated, name), f"{100 * low:.1f} .. {100 * high:.1f}"]
    return [*cells, len(right)]


def accuracy(evaluated: Evaluated, tier: str) -> float:
    """Percent; 57 of 100 are 57, where 100 * 0.57 is a little less."""
    right = right_images(evaluated, tier)
    return 100 * int(right.sum()) / len(right)


def show_pair(paired: Paired, tier: str) -> None:
    low, high = (100 * value for value in paired.interval)
    print(
        f"\n{tier}: B - A = {100 * paired.difference:+.2f} points, 95 % {low:+.2f} .. {high:+.2f}; "
        f"right in A alone {paired.only_first}, in B alone {paired.only_second}, in both {paired.both}; "
        f"exact McNemar p = {paired.p_value:.3g}"
    )


def show_seeds(found: Pairs, each: Sequence[Paired], over: Spread, tier: str) -> None:
    """The pairs one by one, each by McNemar's test, and their difference over the seeds."""
    rows = [
        [
            a.seed if found.by_seed else number,
            *(str(side.folder) for side in (a, b)),
            f"{100 * paired.difference:+.2f}",
            paired.only_first,
            paired.only_second,
            f"{paired.p_value:.3g}",
        ]
        for number, ((a, b), paired) in enumerate(zip(found.pairs, each, strict=True), 1)
    ]
    headers = ["SEED" if found.by_seed else "pair", "A", "B", f"{tier}, B - A", "A alone", "B alone", "McNemar p"]
    print(f"\n{tabulate(rows, headers, tablefmt='github', disable_numparse=True)}\n")
    print("Mean ± sample standard deviation over the pairs:")
    for name, index in (("A", 0), ("B", 1)):
        side = spread([accuracy(pair[index], tier) for pair in found.pairs])
        print(f"{tier}, {name}: {points(side)} %, n = {side.count}")
    interval = over.interval()
    ends = "" if interval is None else f", 95 % {interval[0]:+.2f} .. {interval[1]:+.2f} (Student's t)"
    print(f"{tier}: B - A = {points(over, '+')} points, n = {over.count}{ends}")
    if not found.by_seed:
        print("paired in the order given: the records do not have one SEED each")
    for evaluated in found.alone:
        print(f"left out, without a partner of SEED {evaluated.seed}: {evaluated.folder}")


def points(found: Spread, sign: str = "") -> str:
    return f"{found.mean:{sign}.2f}" + ("" if found.deviation is None else f" ± {found.deviation:.2f}")


def is_worse(each: Sequence[Paired], over: Spread | None) -> bool:
    interval = over.interval() if over else None
    if interval:
        return interval[1] < 0
    return each[0].difference < 0 and each[0].p_value < 0.05


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    each, over = [], None
    # 1 means that a bound is missed.
    with user_errors(*PREPARATION, code=2):
        first, second = (
            [load_evaluated(folder, args.dataset) for folder in side] for side in (args.first, args.second)
        )
        tier = args.tier or first[0].evaluation["headline"]
        rows = [row(evaluated, tier) for evaluated in (*first, *second)]
        if second and len(first) == len(second) == 1:
            each = [compare(first[0], second[0], tier)]
        elif second:
            found = pair_seeds(first, second)
            each = [compare(a, b, tier) for a, b in found.pairs]
            over = spread([100 * paired.difference for paired in each])
    headers = ["evaluation", *(h for name in dict.fromkeys(("clean", tier)) for h in (f"{name} %", "95 %")), "images"]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=".2f"))
    failed = False
    if over:
        show_seeds(found, each, over, tier)
    elif each:
        show_pair(each[0], tier)
    if args.not_worse and is_worse(each, over):
        print(f"B is worse than A{'' if over else f' (p = {each[0].p_value:.3g})'}", file=sys.stderr)
        failed = True
    if args.min_robust is not None:
        last = second or first
        mean = sum(accuracy(evaluated, tier) for evaluated in last) / len(last)
        if mean < args.min_robust:
            print(f"{tier} accuracy {mean:.2f} % is below {args.min_robust:g} %", file=sys.stderr)
            failed = True
    return int(failed)
