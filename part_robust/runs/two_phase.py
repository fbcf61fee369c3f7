"""Clean training, then adversarial training from its best weights, as one command that can be repeated at any point."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable
from pathlib import Path

from part_robust.config import find_config, get_part_robust_cfg
from part_robust.engine.setup import setup
from part_robust.runs.run import Run
from part_robust.runs.scheduler import in_this_process, schedule
from part_robust.runs.training import train_run

logger = logging.getLogger(__name__)


def prepare_two_phases(args: argparse.Namespace) -> Callable[[], Path]:
    """Validate both configs and return a function that trains both phases.

    Args:
        args: of `default_argument_parser`, with the config of the adversarial phase. `opts` hold in both phases, but
            for MODEL.WEIGHTS, which is where the clean one starts. With `resume`, a phase continues even if its config
            has changed since.

    Returns:
        Trains, and returns the best weights of the adversarial phase. Raises `OtherRun`.

    Raises:
        FileNotFoundError, KeyError, ValueError: as `setup`.
    """
    clean, adversarial = phases(args)
    adversarial.complete_config()
    clean_cfg = setup(clean.arguments())
    weights: dict[Path, Path] = {}

    def train(run: Run) -> None:
        # The last pair holds: the clean phase may have no best weights, only its last ones.
        cfg = clean_cfg if run is clean else setup(run.arguments(opts=["MODEL.WEIGHTS", str(weights[clean.output])]))
        weights[run.output] = train_run(cfg, go_on=args.resume)

    def train_both() -> Path:
        schedule([clean, adversarial], in_this_process(train), say=logger.info)
        return weights[adversarial.output]

    return train_both


def phases(args: argparse.Namespace) -> tuple[Run, Run]:
    """Return the clean and the adversarial run, of which only the training is wanted.

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
    clean_opts = [*args.opts, "ATTACK.TRAIN.ENABLED", "False"]
    adversarial_opts = list(args.opts)
    if not has_neighbour or "OUTPUT_DIR" in args.opts[0::2]:
        clean_opts += ["OUTPUT_DIR", os.path.join(cfg.OUTPUT_DIR, "clean")]
        adversarial_opts += ["OUTPUT_DIR", os.path.join(cfg.OUTPUT_DIR, "adversarial")]
    clean = Run("clean training", str(neighbour) if has_neighbour else args.config_file, clean_opts)
    begins_from = ["MODEL.WEIGHTS", str(clean.output / "model_best.pth")]
    return clean, Run("adversarial training", args.config_file, [*adversarial_opts, *begins_from])
