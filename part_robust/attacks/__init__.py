"""Attacks on any differentiable callable images -> outputs; nothing here knows the models."""

from part_robust.attacks.apgd import APGD
from part_robust.attacks.base import (
    ATTACK_REGISTRY,
    Attack,
    AttackResult,
    build_attack,
)
from part_robust.attacks.fab import FAB
from part_robust.attacks.model_view import ModelView, attack_batch, attack_view
from part_robust.attacks.objective import OBJECTIVES, Objective, get_objective
from part_robust.attacks.pgd import PGD
from part_robust.attacks.problem import AttackError, Counts, Forward, Problem
from part_robust.attacks.random_noise import RandomNoise
from part_robust.attacks.square import Square
from part_robust.attacks.targets import TargetChoice
from part_robust.attacks.threat_model import ThreatModel, ThreatModelViolation

__all__ = [
    "APGD",
    "ATTACK_REGISTRY",
    "FAB",
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
    "RandomNoise",
    "Square",
    "TargetChoice",
    "ThreatModel",
    "ThreatModelViolation",
    "attack_batch",
    "attack_view",
    "build_attack",
    "get_objective",
]
