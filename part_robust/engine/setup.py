"""From the command line to a frozen config, a run, and its report."""

from __future__ import annotations

import argparse
import logging
import math
import os
from collections import OrderedDict
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.evaluation.testing import flatten_results_dict, print_csv_format, verify_results
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, JSONWriter

from part_robust.config import config_text
from part_robust.configured_attacks import build_attacks, training_attack
from part_robust.data.compatibility import check_datasets
from part_robust.data.controls import with_label_share
from part_robust.data.mixing import mixes
from part_robust.engine.begun import begin_training, imported_again
from part_robust.engine.best_metric import check_best_metric, check_expected, evaluated_tasks, validation_datasets
from part_robust.engine.checkpoint import PartCheckpointer
from part_robust.engine.early_stopping import check_patience
from part_robust.engine.external import refuse_external
from part_robust.engine.failures import no_tracebacks
from part_robust.engine.output_lock import lock_output, release_output
from part_robust.engine.process_group import end_process_group
from part_robust.engine.resume import check_resumed
from part_robust.engine.run_log import seed_and_tune, start_log, write_config
from part_robust.engine.trainer import PartTrainer, share_weights
from part_robust.evaluation.external import describe_external, describe_preprocessing, source_sha256
from part_robust.evaluation.plan import PlannedAttacks, full_tiers, metric_rows, plan_attacks
from part_robust.evaluation.report import write_report
from part_robust.evaluation.run import evaluate_tiers, resumed_weights
from part_robust.evaluation.run_record import build_record, parameter_counts, results_table
from part_robust.evaluation.siblings import sibling_folders
from part_robust.modeling.counts import check_counts
from part_robust.modeling.external.head import reads_own_file
from part_robust.modeling.part_classifier import training_objective
from part_robust.run_config import load_config
from part_robust.utils.devices import check_device
from part_robust.utils.errors import UserError, as_user_errors
from part_robust.utils.files import write_json
from part_robust.utils.precision import exact_kernels

logger = logging.getLogger(__name__)


def setup(args: argparse.Namespace, level: int = logging.INFO) -> CfgNode:
    """Same as `setup_run`, the config alone."""
    return setup_run(args, level)[0]


def setup_run(args: argparse.Namespace, level: int = logging.INFO) -> tuple[CfgNode, PlannedAttacks | None]:
    """Same as `complete_run`; also locks OUTPUT_DIR and logs to it.

    `train` and `evaluate` release the lock when they end.

    Args:
        args: of `default_argument_parser`.
        level: lowest level of the log lines on the terminal; log.txt has all.

    Raises:
        FileNotFoundError, KeyError, ValueError: same as `complete_run`.
        OutputInUse: another run uses OUTPUT_DIR, or it cannot be written.
        UserError: the machine lacks MODEL.DEVICE, or it cannot compute; --resume with keys that can no longer change.
    """
    cfg, attacks = complete_run(args)
    check_device(cfg.MODEL.DEVICE)
    if cfg.MODEL.DEVICE == "meta":
        raise UserError(
            "MODEL.DEVICE must be a device that computes, such as cpu, got meta, whose tensors hold no values"
        )
    resumes = args.resume and not args.eval_only
    messages = [*(check_resumed(cfg) if resumes else ()), *imported_again(cfg, resumes)]
    lock_output(cfg.OUTPUT_DIR, "an evaluation" if args.eval_only else "a training")
    start_log(cfg, args, level)
    seed_and_tune(cfg, args.eval_only)
    for line in messages:
        logger.warning(line)
    return cfg, attacks


def complete_config(args: argparse.Namespace) -> CfgNode:
    """Same as `complete_run`, the config alone."""
    return complete_run(args)[0]


