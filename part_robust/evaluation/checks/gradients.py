"""Checks of the input gradient: finite differences, zero gradients, saturated losses.

Letters: N images (3, H, W), K outputs of an image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from part_robust.attacks import noise
from part_robust.attacks.class_losses import class_cross_entropy
from part_robust.attacks.objective import get_objective
from part_robust.evaluation.checks.context import CheckContext, percent
from part_robust.evaluation.checks.result import FAIL, PASS, SKIPPED, WARNING, Finding

# Half the width of the differences, root mean square over pixels, 0..255 units.
STEPS = (2.0, 1.0, 0.5, 0.25, 0.125)
# In float64 much narrower ones still show more than rounding.
NARROW_STEPS = (1e-2, 5e-3, 1e-3, 5e-4, 1e-4, 5e-5, 1e-5)
# Two widths agree so well that both show the slope, and not a kink or rounding.
SETTLED = 0.02
# Changes below this share of the outputs' spread are rounding.
RESOLUTION = 1e-5
LARGEST_ERROR = 0.05
SMALLEST_CORRELATION = 0.99
SATURATED = 1e-6

NO_DEPENDENCE = "the outputs do not depend on the image: detached, or computed without gradient"


def check_gradient(
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    keys: Tensor,
    padding: Tensor | None = None,
    directions: int = 2,
) -> Finding:
    """C6: central differences along random directions agree with the gradient that attacks follow.

    A random weighting of the outputs is differentiated, not a loss, so that saturation (C7) does not hide anything. Of
    several widths the two neighbours count that agree best: a width too large sees curvature, and one too small
    rounding. In float32 models with hard choices inside (the order of queries) may have no width between the two.

    Args:
        forward: images (N, 3, H, W) -> outputs (N, ...).
        images: the images; float64 for a model that computes in it, which makes the check sharper.
        keys: int64 (N,), of the random numbers.
        padding: bool (N, H, W), pixels that do not move.
        directions: for each image.
    """
    # Randomised models (C2) draw the same numbers in every pass, so that differences are those of one function.
    forward = _repeated(forward)
    # A model that clamps its input has kinks at the ends of the range.
    images = 8.0 + images * ((255.0 - 16.0) / 255.0)
    steps = STEPS + NARROW_STEPS if images.dtype == torch.float64 else STEPS
    slopes, differences, settled, alive = [], [], [], []
    for index in range(directions):
        weights_key, direction_key = (noise.make_keys(kind, keys, index) for kind in (6, 7))
        direction = noise.normal(direction_key, images.shape[1:]).to(images.dtype)
        if padding is not None:
            direction = direction * (~padding)[:, None]
        x = images.clone().requires_grad_(True)
        outputs = forward(x)
        weights = noise.normal(weights_key, outputs[0].flatten().shape).double()
        value = (outputs.flatten(1).double() * weights).sum(dim=1)
        gradient = torch.autograd.grad(value.sum(), x, allow_unused=True)[0] if value.requires_grad else None
        if gradient is None:
            return Finding(FAIL, NO_DEPENDENCE)
        slope = (gradient.double() * direction).flatten(1).sum(dim=1)
        with torch.no_grad():
            spread = weights.norm(dim=1) * outputs.flatten(1).double().std(dim=1)
            values = [
                [
                    (forward(images + sign * step * direction).flatten(1).double() * weights).sum(dim=1)
                    for sign in (1, -1)
                ]
                for step in steps
            ]
            change = torch.stack([plus - minus for plus, minus in values])
            slope_at = change / (2 * torch.tensor(steps, dtype=torch.float64, device=images.device)[:, None])
            size = torch.maximum(slope_at[1:].abs(), slope_at[:-1].abs()).clamp(min=1e-300)
            disagreement, best = ((slope_at[1:] - slope_at[:-1]).abs() / size).min(dim=0)
            expected = 2 * steps[0] * slope.abs()
            alive.append(torch.maximum(change.abs().amax(dim=0), expected) > RESOLUTION * spread)
            settled.append(disagreement < SETTLED)
            differences.append(slope_at.gather(0, best[None])[0])
            slopes.append(slope)
    return _judge(*(torch.cat(parts) for parts in (slopes, differences, settled, alive)))


def _repeated(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def repeated(images: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[images.device] if images.device.type == "cuda" else []):
            torch.manual_seed(0)
            return forward(images)

    return repeated


def _judge(slope: Tensor, difference: Tensor, settled: Tensor, alive: Tensor) -> Finding:
    total, seen = len(slope), int(alive.sum())
    if 2 * seen < total:
        return Finding(SKIPPED, "the outputs hardly change near most images, so there is no slope to compare (see C7)")
    vanished = int((alive & (slope == 0)).sum())
    if 2 * vanished > seen:
        return Finding(
            FAIL, f"the gradient is zero along {vanished} of {seen} directions in which the outputs change", 1.0
        )
    used = alive & settled
    if 2 * int(used.sum()) < seen:
        # Jumps are not proof of a wrong gradient, so this is not an error.
        return Finding(
            FAIL,
            f"differences settle for {int(used.sum())} of {seen} directions only: the outputs jump at the scale of "
            "single levels, and the gradient cannot be audited",
            percent(seen - int(used.sum()), seen) / 100,
            level=WARNING,
            remedy="compute the audit in float64, and trust black-box attacks (C13) more than gradients here",
        )
    slope, difference = slope[used], difference[used]
    error = float((slope - difference).norm() / difference.norm().clamp(min=1e-300))
    correlation = 1.0
    if len(slope) > 2:
        correlation = float(torch.corrcoef(torch.stack([slope, difference]))[0, 1])
    numbers = f"relative error {error:.2g}, correlation {correlation:.3f} over {len(slope)} directions"
    if error > LARGEST_ERROR or not correlation >= SMALLEST_CORRELATION:
        return Finding(FAIL, f"cut or wrong gradient: {numbers}", error)
    return Finding(PASS, numbers, error)


def check_losses(context: CheckContext) -> Finding:
    """C7: no image has an all-zero gradient of a loss in use, and few have a saturated cross-entropy.

    Gradients count where pixels may move.
    """
    losses = {name: get_objective(name) for name in ("cross_entropy", "margin")}
    losses[context.objective.name] = context.objective
    total = len(context)
    findings, worst = [], 0.0
    for name, objective in losses.items():
        x = context.images.clone().requires_grad_(True)
        loss = objective.loss(context.forward(x), context.labels)
        gradient = torch.autograd.grad(loss.sum(), x, allow_unused=True)[0] if loss.requires_grad else None
        if gradient is None:
            return Finding(FAIL, NO_DEPENDENCE, 100.0)
        if context.padding is not None:
            gradient = gradient * (~context.padding)[:, None]
        without = int((gradient == 0).flatten(1).all(dim=1).sum())
        worst = max(worst, percent(without, total))
        if without:
            findings.append(f"{without} of {total} images have an all-zero gradient of {name}")
    saturated = int((class_cross_entropy(context.logits(context.images), context.labels) < SATURATED).sum())
    if percent(saturated, total) > 5.0:
        worst = max(worst, percent(saturated, total))
        findings.append(f"the cross-entropy of {saturated} of {total} images is below {SATURATED:g}")
    if findings:
        return Finding(FAIL, ", ".join(findings), worst)
    return Finding(PASS, f"every image has a gradient of {', '.join(losses)}", worst)


def audit_gradient(context: CheckContext, directions: int) -> Finding:
    """C6, in float64 where the model is at hand in it."""
    if context.precise is None:
        return check_gradient(context.forward, context.images, context.keys, context.padding, directions)
    return check_gradient(context.precise, context.images.double(), context.keys, context.padding, directions)
