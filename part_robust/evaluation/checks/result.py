"""Results of checks, the catalogue of checks, and the sentence that a reader sees first.

The numbers C1 to C21 are those of the checklist in docs/checks.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

ERROR, WARNING = "error", "warning"
PASS, FAIL, SKIPPED = "pass", "fail", "skipped"


@dataclass(frozen=True)
class Check:
    """A check of the catalogue.

    Attributes:
        name: what is checked.
        level: "error": a finding makes the record not reportable; "warning": the reader must see it.
        remedy: what to do about a finding.
    """

    name: str
    level: str
    remedy: str


CATALOGUE: dict[str, Check] = {
    "C1": Check(
        "model untouched, in evaluation mode",
        ERROR,
        "evaluate in eval mode, without updates of statistics, and let nothing write to the model while it is attacked",
    ),
    "C2": Check(
        "deterministic outputs",
        ERROR,
        "remove the randomness, or attack the expectation over it: part_robust.attacks.EotView",
    ),
    "C3": Check(
        "finite float32 logits",
        ERROR,
        "return the logits in float32, before any softmax, and mend what makes them infinite or not a number",
    ),
    "C4": Check(
        "inside the threat model",
        ERROR,
        "score the images that were verified; round saved ones towards the original; leave padding alone",
    ),
    "C5": Check(
        "scored again, the same verdicts",
        ERROR,
        "score the saved images in a fresh float32 process and publish those verdicts",
    ),
    "C6": Check(
        "input gradient agrees with finite differences",
        ERROR,
        "attack with ATTACK.FULL_GRADIENT True; remove detach() and rounding from the path of images to logits, or "
        "give the attack a differentiable stand-in",
    ),
    "C7": Check(
        "gradients and losses alive",
        WARNING,
        "attack with the margin loss, in float32, and divide the logits by a constant if they are large",
    ),
    "C8": Check(
        "cross-entropy and margin agree",
        WARNING,
        "the cross-entropy is blind here (large or masked logits): report the worst case over both losses",
    ),
    "C9": Check(
        "more effort never helps the model",
        ERROR,
        "the attack is stuck: use smaller steps, restarts, or a smooth stand-in for what blocks the gradient",
    ),
    "C10": Check(
        "attack converged",
        WARNING,
        "raise STEPS or RESTARTS until the number stops falling",
    ),
    "C11": Check(
        "every success is returned",
        WARNING,
        "set KEEP to best: the last iterate is not the worst one",
    ),
    "C12": Check(
        "without a bound, accuracy falls to chance",
        ERROR,
        "the attack does not work on this model, so its numbers mean nothing: look at the gradient (C6, C7)",
    ),
    "C13": Check(
        "black box does not beat white box",
        WARNING,
        "the gradient misleads: report the worst case with the black-box attack, and look at C6 and C7",
    ),
    "C14": Check(
        "transferred images do not beat the attack",
        WARNING,
        "add the images of the sibling model's attack to the worst case",
    ),
    "C15": Check(
        "attack finds what provably exists",
        WARNING,
        "the attack misses adversarial images that are known to exist: more steps, other losses, a better gradient",
    ),
    "C16": Check(
        "random noise is weaker than the attack",
        WARNING,
        "noise of the same size beats the attack, so the attack is broken or blind: look at C6 and C7",
    ),
    "C17": Check(
        "classes, labels and targets fit",
        ERROR,
        "use the data set the model was trained for; with fewer than 4 classes the margin loss instead of DLR, and at "
        "most C - 1 targets",
    ),
    "C18": Check(
        "each head attacked by itself",
        WARNING,
        "attack each head with its own loss; what other attacks leave of its metric is not robust",
    ),
    "C19": Check(
        "intervals stated and right",
        WARNING,
        "print the Wilson interval, compare two models by McNemar's test on the same images, and train 3 seeds",
    ),
    "C20": Check(
        "enough images, from a fixed list",
        WARNING,
        "evaluate at least 1000 images, or the whole test split, and publish the list",
    ),
    "C21": Check(
        "neither matching nor few queries flatter the model",
        ERROR,
        "attack detectors with the matching solved anew and with it frozen, and with QUERY_FACTOR 1 and 4, and report "
        "the worse",
    ),
}


@dataclass(frozen=True)
class CheckResult:
    """Outcome of a check.

    Attributes:
        id: "C1" to "C21".
        name: what was checked.
        level: "error" or "warning".
        status: "pass", "fail" or "skipped".
        value: the number that was compared, None where there is none.
        sentence: what was found.
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


def passed(id: str, sentence: str, value: float | None = None) -> CheckResult:
    """Return the result of a check of the catalogue that has found nothing."""
    check = CATALOGUE[id]
    return CheckResult(id, check.name, check.level, PASS, value, sentence, "")


def failed(id: str, sentence: str, value: float | None = None, *, remedy: str = "", level: str = "") -> CheckResult:
    """Return the result of a check that has a finding; `remedy` and `level` replace the catalogue's."""
    check = CATALOGUE[id]
    return CheckResult(id, check.name, level or check.level, FAIL, value, sentence, remedy or check.remedy)


def skipped(id: str, sentence: str) -> CheckResult:
    """Return the result of a check that could not be made, with the reason in `sentence`."""
    check = CATALOGUE[id]
    return CheckResult(id, check.name, check.level, SKIPPED, None, sentence, "")


def from_record(rows: Iterable[Mapping[str, Any]]) -> list[CheckResult]:
    """The `checks` of a record; keys of later versions are ignored, missing ones empty."""
    names = ("id", "name", "level", "status", "value", "sentence", "remedy")
    return [CheckResult(**{name: row.get(name, None if name == "value" else "") for name in names}) for row in rows]


def merge_checks(*groups: Iterable[CheckResult]) -> list[CheckResult]:
    """One result for each id: a finding beats a pass, and a pass beats "skipped"; errors beat warnings.

    For checks that ran on several batches, or on the model and on the record. Two findings are both told.
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


def verdict(checks: Sequence[CheckResult], headline: str) -> str:
    """The first sentence of a report: the headline, or why there is none and what to do.

    Args:
        checks: all that ran.
        headline: the numbers in words, without a full stop.
    """
    wrong = errors(checks)
    if wrong:
        reasons = "; ".join(f"{result.id} {result.sentence}: {result.remedy}" for result in wrong)
        return f"not reportable: {reasons} ({summary(checks)})"
    return f"{headline} ({summary(checks)})"
