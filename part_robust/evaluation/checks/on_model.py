"""Which checks run when."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from part_robust.attacks.base import Attack
from part_robust.attacks.eot import EotView
from part_robust.attacks.pgd import PGD
from part_robust.evaluation.checks import competitors, gradients, outputs, strength
from part_robust.evaluation.checks.context import CheckSettings, Subject, class_objective
from part_robust.evaluation.checks.result import FAIL, CheckResult, merge_checks, skipped

AUDIT = ("C5", "C8", "C9", "C10", "C11", "C12", "C13", "C14", "C15", "C16", "C21")


def run_cheap_checks(
    subject: Subject, settings: CheckSettings | None = None, adversarial: Tensor | None = None
) -> tuple[list[CheckResult], Subject]:
    """C2, C3, C4, C6 (few directions), C7 and C17.

    Args:
        subject: the model and its images.
        settings: what it may cost.
        adversarial: (N, 3, H, W), images that were scored as the attack's result; None: C4 is left out.

    Returns:
        The results, and the subject to go on with: of a randomised model, its expectation.
    """
    settings = settings or CheckSettings()
    logits = subject.logits(subject.images)
    results = [outputs.check_logits(logits)]
    if not bool(torch.isfinite(logits).all()) or logits.ndim != 2:
        sentence = "there are no finite logits to judge"
        return results + [skipped(id, sentence) for id in ("C2", "C6", "C7", "C17")], subject
    results.append(outputs.check_deterministic(subject.forward, subject.images))
    if results[-1].status == FAIL and not isinstance(subject.forward, EotView):
        subject = in_expectation(subject, settings.eot_draws)
    results.append(outputs.check_classes(logits, subject.labels, subject.attack))
    if adversarial is not None:
        results.append(outputs.check_bounds(adversarial, subject.images, subject.threat_model, subject.padding))
    if results[2].status == FAIL:
        # Losses of labels that do not exist cannot be computed.
        return [*results, *(skipped(id, "labels and classes do not fit") for id in ("C6", "C7"))], subject
    results.append(audit_gradient(subject, 2))
    results.append(gradients.check_losses(subject))
    return results, subject


def run_audit(
    subject: Subject,
    settings: CheckSettings | None = None,
    *,
    black_box: Attack | None = None,
    transferred: Tensor | None = None,
    opened: Callable[[Tensor], Tensor] | None = None,
) -> list[CheckResult]:
    """Run checks C5, C6 (many directions), C8 to C16 and, of a black box or object queries, C21.

    By default these are some 700 forward and backward passes for each image; for each image that stands, 500 of random
    starts, the black box's queries one and a quarter times and, of a detector, 100 with more object queries.

    Args:
        subject: the model and its images, as `run_cheap_checks` gives it back.
        settings: what it may cost.
        black_box: an attack without gradients.
        transferred: (N, 3, H, W), images that an attack made for a sibling model.
        opened: the model with the gradient it has with more object queries, where it chooses some.
    """
    settings = settings or CheckSettings()
    gradient = audit_gradient(subject, settings.directions)
    if gradient.sentence == gradients.NO_DEPENDENCE:
        return [gradient, *(skipped(id, gradients.NO_DEPENDENCE) for id in AUDIT)]
    judged = judged_attack(subject.attack)
    if judged is not subject.attack:
        subject = Subject(
            subject.forward, subject.images, subject.labels, judged, keys=subject.keys, padding=subject.padding
        )
    return [
        gradient,
        strength.check_verdicts(subject),
        strength.check_losses_agree(subject, settings.steps),
        strength.check_convergence(subject, settings.long_steps, settings.restarts),
        strength.check_effort(subject, settings.steps, settings.long_steps),
        strength.check_best_iterate(subject),
        strength.check_unbounded(subject),
        competitors.check_black_box(subject, black_box),
        competitors.check_transfer(subject, transferred),
        competitors.check_active(subject, _two_class_attack(judged, settings), settings.seed),
        competitors.check_noise(subject, settings.noise_draws, settings.seed),
        *merge_checks(
            [competitors.check_choice(subject, opened, settings.long_steps)],
            [competitors.check_queries(subject, black_box)],
        ),
    ]


def audit_gradient(subject: Subject, directions: int) -> CheckResult:
    """C6, in float64 where the model is at hand in it."""
    if subject.precise is None:
        return gradients.check_gradient(subject.forward, subject.images, subject.keys, subject.padding, directions)
    return gradients.check_gradient(subject.precise, subject.images.double(), subject.keys, subject.padding, directions)


def in_expectation(subject: Subject, draws: int) -> Subject:
    """The same with the model's outputs averaged."""
    forward: Callable[[Tensor], Tensor] = EotView(subject.forward, draws)
    return Subject(
        forward,
        subject.images,
        subject.labels,
        subject.attack,
        keys=subject.keys,
        padding=subject.padding,
        precise=subject.precise,
    )


def judged_attack(attack: Attack) -> Attack:
    """The attack itself, or for one that is aimed at parts, PGD on the class in its ball."""
    if not attack.objective.needs_parts:
        return attack
    eps = attack.threat_model.eps
    return PGD(
        threat_model=attack.threat_model,
        objective=class_objective(attack),
        steps=20,
        step_size=eps / 4,
        keep="best",
    )


def _two_class_attack(attack: Attack, settings: CheckSettings) -> Attack:
    """The attack, or if its loss aims at chosen classes, PGD on the margin."""
    if class_objective(attack) is attack.objective and attack.least_classes <= 2:
        return attack
    return PGD(
        threat_model=attack.threat_model,
        objective=class_objective(attack),
        steps=settings.steps,
        step_size=attack.threat_model.eps / 4,
        keep="best",
    )
