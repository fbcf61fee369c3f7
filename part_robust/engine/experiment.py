"""Several runs one after the other, each only if its result is not there yet: the demo and the tables of the docs."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from detectron2.engine import default_argument_parser

from part_robust.engine.phases import train_phase
from part_robust.engine.setup import evaluate, setup

logger = logging.getLogger(__name__)


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

    A record made with another config is not taken for this run's.
    """
    opts = [str(value) for value in phase.opts]
    arguments = ["--config-file", phase.config_file]
    cfg = setup(default_argument_parser().parse_args([*arguments, *opts]))
    output = Path(cfg.OUTPUT_DIR)
    finished = output / "finished.json"
    fingerprint = cfg.dump()
    if finished.is_file():
        record = json.loads(finished.read_text())
        if record["config"] == fingerprint:
            logger.info("%s: already there (%s)", phase.title, finished)
            return record["record"]
    logger.info("%s: training in %s", phase.title, output)
    best = train_phase(cfg, restart=True)
    arguments = [*arguments, "--eval-only"]
    evaluate(setup(default_argument_parser().parse_args([*arguments, *opts, "MODEL.WEIGHTS", str(best)])))
    record = json.loads((output / "robustness.json").read_text())
    temporary = finished.with_suffix(".tmp")
    temporary.write_text(json.dumps({"config": fingerprint, "record": record}))
    os.replace(temporary, finished)
    return record


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
