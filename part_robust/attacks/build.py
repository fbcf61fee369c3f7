"""Builds an attack from a node of the config."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from typing import Any

from part_robust.attacks.base import ATTACK_REGISTRY, Attack
from part_robust.utils.errors import UserError

logger = logging.getLogger(__name__)

# Of every attack: `attack_defaults` of part_robust/config/attacks.py.
KEYS = frozenset(
    """
    NAME OBJECTIVE NORM EPS STEPS STEP_SIZE RANDOM_START RESTARTS KEEP SEED NOISE FULL_GRADIENT QUERY_FACTOR EARLY_STOP
    COMPACT_EVERY RECORD_HISTORY NUM_TARGETS TARGET_RANKING TARGET_CANDIDATES APGD_MOMENTUM APGD_SUCCESS_SHARE
    RADIUS_SCHEDULE FAB_ALPHA_MAX FAB_OVERSHOOT FAB_BACKWARD FAB_FINAL_SEARCH SQUARE_AREA
    """.split()  # noqa: SIM905 (in columns)
)
# What else there is in ATTACK.TRAIN.
TRAINING_KEYS = frozenset(
    """
    ENABLED FRACTION EPS_WARMUP_ITERS PRECISION METHOD MIX_WEIGHT TRADES_BETA MART_BETA PART_LOSS_ON DENOISING MATCH_ON
    AWP GUARD
    """.split()  # noqa: SIM905
)


def build_attack(node: Mapping, **overrides: Any) -> Attack:
    """Builds an attack from a config node such as `cfg.ATTACK.SPECS.pgd20` or `cfg.ATTACK.TRAIN`.

    Args:
        node: mapping with NAME and any of the attack's keys (part_robust/config/attacks.py).
        **overrides: keys to change, as in `build_attack(node, EPS=4.0)`.

    Raises:
        KeyError: no attack of that name.
        UserError: an unknown key.
        ValueError: a value is impossible.
    """
    merged = {**dict(node), **overrides}
    kind = ATTACK_REGISTRY.get(merged.get("NAME", "PGD"))
    if unknown := sorted(merged.keys() - KEYS - TRAINING_KEYS - set(kind.own_keys)):
        known = sorted(KEYS | set(kind.own_keys))
        similar = difflib.get_close_matches(unknown[0].upper(), known, n=1)
        hint = f"similar: {similar[0]}" if similar else f"there are: {', '.join(known)}"
        raise UserError(f"the keys of an attack must be known ones, got {unknown[0]!r} ({hint})")
    attack = kind.from_config(merged)
    threat = attack.threat_model
    if threat.norm == "linf" and 0 < threat.eps < 1:
        logger.warning(
            "EPS %g of attack %s is in 0..255 units, and below one step of 8-bit pixels: 8/255 of the literature is "
            "8.0 here, this one would be %g",
            *(threat.eps, merged.get("NAME", "PGD"), 255 * threat.eps),
        )
    attack.full_gradient = merged.get("FULL_GRADIENT", True)
    attack.query_factor = merged.get("QUERY_FACTOR", 1)
    if attack.query_factor < 1:
        raise ValueError(f"QUERY_FACTOR must be at least 1, is {attack.query_factor}")
    return attack
