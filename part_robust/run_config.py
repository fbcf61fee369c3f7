"""The config of a run: read, its modules imported, its data sets registered, its numbers of classes and parts known."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from part_robust.config import get_part_robust_cfg
from part_robust.data import register_from_config
from part_robust.modeling.counts import with_counts


def load_config(config_file: str | Path | None = None, opts: Sequence = ()) -> CfgNode:
    """Reads a config and makes everything that it names available.

    Args:
        config_file: a path, or a name among the package's configs, "paco/mask_dino_simple.yaml".
        opts: KEY VALUE pairs on top.

    Returns:
        The complete config, not frozen: `build_model` and every function of the package takes it.

    Raises:
        FileNotFoundError, KeyError, ValueError: as `get_part_robust_cfg`.
        ImportError, FileNotFoundError, ValueError: as `complete`.
    """
    return complete(get_part_robust_cfg(config_file, opts))


def complete(cfg: CfgNode) -> CfgNode:
    """Imports what IMPORTS lists, registers the data sets of DATASETS.REGISTER, and fills in the numbers of classes and
    parts.

    Args:
        cfg: with all keys, as `get_part_robust_cfg` gives it; stays as it is.

    Returns:
        A copy whose MODEL.PART_CLASSIFIER.NUM_CLASSES and NUM_PARTS are numbers, not frozen.

    Raises:
        FileNotFoundError: the numbers are in a part json that does not exist.
        ImportError: a module of IMPORTS cannot be imported.
        ValueError: an entry of DATASETS.REGISTER is wrong; nothing says the numbers.
    """
    import_modules(cfg)
    register_from_config(cfg)
    return with_counts(cfg)


def import_modules(cfg: CfgNode) -> None:
    """Imports cfg.IMPORTS: the user's own heads, segmenters and attacks register themselves.

    Raises:
        ImportError: one cannot be imported.
    """
    for name in cfg.IMPORTS:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(f"IMPORTS names {name!r}: {error}. Is its folder in PYTHONPATH?") from error
