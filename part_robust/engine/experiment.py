"""One training and its evaluation, only if its result is not there yet: what the demo and the tables are made of.

python -m part_robust.engine.experiment --config-file configs/part_shapes/resnet50.yaml [KEY VALUE ...]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from detectron2.engine import default_argument_parser

from part_robust.config import get_part_robust_cfg
from part_robust.engine.launch import launch, sentence
from part_robust.engine.phases import train_phase
from part_robust.engine.robust_evaluation import resumed_weights
from part_robust.engine.setup import complete_config, evaluate, setup

logger = logging.getLogger(__name__)

FINISHED = "finished.json"


@dataclass(frozen=True)
class Phase:
    """One training and the evaluation of its best checkpoint.

    Attributes:
        title: how the run is called in tables.
        config_file: a leaf config; its OUTPUT_DIR holds the run.
        opts: KEY VALUE pairs on top.
    """

    title: str
    config_file: str
    opts: Sequence = field(default_factory=tuple)


def run_phase(phase: Phase) -> dict:
    """Trains (from its last checkpoint if it was interrupted), evaluates, and returns the record of robustness.json.

    A record made with another config is not taken for this run's. Raises as `setup`.
    """
    cfg = setup(_arguments(phase))
    output = Path(cfg.OUTPUT_DIR)
    fingerprint = cfg.dump()
    record = _finished(output, fingerprint)
    if record is not None:
        logger.info("%s: already there (%s)", phase.title, output / FINISHED)
        return record
    logger.info("%s: training in %s", phase.title, output)
    best = train_phase(cfg, restart=True)
    evaluation = setup(_arguments(phase, "--eval-only", opts=["MODEL.WEIGHTS", str(best)]))
    # The journal of an interrupted evaluation is of these weights: the training was done before it began.
    evaluate(evaluation, resume=bool(evaluation.TEST.TIER) and resumed_weights(evaluation) == "MODEL.WEIGHTS")
    record = json.loads((output / "robustness.json").read_text())
    temporary = (output / FINISHED).with_suffix(".tmp")
    temporary.write_text(json.dumps({"config": fingerprint, "record": record}))
    os.replace(temporary, output / FINISHED)
    return record


def finished_record(phase: Phase) -> dict | None:
    """The record of a phase that is done with this very config, or None. Raises as `complete_config`, but only where
    there is a record to compare with."""
    output = Path(get_part_robust_cfg(phase.config_file, [str(value) for value in phase.opts]).OUTPUT_DIR)
    if not (output / FINISHED).is_file():
        return None
    return _finished(output, complete_config(_arguments(phase)).dump())


def _arguments(phase: Phase, *flags: str, opts: Sequence[str] = ()) -> argparse.Namespace:
    words = ["--config-file", phase.config_file, *flags, *(str(value) for value in phase.opts), *opts]
    return default_argument_parser().parse_args(words)


def _finished(output: Path, fingerprint: str) -> dict | None:
    try:
        content = json.loads((output / FINISHED).read_text())
    except FileNotFoundError:
        return None
    return content["record"] if content["config"] == fingerprint else None


def headline(record: dict) -> dict[str, float | None]:
    """Clean and attacked class accuracy and pixel accuracy, percent, of a record with one data set; the attacked
    values are the smallest over the record's attacks."""
    (tasks,) = record["results"].values()

    def value(task: str, metric: str, names: Sequence[str]) -> float | None:
        found = [tasks[f"{task}{name}"][metric] for name in names if f"{task}{name}" in tasks]
        return min(found) if found else None

    attacked = [f"_{name}" for name in record["attacks"]]
    return {
        "clean accuracy": value("classification", "accuracy", [""]),
        "robust accuracy": value("classification", "accuracy", attacked),
        "clean pixel accuracy": value("part_seg", "pixel_accuracy", [""]),
        "attacked pixel accuracy": value("part_seg", "pixel_accuracy", attacked),
    }


def _main(args: argparse.Namespace) -> None:
    phase = Phase(Path(args.config_file).stem, args.config_file, args.opts)
    try:
        complete_config(_arguments(phase))
    except (FileNotFoundError, ImportError, KeyError, ValueError) as error:
        # What a user can mend needs a sentence, not a traceback.
        sys.exit(sentence(error))
    run_phase(phase)


if __name__ == "__main__":
    launch(_main, default_argument_parser().parse_args())
