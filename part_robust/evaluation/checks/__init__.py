"""Automatic checks of a robustness evaluation: are its numbers reliable (docs/checks.md)?

`run_cheap_checks` costs some 20 forward passes for each image and belongs in every evaluation; `run_audit` costs some
hundred times that. `record_checks` needs no model, only the numbers.
"""

from part_robust.evaluation.checks.catalogue import CATALOGUE, failed, passed, skipped
from part_robust.evaluation.checks.context import CheckContext, CheckSettings
from part_robust.evaluation.checks.model import ClassForward, check_untouched, has_class_head, tensor_hashes
from part_robust.evaluation.checks.outputs import (
    check_bounds,
    check_classes,
    check_deterministic,
    check_logits,
    round_towards,
)
from part_robust.evaluation.checks.record import wilson
from part_robust.evaluation.checks.result import (
    CheckResult,
    errors,
    from_record,
    merge_checks,
    reportable,
    summary,
    verdict,
)
from part_robust.evaluation.checks.run import record_checks, run_audit, run_cheap_checks, run_checks

__all__ = [
    "CATALOGUE",
    "CheckResult",
    "CheckSettings",
    "ClassForward",
    "CheckContext",
    "check_bounds",
    "check_classes",
    "check_deterministic",
    "check_logits",
    "check_untouched",
    "errors",
    "failed",
    "tensor_hashes",
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
