"""Checks of what comes out of a model: determinism, logits, classes, and images inside the threat model.

Letters: N images (3, H, W), C classes, K outputs of an image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from part_robust.attacks.base import Attack
from part_robust.attacks.eot import EotView, select
from part_robust.attacks.threat_model import ThreatModel
from part_robust.evaluation.checks.result import FAIL, PASS, WARNING, Finding

# Of one image's outputs relative to their spread; convolutions of other batch sizes differ by some 1e-6.
SAME_RUN = 1e-4
SAME_BATCH = 1e-3


@torch.no_grad()
def check_deterministic(forward: Callable[[Tensor], Tensor], images: Tensor, repeats: int = 3) -> Finding:
    """C2: the same images give the same outputs, together or alone.

    Args:
        forward: images (N, 3, H, W) -> outputs (N, ...).
        images: the images.
        repeats: forward passes that are compared.
    """
    first = forward(images).float().flatten(1)
    spread = (first.amax(dim=1) - first.amin(dim=1)).clamp(min=1e-30)
    worst = 0.0
    for _ in range(repeats - 1):
        difference = (forward(images).float().flatten(1) - first).abs().amax(dim=1)
        worst = max(worst, float((difference / spread).nan_to_num(0.0).max()))
    if worst > SAME_RUN:
        sentence = f"outputs of the same image differ by {worst:.2g} of their spread from one pass to the next"
        if isinstance(forward, EotView):
            sentence += f" although {forward.draws} draws are averaged: the numbers hold in expectation only"
            return Finding(FAIL, sentence, worst, level=WARNING, remedy="average more draws")
        return Finding(FAIL, sentence, worst)
    alone = torch.tensor([0], device=images.device)
    difference = (select(forward, alone)(images[:1]).float().flatten(1)[0] - first[0]).abs().max()
    beside = float((difference / spread[0]).nan_to_num(0.0))
    if len(images) > 1 and beside > SAME_BATCH:
        return Finding(
            FAIL,
            f"outputs of an image change by {beside:.2g} of their spread with the images beside it in the batch",
            beside,
            remedy="score each image independently of its batch: eval mode, no statistics of the batch, no padding to "
            "the largest image",
        )
    return Finding(PASS, f"{repeats} passes differ by at most {worst:.2g} of the outputs' spread", worst)


def check_logits(logits: Tensor) -> Finding:
    """C3: logits (N, C) are finite, float32, and not probabilities."""
    if logits.ndim != 2:
        return Finding(FAIL, f"class logits have shape {tuple(logits.shape)} instead of (images, classes)")
    broken = int((~torch.isfinite(logits)).any(dim=1).sum())
    if broken:
        return Finding(FAIL, f"{broken} of {len(logits)} images have logits that are infinite or not a number", broken)
    if logits.dtype not in (torch.float32, torch.float64):
        return Finding(FAIL, f"logits are {logits.dtype}".replace("torch.", "") + ", too coarse for small gradients")
    sums = logits.double().sum(dim=1)
    if bool((logits >= 0).all()) and bool(((sums - 1).abs() < 1e-2).all()):
        return Finding(FAIL, "the model returns probabilities: their gradients vanish where it is sure")
    return Finding(PASS, f"{len(logits)} images, finite {str(logits.dtype).replace('torch.', '')} logits")


def check_classes(logits: Tensor, labels: Tensor, attack: Attack) -> Finding:
    """C17: labels lie in 0..C-1, there are two classes at least, and the attack aims at no more than there are."""
    classes = logits.shape[1]
    if classes < 2:
        return Finding(FAIL, f"the model has {classes} class: nothing can be misclassified", classes)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        return Finding(FAIL, f"labels run from {low} to {high}, the model has {classes} classes", classes)
    name = attack.objective.name.lower()
    if "dlr" in name and classes < 4:
        return Finding(FAIL, f"loss {attack.objective.name} needs 4 classes, the model has {classes}", classes)
    return Finding(PASS, f"{classes} classes, labels {low} to {high}", classes)


def check_bounds(
    adversarial: Tensor,
    images: Tensor,
    threat_model: ThreatModel,
    padding: Tensor | None = None,
    eight_bit: bool = True,
) -> Finding:
    """C4: images are finite, in the ball, in the range of pixels, and untouched on padding.

    Args:
        adversarial: (N, 3, H, W), as they are scored or saved.
        images: the originals.
        threat_model: norm, radius, range.
        padding: bool (N, H, W), pixels that must not have moved.
        eight_bit: the same must hold for whole levels, rounded towards the original, as 8-bit files hold them.
    """
    candidates = {"": adversarial.float()}
    if eight_bit:
        candidates[" after rounding to 8 bits"] = round_towards(adversarial, images).float()
    distance = 0.0
    for when, candidate in candidates.items():
        if not bool(torch.isfinite(candidate).all()):
            return Finding(FAIL, f"attacked images are infinite or not a number{when}")
        distance = float(threat_model.distance(candidate, images).max())
        # float32 resolves 1.5e-5 at 255.
        if distance > threat_model.eps * (1 + 1e-5) + 1e-3:
            return Finding(
                FAIL, f"a perturbation has length {distance:.4f}, allowed are {threat_model.eps:g}{when}", distance
            )
        low, high = float(candidate.min()), float(candidate.max())
        if low < threat_model.low - 1e-3 or high > threat_model.high + 1e-3:
            return Finding(FAIL, f"pixels run from {low:.3f} to {high:.3f}{when}", max(-low, high))
        if padding is not None and bool(((candidate != images) & padding[:, None]).any()):
            return Finding(FAIL, f"pixels of the padding moved{when}")
    longest = float(threat_model.distance(candidates[""], images).max())
    return Finding(PASS, f"largest {threat_model.norm} distance {longest:.4f} of {threat_model.eps:g}", longest)


def round_towards(adversarial: Tensor, images: Tensor) -> Tensor:
    """Whole levels 0..255, rounded towards the original, which therefore stay inside any ball that held them.

    Where the original is not a whole level, a pixel without a whole level between the two goes back to the original.
    """
    up = adversarial >= images
    rounded = torch.where(up, adversarial.floor(), adversarial.ceil())
    passed_it = torch.where(up, rounded < images, rounded > images)
    return torch.where(passed_it, images, rounded)
