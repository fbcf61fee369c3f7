"""Build an attack from a node of the config."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode

from part_robust.attacks.apgd import APGD
from part_robust.attacks.base import ATTACK_REGISTRY, Attack
from part_robust.attacks.fab import FAB
from part_robust.attacks.nfgsm import NFGSM
from part_robust.attacks.pgd import PGD
from part_robust.attacks.random_noise import RandomNoise
from part_robust.attacks.square import Square
from part_robust.utils.errors import UserError

logger = logging.getLogger(__name__)

DEFAULT = "PGD"
BUILT_IN = (PGD, NFGSM, APGD, FAB, Square, RandomNoise)
# Other keys of ATTACK.TRAIN.
TRAINING_KEYS = frozenset(
    """
    ENABLED FRACTION EPS_WARMUP_ITERS PRECISION METHOD MIX_WEIGHT TRADES_BETA MART_BETA PART_LOSS_ON DENOISING MATCH_ON
    AWP GUARD
    """.split()  # noqa: SIM905
)


def attack_defaults(name: str = DEFAULT) -> CfgNode:
    """Return all keys that an attack's node may have, with their defaults.

    These are the keys of every built-in attack, so that one node serves several, and those of the attack `name`, which
    come first.

    Args:
        name: in ATTACK_REGISTRY; a name that is not registered (yet) adds no keys.
    """
    own = ATTACK_REGISTRY.get(name).default_config() if name in ATTACK_REGISTRY else CfgNode()
    node = CfgNode()
    for kind in BUILT_IN:
        for key, value in kind.default_config().items():
            node.setdefault(key, value)
    node.update(own)
    node.NAME = name
    return node


def build_attack(node: Mapping, **overrides: Any) -> Attack:
    """Build an attack from a config node such as `cfg.ATTACK.SPECS.pgd20` or `cfg.ATTACK.TRAIN`.

    Args:
        node: mapping with NAME and any of the attack's keys (its `default_config`); others take their defaults.
        **overrides: keys to change, as in `build_attack(node, EPS=4.0)`.

    Raises:
        KeyError: no attack of that name.
        UserError: an unknown key.
        ValueError: a value is impossible.
    """
    merged = {**dict(node), **overrides}
    name = merged.get("NAME", DEFAULT)
    kind = ATTACK_REGISTRY.get(name)
    defaults = attack_defaults(name)
    known = sorted(defaults.keys() | set(kind.own_keys))
    if unknown := sorted(merged.keys() - set(known) - TRAINING_KEYS):
        similar = difflib.get_close_matches(unknown[0].upper(), known, n=1)
        hint = f"similar: {similar[0]}" if similar else f"there are: {', '.join(known)}"
        raise UserError(f"the keys of an attack must be known ones, got {unknown[0]!r} ({hint})")
    attack = kind.from_config({**defaults, **merged})
    threat = attack.threat_model
    if threat.norm == "linf" and 0 < threat.eps < 1:
        logger.warning(
            "EPS %g of attack %s is in 0..255 units, and below one step of 8-bit pixels: 8/255 of the literature is "
            "8.0 here, this one would be %g",
            *(threat.eps, name, 255 * threat.eps),
        )
    attack.full_gradient = merged.get("FULL_GRADIENT", defaults.FULL_GRADIENT)
    attack.query_factor = merged.get("QUERY_FACTOR", defaults.QUERY_FACTOR)
    if attack.query_factor < 1:
        raise ValueError(f"QUERY_FACTOR must be at least 1, got {attack.query_factor}")
    return attack
