"""Loads the config of a run: reads it, imports its modules, registers its data sets, counts classes and parts."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY

from part_robust.attacks import ATTACK_REGISTRY, OBJECTIVES
from part_robust.config import check_config, check_value, default_cfg, get_part_robust_cfg
from part_robust.data import register_from_config
from part_robust.data.controls import use_part_labels
from part_robust.modeling import CLASS_HEAD_REGISTRY, PART_SEGMENTER_REGISTRY
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
    """Make a config ready for use: its modules are imported, its values checked, its data sets registered and counted.

    These are the modules that IMPORTS lists and the data sets of DATASETS.REGISTER; values are checked by
    part_robust/config/rule_table.py; data sets have the labels of INPUT.PART_LABELS; numbers of classes and parts are
    filled in.

    Args:
        cfg: with all keys, as `get_part_robust_cfg` gives it; stays as it is.

    Returns:
        A copy whose MODEL.PART_CLASSIFIER.NUM_CLASSES and NUM_PARTS are numbers, not frozen.

    Raises:
        FileNotFoundError: the numbers are in a part json that does not exist.
        ImportError: a module of IMPORTS cannot be imported.
        UserError: a key has an impossible value.
        ValueError: an entry of DATASETS.REGISTER is wrong; nothing says the numbers.
    """
    import_modules(cfg)
    check_config(cfg, _defaults(), _registered())
    register_from_config(cfg)
    cfg = cfg.clone()
    cfg.defrost()
    use_part_labels(cfg)
    return with_counts(cfg)


@functools.cache
def _defaults() -> CfgNode:
    return default_cfg()


def _registered() -> dict[str, list[str]]:
    """Names that keys may take, those of the user's own modules included."""
    return {
        "MODEL.META_ARCHITECTURE": [name for name, _ in META_ARCH_REGISTRY],
        "MODEL.BACKBONE.NAME": [name for name, _ in BACKBONE_REGISTRY],
        "MODEL.PART_CLASSIFIER.SEGMENTER": ["", *(name for name, _ in PART_SEGMENTER_REGISTRY)],
        "MODEL.PART_CLASSIFIER.HEAD": ["", *(name for name, _ in CLASS_HEAD_REGISTRY)],
        "ATTACK.NAME": [name for name, _ in ATTACK_REGISTRY],
        "ATTACK.OBJECTIVE": list(OBJECTIVES),
    }


def import_modules(cfg: CfgNode) -> None:
    """Imports cfg.IMPORTS: the user's own heads, segmenters and attacks register themselves.

    Raises:
        ImportError: one cannot be imported.
        UserError: IMPORTS is not a list of names.
    """
    check_value("IMPORTS", cfg.IMPORTS)
    for name in cfg.IMPORTS:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(f"IMPORTS names {name!r}: {error}. Is its folder in PYTHONPATH?") from error
