"""All checks that look at the model, for one data set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from part_robust.attacks import Attack
from part_robust.attacks.open_queries import open_queries
from part_robust.evaluation.checks.context import CheckSettings, Subject
from part_robust.evaluation.checks.model import (
    ClassForward,
    check_untouched,
    double_precision,
    fingerprint,
    has_class_head,
)
from part_robust.evaluation.checks.on_model import AUDIT, run_audit, run_cheap_checks
from part_robust.evaluation.checks.outputs import check_bounds
from part_robust.evaluation.checks.result import CheckResult, skipped

CHEAP = ("C2", "C3", "C6", "C7", "C17")


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
    """C1 to C17 and C21, as far as they apply; call it inside `attack_view`, after the evaluation or on a batch of it.

    Args:
        view: the model inside `attack_view`, with `class_logits(images, padding)`.
        images: float (N, 3, H, W), 0..255; the first `settings.images` are used.
        labels: int64 (N,).
        attack: the one whose numbers are judged. The audit runs it once.
        audit: the dear checks, too.
        padding: bool (N, H, W), letterbox padding.
        keys: int64 (N,), image ids.
        adversarial: (N, 3, H, W), the evaluation's own result for these images, for C4.
        black_box: attack without gradients for C13, such as Square.
        transferred: (N, 3, H, W), images made for a sibling model, for C14.
        before: the model's `fingerprint` before the evaluation, for C1; None: only the checks themselves are watched.
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
    before = before or fingerprint(view)
    results: list[CheckResult] = []
    if not has_class_head(view):
        sentence = "the model has no class head"
        ids = CHEAP + (AUDIT if audit else ())
        results += [skipped(id, sentence) for id in ids]
        if adversarial is not None:
            results.append(check_bounds(adversarial, images, attack.threat_model, padding))
    else:
        forward = ClassForward(view, padding)
        precise = double_precision(view, images, padding)
        subject = Subject(forward, images, labels, attack, keys=keys, padding=padding, precise=precise)
        # Attacks take their gradients where they please, the rest has none to keep.
        with torch.enable_grad():
            found, subject = run_cheap_checks(subject, settings, adversarial)
            results += found
            if audit and all(result.status != "fail" for result in found if result.id in ("C3", "C17")):
                results = _without(results, "C6") + run_audit(
                    subject,
                    settings,
                    black_box=black_box,
                    transferred=transferred,
                    opened=open_queries(view, padding),
                )
            elif audit:
                results += [skipped(id, "logits or labels are broken (C3, C17)") for id in AUDIT]
    results.append(check_untouched(view, before))
    return sorted(results, key=lambda result: int(result.id[1:]))


def _without(results: list[CheckResult], id: str) -> list[CheckResult]:
    """The audit looks at the same in more directions."""
    return [result for result in results if result.id != id]
