"""Plan of an evaluation: the tiers of attacks that the config names, built, and their use on a data set."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from part_robust.attacks import Attack, Official, get_objective
from part_robust.attacks.apgd import L1_RESTARTS
from part_robust.config import attack_spec
from part_robust.config.threats import UNION, Threat, parse_threats
from part_robust.configured_attacks import build_model_attack
from part_robust.evaluation.adversarials import MODES
from part_robust.evaluation.eps_curve import curve_attack_name
from part_robust.evaluation.local import LocalTier
from part_robust.evaluation.pictures import picture_sample
from part_robust.evaluation.tiers import RoundSettings, Tier
from part_robust.modeling import PART_SEGMENTER_REGISTRY

logger = logging.getLogger(__name__)

# Strongest first: breakdowns and pictures show the first tier that ran.
STRENGTH = ("standard", "bounded", "screen")
BACKENDS = ("own", "autoattack")


@dataclass(frozen=True)
class Plan:
    """Plan of an evaluation.

    Attributes:
        tiers: the strongest first where that is known; pictures are of the first. Without any, images are not attacked.
        class_names: of the data set.
        part_names: of the data set, without background.
        curve: attacks by eps, for robust accuracy against eps; may be empty.
        save_adversarials: "", "npz" or "png".
        save_predictions: write predictions as files.
        sample: ids of images that may become pictures.
        unions: by name, tiers that differ in their threat model alone (TEST.THREATS).
    """

    tiers: Sequence[Tier]
    class_names: Sequence[str]
    part_names: Sequence[str]
    curve: Mapping[float, Attack] = field(default_factory=dict)
    save_adversarials: str = ""
    save_predictions: bool = False
    sample: Collection[int] = frozenset()
    unions: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.save_adversarials not in MODES:
            raise ValueError(f"TEST.SAVE_ADVERSARIALS must be one of {MODES}, is {self.save_adversarials!r}")
        check_names(self.tiers, self.curve, self.unions)

    @property
    def first(self) -> Tier | None:
        """The tier whose images may become pictures."""
        return self.tiers[0] if self.tiers else None

    def attacks(self) -> dict[str, Attack]:
        """Every attack of the tiers, then those of the curve, by name."""
        found = {name: attack for tier in self.tiers for name, attack in tier.attacks.items()}
        return found | {curve_attack_name(eps): attack for eps, attack in self.curve.items() if eps > 0}

    def rows(self) -> list[str]:
        """Same as `metric_rows` of the tiers."""
        return metric_rows(self.tiers)


@dataclass(frozen=True)
class PlannedAttacks:
    """The attacks of an evaluation, which serve all its data sets.

    Attributes:
        tiers: of TEST.TIER, the strongest first, or one for each attack of ATTACK.EVAL.
        curve: of TEST.EPS_CURVE: attacks by eps.
        unions: by name, tiers that differ in their threat model alone (TEST.THREATS).
    """

    tiers: Sequence[Tier]
    curve: Mapping[float, Attack] = field(default_factory=dict)
    unions: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_names(self.tiers, self.curve, self.unions)


def check_names(tiers: Sequence[Tier], curve: Mapping[float, Attack], unions: Iterable[str] = ()) -> None:
    """Check that no two rows of results have one name.

    Raises:
        ValueError: two do. A tier that consists of the attack of the same name has that attack's results alone.
    """
    rows = ["clean", *(tier.name for tier in tiers), *unions]
    taken = {*rows, *map(curve_attack_name, curve)}
    free = {tier.name for tier in tiers if tier.is_single_attack}
    clash = {
        name for tier in tiers for name in tier.attacks if name in taken and (name not in free or tier.kind == "parts")
    }
    if clash or len(set(rows)) < len(rows):
        raise ValueError(f"tiers and attacks need names of their own; used twice: {sorted(clash) or rows}")


def metric_rows(tiers: Iterable[Tier]) -> list[str]:
    """Names under which there are metrics: "clean", the tiers, and the attacks of tiers on parts."""
    tiers = list(tiers)
    of_parts = [name for tier in tiers if tier.kind == "parts" for name in tier.attacks]
    return list(dict.fromkeys(["clean", *(tier.name for tier in tiers), *of_parts]))


def plan_attacks(cfg: CfgNode) -> PlannedAttacks:
    """Builds the attacks that --eval-only runs.

    Raises:
        ImportError, KeyError, ValueError: as `build_tiers` and `build_curve`.
    """
    tiers = build_tiers(cfg)
    return PlannedAttacks(tiers, build_curve(cfg), _unions(cfg, tiers))


def full_tiers(attacks: Mapping[str, Attack]) -> list[Tier]:
    """A tier for each attack, which runs on every image."""
    return [Tier(name, "full", {name: attack}) for name, attack in attacks.items()]


def tier_names(cfg: CfgNode) -> list[str]:
    """Names in TEST.TIER, which separates them by commas, the strongest first."""
    names = list(dict.fromkeys(name.strip() for name in cfg.TEST.TIER.split(",") if name.strip()))
    rank = {name: index for index, name in enumerate(STRENGTH)}
    last = {"thesis": len(rank) + 1, "parts": len(rank) + 2, "local": len(rank) + 3}
    return sorted(names, key=lambda name: rank.get(name, last.get(name, len(rank))))


def build_tiers(cfg: CfgNode) -> list[Tier]:
    """The tiers of TEST.TIER with their attacks; without TEST.TIER, those of the attacks of ATTACK.EVAL.

    Raises:
        ImportError: TEST.BACKEND is not installed.
        KeyError: no such tier or attack.
        ValueError: a tier that this model cannot be evaluated by, that is contradictory, or that TEST.BACKEND cannot
            run.
    """
    if cfg.TEST.BACKEND not in BACKENDS:
        raise ValueError(f"TEST.BACKEND must be one of {', '.join(BACKENDS)}, is {cfg.TEST.BACKEND!r}")
    names, threats = tier_names(cfg), parse_threats(cfg.TEST.THREATS)
    tiers = [tier for name in names for tier in _build_tiers(cfg, name, threats)] if names else _tiers_of_attacks(cfg)
    if threats and not any(tier.kind == "class" for tier in tiers):
        raise ValueError(
            f"TEST.THREATS {cfg.TEST.THREATS!r} is for tiers on the class, and TEST.TIER {cfg.TEST.TIER!r} has no such "
            "tier: add one, such as standard"
        )
    if cfg.TEST.BACKEND != "own" and not any(tier.measures_class for tier in tiers):
        raise ValueError(
            f"--backend {cfg.TEST.BACKEND} (TEST.BACKEND) attacks the class, and TEST.TIER {cfg.TEST.TIER!r} has no "
            "such attack: add a tier on the class, such as standard"
        )
    return tiers


def _tiers_of_attacks(cfg: CfgNode) -> list[Tier]:
    # In the record a tier's name says what it consists of.
    wrong = [name for name in cfg.ATTACK.EVAL if list(cfg.TEST.TIERS.get(name, [name])) != [name]]
    if wrong:
        raise ValueError(f"ATTACK.EVAL must name no tier of TEST.TIERS, got {wrong[0]!r}: rename the attack")
    return full_tiers({name: _build(cfg, name, attack_spec(cfg, name)) for name in cfg.ATTACK.EVAL})


def _unions(cfg: CfgNode, tiers: Sequence[Tier]) -> dict[str, list[str]]:
    """Return, by the name of the worst case over them, tiers that differ in their threat model alone."""
    threats, built = parse_threats(cfg.TEST.THREATS), {tier.name for tier in tiers}
    if len(threats) < 2:
        return {}
    members = {name: [f"{name}_{threat.name}" for threat in threats] for name in tier_names(cfg)}
    return {f"{name}_{UNION}": names for name, names in members.items() if built.issuperset(names)}


def _build_tiers(cfg: CfgNode, name: str, threats: Sequence[Threat]) -> list[Tier]:
    """Build a tier, or one for each of the threat models if it is of the kind that these are for."""
    if name in cfg.TEST.TIERS and name != "local" and name not in cfg.TEST.FULL_TIERS:
        specs = {attack: attack_spec(cfg, attack) for attack in cfg.TEST.TIERS[name]}
        if not any(get_objective(spec.OBJECTIVE).needs_parts for spec in specs.values()):
            return [_build_tier(cfg, name, threat) for threat in threats or (None,)]
    return [_build_tier(cfg, name)]


def _build_tier(cfg: CfgNode, name: str, threat: Threat | None = None) -> Tier:
    if name not in cfg.TEST.TIERS:
        raise KeyError(f"no tier {name!r} in TEST.TIERS, there are: {', '.join(sorted(cfg.TEST.TIERS))}")
    specs = {attack: attack_spec(cfg, attack) for attack in cfg.TEST.TIERS[name]}
    if name == "local":
        local = LocalTier.from_config(cfg, name, specs)
        gain = float(cfg.TEST.RESTART_GAIN)
        if not gain:
            return local
        added = _added_to_restarts(cfg, f"_{name}", local.attacks)
        return replace(local, rounds=RoundSettings(restart_gain=gain, added=added))
    objectives = {attack: get_objective(spec.OBJECTIVE) for attack, spec in specs.items()}
    on_class = [attack for attack in specs if not objectives[attack].needs_parts]
    if on_class and len(on_class) < len(specs):
        raise ValueError(
            f"TEST.TIERS.{name} mixes attacks on the class ({', '.join(on_class)}) with attacks on the parts: "
            "one attack per head, so make two tiers of it"
        )
    node = cfg.MODEL.PART_CLASSIFIER
    if on_class:
        if not node.HEAD:
            raise ValueError(f"tier {name!r} attacks the class and this model has no class head: use TEST.TIER parts")
        kind = "full" if name in cfg.TEST.FULL_TIERS else "class"
        end = f"_{threat.name}" if threat else ""
        rounds = _round_settings(cfg, name, end) if kind == "class" else None
        attacks = {f"{attack}{end}": _build(cfg, attack, spec, threat=threat) for attack, spec in specs.items()}
        if rounds and rounds.restart_gain:
            rounds = replace(rounds, added=_added_to_restarts(cfg, end, attacks))
        return Tier(f"{name}{end}", kind, attacks, rounds)
    if not node.SEGMENTER:
        raise ValueError(f"tier {name!r} attacks the parts and this model predicts none: leave it out of TEST.TIER")
    segmenter = PART_SEGMENTER_REGISTRY.get(node.SEGMENTER)
    own, terms = get_objective(segmenter.attack_objective), ("", *getattr(segmenter, "attack_terms", ()))
    fitting = {
        attack: spec
        for attack, spec in specs.items()
        if objectives[attack].needs_pixels == own.needs_pixels and objectives[attack].needs_term in terms
    }
    if left_out := sorted(set(specs) - set(fitting)):
        logger.info("Tier %s leaves out %s: not for a %s", name, ", ".join(left_out), node.SEGMENTER)
    return Tier(name, "parts", {attack: _build(cfg, attack, spec) for attack, spec in fitting.items()})


def _round_settings(cfg: CfgNode, tier: str, end: str) -> RoundSettings | None:
    """Return what a tier on the class does after its first pass; its attacks' names have the `end`."""
    sampled: tuple[str, ...] = ()
    if tier == "bounded":
        names = tuple(cfg.TEST.TIERS.bounded)
        sampled = tuple(name for name in names if name in cfg.TEST.SAMPLED_ATTACKS)
        if not 0 < len(sampled) < len(names):
            raise ValueError(
                f"TEST.SAMPLED_ATTACKS must name some, not all, of the attacks of TEST.TIERS.bounded {names}, got "
                f"{tuple(cfg.TEST.SAMPLED_ATTACKS)}. TEST.TIER standard runs all attacks on all images"
            )
    if not sampled and not cfg.TEST.RESTART_GAIN:
        return None
    if cfg.TEST.BACKEND != "own":
        raise ValueError(
            f"TEST.BACKEND must be own for tier {tier!r}, which attacks in rounds, got {cfg.TEST.BACKEND}: its results "
            "depend on the batch. Use TEST.TIER standard with TEST.RESTART_GAIN 0"
        )
    sampled = tuple(f"{name}{end}" for name in sampled)
    return RoundSettings(restart_gain=float(cfg.TEST.RESTART_GAIN), sampled=sampled, bound=float(cfg.TEST.BOUND))


