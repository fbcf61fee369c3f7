"""TEST.THREATS: several threat models of one evaluation, in the units of papers."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

from detectron2.config import CfgNode

from part_robust.attacks.threat_model import NORMS
from part_robust.utils.errors import UserError

EXAMPLE = '"linf:8/255 l2:2 l1:75"'
UNION = "union"
PIXEL_RANGE = 255


@dataclass(frozen=True)
class Threat:
    """One threat model of TEST.THREATS.

    Attributes:
        name: norm, with the radius where several threat models have that norm; ends the names of tiers and attacks.
        norm: "linf", "l2" or "l1".
        eps: radius, 0..255 units.
    """

    name: str
    norm: str
    eps: float

    def applied_to(self, spec: CfgNode) -> CfgNode:
        """Return an attack's spec with this threat model; PGD's steps keep their length in radii."""
        spec = spec.clone()
        if spec.EPS > 0:
            spec.STEP_SIZE = spec.STEP_SIZE * self.eps / spec.EPS
        spec.NORM, spec.EPS = self.norm, self.eps
        return spec


def parse_threats(text: str) -> list[Threat]:
    """Return the threat models of TEST.THREATS, in its order.

    Args:
        text: such as "linf:8/255 l2:2 l1:75", radii of images in 0..1; commas between them are fine, too.

    Raises:
        UserError: it is something else.
    """
    found = [_norm_and_eps(text, word) for word in re.split(r"[\s,]+", text.strip()) if word]
    if len(set(found)) < len(found):
        raise UserError(f"TEST.THREATS must name each threat model once, got {text!r}: leave out the second one")
    of_norm = Counter(norm for norm, _ in found)
    names = [norm if of_norm[norm] == 1 else f"{norm}_{eps:g}" for norm, eps in found]
    return [Threat(name, norm, eps) for name, (norm, eps) in zip(names, found, strict=True)]


def _norm_and_eps(text: str, word: str) -> tuple[str, float]:
    norm, _, radius = word.partition(":")
    try:
        # Exact: 8/255 of 255 is 8.
        eps = float(Fraction(*map(Fraction, radius.split("/", 1))) * PIXEL_RANGE)
    except (ValueError, ZeroDivisionError, OverflowError, TypeError):
        eps = -1.0
    if norm not in NORMS or eps < 0:
        raise UserError(
            f"TEST.THREATS must be threat models such as {EXAMPLE}, got {word!r} in {text!r}: give each as one of "
            f"{', '.join(NORMS)}, a colon and the radius of images in 0..1"
        )
    if norm == "linf" and eps > PIXEL_RANGE:
        raise UserError(
            f"TEST.THREATS must have a radius of at most 1 under linf, got {word!r}: radii are of images in 0..1, so "
            "8 of 255 levels are linf:8/255"
        )
    return norm, eps
