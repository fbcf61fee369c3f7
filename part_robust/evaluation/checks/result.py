"""Findings and results of checks, and the sentence that a reader sees first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

ERROR, WARNING = "error", "warning"
PASS, FAIL, SKIPPED = "pass", "fail", "skipped"


@dataclass(frozen=True)
class Finding:
    """Result of a check's function; the catalogue makes a `CheckResult` of it.

    Attributes:
        status: "pass", "fail" or "skipped".
        sentence: the finding, or the reason why the check was not made.
        value: the number that was compared, None where there is none.
        level: "error" or "warning" in place of the catalogue's level; "" for that.
        remedy: what to do about it in place of the catalogue's remedy; "" for that.
    """

    status: str
    sentence: str
    value: float | None = None
    level: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class CheckResult:
    """Outcome of a check.

    Attributes:
        id: "C1" to "C22".
        name: of the check.
        level: "error" or "warning".
        status: "pass", "fail" or "skipped".
        value: the number that was compared, None where there is none.
        sentence: the finding.
        remedy: what to do about it; "" unless it failed.
    """

    id: str
    name: str
    level: str
    status: str
    value: float | None
    sentence: str
    remedy: str

    def describe(self) -> dict[str, Any]:
        """Return the result for the record."""
        return asdict(self)


def from_record(rows: Iterable[Mapping[str, Any]]) -> list[CheckResult]:
    """The `checks` of a record; keys of later versions are ignored, missing ones empty."""
    names = ("id", "name", "level", "status", "value", "sentence", "remedy")
    return [CheckResult(**{name: row.get(name, None if name == "value" else "") for name in names}) for row in rows]


def merge_checks(*groups: Iterable[CheckResult]) -> list[CheckResult]:
    """One result for each id: a finding beats a pass, and a pass beats "skipped"; errors beat warnings.

    For checks that ran on several batches, or on the model and on the record. Both findings are reported.
    """
    order = {SKIPPED: 0, PASS: 1, FAIL: 2}
    merged: dict[str, CheckResult] = {}
    for result in (result for group in groups for result in group):
        known = merged.get(result.id)
        if known is None:
            merged[result.id] = result
            continue
        ranks = [(order[r.status], r.level == ERROR) for r in (known, result)]
        worse, other = (known, result) if ranks[0] >= ranks[1] else (result, known)
        if worse.status == other.status == FAIL and other.sentence not in worse.sentence:
            worse = replace(worse, sentence=f"{worse.sentence}; {other.sentence}")
        merged[result.id] = worse
    return sorted(merged.values(), key=lambda result: int(result.id[1:]))


def errors(checks: Iterable[CheckResult]) -> list[CheckResult]:
    """Findings that make a record not reportable."""
    return [result for result in checks if result.status == FAIL and result.level == ERROR]


def reportable(checks: Iterable[CheckResult]) -> bool:
    """Return whether a headline may be printed; the contrary of RobustBench's `unreliable`."""
    return not errors(checks)


def summary(checks: Sequence[CheckResult]) -> str:
    """Return a line such as "21 checks: 17 pass, 2 warnings (C10, C20), 2 skipped"."""
    if not checks:
        return "no checks ran"
    wrong = errors(checks)
    warnings = [result for result in checks if result.status == FAIL and result.level != ERROR]
    parts = [f"{sum(result.status == PASS for result in checks)} pass"]
    for name, found in (("error", wrong), ("warning", warnings)):
        if found:
            ids = ", ".join(result.id for result in found)
            parts.append(f"{len(found)} {name}{'s' if len(found) > 1 else ''} ({ids})")
    if left := sum(result.status == SKIPPED for result in checks):
        parts.append(f"{left} skipped")
    return f"{len(checks)} check{'s' if len(checks) > 1 else ''}: {', '.join(parts)}"


def verdict(checks: Sequence[CheckResult], numbers: str) -> str:
    """The first sentence of a report: the numbers, or why there are none and what to do.

    Args:
        checks: all that ran.
        numbers: a sentence without a full stop.
    """
    wrong = errors(checks)
    if wrong:
        reasons = "; ".join(f"{result.id} {result.sentence}: {result.remedy}" for result in wrong)
        return f"not reportable: {reasons} ({summary(checks)})"
    return f"{numbers} ({summary(checks)})"
