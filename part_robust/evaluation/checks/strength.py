"""Checks of an attack's strength: against weaker attacks, longer ones, an unbounded one, and its own verdicts."""

from __future__ import annotations

import torch

from part_robust.attacks.objective import get_objective
from part_robust.evaluation.checks.context import LONG_STEP, SHORT_STEP, Subject, margins, more_than, share
from part_robust.evaluation.checks.result import CheckResult, failed, passed, skipped

# Steps of the attack without a bound.
UNBOUNDED_STEPS = 60
# Margins below this share of the logits' spread change sign with the batch size.
ROUNDING = 1e-4


def check_losses_agree(subject: Subject, steps: int) -> CheckResult:
    """C8: PGD on the cross-entropy leaves at most 5 points more standing than PGD on the margin."""
    trials = [
        subject.pgd(steps, SHORT_STEP, objective=get_objective(name)).standing for name in ("cross_entropy", "margin")
    ]
    gap = share(trials[0] - trials[1], len(subject))
    numbers = f"{trials[0]} of {len(subject)} images stand against the cross-entropy, {trials[1]} against the margin"
    if more_than(trials[0] - trials[1], len(subject), 5.0):
        return failed("C8", numbers, gap)
    return passed("C8", numbers, gap)


def check_effort(subject: Subject, steps: int, long_steps: int | None = None) -> CheckResult:
    """C9: PGD leaves no more standing than one step, more steps no more than few, twice the radius no more than one."""
    trials = {
        "1 step": subject.pgd(1, 1.0),
        f"{steps} steps": subject.pgd(steps, SHORT_STEP),
        f"{steps} steps of twice the radius": subject.pgd(steps, SHORT_STEP, scale=2.0),
    }
    pairs = [("1 step", f"{steps} steps"), (f"{steps} steps", f"{steps} steps of twice the radius")]
    if long_steps:
        trials[f"{long_steps} steps"] = subject.pgd(long_steps, LONG_STEP)
        pairs.append((f"{steps} steps", f"{long_steps} steps"))
    worst, findings = 0.0, []
    for weaker, stronger in pairs:
        rise = trials[stronger].standing - trials[weaker].standing
        worst = max(worst, share(rise, len(subject)))
        if more_than(rise, len(subject), 0.5):
            findings.append(
                f"{trials[stronger].standing} of {len(subject)} images stand against {stronger}, "
                f"{trials[weaker].standing} against {weaker}"
            )
    if findings:
        return failed("C9", "; ".join(findings), worst)
    stands = ", ".join(f"{trial.standing} against {name}" for name, trial in trials.items())
    return passed("C9", f"of {len(subject)} images stand {stands}", worst)


def check_convergence(subject: Subject, long_steps: int, restarts: int = 5) -> CheckResult:
    """C10: neither twice the steps nor more restarts break more than half a point of the images."""
    once, twice = subject.pgd(long_steps, LONG_STEP), subject.pgd(2 * long_steps, LONG_STEP)
    gain = once.standing - twice.standing
    findings = {
        f"{once.standing} of {len(subject)} images stand after {long_steps} steps, {twice.standing} after twice as "
        "many": gain
    }
    if restarts > 1:
        first = subject.random_starts(long_steps, LONG_STEP)
        others = subject.random_starts(long_steps, LONG_STEP, restarts - 1, seed=1)
        # What the start at the image has broken tells nothing about restarts.
        single = ~once.fooled & ~first.fooled
        several = single & ~others.fooled
        findings[f"{int(single.sum())} stand after one random start too, {int(several.sum())} after {restarts}"] = int(
            (single & others.fooled).sum()
        )
    wrong = [words for words, gained in findings.items() if more_than(gained, len(subject), 0.5)]
    worst = share(max(findings.values()), len(subject))
    if wrong:
        return failed("C10", "; ".join(wrong), worst)
    return passed("C10", "; ".join(findings), worst)


def check_best_iterate(subject: Subject) -> CheckResult:
    """C11: what the attack met and what it returned are the same."""
    trial = subject.run(subject.attack)
    lost = int((trial.met & ~trial.fooled).sum())
    if lost:
        sentence = f"the attack met a misclassified version of {lost} of {len(subject)} images and returned another one"
        return failed("C11", sentence, share(lost, len(subject)))
    return passed("C11", "every image that was ever misclassified was returned so", 0.0)


def check_unbounded(subject: Subject) -> CheckResult:
    """C12: without a bound on the perturbation, no more are right than by guessing."""
    standing, classes = subject.unbounded(UNBOUNDED_STEPS).standing, subject.classes
    numbers = f"{standing} of {len(subject)} images stand against {UNBOUNDED_STEPS} steps without a bound"
    if more_than(standing, len(subject), 100.0 / classes):
        return failed("C12", f"{numbers}; guessing gets {len(subject) / classes:.1f}", share(standing, len(subject)))
    return passed("C12", numbers, share(standing, len(subject)))


@torch.no_grad()
def check_verdicts(subject: Subject) -> CheckResult:
    """C5, inside the process: the attack's images, scored afresh, are what the attack says they are."""
    trial = subject.run(subject.attack)
    if trial.claimed is None:
        return skipped("C5", "the attack states no verdicts; score its saved images with tools/verify_adversarials.py")
    clear = margins(subject.logits(trial.images), subject.labels).abs() > ROUNDING
    wrong = int(((trial.claimed != trial.fooled) & clear).sum())
    if wrong:
        return failed("C5", f"{wrong} of {len(subject)} verdicts change when the images are scored again", float(wrong))
    return passed("C5", f"{len(subject)} verdicts stay the same when the images are scored again", 0.0)