def complete_run(args: argparse.Namespace) -> tuple[CfgNode, PlannedAttacks | None]:
    """The config that the command line means, with counts and iterations filled in, frozen; writes nothing.

    With --eval-only also the attacks of the evaluation, None otherwise.

    Raises:
        FileNotFoundError, KeyError, ValueError: the config or the data are not as they should be; before any work.
    """
    cfg, attacks = load_config(args.config_file, args.opts), None
    check_datasets(cfg)
    node = cfg.MODEL.PART_CLASSIFIER
    if not node.HEAD and not node.SEGMENTER:
        raise UserError(
            "MODEL.PART_CLASSIFIER.HEAD or SEGMENTER must name what the model predicts, got '' for both: take a "
            "config of a model, such as part_shapes/resnet50.yaml"
        )
    if not args.eval_only:
        if not cfg.DATASETS.TRAIN:
            raise UserError("DATASETS.TRAIN must name one or more data sets to train on, got none")
        check_counts(cfg, cfg.DATASETS.TRAIN, validation_datasets(cfg))
        check_part_labels(cfg)
        set_schedule(cfg)
        check_training(cfg)
        check_best_metric(cfg)
        check_patience(cfg)
        # A wrong name must not come up after the first epoch.
        PlannedAttacks(full_tiers(build_attacks(cfg, cfg.ATTACK.EVAL_DURING_TRAINING)))
    else:
        if not cfg.DATASETS.TEST:
            raise UserError("DATASETS.TEST must name one or more data sets to evaluate on, got none")
        check_counts(cfg, (), cfg.DATASETS.TEST)
        attacks = plan_attacks(cfg)
        check_evaluation(cfg, attacks)
    cfg.freeze()
    return cfg, attacks


def check_evaluation(cfg: CfgNode, attacks: PlannedAttacks) -> None:
    """Check what an evaluation needs before it begins.

    Raises:
        FileNotFoundError: TEST.CHECKS.SIBLINGS names a folder without an evaluation.
        UserError: an audit of nothing; TEST.EXPECTED_RESULTS names no task of the evaluation.
    """
    sibling_folders(cfg)
    if cfg.TEST.AUDIT and not attacks.tiers:
        raise UserError("TEST.AUDIT (--audit) must be of attacks, got none: set TEST.TIER or ATTACK.EVAL")
    if len(cfg.DATASETS.TEST) == 1:
        check_expected(cfg, evaluated_tasks(cfg, metric_rows(attacks.tiers)))
    elif cfg.TEST.EXPECTED_RESULTS:
        raise UserError("TEST.EXPECTED_RESULTS must be empty with several data sets in DATASETS.TEST: evaluate each")


def check_training(cfg: CfgNode) -> None:
    """Check what a training needs before it begins.

    Raises:
        ValueError: the batch cannot be shared by the processes and pieces; an objective or an attack is impossible;
            the model is one of MODEL.EXTERNAL.
    """
    refuse_external(cfg, "a training")
    world, pieces = comm.get_world_size(), cfg.SOLVER.ACCUMULATE
    solver = cfg.SOLVER
    if solver.BACKBONE_FREEZE_EPOCHS < 0 or solver.BACKBONE_FREEZE_ITERS < 0:
        raise ValueError("SOLVER.BACKBONE_FREEZE_EPOCHS and BACKBONE_FREEZE_ITERS must not be negative")
    if solver.BACKBONE_FREEZE_EPOCHS > 0 and solver.BACKBONE_FREEZE_ITERS == 0:
        raise ValueError("SOLVER.BACKBONE_FREEZE_EPOCHS needs SOLVER.EPOCHS; without it set BACKBONE_FREEZE_ITERS")
    if pieces < 1:
        raise ValueError(f"SOLVER.ACCUMULATE must be at least 1, is {pieces}")
    if cfg.SOLVER.IMS_PER_BATCH % (world * pieces):
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} is the batch of all processes together: it must be a "
            f"multiple of {world} processes x {pieces} pieces (SOLVER.ACCUMULATE)"
        )
    if cfg.ATTACK.TRAIN.ENABLED:
        objective = training_objective(cfg)
        if objective.class_needs_clean and not cfg.MODEL.PART_CLASSIFIER.HEAD:
            raise ValueError(f"ATTACK.TRAIN.METHOD {objective.method} needs a class head (MODEL.PART_CLASSIFIER.HEAD)")
        if objective.method == "mart" and mixes(cfg):
            raise UserError(
                "ATTACK.TRAIN.METHOD must be adversarial, mix or trades where INPUT.CUTMIX_PROB or MIXUP_PROB mixes "
                "classes, got mart, whose weights need one class for each image"
            )
        training_attack(cfg)


