"""The automatic checks of an evaluation, and the sentence that its record begins with."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from part_robust.attacks import Attack, attack_mode
from part_robust.evaluation.checks import (
    CATALOGUE,
    CheckResult,
    CheckSettings,
    check_untouched,
    merge_checks,
    record_checks,
    reportable,
    run_checks,
    skipped,
    summary,
    verdict,
)
from part_robust.evaluation.checks.local import check_object
from part_robust.evaluation.checks.record import class_tiers
from part_robust.evaluation.checks.result import ERROR
from part_robust.evaluation.checks.run import CHEAP
from part_robust.evaluation.evaluated import EvaluatedData
from part_robust.evaluation.local import LocalTier
from part_robust.evaluation.plan import Plan
from part_robust.evaluation.record import find_headline, flags_of
from part_robust.evaluation.rounds_record import bound_text
from part_robust.evaluation.tiers import Tier
from part_robust.evaluation.unions import one_tier_per_threat

logger = logging.getLogger(__name__)

# Checks on the model that find the same under every threat model.
WITHOUT_THREAT = frozenset({"C1", "C2", "C3", "C6", "C7", "C17"})
# Without TEST.TIER the checks on the model take at most this share of the evaluation's passes, forward and backward.
# Of an image they take 57 forward ones and a few backward ones, most of them in float64: on a CPU as long as 200.
SHARE_OF_PASSES, PASSES = 0.05, 200
TOO_SHORT = "it would take more than 5 % of this evaluation: TEST.AUDIT True makes it all the same"


def add_checks(data: EvaluatedData, evaluation: dict[str, Any], before: dict[str, str]) -> None:
    """Adds `checks`, `reportable` and `verdict` to a data set's evaluation, and logs the findings.

    Args:
        data: that was evaluated.
        evaluation: of `describe_evaluation`.
        before: `tensor_hashes` of the model before the evaluation.
    """
    described = {name: attack.describe() for name, attack in data.plan.attacks().items()}
    of_model = _check_model(data, before, evaluation["forwards"] + evaluation["backwards"])
    checks = merge_checks(of_model, record_checks(evaluation, described, flags_of(data.plan, data.merged)))
    set_checks(data.name, evaluation, checks)
    for check in checks:
        if check.status == "fail":
            # Tools that show warnings alone, such as the demo, show what makes a number unreliable.
            level = logging.WARNING if check.level == ERROR else logging.INFO
            logger.log(level, "%s %s: %s. What to do: %s", check.id, check.name, check.sentence, check.remedy)
    logger.info("%s. %s", summary(checks), evaluation["verdict"])


def set_checks(dataset: str, evaluation: dict[str, Any], checks: Sequence[CheckResult]) -> None:
    """Writes the checks of a data set's evaluation, and what follows from them, in place."""
    evaluation["checks"] = [check.describe() for check in checks]
    evaluation["reportable"] = reportable(checks)
    evaluation["verdict"] = verdict(checks, describe_numbers(dataset, evaluation))


def describe_numbers(dataset: str, evaluation: dict[str, Any]) -> str:
    """Return the headline tier's numbers as a sentence without a full stop."""
    name, clean = evaluation["headline"], evaluation["clean"]
    of_class = evaluation["per_class"] if name is None else name in class_tiers(evaluation)
    what = "of the images" if of_class else "of the labelled pixels"
    if name is None:
        return f"{dataset}: {_number(clean)} {what} are right without attack; {evaluation['num_images']} images"
    robust, clean = (_number(value) for value in (evaluation["tiers"][name]["robust"], evaluation["clean"]))
    threat = f"{evaluation['norm']}, eps {evaluation['eps']:g}/255"
    if name == (evaluation.get("local") or {}).get("tier"):
        threat += " inside one region"
    bound = bound_text(evaluation["tiers"][name])
    return (
        f"{dataset}: {robust} {what} are right under tier {name} ({threat}), {bound + ', ' if bound else ''}"
        f"{_describe_unions(evaluation)}{clean} without attack; {evaluation['num_images']} images"
    )


def _describe_unions(evaluation: dict[str, Any]) -> str:
    return "".join(
        f"{_number(union['robust'])} under {', '.join(union['tiers'])} all together ({name}), "
        for name, union in (evaluation.get("unions") or {}).items()
    )