def _added_to_restarts(cfg: CfgNode, end: str, attacks: Mapping[str, Attack]) -> dict[str, Attack]:
    """Build the attacks of TEST.RESTART_ATTACKS that a tier lacks, in the threat model of its own."""
    threat_model, added = next(iter(attacks.values())).threat_model, {}
    for name in cfg.TEST.RESTART_ATTACKS:
        if f"{name}{end}" in attacks:
            continue
        spec = attack_spec(cfg, name).clone()
        spec.NORM, spec.EPS = threat_model.norm, threat_model.eps
        attack = build_model_attack(cfg, spec)
        if attack.objective.needs_parts or not (attack.uses_gradient and attack.starts_randomly):
            raise ValueError(
                f"TEST.RESTART_ATTACKS must name attacks on the class that follow a gradient from a random start, got "
                f"{name!r}. Use apgd_margin or apgd_dlr"
            )
        added[f"{name}{end}"] = attack
    return added


def _build(cfg: CfgNode, name: str, spec: CfgNode, eps: float | None = None, threat: Threat | None = None) -> Attack:
    spec = spec.clone()
    if cfg.TEST.NORM:
        spec.NORM = cfg.TEST.NORM
    if cfg.TEST.EPS >= 0:
        spec.EPS = float(cfg.TEST.EPS)
    if eps is not None:
        spec.EPS = float(eps)
    if threat is not None:
        spec = threat.applied_to(spec)
    if spec.NORM == "l1" and spec.NAME == "APGD" and spec.OBJECTIVE == "cross_entropy" and eps is None:
        spec.RESTARTS = max(spec.RESTARTS, L1_RESTARTS)
    attack = build_model_attack(cfg, spec)
    # What convergence plots and checks read; a black box has no loss that ought to converge.
    attack.record_history = attack.uses_gradient
    if cfg.TEST.BACKEND == "autoattack" and not attack.objective.needs_parts:
        return _official(cfg, name, attack)
    return attack


