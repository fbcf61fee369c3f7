"""Arguments of constructors that all attacks read from the config alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from part_robust.attacks.objective import get_objective
from part_robust.attacks.threat_model import ThreatModel


def shared_arguments(node: Mapping) -> dict[str, Any]:
    """Return the arguments of `Attack` by the keys of `Attack.default_config`."""
    return {
        "threat_model": ThreatModel(norm=node["NORM"], eps=node["EPS"]),
        "objective": get_objective(node["OBJECTIVE"]),
        "steps": node["STEPS"],
        "restarts": node["RESTARTS"],
        "seed": node["SEED"],
        "early_stop": node["EARLY_STOP"],
        "compact_every": node["COMPACT_EVERY"],
        "record_history": node["RECORD_HISTORY"],
    }
