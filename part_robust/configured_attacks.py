"""Attacks as a config names them, for the model that it describes."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from detectron2.config import CfgNode

from part_robust.attacks import KL_DIVERGENCE, Attack, AttackObjective, build_attack, get_objective
from part_robust.config import attack_spec
from part_robust.modeling import PART_SEGMENTER_REGISTRY
from part_robust.utils.errors import UserError

logger = logging.getLogger(__name__)


def build_model_attack(cfg: CfgNode, spec: CfgNode, objective: AttackObjective | None = None) -> Attack:
    """Builds an attack; for models that have no class logits, one on the loss of their parts.

    Args:
        cfg: of the model.
        spec: of the attack.
        objective: instead of that of `spec`.

    Raises:
        UserError: the model has nothing that the attack could maximise a loss of.
    """
    node = cfg.MODEL.PART_CLASSIFIER
    _check_fit(cfg, spec)
    changes: dict[str, Any] = {"FULL_GRADIENT": spec.FULL_GRADIENT and cfg.ATTACK.FULL_GRADIENT}
    if objective is not None:
        changes["OBJECTIVE"] = objective
    if not node.HEAD and not get_objective(spec.OBJECTIVE).needs_parts:
        changes["OBJECTIVE"] = PART_SEGMENTER_REGISTRY.get(node.SEGMENTER).attack_objective
        logger.info("The model has no class head: attack %s maximises %s", spec.NAME, changes["OBJECTIVE"])
    return build_attack(spec, **changes)


def training_attack(cfg: CfgNode) -> Attack:
    """The attack of ATTACK.TRAIN; TRADES's leads away from the clean prediction."""
    spec = cfg.ATTACK.TRAIN
    diverges = spec.METHOD == "trades" and spec.OBJECTIVE == "cross_entropy"
    attack = build_model_attack(cfg, spec, KL_DIVERGENCE if diverges else None)
    logger.info("Training attack: %s", attack.describe())
    return attack


def build_attacks(cfg: CfgNode, names: Iterable[str]) -> dict[str, Attack]:
    """Attacks of ATTACK.SPECS by name."""
    return {name: build_model_attack(cfg, attack_spec(cfg, name)) for name in names}


def _check_fit(cfg: CfgNode, spec: CfgNode) -> None:
    """Check that the model predicts what the attack's objective reads.

    Raises:
        UserError: the objective reads parts, or a class, that the model does not predict.
    """
    node = cfg.MODEL.PART_CLASSIFIER
    objective = get_objective(spec.OBJECTIVE)
    if not objective.needs_parts:
        return
    what = f"OBJECTIVE {objective.name} of attack {spec.NAME}"
    if not node.SEGMENTER:
        raise UserError(
            f"{what} must be a loss of the class, such as cross_entropy: this model has no part segmenter "
            "(MODEL.PART_CLASSIFIER.SEGMENTER is '')"
        )
    segmenter = PART_SEGMENTER_REGISTRY.get(node.SEGMENTER)
    own = get_objective(segmenter.attack_objective)
    if objective.needs_term and objective.needs_term not in getattr(segmenter, "attack_terms", ()):
        raise UserError(
            f"{what} must be {own.name}: {node.SEGMENTER} predicts no parts by queries, whose losses have such a term"
        )
    if objective.needs_pixels and not own.needs_pixels:
        raise UserError(
            f"{what} must be {own.name}: {node.SEGMENTER} predicts boxes of parts, and the objective needs a label "
            "for each pixel"
        )
    if objective.needs_class and not node.HEAD:
        raise UserError(f"{what} must be {own.name}: this model has no class head (MODEL.PART_CLASSIFIER.HEAD is '')")
