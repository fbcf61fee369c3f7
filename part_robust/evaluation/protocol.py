"""An evaluation under attacks: batch after batch, resumable, every process for its own images.

Letters: N images.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.evaluation import DatasetEvaluators
from detectron2.utils import comm
from torch import nn

from part_robust.attacks import attack_mode
from part_robust.evaluation.adversarials import save_adversarials
from part_robust.evaluation.attacked_batch import AttackedBatch
from part_robust.evaluation.batch_arrays import describe_batch, evaluated_rows
from part_robust.evaluation.eps_curve import run_curve
from part_robust.evaluation.journal import BatchArrays, Journal
from part_robust.evaluation.merged import Merged, Round
from part_robust.evaluation.named_arrays import CostArrays, ImageArrays, TierArrays
from part_robust.evaluation.plan import Plan
from part_robust.evaluation.predictions import save_predictions
from part_robust.evaluation.progress import Progress
from part_robust.evaluation.rounds import BatchSetting, describe_round, next_round, run_round_batch
from part_robust.utils.processes import prepare_to_wait, wait_for_all

logger = logging.getLogger(__name__)


def run_plan(
    plan: Plan,
    model: nn.Module,
    make_loader: Callable[[Collection[int]], Iterable[list[dict]]],
    num_images: int,
    evaluators: DatasetEvaluators,
    journal: Journal | None = None,
    adversarials: Path | None = None,
    predictions: Path | None = None,
) -> Merged | None:
    """Attacks all images that the journal does not have yet.

    Images are attacked with random numbers of their own, so the flags are the same for any batch size, number of
    processes and order, and after any interruption.

    Args:
        plan: what to do.
        model: part classifier.
        make_loader: ids of images that are done -> batches of the mapper's dicts of this process's other images.
        num_images: of the data set.
        evaluators: of `build_evaluator`.
        journal: of this evaluation; only the main process's is read. None: nothing is kept, and nothing continued.
        adversarials: folder for adversarial images; must be given if the plan wants them.
        predictions: folder for predictions as files; None: none are written.

    Returns:
        All batches on the main process, None on others.
    """
    prepare_to_wait()
    earlier = journal.batches() if journal is not None and comm.is_main_process() else []
    finished = {image_id for batch in earlier for image_id in ImageArrays.ids(batch)}
    done: set[int] = comm.all_gather(finished)[0]
    if done and journal is not None:
        logger.info("Continuing: %d of %d images are done (%s)", len(done), num_images, journal.folder)
    shown = plan.first.name if plan.first else "clean"
    progress = Progress(num_images, shown, done=len(done), processes=comm.get_world_size())
    for batch in earlier:
        progress.count(batch)

    setting = BatchSetting(plan, model, evaluators, adversarials, predictions)

    def attack(items: list[dict]) -> BatchArrays:
        arrays = _run_batch(setting, items, progress)
        progress.count(arrays)
        return arrays

    found = _run_share(make_loader(done) if len(done) < num_images else (), attack, journal, "batch", progress)
    merged = Merged([*earlier, *found]) if comm.is_main_process() else None
    if all(tier.rounds is None for tier in plan.tiers):
        return merged
    return _run_rounds(setting, make_loader, journal, merged)


def _run_share(
    loader: Iterable[list[dict]],
    attack: Callable[[list[dict]], BatchArrays],
    journal: Journal | None,
    name: str,
    progress: Progress,
) -> list[BatchArrays]:
    """Runs this process's batches and keeps each in the journal; returns those of all processes on the main one."""
    own: list[BatchArrays] = []
    try:
        for items in loader:
            arrays = attack(items)
            if journal is not None:
                journal.write(arrays, [item["image_id"] for item in items], name)
            own.append(arrays)
            progress.update(len(items))
    except KeyboardInterrupt:
        if journal is not None:
            logger.warning("Stopped; what is done is in %s: the same command with --resume continues", journal.folder)
        raise
    wait_for_all()
    return [batch for part in comm.gather(own, dst=0) for batch in part]


def _run_rounds(
    setting: BatchSetting,
    make_loader: Callable[[Collection[int]], Iterable[list[dict]]],
    journal: Journal | None,
    merged: Merged | None,
) -> Merged | None:
    """Runs one round after the other, as the main process decides from all results before it.

    Args:
        setting: of the evaluation.
        make_loader: as `run_plan`.
        journal: as `run_plan`.
        merged: all images after the first pass, on the main process.
    """
    everything: set[int] = comm.all_gather(set(merged.image.image_id.tolist()) if merged else set())[0]
    while True:
        current: Round | None = comm.all_gather(next_round(setting.plan, merged) if merged else None)[0]
        if current is None:
            return merged
        name, ids = f"round_{current.number}", set(current.image_ids)
        # Files of images that are not of the round are from before something changed that the identity does not hold.
        kept = journal.batches(name) if journal is not None and merged else []
        earlier = [batch for batch in kept if ids.issuperset(ImageArrays.ids(batch))]
        done: set[int] = comm.all_gather({image_id for batch in earlier for image_id in ImageArrays.ids(batch)})[0]
        what = f"Round {current.number} of tier {current.tier}"
        progress = Progress(len(ids), current.tier, len(done), comm.get_world_size(), what=what)
        attack = partial(run_round_batch, current, setting, progress=progress)
        loader = make_loader(everything - ids | done) if len(done) < len(ids) else ()
        found = _run_share(loader, attack, journal, name, progress)
        if merged:
            merged = merged.after(current, [*earlier, *found])
            logger.info("%s: %s", what, describe_round(current, merged))


def _run_batch(setting: BatchSetting, items: list[dict], progress: Progress) -> BatchArrays:
    start = time.perf_counter()
    plan, rounded = setting.plan, {}
    with attack_mode(setting.model, full_gradient=False) as inner:
        batch = AttackedBatch(inner, items, len(plan.part_names))
        results = {}
        for tier in plan.tiers:
            results[tier] = tier.run(batch, progress.note, plan.sample)
        curve = run_curve(plan.curve, batch, results) if plan.curve else {}
        for tier, result in results.items():
            if plan.save_adversarials:
                assert setting.adversarials is not None, "the plan keeps images"
                rounded[tier.name] = save_adversarials(
                    setting.adversarials / tier.name,
                    plan.save_adversarials,
                    batch,
                    result.images,
                    result.outputs,
                    tier.threat_model,
                )
        arrays = describe_batch(batch, results, curve, setting.evaluators, plan.sample)
        if setting.predictions is not None:
            rows = evaluated_rows(batch, results)
            save_predictions(setting.predictions, batch, rows, arrays, setting.evaluators)
    for name, prediction in rounded.items():
        if prediction is not None:
            arrays |= replace(TierArrays.read(arrays, name), prediction_8bit=prediction).write(name)
    return arrays | CostArrays(seconds=np.array(time.perf_counter() - start)).write("evaluation")