def _number(value: dict[str, Any]) -> str:
    if value["accuracy"] is None:
        return "none"
    low, high = value["interval"]
    return f"{value['accuracy']:.1f} % [{low:.1f}, {high:.1f}]"


def _black_box(attacks: Sequence[Attack], judged: Attack) -> Attack | None:
    """Return the first attack without gradients of the same threat model."""
    same = (attack for attack in attacks if attack.threat_model == judged.threat_model)
    return next((attack for attack in same if not attack.uses_gradient), None)


def other_threats(plan: Plan, judged: Attack) -> list[Tier]:
    """Return one tier of each threat model of TEST.THREATS that `judged` does not have."""
    names = {name for union in plan.unions.values() for name in union}
    tiers = one_tier_per_threat([tier for tier in plan.tiers if tier.name in names])
    return [tier for tier in tiers if tier.threat_model != judged.threat_model]


def audit_threat(
    view: Any, batch: list[dict], images: Tensor, padding: Tensor | None, tier: Tier, settings: CheckSettings
) -> list[CheckResult]:
    """Run the audit under the threat model of a tier; findings name it."""
    attacks = list(tier.attacks.values())
    judged = next((attack for attack in attacks if attack.uses_gradient), attacks[0])
    checks = run_checks(
        view,
        images,
        torch.tensor([item["class_id"] for item in batch], device=images.device),
        judged,
        True,
        padding=padding,
        keys=torch.tensor([item["image_id"] for item in batch]),
        black_box=_black_box(attacks, judged),
        settings=settings,
    )
    found = [check for check in checks if check.id not in WITHOUT_THREAT]
    return [replace(check, sentence=f"{tier.name}: {check.sentence}") for check in found]


def _check_model(data: EvaluatedData, before: dict[str, str], passes: int) -> list[CheckResult]:
    """Run the checks on the model, on images that may become pictures, whose attacked versions are in memory.

    Args:
        data: that was evaluated.
        before: as `add_checks`.
        passes: forward and backward passes of the evaluation.
    """
    settings = CheckSettings.from_config(data.cfg.TEST.CHECKS)
    attacks = [attack for tier in data.plan.tiers for attack in tier.attacks.values()]
    if not attacks:
        return []  # nothing that could have written to the model, or be too weak
    first, headline, pictures = data.plan.first, find_headline(data.plan, data.merged), data.merged.pictures()
    assert first and headline and pictures, "the first batch has images of the sample"
    images = settings.images
    if not data.cfg.TEST.TIER and not data.cfg.TEST.AUDIT:
        images = min(images, int(SHARE_OF_PASSES * passes / PASSES))
    if not images:
        with attack_mode(data.model) as inner:
            untouched = CATALOGUE["C1"].result(check_untouched(inner, before))
        return [untouched, *(skipped(id, TOO_SHORT) for id in CHEAP)]
    rows = pictures.image_id.argsort()[:images]
    batch = data.items(pictures.image_id[rows].tolist())
    of_gradient = (attack for attack in (*headline.attacks.values(), *attacks) if attack.uses_gradient)
    judged = next(of_gradient, attacks[0])
    same_ball = first.threat_model == judged.threat_model
    logger.info("Checks on %d images%s", len(batch), ", with the audit" if data.cfg.TEST.AUDIT else "")
    with attack_mode(data.model, judged.full_gradient) as inner:
        originals, padding = inner.preprocess(batch)
        checks = run_checks(
            inner,
            originals,
            torch.tensor([item["class_id"] for item in batch], device=originals.device),
            judged,
            data.cfg.TEST.AUDIT,
            padding=padding,
            keys=torch.tensor([item["image_id"] for item in batch]),
            adversarial=torch.from_numpy(pictures.attacked[rows]).to(originals.device) if same_ball else None,
            black_box=_black_box(attacks, judged),
            before=before,
            settings=settings,
        )
        for tier in other_threats(data.plan, judged) if data.cfg.TEST.AUDIT else ():
            checks = merge_checks(checks, audit_threat(inner, batch, originals, padding, tier, settings))
        for tier in data.plan.tiers:
            if isinstance(tier, LocalTier) and all(c.status != "fail" for c in checks if c.id in ("C3", "C17")):
                local = check_object(inner, batch, tier, len(data.plan.part_names), data.cfg.TEST.AUDIT, settings)
                checks = merge_checks(checks, local)
        return checks
