"""Attacks on any differentiable callable images -> outputs; nothing here knows the models."""

from part_robust.attacks.base import (
    ATTACK_REGISTRY,
    Attack,
    AttackResult,
    build_attack,
)
from part_robust.attacks.model_view import ModelView, attack_batch, attack_view
from part_robust.attacks.objective import OBJECTIVES, Objective, get_objective
from part_robust.attacks.pgd import PGD
from part_robust.attacks.problem import AttackError, Counts, Forward, Problem
from part_robust.attacks.targets import TargetChoice
from part_robust.attacks.threat_model import ThreatModel, ThreatModelViolation

__all__ = [
    "ATTACK_REGISTRY",
    "OBJECTIVES",
    "PGD",
    "Attack",
    "AttackError",
    "AttackResult",
    "Counts",
    "Forward",
    "ModelView",
    "Objective",
    "Problem",
    "TargetChoice",
    "ThreatModel",
    "ThreatModelViolation",
    "attack_batch",
    "attack_view",
    "build_attack",
    "get_objective",
]
