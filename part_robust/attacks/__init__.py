"""Attacks on any differentiable callable images -> outputs; nothing here knows the models."""

from part_robust.attacks.base import (
    ATTACK_REGISTRY,
    Attack,
    AttackError,
    AttackResult,
    build_attack,
)
from part_robust.attacks.divergence import KL_DIVERGENCE, attack_training_batch
from part_robust.attacks.model_view import attack_batch, attack_view
from part_robust.attacks.nfgsm import NFGSM, training_radius
from part_robust.attacks.objective import OBJECTIVES, Objective, get_objective
from part_robust.attacks.pgd import PGD
from part_robust.attacks.threat_model import ThreatModel, ThreatModelViolation

__all__ = [
    "ATTACK_REGISTRY",
    "KL_DIVERGENCE",
    "NFGSM",
    "OBJECTIVES",
    "PGD",
    "Attack",
    "AttackError",
    "AttackResult",
    "Objective",
    "ThreatModel",
    "ThreatModelViolation",
    "attack_batch",
    "attack_training_batch",
    "attack_view",
    "build_attack",
    "get_objective",
    "training_radius",
]
