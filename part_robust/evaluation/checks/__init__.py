"""Automatic checks of a robustness evaluation: can its numbers be believed (docs/checks.md)?

`run_cheap_checks` costs some 20 forward passes for each image and belongs in every evaluation; `run_audit` costs some
hundred times that. `record_checks` needs no model, only the numbers.
"""

from part_robust.evaluation.checks.context import CheckSettings, Subject
from part_robust.evaluation.checks.model import ClassForward, check_untouched, fingerprint, has_class_head
from part_robust.evaluation.checks.on_model import run_audit, run_cheap_checks
from part_robust.evaluation.checks.outputs import (
    check_bounds,
    check_classes,
    check_deterministic,
    check_logits,
    round_towards,
)
from part_robust.evaluation.checks.record import record_checks, wilson
from part_robust.evaluation.checks.result import (
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
from part_robust.evaluation.checks.run import run_checks

__all__ = [
    "CATALOGUE",
    "CheckResult",
    "CheckSettings",
    "ClassForward",
    "Subject",
    "check_bounds",
    "check_classes",
    "check_deterministic",
    "check_logits",
    "check_untouched",
    "errors",
    "failed",
    "fingerprint",
    "from_record",
    "has_class_head",
    "merge_checks",
    "passed",
    "record_checks",
    "reportable",
    "round_towards",
    "run_audit",
    "run_cheap_checks",
    "run_checks",
    "skipped",
    "summary",
    "verdict",
    "wilson",
]