def _official(cfg: CfgNode, name: str, attack: Attack) -> Attack:
    try:
        official = Official(attack)
        official.check(cfg.MODEL.PART_CLASSIFIER.NUM_CLASSES, cfg.INPUT.SIZE, cfg.INPUT.SIZE)
    except ValueError as error:
        raise ValueError(
            f"--backend autoattack (TEST.BACKEND) cannot run {name}: {error}. Leave it out of the tier (TEST.TIERS), "
            "or of ATTACK.EVAL, or set TEST.BACKEND own"
        ) from error
    return official


def build_curve(cfg: CfgNode) -> dict[float, Attack]:
    """Attacks by eps, TEST.EPS_CURVE.

    Raises:
        ValueError: a radius is negative, or the attack does not aim at the class.
    """
    if not cfg.TEST.EPS_CURVE:
        return {}
    if min(cfg.TEST.EPS_CURVE) < 0:
        raise ValueError(f"TEST.EPS_CURVE must not be negative, is {tuple(cfg.TEST.EPS_CURVE)}")
    spec = attack_spec(cfg, cfg.TEST.EPS_CURVE_ATTACK)
    if get_objective(spec.OBJECTIVE).needs_parts or not cfg.MODEL.PART_CLASSIFIER.HEAD:
        raise ValueError(
            "TEST.EPS_CURVE measures class accuracy: it needs a model with a class head, and TEST.EPS_CURVE_ATTACK "
            f"must aim at the class ({cfg.TEST.EPS_CURVE_ATTACK} maximises {spec.OBJECTIVE})"
        )
    return {float(eps): _build(cfg, cfg.TEST.EPS_CURVE_ATTACK, spec, eps) for eps in sorted(set(cfg.TEST.EPS_CURVE))}


def build_plan(cfg: CfgNode, dataset: str, records: Sequence[dict], attacks: PlannedAttacks) -> Plan:
    """Builds the plan for one data set.

    Args:
        cfg: complete.
        dataset: registered.
        records: of the data set that are evaluated.
        attacks: of `plan_attacks`.
    """
    metadata = MetadataCatalog.get(dataset)
    return Plan(
        tiers=attacks.tiers,
        class_names=metadata.object_classes,
        part_names=metadata.thing_classes,
        curve=attacks.curve,
        unions=attacks.unions,
        save_adversarials=cfg.TEST.SAVE_ADVERSARIALS,
        save_predictions=cfg.TEST.SAVE_PREDICTIONS,
        sample=picture_sample([record["image_id"] for record in records]),
    )
