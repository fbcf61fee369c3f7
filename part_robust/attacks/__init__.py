"""Attacks on any differentiable callable images -> outputs; independent of the models."""

from part_robust.attacks.apgd import APGD
from part_robust.attacks.base import ATTACK_REGISTRY, Attack
from part_robust.attacks.build import attack_defaults, build_attack
from part_robust.attacks.divergence import KL_DIVERGENCE, attack_training_batch
from part_robust.attacks.eot import EotView
from part_robust.attacks.fab import FAB
from part_robust.attacks.model_view import ModelView, attack_batch, attack_mode, attack_view
from part_robust.attacks.nfgsm import NFGSM, training_radius
from part_robust.attacks.objective import (
    OBJECTIVES,
    AttackObjective,
    ClassObjective,
    HidingObjective,
    Objective,
    PartLossObjective,
    PixelObjective,
    TargetedObjective,
    get_objective,
)
from part_robust.attacks.official import Official
from part_robust.attacks.pgd import PGD
from part_robust.attacks.problem import AttackError, Counts, Forward, Problem
from part_robust.attacks.random_noise import RandomNoise
from part_robust.attacks.square import Square
from part_robust.attacks.state import AttackResult
from part_robust.attacks.targets import TargetChoice
from part_robust.attacks.threat_model import ThreatModel, ThreatModelViolation

__all__ = [
    "APGD",
    "ATTACK_REGISTRY",
    "FAB",
    "HidingObjective",
    "KL_DIVERGENCE",
    "NFGSM",
    "OBJECTIVES",
    "PGD",
    "Attack",
    "AttackError",
    "AttackObjective",
    "AttackResult",
    "ClassObjective",
    "Counts",
    "EotView",
    "Forward",
    "ModelView",
    "Objective",
    "Official",
    "PartLossObjective",
    "PixelObjective",
    "Problem",
    "RandomNoise",
    "Square",
    "TargetChoice",
    "TargetedObjective",
    "ThreatModel",
    "ThreatModelViolation",
    "attack_batch",
    "attack_defaults",
    "attack_training_batch",
    "attack_mode",
    "attack_view",
    "build_attack",
    "get_objective",
    "training_radius",
]
