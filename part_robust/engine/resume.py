"""Resuming (`--resume`) with keys that have changed since the training began."""

from __future__ import annotations

import logging
from pathlib import Path

from detectron2.config import CfgNode

from part_robust.config import config_text, config_values
from part_robust.engine.begun import STARTED
from part_robust.engine.fingerprint import different_keys
from part_robust.utils.errors import UserError
from part_robust.utils.files import read_text

logger = logging.getLogger(__name__)

# The checkpoint's values hold, as they are in the state of its optimizer and its schedule.
IN_CHECKPOINT = (
    "MODEL.BACKBONE.FREEZE_AT",
    "SOLVER.BACKBONE_MULTIPLIER",
    "SOLVER.BASE_LR",
    "SOLVER.BIAS_LR_FACTOR",
    "SOLVER.MOMENTUM",
    "SOLVER.NESTEROV",
    "SOLVER.OPTIMIZER",
    "SOLVER.WEIGHT_DECAY",
    "SOLVER.WEIGHT_DECAY_BIAS",
    "SOLVER.WEIGHT_DECAY_NORM",
)


def check_resumed(cfg: CfgNode) -> list[str]:
    """Compares a config with that of the training in OUTPUT_DIR, whose last checkpoint is continued.

    Args:
        cfg: complete.

    Returns:
        Sentences about keys that have changed and may.

    Raises:
        UserError: keys have changed whose values come from the checkpoint, so that the new ones would have no effect.
    """
    folder = Path(cfg.OUTPUT_DIR)
    # An evaluation in the folder writes its config.yaml, too.
    files = [path for path in (folder / STARTED, folder / "config.yaml") if path.is_file() and path.stat().st_size]
    if not (folder / "last_checkpoint").is_file() or not files:
        return []
    before = read_text(files[0], "the config of a training")
    # Another training is refused where it matters; keys that only evaluations read do not.
    keys = [key for key in different_keys(before, config_text(cfg)) if key != "OUTPUT_DIR"]
    old, new = config_values(before), config_values(config_text(cfg))
    changes = {key: f"{key} {new.get(key)} (was {old.get(key)})" for key in keys}
    fixed = [change for key, change in changes.items() if key in IN_CHECKPOINT]
    if fixed:
        raise UserError(
            f"--resume continues the training in {folder} with the optimizer of its checkpoint, and the config has "
            f"another {', '.join(fixed)}. Set the old values, or begin another training from MODEL.WEIGHTS in another "
            "OUTPUT_DIR"
        )
    weights = changes.pop("MODEL.WEIGHTS", None)
    sentences = []
    if weights:
        sentences.append(f"--resume: {weights} has no effect, the weights are those of the last checkpoint")
    if changes:
        sentences.append(f"--resume: new values hold from here on: {', '.join(changes.values())}")
    return sentences
