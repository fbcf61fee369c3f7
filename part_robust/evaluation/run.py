"""--eval-only with tiers of attacks: from the config to finished batches and the record's numbers."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from torch import nn

import part_robust
from part_robust.attacks import Attack, Official, get_objective
from part_robust.config import attack_spec
from part_robust.configured_attacks import aimed
from part_robust.data.sample import evaluated_records
from part_robust.data.test_loader import build_test_loader
from part_robust.evaluation.build import build_evaluator
from part_robust.evaluation.checks import fingerprint
from part_robust.evaluation.checks.add import add_checks
from part_robust.evaluation.eps_curve import curve_attack_name
from part_robust.evaluation.journal import Journal
from part_robust.evaluation.pictures import picture_sample
from part_robust.evaluation.protocol import Plan, run_plan
from part_robust.evaluation.record import (
    describe_evaluation,
    image_list_sha256,
    metrics_of,
    plan_warnings,
    write_files,
)
from part_robust.evaluation.siblings import sibling_folders, transfer
from part_robust.evaluation.tiers import Tier
from part_robust.modeling import PART_SEGMENTER_REGISTRY
from part_robust.modeling.gradients import cuts_gradient
from part_robust.utils.files import file_sha256
from part_robust.utils.processes import wait_for_all

logger = logging.getLogger(__name__)

# Strongest first: breakdowns and pictures show the first tier that ran.
STRENGTH = ("standard", "screen")
# Config nodes that change what the numbers are.
DECISIVE = ("MODEL", "INPUT")
BACKENDS = ("own", "autoattack")


@dataclass
class TierEvaluation:
    """All data sets of an evaluation with tiers.

    Attributes:
        results: data set -> task -> metric -> value, tasks with the suffix of a tier or of an attack on the parts.
        evaluations: data set -> the record's `evaluation`.
        warnings: data set -> sentences.
        attacks: all that ran, by name.
        shown: by the suffix of results, an attack with the row's threat model.
    """

    results: OrderedDict = field(default_factory=OrderedDict)
    evaluations: dict[str, dict] = field(default_factory=dict)
    warnings: dict[str, list[str]] = field(default_factory=dict)
    attacks: dict[str, Attack] = field(default_factory=dict)
    shown: dict[str, Attack] = field(default_factory=dict)


def tier_names(cfg: CfgNode) -> list[str]:
    """Names in TEST.TIER, which separates them by commas, the strongest first."""
    names = list(dict.fromkeys(name.strip() for name in cfg.TEST.TIER.split(",") if name.strip()))
    rank = {name: index for index, name in enumerate(STRENGTH)}
    last = {"thesis": len(rank) + 1, "parts": len(rank) + 2}
    return sorted(names, key=lambda name: rank.get(name, last.get(name, len(rank))))


def build_tiers(cfg: CfgNode) -> list[Tier]:
    """The tiers of TEST.TIER with their attacks.

    Raises:
        ImportError: TEST.BACKEND is not installed.
        KeyError: no such tier or attack.
        ValueError: a tier that this model cannot be judged by, that makes no sense, or that TEST.BACKEND cannot run.
    """
    if cfg.TEST.BACKEND not in BACKENDS:
        raise ValueError(f"TEST.BACKEND must be one of {', '.join(BACKENDS)}, is {cfg.TEST.BACKEND!r}")
    tiers = [_build_tier(cfg, name) for name in tier_names(cfg)]
    if cfg.TEST.BACKEND != "own" and all(tier.kind == "parts" for tier in tiers):
        raise ValueError(
            f"--backend {cfg.TEST.BACKEND} (TEST.BACKEND) attacks the class, and TEST.TIER {cfg.TEST.TIER!r} has no "
            "such attack: add a tier on the class, such as standard"
        )
    return tiers


def _build_tier(cfg: CfgNode, name: str) -> Tier:
    if name not in cfg.TEST.TIERS:
        raise KeyError(f"no tier {name!r} in TEST.TIERS, there are: {', '.join(sorted(cfg.TEST.TIERS))}")
    specs = {attack: attack_spec(cfg, attack) for attack in cfg.TEST.TIERS[name]}
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
        kind = "full" if name == "thesis" else "class"
        return Tier(name, kind, {attack: _build(cfg, attack, spec) for attack, spec in specs.items()})
    if not node.SEGMENTER:
        raise ValueError(f"tier {name!r} attacks the parts and this model predicts none: leave it out of TEST.TIER")
    own = get_objective(PART_SEGMENTER_REGISTRY.get(node.SEGMENTER).attack_objective)
    fitting = {attack: spec for attack, spec in specs.items() if objectives[attack].needs_pixels == own.needs_pixels}
    if left_out := sorted(set(specs) - set(fitting)):
        logger.info("Tier %s leaves out %s: not for a %s", name, ", ".join(left_out), node.SEGMENTER)
    return Tier(name, "parts", {attack: _build(cfg, attack, spec) for attack, spec in fitting.items()})


def _build(cfg: CfgNode, name: str, spec: CfgNode, eps: float | None = None) -> Attack:
    spec = spec.clone()
    if cfg.TEST.NORM:
        spec.NORM = cfg.TEST.NORM
    if cfg.TEST.EPS >= 0:
        spec.EPS = float(cfg.TEST.EPS)
    if eps is not None:
        spec.EPS = float(eps)
    attack = aimed(cfg, spec)
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
            "or set TEST.BACKEND own"
        ) from error
    return official


def build_curve(cfg: CfgNode) -> dict[float, Attack]:
    """Attacks by eps, TEST.EPS_CURVE.

    Raises:
        ValueError: a radius is negative, the attack does not aim at the class, or there is no tier.
    """
    if not cfg.TEST.EPS_CURVE:
        return {}
    if not cfg.TEST.TIER:
        raise ValueError("TEST.EPS_CURVE belongs to an evaluation with tiers: set TEST.TIER, such as TEST.TIER screen")
    if min(cfg.TEST.EPS_CURVE) < 0:
        raise ValueError(f"TEST.EPS_CURVE must not be negative, is {tuple(cfg.TEST.EPS_CURVE)}")
    spec = attack_spec(cfg, cfg.TEST.EPS_CURVE_ATTACK)
    if get_objective(spec.OBJECTIVE).needs_parts or not cfg.MODEL.PART_CLASSIFIER.HEAD:
        raise ValueError(
            "TEST.EPS_CURVE measures class accuracy: it needs a model with a class head, and TEST.EPS_CURVE_ATTACK "
            f"must aim at the class ({cfg.TEST.EPS_CURVE_ATTACK} maximises {spec.OBJECTIVE})"
        )
    return {float(eps): _build(cfg, cfg.TEST.EPS_CURVE_ATTACK, spec, eps) for eps in sorted(set(cfg.TEST.EPS_CURVE))}


def build_plan(cfg: CfgNode, dataset: str, records: Sequence[dict]) -> Plan:
    """Return the plan for the evaluation of `records` of a data set."""
    metadata = MetadataCatalog.get(dataset)
    return Plan(
        tiers=build_tiers(cfg),
        class_names=metadata.object_classes,
        part_names=metadata.thing_classes,
        curve=build_curve(cfg),
        save_adversarials=cfg.TEST.SAVE_ADVERSARIALS,
        sample=picture_sample([record["image_id"] for record in records]),
    )


def journal_folder(cfg: CfgNode, dataset: str) -> Path:
    """Return the folder of the journal of one data set."""
    return Path(cfg.OUTPUT_DIR) / f"journal_{dataset}"


def resumed_weights(cfg: CfgNode) -> str | None:
    """Return where an interrupted evaluation in OUTPUT_DIR took its weights from.

    That is "MODEL.WEIGHTS" or "last_checkpoint", or None where there is no interrupted evaluation.
    """
    for dataset in cfg.DATASETS.TEST:
        identity = Journal(journal_folder(cfg, dataset)).identity()
        if identity is not None:
            return identity.get("weights are those of")
    return None


def evaluate_tiers(cfg: CfgNode, model: nn.Module, weights: str, weights_of: str, resume: bool) -> TierEvaluation:
    """Evaluates on DATASETS.TEST under the tiers of TEST.TIER; results are there on the main process alone.

    Args:
        cfg: complete.
        model: with its weights.
        weights: local file they came from; "" for random ones.
        weights_of: "MODEL.WEIGHTS" or "last_checkpoint".
        resume: go on with the finished batches in OUTPUT_DIR.

    Raises:
        JournalMismatch: `resume`, and they are of another evaluation.
        FileNotFoundError: TEST.CHECKS.SIBLINGS names a folder without an evaluation.
    """
    evaluation = TierEvaluation()
    sibling_folders(cfg)  # a wrong one is said before the work
    for dataset in cfg.DATASETS.TEST:
        records, warnings = evaluated_records(cfg, dataset)
        plan = build_plan(cfg, dataset, records)
        folder, adversarials = Path(cfg.OUTPUT_DIR), Path(cfg.OUTPUT_DIR) / f"adversarials_{dataset}"
        identity = _identity(cfg, plan, model, weights, weights_of, [record["image_id"] for record in records])
        journal = _open(journal_folder(cfg, dataset), identity, resume)
        if comm.is_main_process() and adversarials.exists() and not journal.batches():
            _move_aside(adversarials)  # another evaluation's
        comm.synchronize()
        evaluators = build_evaluator(cfg, dataset)

        def remaining(
            done: Collection[int], records: list[dict] = records, dataset: str = dataset
        ) -> Iterable[list[dict]]:
            left = [record for record in records if record["image_id"] not in done]
            return build_test_loader(cfg, dataset, left)

        for name, attack in plan.attacks().items():
            logger.info("Attack %s: %s", name, attack.describe())
        # Of the module that `attack_view` gives.
        before = fingerprint(getattr(model, "module", model)) if comm.is_main_process() else {}
        merged = run_plan(plan, model, remaining, len(records), evaluators, journal, adversarials)
        if merged is None:
            wait_for_all()
            continue
        results = metrics_of(plan, merged, evaluators)
        record = describe_evaluation(plan, merged, results, _device(model))
        record["files"] = write_files(folder, dataset, plan, merged, adversarials)
        if transferred := transfer(cfg, model, dataset, records, plan, merged, identity["checkpoint"]):
            record["transfer"] = transferred
        add_checks(cfg, model, dataset, records, plan, merged, record, before)
        wait_for_all()
        warnings += plan_warnings(plan, merged)
        if not cfg.ATTACK.FULL_GRADIENT and cuts_gradient(model):
            warnings.append(
                "ATTACK.FULL_GRADIENT is False: attacks followed the cut gradient of the published detector; "
                "robustness is overestimated"
            )
        for sentence in warnings:
            logger.warning("%s: %s", dataset, sentence)
        evaluation.results[dataset], evaluation.evaluations[dataset] = OrderedDict(results), record
        evaluation.warnings[dataset] = warnings
        evaluation.attacks |= plan.attacks()
        for tier in plan.tiers:
            evaluation.shown[tier.name] = next(iter(tier.attacks.values()))
            if tier.kind == "parts":
                evaluation.shown |= tier.attacks
    return evaluation


def _open(folder: Path, identity: dict[str, str], resume: bool) -> Journal:
    """Rank 0 opens the journal; its error is raised on every rank."""
    problem: Exception | None = None
    if comm.is_main_process():
        try:
            Journal.open(folder, identity, resume)
        except ValueError as error:
            problem = error
    problem = comm.all_gather(problem)[0]
    if problem is not None:
        raise problem
    journal = Journal(folder, identity)
    journal.folder.mkdir(parents=True, exist_ok=True)  # on other machines
    return journal


def _move_aside(folder: Path) -> None:
    previous = folder.with_name(folder.name + ".previous")
    shutil.rmtree(previous, ignore_errors=True)
    folder.rename(previous)


def _identity(
    cfg: CfgNode, plan: Plan, model: nn.Module, weights: str, weights_of: str, image_ids: list[int]
) -> dict[str, str]:
    """Return what must be the same for batches to belong together.

    Folders need not be, and with our own attacks neither the batch size nor the number of processes.
    """
    decisive = {}
    for name in DECISIVE:
        node = cfg[name].clone()
        node.defrost()
        if name == "MODEL":
            node.WEIGHTS = node.DEVICE = node.PRETRAINING = ""
        decisive[name] = node.dump()
    decisive["FULL_GRADIENT"] = cfg.ATTACK.FULL_GRADIENT
    attacks = {
        "tiers": [{"name": tier.name, "kind": tier.kind, "attacks": list(tier.attacks)} for tier in plan.tiers],
        "attacks": {name: attack.describe() for name, attack in plan.attacks().items()},
        "curve": sorted(map(curve_attack_name, plan.curve)),
    }
    # What the other backend finds depends on an image's batch.
    batches = "any"
    if cfg.TEST.BACKEND != "own":
        batches = f"of {cfg.DATALOADER.TEST_BATCH_SIZE} in {comm.get_world_size()} processes"
    return {
        "config": _sha256(decisive),
        "checkpoint": file_sha256(weights) or _weights_sha256(model),
        "weights are those of": weights_of,
        "images": image_list_sha256(image_ids),
        "tiers and attacks": _sha256(attacks),
        "backend": cfg.TEST.BACKEND,
        "batches": batches,
        "metrics": str(bool(cfg.TEST.PART_BOX_AP)),
        "saved adversarial images": plan.save_adversarials,
        "device": str(next(model.parameters()).device.type),
        "part_robust": part_robust.__version__,
    }


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _weights_sha256(model: nn.Module) -> str:
    """Return the hash of weights that come from no file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _device(model: nn.Module) -> str:
    device = next(model.parameters()).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return f"{comm.get_world_size()} x {name}"
