"""Messages of a run: everything in OUTPUT_DIR/log.txt, and on the terminal what its user needs."""

from __future__ import annotations

import argparse
import logging
import os
import platform
import sys
from pathlib import Path

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.engine import defaults
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

import part_robust
from part_robust.config import config_text, config_values, default_cfg
from part_robust.utils.files import write_text

logger = logging.getLogger(__name__)

ABBREVIATIONS = {"fvcore": "fvcore", "detectron2": "d2", "part_robust": "pr"}
# Below a warning, these print hundreds of lines (weights, data, the model) or numbers that our tables also have.
DETAILS = (
    "detectron2.checkpoint",
    "detectron2.data",
    "detectron2.engine.defaults",
    "detectron2.evaluation.testing",
)
# Their warnings are for programmers; the first one has those of the module `warnings`.
LIBRARIES = ("py.warnings", "torch", "matplotlib")


def start_log(cfg: CfgNode, args: argparse.Namespace, level: int = logging.INFO) -> None:
    """Starts the log of a run in each of its processes.

    detectron2's `default_setup` prints the environment and the config in full, and converts the config four times.

    Args:
        cfg: complete; OUTPUT_DIR/log.txt gets every line (log.txt.rankN in other processes than the first).
        args: of `default_argument_parser`.
        level: lowest level of the lines that the first process prints.
    """
    close_log()
    rank = comm.get_rank()
    for name, abbreviation in ABBREVIATIONS.items():
        log = setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name=name, abbrev_name=abbreviation)
        for handler in log.handlers:
            if getattr(handler, "stream", None) is sys.stdout:
                handler.setLevel(max(level, logging.INFO))
                handler.addFilter(_concerns_user)
    _log_libraries(logging.getLogger("part_robust").handlers[-1])
    # These lines are in the file alone.
    logger.debug("Command line arguments: %s", args)
    logger.debug("Environment:\n%s", defaults.collect_env_info())
    logger.debug("Running with full config:\n%s", config_text(cfg))
    logger.info(_environment(cfg))
    logger.info("Keys that differ from the defaults:%s", "".join(f"\n  {line}" for line in changed_keys(cfg)))
    logger.info("All keys: %s/config.yaml. The whole log: %s/log.txt", cfg.OUTPUT_DIR, cfg.OUTPUT_DIR)


def write_config(cfg: CfgNode) -> None:
    """Write OUTPUT_DIR/config.yaml, once nothing can refuse the run: until then it is that of the weights there."""
    if comm.is_main_process():
        write_text(Path(cfg.OUTPUT_DIR) / "config.yaml", config_text(cfg))


def seed_and_tune(cfg: CfgNode, eval_only: bool) -> None:
    """Seeds the random numbers of a process, and sets what of torch is global; as `default_setup` does."""
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
    if not eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    if cfg.FLOAT32_PRECISION and torch.cuda.is_available():
        torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)
        torch.backends.cudnn.allow_tf32 = cfg.FLOAT32_PRECISION != "highest"


def close_log() -> None:
    """Removes the handlers of an earlier run in this process: lines would come twice, and in both folders."""
    logging.captureWarnings(False)
    for name in ABBREVIATIONS:
        log = logging.getLogger(name)
        log.propagate = True
        for handler in list(log.handlers):
            for library in LIBRARIES:
                logging.getLogger(library).removeHandler(handler)
            log.removeHandler(handler)
            handler.close()
    setup_logger.cache_clear()


def changed_keys(cfg: CfgNode) -> list[str]:
    """Returns "KEY value" of each key that differs from its default, in the order of config.yaml."""
    plain, missing = config_values(config_text(default_cfg())), object()
    return [
        f"{key} {value if isinstance(value, str) and value else repr(value)}"
        for key, value in config_values(config_text(cfg)).items()
        if plain.get(key, missing) != value
    ]


def _concerns_user(record: logging.LogRecord) -> bool:
    if record.name == "detectron2.engine.train_loop" and record.exc_info:
        # The error ends the process, which prints its sentence, or its traceback if it has none.
        return False
    return record.levelno >= logging.WARNING or not record.name.startswith(DETAILS)


def _log_libraries(file: logging.Handler) -> None:
    """Sends what libraries warn of to the file, and nothing but their errors to the terminal."""
    logging.captureWarnings(True)
    for name in LIBRARIES:
        log = logging.getLogger(name)
        # TORCH_LOGS makes torch log to the terminal.
        if "TORCH_LOGS" not in os.environ:
            for handler in log.handlers:
                # Handlers of a program around this run are of other types, and stay as they are.
                if type(handler) is logging.StreamHandler:
                    handler.setLevel(logging.ERROR)
        log.addHandler(file)


def _environment(cfg: CfgNode) -> str:
    processes = comm.get_world_size()
    on_gpu = torch.device(cfg.MODEL.DEVICE).type == "cuda"
    device = torch.cuda.get_device_name() if on_gpu else f"{cfg.MODEL.DEVICE}, {torch.get_num_threads()} threads"
    return (
        f"part_robust {part_robust.__version__}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"detectron2 {detectron2.__version__}; {processes} process{'es' if processes > 1 else ''}, each on {device}"
    )
