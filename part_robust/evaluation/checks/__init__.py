"""Checks of a robustness evaluation that need a model, or its record (docs/checks.md)."""

from part_robust.attacks.checks import (
    CheckResult,
    CheckSettings,
    from_record,
    merge_checks,
    reportable,
    summary,
    verdict,
)
from part_robust.evaluation.checks.model import ClassForward, check_untouched, fingerprint, has_class_head
from part_robust.evaluation.checks.record import record_checks, wilson
from part_robust.evaluation.checks.run import run_checks

__all__ = [
    "CheckResult",
    "CheckSettings",
    "ClassForward",
    "check_untouched",
    "fingerprint",
    "from_record",
    "has_class_head",
    "merge_checks",
    "record_checks",
    "reportable",
    "run_checks",
    "summary",
    "verdict",
    "wilson",
]
