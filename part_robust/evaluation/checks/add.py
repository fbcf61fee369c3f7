"""The automatic checks of an evaluation with tiers, and the sentence that its record begins with."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from part_robust.attacks import attack_view
from part_robust.data import PartDatasetMapper
from part_robust.evaluation.batch_arrays import Merged
from part_robust.evaluation.checks import (
    CheckResult,
    CheckSettings,
    merge_checks,
    record_checks,
    reportable,
    run_checks,
    summary,
    verdict,
)
from part_robust.evaluation.checks.local import check_object
from part_robust.evaluation.checks.record import class_tiers
from part_robust.evaluation.local import LocalTier
from part_robust.evaluation.plan import Plan
from part_robust.evaluation.record import flags_of
from part_robust.evaluation.rounds_record import bound_text

logger = logging.getLogger(__name__)


def add_checks(
    cfg: CfgNode,
    model: nn.Module,
    dataset: str,
    records: Sequence[dict],
    plan: Plan,
    merged: Merged,
    evaluation: dict[str, Any],
    before: dict[str, str],
) -> None:
    """Adds `checks`, `reportable` and `verdict` to a data set's evaluation, and logs the findings.

    Args:
        cfg: with TEST.AUDIT and TEST.CHECKS.
        model: as it was evaluated.
        dataset: name.
        records: of the data set.
        plan: of the evaluation.
        merged: what came out.
        evaluation: of `describe_evaluation`.
        before: `tensor_hashes` of the model before the evaluation.
    """
    described = {name: attack.describe() for name, attack in plan.attacks().items()}
    checks = merge_checks(
        _check_model(cfg, model, dataset, records, plan, merged, before),
        record_checks(evaluation, described, flags_of(plan, merged)),
    )
    set_checks(dataset, evaluation, checks)
    for check in checks:
        if check.status == "fail":
            logger.warning("%s %s: %s. What to do: %s", check.id, check.name, check.sentence, check.remedy)
    logger.info("%s. %s", summary(checks), evaluation["verdict"])


def set_checks(dataset: str, evaluation: dict[str, Any], checks: Sequence[CheckResult]) -> None:
    """Writes the checks of a data set's evaluation, and what follows from them, in place."""
    evaluation["checks"] = [check.describe() for check in checks]
    evaluation["reportable"] = reportable(checks)
    evaluation["verdict"] = verdict(checks, describe_numbers(dataset, evaluation))


def describe_numbers(dataset: str, evaluation: dict[str, Any]) -> str:
    """Return the headline tier's numbers as a sentence without a full stop."""
    name = evaluation["headline"]
    what = "of the images" if name in class_tiers(evaluation) else "of the labelled pixels"
    robust, clean = (_number(value) for value in (evaluation["tiers"][name]["robust"], evaluation["clean"]))
    threat = f"{evaluation['norm']}, eps {evaluation['eps']:g}/255"
    bound = bound_text(evaluation["tiers"][name])
    return (
        f"{dataset}: {robust} {what} are right under tier {name} ({threat}), "
        f"{bound + ', ' if bound else ''}{clean} without attack; {evaluation['num_images']} images"
    )


def _number(value: dict[str, Any]) -> str:
    if value["accuracy"] is None:
        return "none"
    low, high = value["interval"]
    return f"{value['accuracy']:.1f} % [{low:.1f}, {high:.1f}]"


def _check_model(
    cfg: CfgNode,
    model: nn.Module,
    dataset: str,
    records: Sequence[dict],
    plan: Plan,
    merged: Merged,
    before: dict[str, str],
) -> list[CheckResult]:
    """Run the checks on the model, on images that may become pictures, whose attacked versions are in memory."""
    settings = CheckSettings.from_config(cfg.TEST.CHECKS)
    pictures = merged.pictures()
    assert pictures is not None, "the first batch has images of the sample"
    rows = pictures.image_id.argsort()[: settings.images]
    by_id = {record["image_id"]: record for record in records}
    mapper = PartDatasetMapper(cfg, is_train=False, dataset_name=dataset)
    batch = [mapper(by_id[image_id]) for image_id in pictures.image_id[rows].tolist()]
    attacks = [attack for tier in plan.tiers for attack in tier.attacks.values()]
    judged = next((attack for attack in plan.headline.attacks.values() if attack.uses_gradient), attacks[0])
    logger.info("Checks on %d images%s", len(batch), ", with the audit" if cfg.TEST.AUDIT else "")
    with attack_view(model) as inner:
        images, padding = inner.preprocess(batch)
        checks = run_checks(
            inner,
            images,
            torch.tensor([item["class_id"] for item in batch], device=images.device),
            judged,
            cfg.TEST.AUDIT,
            padding=padding,
            keys=torch.tensor([item["image_id"] for item in batch]),
            adversarial=torch.from_numpy(pictures.attacked[rows]).to(images.device),
            black_box=next((attack for attack in attacks if not attack.uses_gradient), None),
            before=before,
            settings=settings,
        )
        for tier in plan.tiers:
            if isinstance(tier, LocalTier) and all(c.status != "fail" for c in checks if c.id in ("C3", "C17")):
                local = check_object(inner, batch, tier, len(plan.part_names), cfg.TEST.AUDIT, settings)
                checks = merge_checks(checks, local)
        return checks
