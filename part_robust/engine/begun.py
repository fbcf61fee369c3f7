"""Notes that a training leaves in its folder, so that the next one started there knows which training it was."""

from __future__ import annotations

import logging
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm

from part_robust.engine.fingerprint import fingerprint, same_training
from part_robust.utils.files import write_text

logger = logging.getLogger(__name__)

STARTED, LAST, BEST = "started.yaml", "last_checkpoint", "best_checkpoint.json"


def begin_training(cfg: CfgNode, resume: bool) -> None:
    """Note in OUTPUT_DIR which training begins; every process calls it, rank 0 writes.

    A new training forgets what was best in an earlier one, and its `last_checkpoint`: --resume would continue from it
    if this training is killed before its first checkpoint. The weights themselves stay.
    """
    if comm.is_main_process():
        output = Path(cfg.OUTPUT_DIR)
        wanted = fingerprint(cfg)
        if not resume:
            _forget(output)
        elif not (output / LAST).is_file():
            logger.info("OUTPUT_DIR %s has no checkpoint to resume from: the training begins", output)
        write_text(output / STARTED, wanted)
    comm.synchronize()


def is_begun(output: Path, wanted: str) -> bool:
    """Return whether what was last begun in the folder is the training with the fingerprint `wanted`."""
    started = output / STARTED
    return started.is_file() and same_training(started.read_text(), wanted)


def _forget(output: Path) -> None:
    (output / BEST).unlink(missing_ok=True)
    last = output / LAST
    if last.is_file():
        logger.warning(
            "OUTPUT_DIR %s holds an earlier training: --resume would have continued from its %s, this is a new one",
            output,
            last.read_text().strip(),
        )
        last.unlink()
