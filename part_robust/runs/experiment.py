"""One training and its evaluation, only if its result is not there yet: what the demo and the tables are made of.

python -m part_robust.runs.experiment --config-file configs/part_shapes/resnet50.yaml [KEY VALUE ...]
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser

from part_robust.config import get_part_robust_cfg
from part_robust.engine.fingerprint import fingerprint, same_run
from part_robust.engine.launch import launch
from part_robust.engine.setup import complete_config, evaluate, setup, setup_run
from part_robust.evaluation.checks.record import class_tiers
from part_robust.evaluation.journal import JournalMismatch
from part_robust.evaluation.report import evaluations
from part_robust.evaluation.run import resumed_weights
from part_robust.runs.phases import train_phase
from part_robust.utils.errors import as_user_errors
from part_robust.utils.files import read_json, write_text

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


def run_phase(phase: Phase, level: int = logging.INFO) -> dict:
    """Trains (from its last checkpoint if it was interrupted), evaluates, and returns the record of robustness.json.

    What was made with another config is not taken for this run's; but where only the evaluation is another one, the
    trained weights are kept. `level` is the lowest one of the log lines on the terminal. Raises as `setup`.
    """
    cfg = setup(_arguments(phase), level)
    output = Path(cfg.OUTPUT_DIR)
    wanted = fingerprint(cfg)
    record = _finished(output, wanted)
    if record is not None:
        logger.info("%s: already there (%s)", phase.title, output / FINISHED)
        return record
    logger.info("%s: training in %s", phase.title, output)
    best = train_phase(cfg, restart=True)
    evaluation, attacks = setup_run(_arguments(phase, "--eval-only", opts=["MODEL.WEIGHTS", str(best)]), level)
    try:
        evaluate(evaluation, resumed_weights(evaluation) == "MODEL.WEIGHTS", attacks)
    except JournalMismatch as error:
        logger.info("Evaluates anew: %s", error)
        evaluate(evaluation, attacks=attacks)
    record = json.loads((output / "robustness.json").read_text())
    write_text(output / FINISHED, json.dumps({"config": wanted, "record": record}))
    return record


def finished_record(phase: Phase, wanted: str = "") -> dict | None:
    """Return the record of a phase that is done with this very config, its evaluation included, or None.

    Raises as `complete_config`, but only where there is a record to compare with. `wanted` is its `phase_fingerprint`,
    if that is known already.
    """
    output = Path(get_part_robust_cfg(phase.config_file, [str(value) for value in phase.opts]).OUTPUT_DIR)
    if not (output / FINISHED).is_file():
        return None
    return _finished(output, wanted or phase_fingerprint(phase))


def phase_config(phase: Phase) -> CfgNode:
    """Returns the complete config of a phase's training. Raises as `complete_config`."""
    return complete_config(_arguments(phase))


def phase_fingerprint(phase: Phase) -> str:
    """Return what tells whether a run in the phase's folder is this one, or has trained the same.

    Raises as `complete_config`.
    """
    return fingerprint(phase_config(phase))


def _arguments(phase: Phase, *flags: str, opts: Sequence[str] = ()) -> argparse.Namespace:
    words = ["--config-file", phase.config_file, *flags, *(str(value) for value in phase.opts), *opts]
    return default_argument_parser().parse_args(words)


def _finished(output: Path, wanted: str) -> dict | None:
    if not (output / FINISHED).is_file():
        return None
    content = read_json(output / FINISHED, "delete it, and the evaluation is made again")
    return content["record"] if same_run(content["config"], wanted) else None


@dataclass(frozen=True)
class Measured:
    """One model's numbers, percent, by metric ("accuracy", "pixel_accuracy", "mIoU", "AP", "AP50").

    They are absent or None where a model has no such metric.

    Attributes:
        clean: on clean images.
        attacked: all on the same attacked images.
        attack: what attacked them; "" for nothing.
    """

    clean: Mapping[str, float | None] = field(default_factory=dict)
    attacked: Mapping[str, float | None] = field(default_factory=dict)
    attack: str = ""


def matrix(record: Mapping) -> list[dict]:
    """Every metric on clean images and under each attack or tier, of a record with one data set.

    Rows are {"attack", "head", metrics}, the first one of "clean" images; `head` is the head under attack. Class
    accuracies of tiers are those of the worst case per image.
    """
    (E,) = evaluations(record).values()
    tiers = class_tiers(E)
    rows = [dict(row) for row in E["attack_matrix"]]
    for row in rows:
        if row["attack"] in tiers:
            row["accuracy"] = tiers[row["attack"]]["robust"]["accuracy"]
    return rows


def measured(record: Mapping, attack: str = "") -> Measured:
    """Return the numbers of a record on clean images and under one attack.

    Args:
        record: of one data set, with or without tiers.
        attack: name of an attack or a tier; "" for the one that leaves the least of what the model is for: of the class
            accuracy among attacks on the class, or without a class head of the pixel accuracy.
    """
    clean, *attacked = matrix(record)
    if attack:
        attacked = [row for row in attacked if row["attack"] == attack]
    metric = "pixel_accuracy" if clean["accuracy"] is None else "accuracy"
    candidates = [row for row in attacked if row[metric] is not None]
    if metric == "accuracy" and not attack:
        # An attack on the parts says nothing about how robust the class is.
        candidates = [row for row in candidates if row["head"] == "class"]
    worst = min(candidates, key=lambda row: row[metric], default=None)
    return Measured(clean, worst or {}, worst["attack"] if worst else "")


def headline(record: Mapping) -> dict[str, float | None]:
    """Return clean and attacked class accuracy and pixel accuracy, percent, of a record with one data set.

    Attacked values are the smallest: of the class over attacks on the class, of the pixels over all attacks. The record
    may have tiers or not.
    """
    clean, *attacked = matrix(record)

    def least(metric: str, rows: Sequence[Mapping]) -> float | None:
        return min((row[metric] for row in rows if row[metric] is not None), default=None)

    return {
        "clean accuracy": clean["accuracy"],
        "robust accuracy": least("accuracy", [row for row in attacked if row["head"] == "class"]),
        "clean pixel accuracy": clean["pixel_accuracy"],
        "attacked pixel accuracy": least("pixel_accuracy", attacked),
    }


def _main(args: argparse.Namespace) -> None:
    phase = Phase(Path(args.config_file).stem, args.config_file, args.opts)
    with as_user_errors():
        complete_config(_arguments(phase))
    run_phase(phase)


if __name__ == "__main__":
    launch(_main, default_argument_parser().parse_args())
