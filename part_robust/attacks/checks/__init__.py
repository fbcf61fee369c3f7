"""Automatic checks of a robustness evaluation: does the attack see the model, and is it strong enough to be believed?

`run_cheap_checks` costs some 20 forward passes for each image and belongs in every evaluation; `run_audit` costs some
hundred times that. Both need a callable only; what needs a model or a record is in part_robust.evaluation.checks.
"""

from __future__ import annotations

from part_robust.attacks.checks.eot import EotView
from part_robust.attacks.checks.outputs import (
    check_bounds,
    check_classes,
    check_deterministic,
    check_logits,
    round_towards,
)
from part_robust.attacks.checks.result import (
    CATALOGUE,
    CheckResult,
    errors,
    failed,
    from_record,
    merge_checks,
    passed,
    reportable,
    skipped,
    summary,
    verdict,
)
from part_robust.attacks.checks.run import run_audit, run_cheap_checks
from part_robust.attacks.checks.subject import CheckSettings, Subject

__all__ = [
    "CATALOGUE",
    "CheckResult",
    "CheckSettings",
    "EotView",
    "Subject",
    "check_bounds",
    "check_classes",
    "check_deterministic",
    "check_logits",
    "errors",
    "failed",
    "from_record",
    "merge_checks",
    "passed",
    "reportable",
    "round_towards",
    "run_audit",
    "run_cheap_checks",
    "skipped",
    "summary",
    "verdict",
]
