"""Comparison of the run in a folder with the requested one: the same training, and the same evaluation of it.

A fingerprint is the complete config of a training as text, and in its last line the hash of the file in MODEL.WEIGHTS.
Files written before there were hashes have none, as have those whose weights are gone: then the config alone decides.
A key that one of two configs lacks has its default there: it came with a later version, in which the default is what
earlier versions did.
"""

from __future__ import annotations

import functools

from detectron2.config import CfgNode

from part_robust.config import config_text, config_values, default_cfg
from part_robust.config.attacks import SPECS, spec_defaults
from part_robust.utils.files import file_sha256

# Keys, and nodes with all that is in them, that no training reads. What is not here counts as the training's, also what
# only its own evaluations read (TEST.BEST_METRIC, ATTACK.EVAL_DURING_TRAINING, DATASETS.VAL): they choose the best
# checkpoint.
EVALUATION_ONLY = (
    "ATTACK.EVAL",
    "MODEL.PRETRAINING",
    "TEST.AUDIT",
    "TEST.BOUND",
    "TEST.CHECKS",
    "TEST.EPS",
    "TEST.EPS_CURVE",
    "TEST.EPS_CURVE_ATTACK",
    "TEST.FULL_TIERS",
    "TEST.LOCAL",
    "TEST.NORM",
    "TEST.NUM_IMAGES",
    "TEST.RESTART_ATTACKS",
    "TEST.RESTART_GAIN",
    "TEST.SAMPLED_ATTACKS",
    "TEST.SAVE_ADVERSARIALS",
    "TEST.SAVE_PREDICTIONS",
    "TEST.SMOOTHING",
    "TEST.THREATS",
    "TEST.TIER",
    "TEST.TIERS",
)
WEIGHTS_SHA256 = "MODEL.WEIGHTS sha256"


def fingerprint(cfg: CfgNode) -> str:
    """Return the fingerprint of a training with this complete config and the weights that MODEL.WEIGHTS has now."""
    # A training from other weights is another one, even if the file has the same name.
    digest = file_sha256(cfg.MODEL.WEIGHTS)
    return config_text(cfg) + (f"{WEIGHTS_SHA256}: {digest}\n" if digest else "")


def same_run(first: str, second: str) -> bool:
    """Return whether two fingerprints are of the same training, evaluated in the same way."""
    return first == second or not _different(config_values(first), config_values(second))


def same_training(first: str, second: str) -> bool:
    """Return whether two fingerprints are of the same training, whatever they evaluate."""
    return first == second or not different_keys(first, second)


def different_keys(first: str, second: str) -> list[str]:
    """The keys, of those that trained weights depend on, in which two fingerprints differ; sorted."""
    one, two = config_values(first), config_values(second)
    watched = _watched(one) | _watched(two)
    return _different(_of_training(one, watched), _of_training(two, watched))


def _watched(config: dict[str, object]) -> set[str]:
    """Names of the attacks that the training is evaluated under."""
    names = config.get("ATTACK.EVAL_DURING_TRAINING")
    return set(names) if isinstance(names, (list, tuple)) else set()


def _different(one: dict[str, object], two: dict[str, object]) -> list[str]:
    one, two = _with_attack_defaults(one), _with_attack_defaults(two)
    keys = one.keys() | two.keys()
    if not (WEIGHTS_SHA256 in one and WEIGHTS_SHA256 in two):
        keys -= {WEIGHTS_SHA256}
    defaults, unknown = _defaults(), object()

    def value(config: dict[str, object], key: str) -> object:
        return config.get(key, defaults.get(key, unknown))

    return sorted(key for key in keys if value(one, key) != value(two, key))


@functools.cache
def _defaults() -> dict[str, object]:
    """Return the values of this version's defaults by dotted key."""
    return _with_attack_defaults(config_values(config_text(default_cfg())))


def _with_attack_defaults(config: dict[str, object]) -> dict[str, object]:
    """Return a config in which named attacks state all their keys: some files leave out the defaults."""
    complete = dict(config)
    for spec in {key.split(".")[2] for key in config if key.startswith(SPECS)}:
        name = config.get(f"{SPECS}{spec}.NAME")
        for key, default in spec_defaults({} if name is None else {"NAME": name}).items():
            # As in YAML, which has no tuples.
            complete.setdefault(f"{SPECS}{spec}.{key}", list(default) if isinstance(default, tuple) else default)
    return complete


def _of_training(config: dict[str, object], watched: set[str]) -> dict[str, object]:
    """Return the config without what only evaluations read; named attacks stay if a training is `watched` with them."""

    def counts(key: str) -> bool:
        if any(key == other or key.startswith(f"{other}.") for other in EVALUATION_ONLY):
            return False
        if key.startswith("ATTACK.SPECS."):
            return key.split(".")[2] in watched
        # Without DATASETS.VAL the training watches this one.
        return key != "DATASETS.TEST" or not config.get("DATASETS.VAL")

    return {key: value for key, value in config.items() if counts(key)}
