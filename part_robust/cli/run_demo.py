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
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from tabulate import tabulate
from tqdm import tqdm

from part_robust import load_config
from part_robust.configured_attacks import build_attacks
from part_robust.data.part_shapes import make_part_shapes
from part_robust.evaluation.report import write_report
from part_robust.runs.experiment import Phase, headline, phase_config, run_phase
from part_robust.runs.passes import expected_passes, passes_counted
from part_robust.utils.errors import PREPARATION, sentence, user_errors

logger = logging.getLogger(__name__)

MODELS = {"resnet50": "ResNet, no parts", "deeplab_two_headed": "DeepLabv3+ Two-Headed"}
TRAININGS = {"": "clean", "_adv": "adversarial"}
OUTPUT = Path("output/part_shapes")
BAR = "{desc}: {percentage:3.0f} %|{bar}| {elapsed} elapsed, {remaining} left"


class Step(NamedTuple):
    """A training and its evaluation.

    Attributes:
        model: as the table calls it.
        training: "clean" or "adversarial".
        phase: what is run.
        cfg: complete, of the training.
        passes: expected (runs/passes.py).
    """

    model: str
    training: str
    phase: Phase
    cfg: CfgNode
    passes: int


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for every run")
    opts = parser.parse_args(arguments).opts
    torch.set_num_threads(min(torch.get_num_threads(), os.cpu_count() or 1))
    with user_errors(*PREPARATION):
        print(f"Data: {data_folder()}", flush=True)
        make_part_shapes(data_folder())
        steps = [step(model, suffix, opts) for model in MODELS for suffix in TRAININGS]
    start = time.time()
    with user_errors():
        try:
            records = run(steps)
        except KeyboardInterrupt:
            sys.exit("Interrupted: the same command continues from the last checkpoint")
        summarize(steps, records, opts)
    print(f"{(time.time() - start) / 60:.1f} minutes")


def data_folder() -> Path:
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "part_shapes"


def step(model: str, suffix: str, opts: Sequence[str]) -> Step:
    title = f"{MODELS[model]}, {TRAININGS[suffix]} training"
    phase = Phase(title, f"configs/part_shapes/{model}{suffix}.yaml", opts)
    cfg = phase_config(phase)
    return Step(MODELS[model], TRAININGS[suffix], phase, cfg, expected_passes(cfg))


def run(steps: Sequence[Step]) -> list[dict]:
    """Trains and evaluates all models, with a line for each and a bar on a terminal; returns their records."""
    records = []
    start, done = time.time(), 0
    left = sum(step.passes for step in steps)
    with tqdm(total=left, bar_format=BAR, disable=None, leave=False) as bar:
        for number, step in enumerate(steps, 1):
            log = Path(step.cfg.OUTPUT_DIR) / "log.txt"
            bar.set_description_str(step.phase.title)
            say(f"[{number}/{len(steps)}] {step.phase.title}, log in {log}")
            counted: list[int] = []

            def count(images: int, counted: list[int] = counted) -> None:
                counted.append(images)
                bar.update(images)

            with passes_counted(count):
                records.append(run_step(step, log))
            # The expectation was too high by what was done before, or was not necessary.
            if not bar.disable:
                bar.total -= step.passes - sum(counted)
            done += sum(counted)
            left -= step.passes
            seconds = (time.time() - start) * left / done if done else 0
            rest = f"; about {tqdm.format_interval(seconds)} left" if left and done else ""
            say(f"      {'done' if counted else 'done before'}: {numbers(records[-1])}{rest}")
    return records


def say(line: str) -> None:
    """Prints a line above the bar, at once also into a pipe."""
    tqdm.write(line)
    sys.stdout.flush()


def run_step(step: Step, log: Path) -> dict:
    """Trains and evaluates a model; ends the process with one sentence if that fails."""
    try:
        return run_phase(step.phase, logging.WARNING)
    except Exception as error:
        if not log.is_file():
            raise
        # Below the level of the terminal: the traceback is in the log file alone.
        logger.info("%s failed", step.phase.title, exc_info=True)
        sys.exit(f"{step.phase.title} failed: {sentence(error)}. The whole log: {log}")


def numbers(record: Mapping) -> str:
    values = headline(record)
    return ", ".join(f"{name} {values[name]:.1f} %" for name in ("clean accuracy", "robust accuracy"))


def summarize(steps: Sequence[Step], records: Sequence[dict], opts: Sequence[str]) -> None:
    """Writes and prints the table, the picture, and the report of the model with the highest robust accuracy."""
    # After the runs: matplotlib is slow to import and not needed before.
    from part_robust.cli.visualize_attack import draw

    weights = OUTPUT / "deeplab_two_headed_adv" / "model_best.pth"
    cfg = load_config("configs/part_shapes/deeplab_two_headed_adv.yaml", [*opts, "MODEL.WEIGHTS", str(weights)])
    attack = cfg.ATTACK.EVAL[0]
    picture = draw(cfg, attack, 6, str(OUTPUT / "attack.png"))
    best, _ = max(zip(steps, records, strict=True), key=lambda pair: headline(pair[1])["robust accuracy"] or 0.0)
    report = write_report(Path(best.cfg.OUTPUT_DIR) / "robustness.json")[1]

    threat = f"PGD-{build_attacks(cfg, [attack])[attack].steps}, L-inf 8/255"
    headers = [
        "model",
        "training",
        "clean acc. %",
        f"robust acc. % ({threat})",
        "pixel acc. %",
        "attacked pixel acc. %",
    ]
    rows = [
        [each.model, each.training, *headline(record).values()] for each, record in zip(steps, records, strict=True)
    ]
    table = tabulate(rows, headers, tablefmt="github", floatfmt=".1f", missingval="-")
    (OUTPUT / "table.md").write_text(table + "\n")
    print(f"\n{table}\n")
    print(f"table:   {OUTPUT / 'table.md'}")
    print(f"picture: {picture}")
    print(f"report:  {report} (of the best: {best.phase.title})")
    print(f"records: {OUTPUT}/<run>/robustness.json")
