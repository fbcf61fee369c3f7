"""`make demo`: the main job on the built-in data, in about ten minutes on two cores.

Draws PartShapes, trains a plain ResNet and a Two-Headed part model, first clean and then against a PGD attacker,
evaluates all four on clean and attacked test images, and writes a table, a picture, and a report of the best one.
Interrupted, it continues where it was; finished, it only prints the table again.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tabulate import tabulate
from tqdm import tqdm

from part_robust import load_config
from part_robust.configured_attacks import build_attacks
from part_robust.data.part_shapes import make_part_shapes
from part_robust.evaluation.report import write_report
from part_robust.runs.measured import headline_numbers
from part_robust.runs.passes import expected_passes, passes_counted
from part_robust.runs.run import Run
from part_robust.runs.scheduler import in_this_process, schedule
from part_robust.utils.errors import PREPARATION, sentence, user_errors

logger = logging.getLogger(__name__)

MODELS = {"resnet50": "ResNet, no parts", "deeplab_two_headed": "DeepLabv3+ Two-Headed"}
TRAININGS = {"": "clean", "_adv": "adversarial"}
OUTPUT = Path("output/part_shapes")
BAR = "{desc}: {percentage:3.0f} %|{bar}| {elapsed} elapsed, {remaining} left"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for every run")
    opts = parser.parse_args(arguments).opts
    torch.set_num_threads(min(torch.get_num_threads(), os.cpu_count() or 1))
    with user_errors(*PREPARATION):
        print(f"Data: {data_folder()}", flush=True)
        make_part_shapes(data_folder())
        runs = demo_runs(opts)
        passes = [expected_passes(run.complete_config()) for run in runs]
    start = time.time()
    with user_errors():
        try:
            records = execute(runs, passes)
        except KeyboardInterrupt:
            sys.exit("Interrupted: the same command continues from the last checkpoint")
        summarize(runs, records, opts)
    print(f"{(time.time() - start) / 60:.1f} minutes")


def data_folder() -> Path:
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "part_shapes"


def demo_runs(opts: Sequence[str]) -> list[Run]:
    return [
        Run(f"{title}, {training} training", f"configs/part_shapes/{model}{suffix}.yaml", opts, cells=(title, training))
        for model, title in MODELS.items()
        for suffix, training in TRAININGS.items()
    ]


def execute(runs: Sequence[Run], passes: Sequence[int]) -> list[dict]:
    """Trains and evaluates all models, with a line for each and a bar on a terminal; returns their records.

    Args:
        runs: of `demo_runs`.
        passes: expected of each (runs/passes.py).
    """
    records: list[dict] = []
    start, done = time.time(), 0
    left = sum(passes)
    with tqdm(total=left, bar_format=BAR, disable=None, leave=False) as bar:

        def work(run: Run) -> None:
            nonlocal done, left
            expected, log = passes[len(records)], run.output / "log.txt"
            bar.set_description_str(run.title)
            say(f"[{len(records) + 1}/{len(runs)}] {run.title}, log in {log}")
            counted: list[int] = []

            def count(images: int) -> None:
                counted.append(images)
                bar.update(images)

            with passes_counted(count):
                records.append(execute_one(run, log))
            # The expectation was too high by what was done before, or was not necessary.
            if not bar.disable:
                bar.total -= expected - sum(counted)
            done += sum(counted)
            left -= expected
            seconds = (time.time() - start) * left / done if done else 0
            rest = f"; about {tqdm.format_interval(seconds)} left" if left and done else ""
            say(f"      {'done' if counted else 'done before'}: {numbers(records[-1])}{rest}")

        schedule(runs, in_this_process(work), say=lambda line: None)
    return records


def say(line: str) -> None:
    """Prints a line above the bar, at once also into a pipe."""
    tqdm.write(line)
    sys.stdout.flush()


def execute_one(run: Run, log: Path) -> dict:
    """Trains and evaluates a model; ends the process with one sentence if that fails."""
    try:
        return run.execute(logging.WARNING)
    except Exception as error:
        if not log.is_file():
            raise
        # Below the level of the terminal: the traceback is in the log file alone.
        logger.info("%s failed", run.title, exc_info=True)
        sys.exit(f"{run.title} failed: {sentence(error)}. The whole log: {log}")


def numbers(record: Mapping) -> str:
    values = headline_numbers(record)
    return ", ".join(f"{name} {values[name]:.1f} %" for name in ("clean accuracy", "robust accuracy"))


def summarize(runs: Sequence[Run], records: Sequence[dict], opts: Sequence[str]) -> None:
    """Writes and prints the table, the picture, and the report of the model with the highest robust accuracy."""
    # After the runs: matplotlib is slow to import and not needed before.
    from part_robust.cli.visualize_attack import draw

    weights = OUTPUT / "deeplab_two_headed_adv" / "model_best.pth"
    cfg = load_config("configs/part_shapes/deeplab_two_headed_adv.yaml", [*opts, "MODEL.WEIGHTS", str(weights)])
    attack = cfg.ATTACK.EVAL[0]
    picture = draw(cfg, attack, 6, str(OUTPUT / "attack.png"))
    best, _ = max(zip(runs, records, strict=True), key=lambda pair: headline_numbers(pair[1])["robust accuracy"] or 0.0)
    report = write_report(best.output / "robustness.json")[1]

    threat = f"PGD-{build_attacks(cfg, [attack])[attack].steps}, L-inf 8/255"
    headers = [
        "model",
        "training",
        "clean acc. %",
        f"robust acc. % ({threat})",
        "pixel acc. %",
        "attacked pixel acc. %",
    ]
    rows = [[*each.cells, *headline_numbers(record).values()] for each, record in zip(runs, records, strict=True)]
    table = tabulate(rows, headers, tablefmt="github", floatfmt=".1f", missingval="-")
    (OUTPUT / "table.md").write_text(table + "\n")
    print(f"\n{table}\n")
    print(f"table:   {OUTPUT / 'table.md'}")
    print(f"picture: {picture}")
    print(f"report:  {report} (of the best: {best.title})")
    print(f"records: {OUTPUT}/<run>/robustness.json")
