"""An evaluation of data sets under attacks: from the config to finished batches and the record's numbers."""

from __future__ import annotations

import logging
import shutil
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluators
from detectron2.utils import comm
from torch import nn

from part_robust.attacks import Attack
from part_robust.data.sample import evaluated_records, sample_records
from part_robust.data.test_loader import build_test_loader
from part_robust.evaluation.batch_arrays import Merged
from part_robust.evaluation.build import build_evaluator
from part_robust.evaluation.certification import build_smoothing, certify_dataset, count_votes, smoothing_identity
from part_robust.evaluation.checks import tensor_hashes
from part_robust.evaluation.checks.add import add_checks
from part_robust.evaluation.evaluated import EvaluatedData
from part_robust.evaluation.external import check_gradients
from part_robust.evaluation.identity import evaluation_identity
from part_robust.evaluation.journal import Journal
from part_robust.evaluation.mergeable import MergeableEvaluator
from part_robust.evaluation.plan import Plan, PlannedAttacks, build_plan, full_tiers
from part_robust.evaluation.predictions import merge_predictions
from part_robust.evaluation.protocol import run_plan
from part_robust.evaluation.record import (
    describe_evaluation,
    metrics_of,
    plan_warnings,
    write_files,
)
from part_robust.evaluation.siblings import transfer
from part_robust.evaluation.smoothing import Smoothing
from part_robust.modeling.gradients import has_detached_gradients
from part_robust.utils.devices import module_device
from part_robust.utils.errors import UserError
from part_robust.utils.processes import wait_for_all

logger = logging.getLogger(__name__)


