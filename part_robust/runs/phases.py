"""Clean training, then adversarial training from its best weights, as one command that can be repeated at any point."""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm

from part_robust.config import find_config, get_part_robust_cfg
from part_robust.engine.begun import BEST, LAST, STARTED, is_begun
from part_robust.engine.fingerprint import different_keys, fingerprint, same_training
from part_robust.engine.setup import complete_config, setup, train
from part_robust.utils.errors import UserError
from part_robust.utils.files import read_json, write_text

logger = logging.getLogger(__name__)

TRAINED = "trained.json"


class OtherRun(UserError):
    """The output folder belongs to a training with another config."""


def prepare_two_phases(args: argparse.Namespace) -> Callable[[], Path]:
    """Validate both configs and return a function that runs both phases.

    Args:
        args: of `default_argument_parser`, with the config of the adversarial phase. `opts` hold in both phases, but
            for MODEL.WEIGHTS, which is where the clean one starts. With `resume`, a phase continues even if its config
            has changed since.

    Returns:
        Trains, and returns the best weights of the adversarial phase. Raises `OtherRun`.

    Raises:
        FileNotFoundError, KeyError, ValueError: as `setup`.
    """
    clean_args, adversarial_args = phase_arguments(args)
    complete_config(adversarial_args)
    clean_cfg = setup(clean_args)

    def run() -> Path:
        clean = train_phase(clean_cfg, go_on=args.resume)
        adversarial_args.opts = [*adversarial_args.opts, "MODEL.WEIGHTS", str(clean)]
        return train_phase(setup(adversarial_args), go_on=args.resume)

    return run


def phase_arguments(args: argparse.Namespace) -> tuple[argparse.Namespace, argparse.Namespace]:
    """Arguments of the two phases.

    Beside `x_adv.yaml` the clean phase takes `x.yaml`, and each its own OUTPUT_DIR. Without such a neighbour, or when
    `opts` name an OUTPUT_DIR, the phases share the config's and are in its folders `clean` and `adversarial`.

    Raises:
        ValueError: the config trains on clean images; a flag that does not go with two phases.
    """
    if args.eval_only:
        raise ValueError("--two-phase trains: evaluate with --eval-only and MODEL.WEIGHTS afterwards")
    cfg = get_part_robust_cfg(args.config_file, args.opts)
    if not cfg.ATTACK.TRAIN.ENABLED:
        raise ValueError(f"--two-phase needs the config of the adversarial phase, {args.config_file} trains clean")
    path = find_config(args.config_file)
    neighbour = path.with_name(path.name.replace("_adv", ""))
    has_neighbour = path.stem.endswith("_adv") and neighbour.is_file()
    clean, adversarial = copy.copy(args), copy.copy(args)
    # Which keys may have changed is decided by `train_phase`.
    clean.resume = adversarial.resume = False
    own_folder = not has_neighbour or "OUTPUT_DIR" in args.opts[0::2]
    if has_neighbour:
        clean.config_file = str(neighbour)
    clean.opts = [*args.opts, "ATTACK.TRAIN.ENABLED", "False"]
    adversarial.opts = _without(args.opts, "MODEL.WEIGHTS")
    if own_folder:
        clean.opts += ["OUTPUT_DIR", os.path.join(cfg.OUTPUT_DIR, "clean")]
        adversarial.opts = [*adversarial.opts, "OUTPUT_DIR", os.path.join(cfg.OUTPUT_DIR, "adversarial")]
    return clean, adversarial


def train_phase(cfg: CfgNode, go_on: bool = False, restart: bool = False) -> Path:
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
    (plan,) = comm.all_gather(_plan(output, wanted, go_on, restart) if comm.is_main_process() else None)[:1]
    if plan.startswith("refuse"):
        raise OtherRun(plan.removeprefix("refuse: "))
    if plan != "done":
        if comm.is_main_process():
            (output / TRAINED).unlink(missing_ok=True)
        logger.info("Training in %s (%s)", output, plan)
        train(cfg, resume=plan == "resume")
        if comm.is_main_process():
            write_text(output / TRAINED, json.dumps({"config": wanted}))
        comm.synchronize()
    else:
        logger.info("Already trained: %s", output)
    return _weights(output)


def is_trained(output: Path, wanted: str) -> bool:
    """Return whether the training with the fingerprint `wanted` is done, and its weights are there."""
    trained = output / TRAINED
    return (
        trained.is_file()
        and same_training(read_json(trained, "delete it, and the training is continued")["config"], wanted)
        and _weights(output).is_file()
    )


def _weights(output: Path) -> Path:
    best, final, record = output / "model_best.pth", output / "model_final.pth", output / BEST
    # Without a value in the record the file is of an earlier training in this folder.
    is_own = record.is_file() and json.loads(record.read_text()).get("value") is not None
    return best if best.is_file() and (is_own or not final.is_file()) else final


def _plan(output: Path, wanted: str, go_on: bool, restart: bool) -> str:
    """Return "done", "start", "resume", or "refuse: " and the reason."""
    if is_trained(output, wanted):
        return "done"
    last = output / LAST
    if is_begun(output, wanted):
        # Weights that were deleted to save room cannot be gone on from.
        return "resume" if not last.is_file() or (output / last.read_text().strip()).is_file() else "start"
    if not last.is_file():
        return "start"
    if go_on:
        return "resume"
    if restart:
        return "start"
    started = output / STARTED
    if not started.is_file():
        reason = "does not say its config (started.yaml)"
    else:
        reason = f"had another {', '.join(different_keys(started.read_text(), wanted))}"
    return (
        f"refuse: the training in OUTPUT_DIR {output} {reason}. Give another OUTPUT_DIR, or continue it all the "
        "same: --resume"
    )


def _without(opts: list[str], key: str) -> list[str]:
    pairs = zip(opts[0::2], opts[1::2], strict=True)
    return [text for name, value in pairs if name != key for text in (name, value)]
