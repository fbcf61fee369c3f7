"""The check of a whole config, before any work: values by their rules, attacks, and keys that must fit together."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping

from detectron2.config import CfgNode

from part_robust.attacks import ATTACK_REGISTRY, attack_defaults
from part_robust.config.rule_table import ATTACK_RULES, RULES
from part_robust.config.rules import NAME, Rule, check_names, check_values, list_of, one_of, rule_of, wrong
from part_robust.config.threats import parse_threats
from part_robust.utils.errors import UserError

PIXEL_RANGE = 255
# What MODEL.RESNETS.OUT_FEATURES may name, by MODEL.BACKBONE.NAME; backbones of one's own name theirs themselves.
_RESNET = ("stem", "res2", "res3", "res4", "res5")
_FEATURES = {
    "build_resnet_backbone": _RESNET,
    "build_basic_resnet_backbone": _RESNET,
    "build_resnet_deeplab_backbone": _RESNET,
    "build_timm_backbone": _RESNET[1:],
}
_TIER = list_of(NAME, "names of attacks", least=1)


def check_config(
    cfg: CfgNode,
    defaults: CfgNode,
    choices: Mapping[str, Collection[str]],
) -> None:
    """Checks every key of a config.

    Args:
        cfg: with all keys, which may still have the value "0: read it from the data".
        defaults: a config without changes, which gives types.
        choices: names of registries by the key that takes one; those of attacks are "ATTACK.NAME" and
            "ATTACK.OBJECTIVE".

    Raises:
        UserError: a value is impossible, an attack or a tier does not exist, or keys do not fit together.
    """
    registered = {key: one_of(*names) for key, names in choices.items()}
    check_values(cfg, defaults, RULES | registered)
    attacks = {"ATTACK.TRAIN": cfg.ATTACK.TRAIN}
    for name, spec in cfg.ATTACK.SPECS.items():
        if not isinstance(spec, dict):
            raise UserError(f"ATTACK.SPECS.{name} must be a group of keys of an attack, got {spec!r}")
        attacks[f"ATTACK.SPECS.{name}"] = spec
    of_attacks = {
        **ATTACK_RULES,
        "NAME": registered["ATTACK.NAME"],
        "OBJECTIVE": registered["ATTACK.OBJECTIVE"],
    }
    for prefix, node in attacks.items():
        _check_attack(prefix, node, of_attacks, defaults.ATTACK.TRAIN if prefix == "ATTACK.TRAIN" else {})
    _check_evaluation(cfg)
    _check_sizes(cfg)
    _check_backbone(cfg)


def _check_attack(prefix: str, node: Mapping, rules: Mapping[str, Rule], others: Collection[str]) -> None:
    """Check the keys and values of one attack's node; `others` are keys that are not the attack's own business.

    Raises:
        UserError: a key is unknown or has a wrong value.
    """
    name = node.get("NAME", attack_defaults().NAME)
    if problem := wrong(f"{prefix}.NAME", name, rules["NAME"]):
        raise UserError(problem)
    known = attack_defaults(name)
    for key, value in node.items():
        if key in known:
            if problem := wrong(f"{prefix}.{key}", value, rule_of(key, known[key], rules)):
                raise UserError(problem)
        elif key not in others and key not in ATTACK_REGISTRY.get(name).own_keys:
            similar = difflib.get_close_matches(key, known)
            hint = f" (similar: {', '.join(similar)})" if similar else ""
            raise UserError(f"{prefix}.{key} must be a key of attack {name}, got {key!r}{hint}")
    _check_radius(f"{prefix}.EPS", node.get("EPS", known.EPS), node.get("NORM", known.NORM))


def check_value(key: str, value: object) -> None:
    """Check a value against the rule of its key.

    Raises:
        UserError: the rule of the key excludes the value.
    """
    if problem := wrong(key, value, RULES[key]):
        raise UserError(problem)


def _check_radius(key: str, eps: float, norm: str) -> None:
    if norm == "linf" and eps > PIXEL_RANGE:
        raise UserError(f"{key} must be at most {PIXEL_RANGE}, the range of pixel values, under linf, got {eps!r}")


def _check_evaluation(cfg: CfgNode) -> None:
    test, specs = cfg.TEST, cfg.ATTACK.SPECS
    for key, names in (
        ("ATTACK.EVAL", cfg.ATTACK.EVAL),
        ("ATTACK.EVAL_DURING_TRAINING", cfg.ATTACK.EVAL_DURING_TRAINING),
        ("TEST.EPS_CURVE_ATTACK", [test.EPS_CURVE_ATTACK]),
        ("TEST.SAMPLED_ATTACKS", test.SAMPLED_ATTACKS),
        ("TEST.RESTART_ATTACKS", test.RESTART_ATTACKS),
        *((f"TEST.TIERS.{tier}", names) for tier, names in test.TIERS.items()),
    ):
        if key.startswith("TEST.TIERS.") and (problem := wrong(key, names, _TIER)):
            raise UserError(problem)
        check_names(key, names, specs, "attacks of ATTACK.SPECS")
    tiers = [name.strip() for name in test.TIER.split(",") if name.strip()]
    check_names("TEST.TIER", tiers, test.TIERS, "tiers of TEST.TIERS, with commas between")
    _check_radius("TEST.LOCAL.EPS", test.LOCAL.EPS, test.LOCAL.NORM)
    if parse_threats(test.THREATS) and not tiers:
        raise UserError(
            f"TEST.THREATS must be '' without TEST.TIER, got {test.THREATS!r}: set TEST.TIER, such as "
            "TEST.TIER standard"
        )
    check_names("TEST.FULL_TIERS", test.FULL_TIERS, test.TIERS, "tiers of TEST.TIERS")
    for eps in (test.EPS, *test.EPS_CURVE):
        _check_radius("TEST.EPS" if eps is test.EPS else "TEST.EPS_CURVE", eps, test.NORM or "linf")


def _check_sizes(cfg: CfgNode) -> None:
    size, resize = cfg.INPUT.SIZE, cfg.INPUT.TEST_RESIZE
    if cfg.INPUT.TEST_TRANSFORM == "center_crop" and 0 < resize < size:
        raise UserError(f"INPUT.TEST_RESIZE must be 0 or at least INPUT.SIZE {size}, got {resize}")
    for name in ("DINO", "MASK_DINO"):
        node = cfg.MODEL[name]
        if node.DIM % node.HEADS:
            raise UserError(f"MODEL.{name}.DIM must be a multiple of MODEL.{name}.HEADS {node.HEADS}, got {node.DIM}")


def _check_backbone(cfg: CfgNode) -> None:
    known = _FEATURES.get(cfg.MODEL.BACKBONE.NAME)
    if known:
        check_names("MODEL.RESNETS.OUT_FEATURES", cfg.MODEL.RESNETS.OUT_FEATURES, known, "features of the backbone")
