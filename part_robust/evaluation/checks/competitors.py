"""Checks that compare the attack with others: black boxes, sibling models, noise, and constructed adversarial images.

Letters: N images (3, H, W), C classes, S samples of an image.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from part_robust.attacks import noise
from part_robust.attacks.base import Attack
from part_robust.attacks.eot import select
from part_robust.attacks.pgd import PGD
from part_robust.evaluation.checks.context import LONG_STEP, CheckContext, class_objective, more_than, percent
from part_robust.evaluation.checks.result import FAIL, PASS, SKIPPED, Finding

# Inside and on the rim of the ball, for each image of the active test.
INNER, RIM = 32, 16
FOUND = 95.0


def find_unbroken(context: CheckContext) -> Tensor:
    """Return int64 (M,), images that no attack run so far has broken."""
    remaining = ~context.fooled(context.images)
    for trial in context.runs.values():
        # Attacks of other radii do not count.
        inside = context.threat_model.distance(trial.images, context.images) <= context.threat_model.eps + 1e-3
        remaining &= ~(trial.fooled & inside)
    return remaining.nonzero()[:, 0]


def check_black_box(context: CheckContext, attack: Attack | None) -> Finding:
    """C13: an attack without gradients breaks at most 0.2 points of the images that those with gradients left."""
    if attack is None:
        return Finding(SKIPPED, "no black-box attack was given")
    return _rest(context, "the black-box attack", lambda rest, _: rest.run(attack).fooled)


def check_queries(context: CheckContext, attack: Attack | None) -> Finding:
    """C21: of what the attacks with gradients left, four times the queries break at most one point more.

    The shorter run has a quarter of the attack's queries, so the longer one is C13's and costs nothing more.
    """
    queries = getattr(attack, "steps", 0)
    if attack is None or queries < 4:
        return Finding(SKIPPED, "no black-box attack with queries was given")
    index = find_unbroken(context)
    if not len(index):
        return Finding(PASS, "the white-box attacks broke every image", 0.0)
    quarter = copy.copy(attack)
    quarter.steps = queries // 4
    rest = context.subset(index)
    few, many = rest.run(quarter).fooled, rest.run(attack).fooled
    gain = int(many.sum()) - int(few.sum())
    sentence = (
        f"of the {len(index)} images that the white-box attacks did not break, {quarter.steps} queries broke "
        f"{int(few.sum())} and {queries} queries {int(many.sum())}"
    )
    if more_than(gain, len(context), 1.0):
        remedy = "the black-box attack has not converged: raise its STEPS until the number stops falling"
        return Finding(FAIL, sentence, percent(gain, len(context)), remedy=remedy, level="warning")
    return Finding(PASS, sentence, percent(gain, len(context)))


def check_query_selection(context: CheckContext, expanded: Callable[[Tensor], Tensor] | None, steps: int) -> Finding:
    """C21: gradients of four times the object queries break at most one point more than those of the model's own.

    A detector reads its class from the pixels it is surest of. The others get no gradient, so an attack that could have
    one of them chosen does not know.

    Args:
        context: the model.
        expanded: the same logits, with the gradient of the model that chooses more pixels; None: it chooses none.
        steps: of the attack.
    """
    if expanded is None:
        return Finding(SKIPPED, "the class is not read from chosen queries")
    threat = context.threat_model
    attack = PGD(
        threat_model=threat,
        objective=context.objective,
        steps=steps,
        step_size=LONG_STEP * threat.eps,
        random_start=False,
        keep="best",
    )

    def fooled(rest: CheckContext, index: Tensor) -> Tensor:
        forward = select(expanded, index)
        return rest.fooled(attack(forward, rest.images, rest.labels, keys=rest.keys, padding=rest.padding).images)

    context.pgd(steps, LONG_STEP)  # the same attack through the gate
    return _rest(context, "an attack that looks past the choice of object queries", fooled, 1.0)


def check_transfer(context: CheckContext, transferred: Tensor | None) -> Finding:
    """C14: images made for a sibling model break at most half a point of those that the attack left.

    Args:
        context: the model.
        transferred: (N, 3, H, W), inside the threat model; None: there is no sibling.
    """
    if transferred is None:
        return Finding(SKIPPED, "there are no images of a sibling model's attack")
    context.threat_model.verify(transferred, context.images)
    return _rest(context, "a sibling's images", lambda rest, index: rest.fooled(transferred[index]), 0.5)


def _rest(
    context: CheckContext, who: str, fooled: Callable[[CheckContext, Tensor], Tensor], points: float = 0.2
) -> Finding:
    index = find_unbroken(context)
    if not len(index):
        return Finding(PASS, "the white-box attacks broke every image", 0.0)
    broken = int(fooled(context.subset(index), index).sum())
    sentence = f"{who} broke {broken} of the {len(index)} images that the white-box attacks did not break"
    if more_than(broken, len(context), points):
        return Finding(FAIL, sentence, percent(broken, len(context)))
    return Finding(PASS, sentence, percent(broken, len(context)))


def check_noise(context: CheckContext, draws: int, seed: int = 0) -> Finding:
    """C16: random corners of the ball, `draws` for each image, break fewer images than the attack."""
    attacked = context.run(context.attack).num_right
    broken = context.fooled(context.images)
    for draw in range(draws):
        broken |= context.fooled(_corner(context, noise.make_keys(seed, context.keys, 16, draw)))
    remaining = int((~broken).sum())
    numbers = (
        f"{remaining} of {len(context)} images are right under {draws} random perturbations, "
        f"{attacked} under the attack"
    )
    if more_than(attacked - remaining, len(context), 0.5):
        return Finding(FAIL, numbers, percent(attacked - remaining, len(context)))
    return Finding(PASS, numbers, percent(attacked - remaining, len(context)))


def _corner(context: CheckContext, keys: Tensor) -> Tensor:
    """A point on the rim of each image's ball.

    All pixels are at +eps or -eps ("linf"), the direction is random ("l2"), or few random ones change fully ("l1").
    """
    threat = context.threat_model
    direction = noise.uniform(keys, context.images.shape[1:]) - 0.5
    if context.padding is not None:
        direction = direction * (~context.padding)[:, None]
    return threat.project(threat.ascent_step(context.images, direction, threat.eps), context.images)


class PerImageLinearClassifier:
    """A model with a new last layer of two classes, another one for each image: (0, weights . logits - threshold)."""

    def __init__(self, forward: Callable[[Tensor], Tensor], weights: Tensor, threshold: Tensor) -> None:
        """`weights` (N, C), `threshold` (N,)."""
        self.forward = forward
        self.weights = weights
        self.threshold = threshold

    def __call__(self, images: Tensor) -> Tensor:
        score = (self.forward(images) * self.weights).sum(dim=1) - self.threshold
        return torch.stack([torch.zeros_like(score), score], dim=1)

    def select(self, index: Tensor) -> PerImageLinearClassifier:
        """Return the same for the images at `index`, int64 (M,)."""
        return PerImageLinearClassifier(select(self.forward, index), self.weights[index], self.threshold[index])


def check_active(context: CheckContext, attack: Attack, seed: int = 0) -> Finding:
    """C15: the attack finds adversarial images that provably exist (Zimmermann et al., 2022).

    The class is read anew, by a plane through the logits that parts the best of 16 points on the rim of the image's
    ball from 32 random points of its inside. So there is an image that fools the new classifier, random ones do not,
    and an attack with a useful gradient gets there.

    Args:
        context: the model.
        attack: on class logits, with a loss that works for two classes.
        seed: of the points.
    """
    with torch.no_grad():
        inside = torch.stack(
            [
                context.logits(0.8 * context.threat_model.random_start(context.images, key) + 0.2 * context.images)
                for key in (noise.make_keys(seed, context.keys, 15, draw) for draw in range(INNER))
            ]
        )
        rim = torch.stack(
            [context.logits(_corner(context, noise.make_keys(seed, context.keys, 151, draw))) for draw in range(RIM)]
        )
        centre = inside.mean(dim=0)
        best_gap = torch.full_like(centre[:, 0], float("-inf"))
        weights, threshold = torch.zeros_like(centre), torch.zeros_like(best_gap)
        for point in rim:
            normal = point - centre
            normal = normal / normal.norm(dim=1, keepdim=True).clamp(min=1e-30)
            nearest = (inside * normal).sum(dim=2).amax(dim=0)
            gap = (point * normal).sum(dim=1) - nearest
            take = gap > best_gap
            best_gap = torch.where(take, gap, best_gap)
            weights = torch.where(take[:, None], normal, weights)
            threshold = torch.where(take, nearest + 0.5 * gap, threshold)
        # Divided by the gap, so that neither loss saturates.
        weights, threshold = weights / best_gap.clamp(min=1e-30)[:, None], threshold / best_gap.clamp(min=1e-30)
    index = (best_gap > 0).nonzero()[:, 0]
    if 2 * len(index) < len(context):
        return Finding(SKIPPED, "for most images no plane parts the rim of the ball from its inside")
    labels = torch.zeros_like(context.labels)[index]
    reader = PerImageLinearClassifier(context.forward, weights, threshold).select(index)
    padding = None if context.padding is None else context.padding[index]
    found = attack(reader, context.images[index], labels, keys=context.keys[index], padding=padding)
    with torch.no_grad():
        fooled = int((reader(found.images.detach()).argmax(dim=1) == 1).sum())
    sentence = f"the attack found {fooled} of {len(index)} adversarial images that provably exist"
    if percent(fooled, len(index)) < FOUND and fooled < len(index) - 1:
        return Finding(FAIL, sentence, percent(fooled, len(index)))
    return Finding(PASS, sentence, percent(fooled, len(index)))


def two_class_attack(attack: Attack, steps: int) -> Attack:
    """The attack, or if its loss aims at chosen classes, PGD on the margin."""
    if class_objective(attack) is attack.objective and attack.least_classes <= 2:
        return attack
    return PGD(
        threat_model=attack.threat_model,
        objective=class_objective(attack),
        steps=steps,
        step_size=attack.threat_model.eps / 4,
        keep="best",
    )