def check_part_labels(cfg: CfgNode) -> None:
    """Check that the training set has the labels that the loss and the attack need.

    Raises:
        UserError: the training minimises a loss of the parts alone, or its attack maximises one, and no image has part
            labels: the loss would be 0.
    """
    node = cfg.MODEL.PART_CLASSIFIER
    learns_class = node.HEAD and (not node.SEGMENTER or node.SEG_LOSS_WEIGHT < 1)
    objective = training_attack(cfg).objective if cfg.ATTACK.TRAIN.ENABLED else None
    attacks_class = objective is None or objective.needs_class
    if learns_class and attacks_class:
        return
    records = [record for name in cfg.DATASETS.TRAIN for record in DatasetCatalog.get(name)]
    if all(record["part_supervision"] == "none" for record in with_label_share(records, cfg.DATASETS.PART_LABEL_SHARE)):
        remedy = (
            f"the attack would have no gradient. Set ATTACK.TRAIN.OBJECTIVE to cross_entropy, is {objective.name}"
            if learns_class and objective
            else "this training would learn nothing. Add a class head (MODEL.PART_CLASSIFIER.HEAD) with "
            "SEG_LOSS_WEIGHT below 1"
        )
        raise UserError(
            f"DATASETS.TRAIN must have images with part labels, got {', '.join(cfg.DATASETS.TRAIN)} without any "
            f"(DATASETS.PART_LABEL_SHARE {cfg.DATASETS.PART_LABEL_SHARE:g}): {remedy}"
        )


def set_schedule(cfg: CfgNode) -> None:
    """Turns SOLVER.EPOCHS and its companions into iterations, in place. IMS_PER_BATCH is the total batch size."""
    if cfg.SOLVER.EPOCHS <= 0:
        return
    images = sum(len(DatasetCatalog.get(name)) for name in cfg.DATASETS.TRAIN)

    def iterations(epochs: float) -> int:
        return max(round(epochs * images / cfg.SOLVER.IMS_PER_BATCH), 1)

    cfg.SOLVER.MAX_ITER = iterations(cfg.SOLVER.EPOCHS)
    if cfg.SOLVER.BACKBONE_FREEZE_EPOCHS > 0:
        cfg.SOLVER.BACKBONE_FREEZE_ITERS = iterations(cfg.SOLVER.BACKBONE_FREEZE_EPOCHS)
    cfg.SOLVER.STEPS = tuple(iterations(epochs) for epochs in cfg.SOLVER.STEP_EPOCHS)
    # Rounded up from the end, or the last evaluation would come a few iterations before the final one.
    evaluations = max(round(cfg.SOLVER.EPOCHS / cfg.SOLVER.EVAL_EPOCHS), 1)
    cfg.SOLVER.CHECKPOINT_PERIOD = cfg.TEST.EVAL_PERIOD = math.ceil(cfg.SOLVER.MAX_ITER / evaluations)


def train(cfg: CfgNode, resume: bool = False) -> OrderedDict | None:
    """Trains, and returns the last evaluation's results on the main process."""
    if not cfg.DATASETS.VAL and cfg.DATASETS.TEST:
        logger.warning(
            "DATASETS.VAL is empty: the best checkpoint is chosen on DATASETS.TEST, whose numbers are then optimistic"
        )
    try:
        # Models, attacks and hooks refuse what they cannot be built from.
        with as_user_errors():
            trainer = PartTrainer(cfg)
            trainer.resume_or_load(resume=resume)
        if trainer.start_iter > cfg.SOLVER.MAX_ITER:
            # The folder's notes stay those of the training that made its weights.
            logger.warning(
                "OUTPUT_DIR %s is already trained to %d of SOLVER.MAX_ITER %d: nothing is left to do. Raise MAX_ITER "
                "(or SOLVER.EPOCHS) to train longer",
                cfg.OUTPUT_DIR,
                trainer.start_iter,
                cfg.SOLVER.MAX_ITER,
            )
            return None
        write_config(cfg)
        begin_training(cfg, resume)
        with no_tracebacks():
            trainer.train()
        return getattr(trainer, "_last_eval_results", None)
    finally:
        release_output(cfg.OUTPUT_DIR)


