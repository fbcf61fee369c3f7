"""One run: a training and the evaluation of its best checkpoint, which is made only if its result is not there yet."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser

from part_robust.config import get_part_robust_cfg
from part_robust.engine.begun import LAST
from part_robust.engine.fingerprint import fingerprint, same_run
from part_robust.engine.setup import complete_config, evaluate, setup, setup_run
from part_robust.evaluation.journal import JournalMismatch
from part_robust.evaluation.run import resumed_weights
from part_robust.runs.training import TRAINED, State, train_run, training_state
from part_robust.utils.files import read_json, write_text

logger = logging.getLogger(__name__)

FINISHED = "finished.json"
CONSOLE = "console.txt"


@dataclass(frozen=True)
class Run:
    """A training with one config in one folder, and the evaluation of its best checkpoint.

    Attributes:
        title: name in messages.
        config_file: a leaf config.
        opts: KEY VALUE pairs on top.
        table: name in TABLES (runs/suites.py), of the table that has a row of it.
        leaf: name of its clean config there, without ending: model and supervision.
        cells: first cells of the row: model, supervision and training.
        seed: SEED of the pairs; None for the config's.
    """

    title: str
    config_file: str
    opts: Sequence = field(default_factory=tuple)
    table: str = ""
    leaf: str = ""
    cells: tuple[str, ...] = ()
    seed: int | None = None

    @cached_property
    def config(self) -> CfgNode:
        """Config of the files and the pairs, for which the data need not be there."""
        return get_part_robust_cfg(self.config_file, [str(value) for value in self.opts])

    @property
    def output(self) -> Path:
        """Folder that holds the run."""
        return Path(self.config.OUTPUT_DIR)

    @property
    def console(self) -> Path:
        """File that takes what the run prints in a process of its own."""
        return self.output / CONSOLE

    @property
    def after(self) -> Path | None:
        """Folder of the weights that it begins from; the run of this folder must be done before."""
        return Path(self.config.MODEL.WEIGHTS).parent if self.config.MODEL.WEIGHTS else None

    def arguments(self, *flags: str, opts: Sequence[str] = ()) -> argparse.Namespace:
        """Return the command line, with flags and further KEY VALUE pairs, as detectron2 parses it."""
        words = ["--config-file", self.config_file, *flags, *(str(value) for value in self.opts), *opts]
        return default_argument_parser().parse_args(words)

    def complete_config(self) -> CfgNode:
        """Return the complete config of the training. Raises as `complete_config`."""
        return complete_config(self.arguments())

    def record(self, wanted: str = "") -> dict | None:
        """Return the record of robustness.json if the run is done with this very config, evaluation included, or None.

        Raises as `complete_config`, but only where there is a record to compare with. `wanted` is the fingerprint of
        the complete config, if that is known already.
        """
        path = self.output / FINISHED
        if not path.is_file():
            return None
        wanted = wanted or fingerprint(self.complete_config())
        content = read_json(path, "delete it, and the evaluation is made again")
        return content["record"] if same_run(content["config"], wanted) else None

    def state(self) -> State:
        """Return the state on disk, as if what the run begins from were done. Raises as `complete_config`."""
        if not any((self.output / name).is_file() for name in (FINISHED, TRAINED, LAST)):
            return State.NOT_BEGUN
        wanted = fingerprint(self.complete_config())
        if self.record(wanted) is not None:
            return State.DONE
        state = training_state(self.output, wanted)
        return State.TRAINED_AGAIN if state is State.TRAINED and (self.output / FINISHED).is_file() else state

    def execute(self, level: int = logging.INFO) -> dict:
        """Trains (from the last checkpoint if it was interrupted), evaluates, and returns the record.

        What was made with another config is not taken for this run's; but where only the evaluation is another one,
        the trained weights are kept. `level` is the lowest one of the log lines on the terminal. Raises as `setup`.
        """
        cfg = setup(self.arguments(), level)
        wanted = fingerprint(cfg)
        record = self.record(wanted)
        if record is not None:
            logger.info("%s: already there (%s)", self.title, self.output / FINISHED)
            return record
        logger.info("%s: training in %s", self.title, self.output)
        best = train_run(cfg, restart=True)
        evaluation, attacks = setup_run(self.arguments("--eval-only", opts=["MODEL.WEIGHTS", str(best)]), level)
        try:
            evaluate(evaluation, resumed_weights(evaluation) == "MODEL.WEIGHTS", attacks)
        except JournalMismatch as error:
            logger.info("Evaluates anew: %s", error)
            evaluate(evaluation, attacks=attacks)
        record = json.loads((self.output / "robustness.json").read_text())
        write_text(self.output / FINISHED, json.dumps({"config": wanted, "record": record}))
        return record


def check_folders(runs: Sequence[Run]) -> None:
    """Read the configs of runs before any work.

    Raises:
        FileNotFoundError, KeyError: as `get_part_robust_cfg`.
        ValueError: two runs have one OUTPUT_DIR.
    """
    outputs = [run.output for run in runs]
    for run in runs:
        if outputs.count(run.output) > 1:
            raise ValueError(f"OUTPUT_DIR {run.output} of {run.title} is used by another run, too: give each its own")


def states(runs: Sequence[Run]) -> list[str]:
    """Return the state of each run, in words.

    That of `State`; or "after X", of which the run X is still to be trained: all there is of it is kept only if X's
    weights come out as they were.

    Raises:
        FileNotFoundError, ImportError, KeyError, ValueError: as `complete_config`, where there is a config to check.
    """
    found = {run.output: run.state() for run in runs}
    after = {run.output: run.after for run in runs}
    anew = (State.OTHER_CONFIG, State.NOT_BEGUN)

    def trains(output: Path | None) -> bool:
        return output in found and (found[output] in (*anew, State.INTERRUPTED) or trains(after[output]))

    return [
        f"after {run.after.name}"
        if run.after is not None and trains(run.after) and found[run.output] not in anew
        else found[run.output].value
        for run in runs
    ]