@dataclass
class TierEvaluation:
    """All data sets of an evaluation.

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


def evaluate_tiers(
    cfg: CfgNode, model: nn.Module, attacks: PlannedAttacks, weights: str, weights_of: str, resume: bool
) -> TierEvaluation:
    """Evaluates on DATASETS.TEST, clean and under attacks; results are there on the main process alone.

    Args:
        cfg: complete.
        model: with its weights.
        attacks: of `plan_attacks`.
        weights: local file they came from; "" for random ones.
        weights_of: "MODEL.WEIGHTS" or "last_checkpoint".
        resume: keep the finished batches in OUTPUT_DIR and continue after them.

    Raises:
        JournalMismatch: `resume`, and they are of another evaluation.
        FileNotFoundError: TEST.CHECKS.SIBLINGS names a folder without an evaluation.
    """
    evaluation = TierEvaluation()
    check_gradients(model, attacks)
    smoothing = build_smoothing(cfg)
    for dataset in cfg.DATASETS.TEST:
        records, notes = evaluated_records(cfg, dataset)
        plan = build_plan(cfg, dataset, records, attacks)
        identity = evaluation_identity(cfg, plan, model, weights, weights_of, records)
        merged = _attack_dataset(cfg, dataset, records, plan, smoothing, model, identity, resume, evaluation)
        wait_for_all()
        if merged is None:
            continue
        evaluation.warnings[dataset] = [*notes, *_warnings(plan, model, merged)]
        _log_warnings(dataset, evaluation.warnings[dataset])
        evaluation.attacks |= plan.attacks()
        for tier in plan.tiers:
            evaluation.shown[tier.name] = next(iter(tier.attacks.values()))
            if tier.kind == "parts":
                evaluation.shown |= tier.attacks
    return evaluation


def evaluate_in_training(
    model: nn.Module,
    dataset: str,
    attacks: Mapping[str, Attack],
    loader: Iterable[list[dict]],
    evaluators: DatasetEvaluators,
) -> tuple[OrderedDict, list[str]]:
    """Evaluates on a data set, clean and under attacks on every image; keeps and writes nothing.

    Args:
        model: part classifier, also inside DistributedDataParallel.
        dataset: registered.
        attacks: by the names that results carry.
        loader: batches of the mapper's dicts of this process's images.
        evaluators: of `build_evaluator`, or others that are a `MergeableEvaluator`.

    Raises:
        UserError: an evaluator is not.

    Returns:
        `{"classification": {...}, "classification_<attack>": {...}, ...}` on the main process, empty elsewhere, and
        what a reader of the numbers must know.
    """
    others = [type(found).__name__ for found in evaluators._evaluators if not isinstance(found, MergeableEvaluator)]
    if others:
        raise UserError(
            f"evaluators must be MergeableEvaluators (part_robust.evaluation.mergeable), got {others[0]}: define its "
            "partial, absorb and score"
        )
    metadata = MetadataCatalog.get(dataset)
    plan = Plan(full_tiers(attacks), metadata.object_classes, metadata.thing_classes)
    _log_attacks(plan)
    merged = run_plan(plan, model, lambda done: loader, len(DatasetCatalog.get(dataset)), evaluators)
    wait_for_all()
    if merged is None:
        return OrderedDict(), []
    warnings = _warnings(plan, model, merged)
    _log_warnings(dataset, warnings)
    return OrderedDict(metrics_of(plan, merged, evaluators)), warnings


def _log_attacks(plan: Plan) -> None:
    """Log the attacks: threat model and steps for the terminal, every setting for log.txt."""
    for name, attack in plan.attacks().items():
        threat = attack.threat_model
        logger.info(
            "Attack %s: %s, %s %g/255, %d steps", name, type(attack).__name__, threat.norm, threat.eps, attack.steps
        )
        logger.debug("Settings of attack %s: %s", name, attack.describe())


def _warnings(plan: Plan, model: nn.Module, merged: Merged) -> list[str]:
    cut = [name for name, attack in plan.attacks().items() if not attack.full_gradient]
    if not cut or not has_detached_gradients(model):
        return plan_warnings(plan, merged)
    sentence = (
        f"{', '.join(cut)}: FULL_GRADIENT is False, the attack followed the cut gradient of the published detector; "
        "robustness is overestimated"
    )
    return [*plan_warnings(plan, merged), sentence]


def _log_warnings(dataset: str, warnings: Iterable[str]) -> None:
    for sentence in warnings:
        logger.warning("%s: %s", dataset, sentence)


def _attack_dataset(
    cfg: CfgNode,
    dataset: str,
    records: list[dict],
    plan: Plan,
    smoothing: Smoothing | None,
    model: nn.Module,
    identity: dict[str, str],
    resume: bool,
    evaluation: TierEvaluation,
) -> Merged | None:
    """Carries out the plan and adds the data set's results and record to `evaluation`; None off the main process."""
    folder, adversarials = Path(cfg.OUTPUT_DIR), Path(cfg.OUTPUT_DIR) / f"adversarials_{dataset}"
    predictions = folder / f"predictions_{dataset}" if plan.save_predictions else None
    journal = _open(journal_folder(cfg, dataset), identity, resume)
    if smoothing is not None:
        smoothed = sample_records(records, smoothing.images)
        votes_journal = _open(
            folder / f"smoothing_journal_{dataset}", smoothing_identity(smoothing, identity, smoothed), resume
        )
    if comm.is_main_process() and not journal.batches():
        for other in filter(None, (adversarials, predictions)):
            if other.exists():
                _move_aside(other)  # another evaluation's
    comm.synchronize()
    evaluators = build_evaluator(cfg, dataset)

    def remaining(done: Collection[int], wanted: list[dict] = records) -> Iterable[list[dict]]:
        return build_test_loader(cfg, dataset, [record for record in wanted if record["image_id"] not in done])

    _log_attacks(plan)
    # Of the module that `attack_mode` gives.
    before = tensor_hashes(getattr(model, "module", model)) if comm.is_main_process() else {}
    merged = run_plan(plan, model, remaining, len(records), evaluators, journal, adversarials, predictions)
    votes = None
    if smoothing is not None:
        batch = cfg.DATALOADER.TEST_BATCH_SIZE
        votes = count_votes(
            smoothing, model, lambda done: remaining(done, smoothed), len(smoothed), votes_journal, batch
        )
    if merged is None:
        return None
    results = metrics_of(plan, merged, evaluators)
    record = describe_evaluation(plan, merged, results, _device(model))
    record["files"] = write_files(folder, dataset, plan, merged, adversarials)
    if predictions is not None:
        image_ids = merged.image.image_id.tolist()
        merge_predictions(predictions, image_ids, plan.rows(), plan.part_names, plan.class_names)
        record["files"]["predictions"] = f"{predictions.name}/"
    data = EvaluatedData(cfg, model, dataset, records, plan, merged)
    if transferred := transfer(data, identity["checkpoint"]):
        record["transfer"] = transferred
    if smoothing is not None and votes is not None:
        record["smoothing"] = certify_dataset(data, smoothing, votes)
    add_checks(data, record, before)
    evaluation.results[dataset], evaluation.evaluations[dataset] = OrderedDict(results), record
    return merged


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


def _device(model: nn.Module) -> str:
    device = module_device(model)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return f"{comm.get_world_size()} x {name}"
