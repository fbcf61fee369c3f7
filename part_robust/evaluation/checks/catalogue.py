"""The catalogue of checks, C1 to C22: what each is called, how grave it is, what to do, what it runs and when.

The runner (`run.py`), the record and the report read it, and a test holds the table of docs/checks.md to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from part_robust.attacks import Attack
from part_robust.evaluation.checks import certificates, competitors, gradients, model, outputs, record, strength
from part_robust.evaluation.checks.context import CheckContext, CheckSettings
from part_robust.evaluation.checks.result import ERROR, FAIL, PASS, SKIPPED, WARNING, CheckResult, Finding


@dataclass(frozen=True)
class ModelEvidence:
    """Input of the checks on the model, inside `attack_mode`.

    Attributes:
        context: the model's class logits, images of an evaluation, and the attack whose numbers are checked.
        settings: what checks may cost.
        adversarial: (N, 3, H, W), images that were scored as the attack's result.
        black_box: an attack without gradients.
        transferred: (N, 3, H, W), images that an attack made for a sibling model.
        expanded: the class logits, with the gradient of a model that selects more object queries.
        view: the model itself.
        before: `tensor_hashes` of the model before the evaluation.
    """

    context: CheckContext
    settings: CheckSettings
    adversarial: Tensor | None = None
    black_box: Attack | None = None
    transferred: Tensor | None = None
    expanded: Callable[[Tensor], Tensor] | None = None
    view: Any = None
    before: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RecordEvidence:
    """Input of the checks on the record.

    Attributes:
        evaluation: one data set's entry in the record's `evaluation` (docs/report.md).
        attacks: the record's `attacks`: what each attack maximised.
        flags: arrays of its flags file, by name; may be empty.
    """

    evaluation: Mapping[str, Any]
    attacks: Mapping[str, Mapping]
    flags: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Check:
    """A check of the catalogue.

    Its functions return None where there is no input.

    Attributes:
        id: "C1" to "C22".
        title: what is checked.
        level: "error": a finding makes the record not reportable; "warning": the reader must see it.
        remedy: what to do about a finding.
        always: functions on the model that belong to every evaluation, on a few images.
        audit: functions on the model that TEST.AUDIT adds.
        record: functions on the record of an evaluation.
    """

    id: str
    title: str
    level: str
    remedy: str
    always: tuple[Callable[[ModelEvidence], Finding | None], ...] = ()
    audit: tuple[Callable[[ModelEvidence], Finding | None], ...] = ()
    record: tuple[Callable[[RecordEvidence], Finding | None], ...] = ()

    def result(self, finding: Finding) -> CheckResult:
        """Return the finding with the name, level and remedy of this check."""
        level, remedy = self.level, ""
        if finding.status == FAIL:
            level, remedy = finding.level or self.level, finding.remedy or self.remedy
        return CheckResult(self.id, self.title, level, finding.status, finding.value, finding.sentence, remedy)

    def on_model(self, evidence: ModelEvidence, audit: bool = False) -> list[CheckResult]:
        """Return the results of `always`, or of `audit`."""
        findings = [function(evidence) for function in (self.audit if audit else self.always)]
        return [self.result(finding) for finding in findings if finding is not None]

    def on_record(self, evidence: RecordEvidence) -> list[CheckResult]:
        """Return the results of `record`."""
        findings = [function(evidence) for function in self.record]
        return [self.result(finding) for finding in findings if finding is not None]


def _bounds(evidence: ModelEvidence) -> Finding | None:
    context = evidence.context
    if evidence.adversarial is None:
        return None
    return outputs.check_bounds(evidence.adversarial, context.images, context.threat_model, context.padding)


def _active(evidence: ModelEvidence) -> Finding:
    context, settings = evidence.context, evidence.settings
    attack = competitors.two_class_attack(context.attack, settings.steps)
    return competitors.check_active(context, attack, settings.seed)


_CHECKS = (
    Check(
        "C1",
        "model untouched, in evaluation mode",
        ERROR,
        "evaluate in eval mode, without updates of statistics, and let nothing write to the model while it is attacked",
        always=(lambda e: model.check_untouched(e.view, e.before),),
    ),
    Check(
        "C2",
        "deterministic outputs",
        ERROR,
        "remove the randomness, or attack the expectation over it: part_robust.attacks.EotView",
        always=(lambda e: outputs.check_deterministic(e.context.forward, e.context.images),),
    ),
    Check(
        "C3",
        "finite float32 logits",
        ERROR,
        "return the logits in float32, before any softmax, and fix what makes them infinite or not a number",
        always=(lambda e: outputs.check_logits(e.context.clean_logits),),
    ),
    Check(
        "C4",
        "inside the threat model",
        ERROR,
        "score the images that were verified; round saved ones towards the original; leave padding alone",
        always=(_bounds,),
    ),
    Check(
        "C5",
        "scored again, the same verdicts",
        ERROR,
        "score the saved images in a fresh float32 process and publish those verdicts",
        audit=(lambda e: strength.check_verdicts(e.context),),
        record=(lambda e: record.check_flags(e.evaluation, e.flags), lambda e: record.check_rescored(e.evaluation)),
    ),
    Check(
        "C6",
        "input gradient agrees with finite differences",
        ERROR,
        "attack with ATTACK.FULL_GRADIENT True; remove detach() and rounding from the path of images to logits, or "
        "give the attack a differentiable stand-in",
        always=(lambda e: gradients.audit_gradient(e.context, 2),),
        audit=(lambda e: gradients.audit_gradient(e.context, e.settings.directions),),
    ),
    Check(
        "C7",
        "gradients and losses alive",
        WARNING,
        "attack with the margin loss, in float32, and divide the logits by a constant if they are large",
        always=(lambda e: gradients.check_losses(e.context),),
        record=(lambda e: record.check_regions_alive(e.evaluation),),
    ),
    Check(
        "C8",
        "cross-entropy and margin agree",
        WARNING,
        "the cross-entropy has no gradient here (large or masked logits): report the worst case over both losses",
        audit=(lambda e: strength.check_losses_agree(e.context, e.settings.steps),),
        record=(lambda e: record.check_losses_alone(e.evaluation, e.attacks),),
    ),
    Check(
        "C9",
        "more effort never helps the model",
        ERROR,
        "the attack is stuck: use smaller steps, restarts, or a smooth stand-in for what blocks the gradient",
        audit=(lambda e: strength.check_effort(e.context, e.settings.steps, e.settings.long_steps),),
        record=(lambda e: record.check_order(e.evaluation), lambda e: record.check_nested_regions(e.evaluation)),
    ),
    Check(
        "C10",
        "attack converged",
        WARNING,
        "raise STEPS until the number stops falling; TEST.RESTART_GAIN 0.2 restarts as long as that helps",
        audit=(lambda e: strength.check_convergence(e.context, e.settings.long_steps, e.settings.restarts),),
        record=(lambda e: record.check_curves(e.evaluation),),
    ),
    Check(
        "C11",
        "every success is returned",
        WARNING,
        "set KEEP to best: the last iterate is not the worst one",
        audit=(lambda e: strength.check_best_iterate(e.context),),
    ),
    Check(
        "C12",
        "without a bound, accuracy falls to chance",
        ERROR,
        "the attack does not work on this model, so its numbers are meaningless: check the gradient (C6, C7)",
        audit=(lambda e: strength.check_unbounded(e.context),),
    ),
    Check(
        "C13",
        "black box does not beat white box",
        WARNING,
        "the gradient misleads: report the worst case with the black-box attack, and see C6 and C7",
        audit=(lambda e: competitors.check_black_box(e.context, e.black_box),),
        record=(lambda e: record.check_square(e.evaluation, e.attacks),),
    ),
    Check(
        "C14",
        "transferred images do not beat the attack",
        WARNING,
        "add the images of the sibling model's attack to the worst case",
        audit=(lambda e: competitors.check_transfer(e.context, e.transferred),),
        record=(lambda e: record.check_siblings(e.evaluation),),
    ),
    Check(
        "C15",
        "attack finds what provably exists",
        WARNING,
        "the attack misses adversarial images that are known to exist: more steps, other losses, a better gradient",
        audit=(_active,),
    ),
    Check(
        "C16",
        "random noise is weaker than the attack",
        WARNING,
        "noise of the same size beats the attack, so the attack is broken or has no gradient: see C6 and C7",
        audit=(lambda e: competitors.check_noise(e.context, e.settings.noise_draws, e.settings.seed),),
    ),
    Check(
        "C17",
        "classes, labels and targets fit",
        ERROR,
        "use the data set the model was trained for; with fewer than 4 classes the margin loss instead of DLR, and at "
        "most C - 1 targets",
        always=(lambda e: outputs.check_classes(e.context.clean_logits, e.context.labels, e.context.attack),),
    ),
    Check(
        "C18",
        "each head attacked by itself",
        WARNING,
        "attack each head with its own loss; what other attacks leave of its metric is not robust",
        record=(lambda e: record.check_heads(e.evaluation),),
    ),
    Check(
        "C19",
        "intervals stated and right",
        WARNING,
        "print the Wilson interval, compare two models by McNemar's test on the same images, and train 3 seeds",
        record=(lambda e: record.check_intervals(e.evaluation),),
    ),
    Check(
        "C20",
        "enough images, from a fixed list",
        WARNING,
        "evaluate at least 1000 images, or the whole test split, and publish the list",
        record=(lambda e: record.check_size(e.evaluation),),
    ),
    Check(
        "C21",
        "neither matching nor few queries flatter the model",
        ERROR,
        "attack detectors with the matching solved anew and with it frozen, and with QUERY_FACTOR 1 and 4, and report "
        "the worse",
        audit=(
            lambda e: competitors.check_query_selection(e.context, e.expanded, e.settings.long_steps),
            lambda e: competitors.check_queries(e.context, e.black_box),
        ),
        record=(lambda e: record.check_matching(e.evaluation, e.attacks),),
    ),
    Check(
        "C22",
        "certified radii hold",
        ERROR,
        "predict each image by itself, without memory and without knowledge of the noise, and certify again",
        record=(lambda e: certificates.check_certificates(e.evaluation),),
    ),
)
CATALOGUE: dict[str, Check] = {check.id: check for check in _CHECKS}


def passed(id: str, sentence: str, value: float | None = None) -> CheckResult:
    """Return the result of a check of the catalogue that has found nothing."""
    return CATALOGUE[id].result(Finding(PASS, sentence, value))


def failed(id: str, sentence: str, value: float | None = None, *, remedy: str = "", level: str = "") -> CheckResult:
    """Return the result of a check that has a finding; `remedy` and `level` replace the catalogue's."""
    return CATALOGUE[id].result(Finding(FAIL, sentence, value, level, remedy))


def skipped(id: str, sentence: str) -> CheckResult:
    """Return the result of a check that could not be made, with the reason in `sentence`."""
    return CATALOGUE[id].result(Finding(SKIPPED, sentence))