def evaluate(cfg: CfgNode, resume: bool = False, attacks: PlannedAttacks | None = None) -> OrderedDict:
    """Evaluates on DATASETS.TEST, clean and under each attack of ATTACK.EVAL, or under the tiers of TEST.TIER.

    Prints a table, writes OUTPUT_DIR/robustness.json, report.md and report.html, and appends to metrics.json there.

    Args:
        cfg: complete.
        resume: weights are those of the last checkpoint; an interrupted evaluation continues, with the weights it began
            with.
        attacks: of `setup_run`; built here if None.

    Returns:
        `{task: metrics}` for one data set, `{data set: {task: metrics}}` for several; empty off the main process.
    """
    try:
        with exact_kernels():
            return _evaluate(cfg, resume, attacks)
    finally:
        release_output(cfg.OUTPUT_DIR)


def _evaluate(cfg: CfgNode, resume: bool, attacks: PlannedAttacks | None) -> OrderedDict:
    with as_user_errors():
        if attacks is None:
            attacks = plan_attacks(cfg)
            check_evaluation(cfg, attacks)
        model = PartTrainer.build_model(cfg)
    checkpointer = PartCheckpointer(model, save_dir=cfg.OUTPUT_DIR, strict=True)
    weights, weights_of, external = cfg.MODEL.WEIGHTS, "MODEL.WEIGHTS", reads_own_file(model)
    interrupted = resumed_weights(cfg) if resume else None
    if resume and not external and checkpointer.has_checkpoint() and interrupted != "MODEL.WEIGHTS":
        weights, weights_of = checkpointer.get_checkpoint_file(), "last_checkpoint"
    if not weights:
        logger.warning("MODEL.WEIGHTS is empty: these are the results of a random model")
    if not weights or external:  # a callable's weights may be random
        share_weights(model)
    iteration = checkpointer.load(weights).get("iteration", 0)
    if interrupted is None:  # one that continues has its config there, and is refused if that differs
        write_config(cfg)
    local = checkpointer.path_manager.get_local_path(weights) if weights else ""
    found = evaluate_tiers(cfg, model, attacks, local, weights_of, resume)
    if not comm.is_main_process():
        return OrderedDict()
    node = cfg.MODEL.PART_CLASSIFIER
    record = build_record(
        results=found.results,
        attacks=found.attacks,
        warnings=found.warnings,
        checkpoint=local,
        config=config_text(cfg),
        evaluations=found.evaluations,
        name=os.path.basename(os.path.normpath(cfg.OUTPUT_DIR)),
        architecture=describe_external(cfg) or " + ".join(part for part in (node.SEGMENTER, node.HEAD) if part),
        parameters=parameter_counts(model),
        pretraining=cfg.MODEL.PRETRAINING,
        preprocessing=describe_preprocessing(cfg, model),
        source_sha256=source_sha256(cfg),
    )
    path = Path(cfg.OUTPUT_DIR) / "robustness.json"
    write_json(path, record)
    logger.info("Report: %s", ", ".join(map(str, write_report(path))))
    logger.info("Results:\n%s", results_table(found.results, found.shown))
    single = next(iter(found.results.values())) if len(found.results) == 1 else found.results
    _append_metrics(cfg.OUTPUT_DIR, single, iteration)
    print_csv_format(single)
    verify_results(cfg, single)
    return single


def _append_metrics(output_dir: str, results: OrderedDict, iteration: int) -> None:
    """The line that training would have written, for whatever reads metrics.json."""
    with EventStorage(iteration) as storage:
        storage.put_scalars(**flatten_results_dict(results), smoothing_hint=False)
        writer = JSONWriter(os.path.join(output_dir, "metrics.json"))
        writer.write()
        writer.close()


__all__ = ["end_process_group", "evaluate", "set_schedule", "setup", "train"]
