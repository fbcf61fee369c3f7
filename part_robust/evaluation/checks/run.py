"""Runs the checks of the catalogue: on the model, cheap ones and the audit, and on the record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from part_robust.attacks import Attack, EotView
from part_robust.attacks.expanded_queries import expand_queries
from part_robust.evaluation.checks.catalogue import CATALOGUE, ModelEvidence, RecordEvidence, skipped
from part_robust.evaluation.checks.context import CheckContext, CheckSettings, in_expectation, judged_attack
from part_robust.evaluation.checks.gradients import NO_DEPENDENCE
from part_robust.evaluation.checks.model import ClassForward, double_precision, has_class_head, tensor_hashes
from part_robust.evaluation.checks.result import FAIL, CheckResult, merge_checks

# Checks on the class of every evaluation, and those that only the audit adds.
CHEAP = tuple(id for id, check in CATALOGUE.items() if check.always and id not in ("C1", "C4"))
# In this order: C13, C14 and C21 use the images that the attacks of the checks before them did not break, and a
# randomised model draws its numbers one check after the other.
AUDIT = ("C5", "C8", "C10", "C9", "C11", "C12", "C13", "C14", "C15", "C16", "C21")


def run_checks(
    view: Any,
    images: Tensor,
    labels: Tensor,
    attack: Attack,
    audit: bool = False,
    *,
    padding: Tensor | None = None,
    keys: Tensor | None = None,
    adversarial: Tensor | None = None,
    black_box: Attack | None = None,
    transferred: Tensor | None = None,
    before: dict[str, str] | None = None,
    settings: CheckSettings | None = None,
) -> list[CheckResult]:
    """C1 to C17 and C21, as far as they apply; call it inside `attack_mode`, after the evaluation or on a batch of it.

    Args:
        view: the model inside `attack_mode`, with `class_logits(images, padding)`.
        images: float (N, 3, H, W), 0..255; the first `settings.images` are used.
        labels: int64 (N,).
        attack: the one whose numbers are checked. The audit runs it once.
        audit: run the expensive checks, too.
        padding: bool (N, H, W), letterbox padding.
        keys: int64 (N,), image ids.
        adversarial: (N, 3, H, W), the evaluation's own result for these images, for C4.
        black_box: attack without gradients for C13, such as Square.
        transferred: (N, 3, H, W), images made for a sibling model, for C14.
        before: the model's `tensor_hashes` before the evaluation, for C1; None: only the checks themselves are watched.
        settings: what it may cost.

    Returns:
        One result for each check, in the order of their numbers.

    Raises:
        ValueError: no images.
    """
    settings = settings or CheckSettings()
    if not len(images):
        raise ValueError("checks need at least one image")
    chosen = slice(settings.images)
    images, labels = images[chosen], labels[chosen]
    padding, keys, adversarial, transferred = (
        None if x is None else x[chosen] for x in (padding, keys, adversarial, transferred)
    )
    before = before or tensor_hashes(view)
    has_classes = has_class_head(view)
    precise = double_precision(view, images, padding) if has_classes else None
    forward = ClassForward(view, padding)
    context = CheckContext(forward, images, labels, attack, keys=keys, padding=padding, precise=precise)
    evidence = ModelEvidence(context, settings, adversarial, view=view, before=before)
    results: list[CheckResult] = []
    if not has_classes:
        results += _skip((*CHEAP, *(AUDIT if audit else ())), "the model has no class head")
        results += CATALOGUE["C4"].on_model(evidence)
    else:
        # Attacks take their gradients where they please, the rest has none to keep.
        with torch.enable_grad():
            found, context = run_cheap_checks(context, settings, adversarial)
            results += found
            if audit and all(result.status != FAIL for result in found if result.id in ("C3", "C17")):
                results = [result for result in results if result.id != "C6"]  # the audit uses more directions
                expanded = expand_queries(view, padding)
                results += run_audit(context, settings, black_box=black_box, transferred=transferred, expanded=expanded)
            elif audit:
                results += _skip(AUDIT, "logits or labels are broken (C3, C17)")
    results += CATALOGUE["C1"].on_model(evidence)
    return sorted(results, key=lambda result: int(result.id[1:]))


def run_cheap_checks(
    context: CheckContext, settings: CheckSettings | None = None, adversarial: Tensor | None = None
) -> tuple[list[CheckResult], CheckContext]:
    """Runs C2, C3, C4, C6 (few directions), C7 and C17.

    Args:
        context: the model and its images.
        settings: what it may cost.
        adversarial: (N, 3, H, W), images that were scored as the attack's result; None: C4 is left out.

    Returns:
        The results, and the context of the next checks: for a randomised model, its expectation.
    """
    evidence = ModelEvidence(context, settings or CheckSettings(), adversarial)
    results = CATALOGUE["C3"].on_model(evidence)
    logits = context.clean_logits
    if not bool(torch.isfinite(logits).all()) or logits.ndim != 2:
        return results + _skip(("C2", "C6", "C7", "C17"), "there are no finite logits to judge"), context
    (repeated,) = CATALOGUE["C2"].on_model(evidence)
    (classes,) = CATALOGUE["C17"].on_model(evidence)
    results += [repeated, classes]
    if repeated.status == FAIL and not isinstance(context.forward, EotView):
        context = in_expectation(context, evidence.settings.eot_draws)
        evidence = replace(evidence, context=context)
    results += CATALOGUE["C4"].on_model(evidence)
    if classes.status == FAIL:
        # Losses of labels that do not exist cannot be computed.
        return results + _skip(("C6", "C7"), "labels and classes do not fit"), context
    return results + [result for id in ("C6", "C7") for result in CATALOGUE[id].on_model(evidence)], context


def run_audit(
    context: CheckContext,
    settings: CheckSettings | None = None,
    *,
    black_box: Attack | None = None,
    transferred: Tensor | None = None,
    expanded: Callable[[Tensor], Tensor] | None = None,
) -> list[CheckResult]:
    """Runs C5, C6 (many directions), C8 to C16 and, of a black box or object queries, C21.

    That takes some 700 forward and backward passes for each image by default; for each image that is not broken 500
    more of random starts, the black box's queries one and a quarter times and, of a detector, 100 with more object
    queries.

    Args:
        context: the model and its images, as `run_cheap_checks` gives it back.
        settings: what it may cost.
        black_box: an attack without gradients.
        transferred: (N, 3, H, W), images that an attack made for a sibling model.
        expanded: the model with the gradient it has with more object queries, where it selects some.
    """
    evidence = ModelEvidence(
        context, settings or CheckSettings(), black_box=black_box, transferred=transferred, expanded=expanded
    )
    results = CATALOGUE["C6"].on_model(evidence, audit=True)
    if results[0].sentence == NO_DEPENDENCE:
        return results + _skip(AUDIT, NO_DEPENDENCE)
    judged = judged_attack(context.attack)
    if judged is not context.attack:
        evidence = replace(
            evidence,
            context=CheckContext(
                context.forward, context.images, context.labels, judged, keys=context.keys, padding=context.padding
            ),
        )
    for id in AUDIT:
        results += merge_checks(CATALOGUE[id].on_model(evidence, audit=True))
    return results


def record_checks(
    E: Mapping[str, Any],
    attacks: Mapping[str, Mapping] | None = None,
    flags: Mapping[str, np.ndarray] | None = None,
) -> list[CheckResult]:
    """C5, C7 to C10, C13, C14 and C18 to C22, from the numbers alone.

    Args:
        E: one data set's evaluation.
        attacks: the record's `attacks`: what each attack maximised.
        flags: arrays of its flags file, by name.

    Returns:
        One result for each check with input; the others are left out, except C18 to C20.
    """
    evidence = RecordEvidence(E, attacks or {}, flags or {})
    return [result for check in CATALOGUE.values() for result in check.on_record(evidence)]


def _skip(ids: Sequence[str], sentence: str) -> list[CheckResult]:
    return [skipped(id, sentence) for id in ids]
