"""Checks of an attack's strength: against weaker attacks, longer ones, an unbounded one, and its own verdicts."""

from __future__ import annotations

import torch

from part_robust.attacks.objective import get_objective
from part_robust.evaluation.checks.context import (
    LONG_STEP,
    SHORT_STEP,
    CheckContext,
    more_than,
    percent,
    relative_margins,
)
from part_robust.evaluation.checks.result import FAIL, PASS, SKIPPED, Finding

# Steps of the attack without a bound.
UNBOUNDED_STEPS = 60
# Margins below this share of the logits' spread change sign with the batch size.
ROUNDING = 1e-4


def check_losses_agree(context: CheckContext, steps: int) -> Finding:
    """C8: PGD on the cross-entropy leaves at most 5 points more unbroken than PGD on the margin."""
    trials = [
        context.pgd(steps, SHORT_STEP, objective=get_objective(name)).num_right for name in ("cross_entropy", "margin")
    ]
    gap = percent(trials[0] - trials[1], len(context))
    numbers = f"{trials[0]} of {len(context)} images are right under the cross-entropy, {trials[1]} under the margin"
    if more_than(trials[0] - trials[1], len(context), 5.0):
        return Finding(FAIL, numbers, gap)
    return Finding(PASS, numbers, gap)


def check_effort(context: CheckContext, steps: int, long_steps: int | None = None) -> Finding:
    """C9: PGD breaks no fewer images than one step, more steps no fewer than few, twice the radius no fewer."""
    trials = {
        "1 step": context.pgd(1, 1.0),
        f"{steps} steps": context.pgd(steps, SHORT_STEP),
        f"{steps} steps of twice the radius": context.pgd(steps, SHORT_STEP, scale=2.0),
    }
    pairs = [("1 step", f"{steps} steps"), (f"{steps} steps", f"{steps} steps of twice the radius")]
    if long_steps:
        trials[f"{long_steps} steps"] = context.pgd(long_steps, LONG_STEP)
        pairs.append((f"{steps} steps", f"{long_steps} steps"))
    worst, findings = 0.0, []
    for weaker, stronger in pairs:
        rise = trials[stronger].num_right - trials[weaker].num_right
        worst = max(worst, percent(rise, len(context)))
        if more_than(rise, len(context), 0.5):
            findings.append(
                f"{trials[stronger].num_right} of {len(context)} images are right under {stronger}, "
                f"{trials[weaker].num_right} under {weaker}"
            )
    if findings:
        return Finding(FAIL, "; ".join(findings), worst)
    counts = ", ".join(f"{trial.num_right} under {name}" for name, trial in trials.items())
    return Finding(PASS, f"of {len(context)} images are right {counts}", worst)


def check_convergence(context: CheckContext, long_steps: int, restarts: int = 5) -> Finding:
    """C10: neither twice the steps nor more restarts break more than half a point of the images."""
    once, twice = context.pgd(long_steps, LONG_STEP), context.pgd(2 * long_steps, LONG_STEP)
    gain = once.num_right - twice.num_right
    findings = {
        f"{once.num_right} of {len(context)} images are right after {long_steps} steps, {twice.num_right} after "
        "twice as many": gain
    }
    if restarts > 1:
        first = context.random_starts(long_steps, LONG_STEP)
        others = context.random_starts(long_steps, LONG_STEP, restarts - 1, seed=1)
        # What the start at the image has broken tells nothing about restarts.
        single = ~once.fooled & ~first.fooled
        several = single & ~others.fooled
        findings[f"{int(single.sum())} are right after one random start too, {int(several.sum())} after {restarts}"] = (
            int((single & others.fooled).sum())
        )
    wrong = [words for words, gained in findings.items() if more_than(gained, len(context), 0.5)]
    worst = percent(max(findings.values()), len(context))
    if wrong:
        return Finding(FAIL, "; ".join(wrong), worst)
    return Finding(PASS, "; ".join(findings), worst)


def check_best_iterate(context: CheckContext) -> Finding:
    """C11: what the attack met and what it returned are the same."""
    trial = context.run(context.attack)
    lost = int((trial.found_any & ~trial.fooled).sum())
    if lost:
        sentence = f"the attack met a misclassified version of {lost} of {len(context)} images and returned another one"
        return Finding(FAIL, sentence, percent(lost, len(context)))
    return Finding(PASS, "every image that was ever misclassified was returned so", 0.0)


def check_unbounded(context: CheckContext) -> Finding:
    """C12: without a bound on the perturbation, no more are right than by guessing."""
    num_right, classes = context.unbounded(UNBOUNDED_STEPS).num_right, context.classes
    numbers = f"{num_right} of {len(context)} images are right under {UNBOUNDED_STEPS} steps without a bound"
    if more_than(num_right, len(context), 100.0 / classes):
        return Finding(FAIL, f"{numbers}; guessing gets {len(context) / classes:.1f}", percent(num_right, len(context)))
    return Finding(PASS, numbers, percent(num_right, len(context)))


@torch.no_grad()
def check_verdicts(context: CheckContext) -> Finding:
    """C5, inside the process: the attack's images, scored afresh, are what the attack says they are."""
    trial = context.run(context.attack)
    if trial.reported is None:
        return Finding(
            SKIPPED, "the attack states no verdicts; score its saved images with tools/verify_adversarials.py"
        )
    clear = relative_margins(context.logits(trial.images), context.labels).abs() > ROUNDING
    wrong = int(((trial.reported != trial.fooled) & clear).sum())
    if wrong:
        return Finding(
            FAIL, f"{wrong} of {len(context)} verdicts change when the images are scored again", float(wrong)
        )
    return Finding(PASS, f"{len(context)} verdicts stay the same when the images are scored again", 0.0)
