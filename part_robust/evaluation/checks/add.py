"""The automatic checks of an evaluation, and the sentence that its record begins with."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from part_robust.attacks import attack_view
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
from part_robust.evaluation.evaluated import EvaluatedData
from part_robust.evaluation.local import LocalTier
from part_robust.evaluation.record import find_headline, flags_of
from part_robust.evaluation.rounds_record import bound_text

logger = logging.getLogger(__name__)


def add_checks(data: EvaluatedData, evaluation: dict[str, Any], before: dict[str, str]) -> None:
    """Adds `checks`, `reportable` and `verdict` to a data set's evaluation, and logs the findings.

    Args:
        data: that was evaluated.
        evaluation: of `describe_evaluation`.
        before: `tensor_hashes` of the model before the evaluation.
    """
    described = {name: attack.describe() for name, attack in data.plan.attacks().items()}
    checks = merge_checks(
        _check_model(data, before), record_checks(evaluation, described, flags_of(data.plan, data.merged))
    )
    set_checks(data.name, evaluation, checks)
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
    name, clean = evaluation["headline"], evaluation["clean"]
    if name is None:
        without_attack = _number(clean) if clean else "none"
        return f"{dataset}: {without_attack} right without attack; {evaluation['num_images']} images"
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


def _check_model(data: EvaluatedData, before: dict[str, str]) -> list[CheckResult]:
    """Run the checks on the model, on images that may become pictures, whose attacked versions are in memory."""
    settings = CheckSettings.from_config(data.cfg.TEST.CHECKS)
    attacks = [attack for tier in data.plan.tiers for attack in tier.attacks.values()]
    if not attacks:
        return []  # nothing that could have written to the model, or be too weak
    first, headline, pictures = data.plan.first, find_headline(data.plan, data.merged), data.merged.pictures()
    assert first and headline and pictures, "the first batch has images of the sample"
    rows = pictures.image_id.argsort()[: settings.images]
    batch = data.items(pictures.image_id[rows].tolist())
    of_gradient = (attack for attack in (*headline.attacks.values(), *attacks) if attack.uses_gradient)
    judged = next(of_gradient, attacks[0])
    same_ball = first.threat_model == judged.threat_model
    logger.info("Checks on %d images%s", len(batch), ", with the audit" if data.cfg.TEST.AUDIT else "")
    with attack_view(data.model, judged.full_gradient) as inner:
        images, padding = inner.preprocess(batch)
        checks = run_checks(
            inner,
            images,
            torch.tensor([item["class_id"] for item in batch], device=images.device),
            judged,
            data.cfg.TEST.AUDIT,
            padding=padding,
            keys=torch.tensor([item["image_id"] for item in batch]),
            adversarial=torch.from_numpy(pictures.attacked[rows]).to(images.device) if same_ball else None,
            black_box=next((attack for attack in attacks if not attack.uses_gradient), None),
            before=before,
            settings=settings,
        )
        for tier in data.plan.tiers:
            if isinstance(tier, LocalTier) and all(c.status != "fail" for c in checks if c.id in ("C3", "C17")):
                local = check_object(inner, batch, tier, len(data.plan.part_names), data.cfg.TEST.AUDIT, settings)
                checks = merge_checks(checks, local)
        return checks
