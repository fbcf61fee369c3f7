"""Trains and evaluates every model of a table, or of a suite of tables, and writes the tables.

    part-robust reproduce --suite part_shapes_small                 # half an hour on two CPU cores
    part-robust reproduce --suite thesis_2 --devices 0,1,2,3        # one run at a time on each of four GPUs
    part-robust reproduce --suite thesis_3 --dry-run                # what would run, what is finished
    part-robust reproduce part_shapes_deeplab --only deeplab_pixel --only resnet50 SOLVER.EPOCHS 1
    part-robust reproduce --suite part_shapes_small --seeds 0,1,2   # mean, deviation and paired differences

Writes the tables as Markdown and CSV; a suite's also in the layout of the thesis with the thesis's numbers beside, and
the thesis's figures 2.4, 3.3 and 3.4. Each model is trained on clean images, then adversarially; both are
evaluated clean and attacked. Interrupted, it continues where it was; runs that are finished are not repeated, and where
only the evaluation has changed the training is kept; one that fails leaves the others alone, and the exit code is 1
then. KEY VALUE pairs change the config of every run.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from part_robust.data.part_shapes import make_part_shapes
from part_robust.runs.run import CONSOLE, Run, check_folders, states
from part_robust.runs.scheduler import Outcome, default_slots, processes, schedule
from part_robust.runs.suites import SUITES, TABLES, suite_runs, table_runs
from part_robust.runs.tables import Tables
from part_robust.utils.errors import PREPARATION, user_errors


def show_plan(runs: Sequence[Run]) -> None:
    found = states(runs)
    rows = [[run.title, each, str(run.output)] for run, each in zip(runs, found, strict=True)]
    print(tabulate(rows, ["run", "state", "folder"], tablefmt="github"))
    print(f"{len(runs)} runs, {found.count('finished')} finished")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="TABLE [KEY VALUE ...]", help=f"one of {', '.join(TABLES)}")
    parser.add_argument("--suite", choices=SUITES, help="several tables, instead of one")
    parser.add_argument("--only", action="append", default=[], metavar="MODEL", help="this model; may be repeated")
    parser.add_argument(
        "--seeds", default="", metavar="0,1,2", help="make every run with each SEED; default: that of the configs alone"
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at the same time; default: one for each device")
    parser.add_argument("--devices", metavar="0,1", help="GPUs to share out among the runs (CUDA_VISIBLE_DEVICES)")
    parser.add_argument(
        "--output", default="", metavar="FOLDER", help="holds all runs, instead of the configs' folders"
    )
    parser.add_argument("--no-figures", action="store_true", help="leave out the suite's pictures of predictions")
    parser.add_argument("--dry-run", action="store_true", help="only say what would run and what is finished")
    args = parser.parse_intermixed_args(arguments)
    args.table = None if args.suite else (args.words.pop(0) if args.words else None)
    if not args.suite and args.table not in TABLES:
        parser.error(f"give a --suite ({', '.join(SUITES)}) or a table ({', '.join(TABLES)}), not {args.table}")
    if len(args.words) % 2:
        parser.error(f"KEY VALUE pairs are two words each, {' '.join(args.words)!r} has {len(args.words)}")
    if "OUTPUT_DIR" in args.words[0::2]:
        parser.error("every run has a separate OUTPUT_DIR: give the folder of all runs as --output")
    if args.jobs is not None and args.jobs < 1:
        parser.error(f"--jobs must be at least 1, is {args.jobs}")
    try:
        args.seeds = [int(seed) for seed in args.seeds.split(",")] if args.seeds else []
    except ValueError:
        parser.error(f"--seeds must be whole numbers with commas between, such as 0,1,2; got {args.seeds}")
    if min(args.seeds, default=0) < 0 or len(set(args.seeds)) < len(args.seeds):
        parser.error(f"--seeds must be different numbers from 0, got {args.seeds}: a negative SEED means a random one")
    if args.seeds and "SEED" in args.words[0::2]:
        parser.error("--seeds sets SEED: leave the pair SEED out")
    args.devices = [device.strip() for device in args.devices.split(",")] if args.devices else []
    for device in args.devices:
        if not re.fullmatch(r"\d+|(GPU|MIG)-.+", device):
            parser.error(f"--devices must be numbers of GPUs with commas between, or their UUIDs, got {device!r}")
    args.output = os.path.abspath(args.output) if args.output else ""
    with user_errors(*PREPARATION):
        args.runs = runs_of(args, args.only)
        check_folders(args.runs)
    return args


def runs_of(args: argparse.Namespace, only: Sequence[str]) -> list[Run]:
    find = suite_runs if args.suite else table_runs
    return find(args.suite or args.table, only, args.words, args.output, args.seeds)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    runs = args.runs
    if args.dry_run:
        with user_errors(*PREPARATION):  # the data may not be there to compare configs by
            show_plan(runs)
        return 0
    if any(run.table.startswith("part_shapes") for run in runs):
        make_part_shapes(Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "part_shapes")
    of_seeds = "_of_seeds" if args.seeds else ""
    if args.suite:
        # All of the suite's runs: a call with --only completes the tables of another one.
        folder = Path(args.output or f"output/{args.suite}", f"tables{of_seeds}")
        tables = Tables(runs_of(args, ()), folder, "tables", SUITES[args.suite].of_thesis)
    else:
        tables = Tables(runs, Path(args.output or "output"), "-".join([args.table, *args.only]) + of_seeds)

    def done(outcome: Outcome) -> None:
        if outcome.state == "finished":
            tables.write()

    def is_done(run: Run) -> bool:
        return run.record() is not None

    slots = args.jobs or default_slots(runs, args.devices)
    print(f"{len(runs)} runs, {slots} at a time", flush=True)
    with processes(slots, args.devices) as start:
        outcomes = schedule(runs, start, slots, is_done, CONSOLE, lambda line: print(line, flush=True), done)
    if tables.markdown.is_file():
        print(f"\n{tables.markdown.read_text()}\ntables: {tables.markdown}")
    if args.suite and SUITES[args.suite].of_thesis and not args.no_figures:
        # After the runs: matplotlib is slow to import and not needed before.
        from part_robust.runs.thesis.figures import draw_figures

        for path in draw_figures(next(filter(None, tables.records.values()), {}), tables.folder):
            print(f"figure: {path}")
    bad = [outcome for outcome in outcomes if outcome.state != "finished"]
    for outcome in bad:
        where = f" (log: {outcome.run.console})" if outcome.state == "failed" else ""
        print(f"{outcome.run.title} {outcome.state}: {outcome.reason}{where}", file=sys.stderr)
    return 1 if bad else 0
