"""Trains the weights of a run, unless that is done, from the last checkpoint if the training was interrupted."""

from __future__ import annotations

import json
import logging
from enum import Enum
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm

from part_robust.engine.begun import BEST, LAST, STARTED, is_begun
from part_robust.engine.fingerprint import different_keys, fingerprint, same_training
from part_robust.engine.setup import train
from part_robust.utils.errors import UserError
from part_robust.utils.files import read_json, write_text

logger = logging.getLogger(__name__)

TRAINED = "trained.json"


class OtherRun(UserError):
    """The output folder belongs to a training with another config."""


class State(str, Enum):
    """State of a run by what lies in its folder, in the words of `--dry-run`."""

    NOT_BEGUN = "to do"
    INTERRUPTED = "begun"
    TRAINED = "trained, evaluates"
    TRAINED_AGAIN = "trained, evaluates again"  # it was evaluated in another way
    DONE = "finished"
    OTHER_CONFIG = "other config"


def training_state(output: Path, wanted: str) -> State:
    """Return NOT_BEGUN, INTERRUPTED, TRAINED or OTHER_CONFIG: how far the training in a folder is.

    Args:
        output: OUTPUT_DIR.
        wanted: fingerprint of the wanted training.
    """
    trained = output / TRAINED
    if (
        trained.is_file()
        and same_training(read_json(trained, "delete it, and the training is continued")["config"], wanted)
        and _weights(output).is_file()
    ):
        return State.TRAINED
    if is_begun(output, wanted):
        return State.INTERRUPTED
    return State.OTHER_CONFIG if (output / LAST).is_file() else State.NOT_BEGUN


def train_run(cfg: CfgNode, go_on: bool = False, restart: bool = False) -> Path:
    """Trains unless that is done, from the last checkpoint if it was interrupted.

    Keys that only an evaluation reads may differ from those of the training in the folder (engine/fingerprint.py).

    Args:
        cfg: complete, as `setup` gives it.
        go_on: also from a checkpoint of another config.
        restart: instead of refusing, start anew in the folder of another config.

    Returns:
        The weights to take: the best, or the last where nothing was evaluated.

    Raises:
        OtherRun: OUTPUT_DIR holds a training with another config.
    """
    output = Path(cfg.OUTPUT_DIR)
    # Rank 0 reads the files; all ranks do the same.
    wanted = fingerprint(cfg) if comm.is_main_process() else ""
    found = _read_folder(output, wanted, go_on) if comm.is_main_process() else None
    ((state, resume, difference),) = comm.all_gather(found)[:1]
    if state is State.TRAINED:
        logger.info("Already trained: %s", output)
        return _weights(output)
    if state is State.OTHER_CONFIG and not (go_on or restart):
        raise OtherRun(
            f"the training in OUTPUT_DIR {output} {difference}. Give another OUTPUT_DIR, or continue it all the same: "
            "--resume"
        )
    if comm.is_main_process():
        (output / TRAINED).unlink(missing_ok=True)
    logger.info("Training in %s (%s)", output, "resume" if resume else "start")
    train(cfg, resume=resume)
    if comm.is_main_process():
        write_text(output / TRAINED, json.dumps({"config": wanted}))
    comm.synchronize()
    return _weights(output)


def _read_folder(output: Path, wanted: str, go_on: bool) -> tuple[State, bool, str]:
    """Return the training's state, whether it is to be resumed, and in words what is different in another config."""
    state, last, started = training_state(output, wanted), output / LAST, output / STARTED
    if state is State.OTHER_CONFIG:
        if not started.is_file():
            return state, go_on, "does not say its config (started.yaml)"
        return state, go_on, f"had another {', '.join(different_keys(started.read_text(), wanted))}"
    # Weights that were deleted to save room cannot be gone on from.
    has_weights = not last.is_file() or (output / last.read_text().strip()).is_file()
    return state, state is State.INTERRUPTED and has_weights, ""


def _weights(output: Path) -> Path:
    best, final, record = output / "model_best.pth", output / "model_final.pth", output / BEST
    # Without a value in the record the file is of an earlier training in this folder.
    is_own = record.is_file() and json.loads(record.read_text()).get("value") is not None
    return best if best.is_file() and (is_own or not final.is_file()) else final
