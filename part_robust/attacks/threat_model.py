"""Threat model: a ball around the image and the range of pixels.

Letters: N images, each (3, H, W). All lengths in 0..255 pixel units.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace

import torch
from detectron2.utils.logger import log_every_n_seconds
from torch import Tensor

from part_robust.attacks import l1, noise
from part_robust.utils.errors import UserError

logger = logging.getLogger(__name__)

NORMS = ("linf", "l2", "l1")


class ThreatModelViolation(RuntimeError):
    """An attack returned something that its threat model does not allow."""


@dataclass(frozen=True)
class ThreatModel:
    """All images x' with ||x' - x|| <= eps and low <= x' <= high.

    Attributes:
        norm: "linf", "l2" or "l1".
        eps: radius, 0..255 units.
        low: smallest pixel value.
        high: largest pixel value.
    """

    norm: str = "linf"
    eps: float = 8.0
    low: float = 0.0
    high: float = 255.0

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm must be one of {NORMS}, got {self.norm!r}")
        if not self.eps >= 0:
            raise ValueError(f"eps must not be negative, got {self.eps}")

    def scaled(self, factor: float) -> ThreatModel:
        """The same with radius `factor` * eps."""
        return replace(self, eps=self.eps * factor)

    def describe(self) -> dict:
        """Return norm, radius and pixel range for the record."""
        return asdict(self)

    def distance(self, adversarial: Tensor, images: Tensor) -> Tensor:
        """(N,) norms of the perturbations."""
        return self.length(adversarial - images)

    def length(self, change: Tensor) -> Tensor:
        """(N,) norms of changes (N, 3, H, W)."""
        delta = change.flatten(1)
        if self.norm == "l1":
            return delta.abs().sum(dim=1, dtype=torch.float64).float()
        return delta.abs().amax(dim=1) if self.norm == "linf" else delta.double().norm(dim=1).float()

    def random_start(self, images: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
        """A point drawn uniformly from each image's ball, then projected to the pixel range.

        Args:
            images: the originals.
            keys: int64 (N,).
            mask: bool (N, 1, H, W), False on pixels that stay, so that the ball has fewer dimensions; None: all move.
        """
        shape = images.shape[1:]
        if self.norm == "l1":
            delta = l1.uniform_change(keys, shape, self.eps, mask)
        elif self.norm == "linf":
            delta = (2.0 * noise.uniform(keys, shape) - 1.0) * self.eps
        else:
            direction = noise.normal(keys, shape)
            dimensions: float | Tensor = float(images[0].numel())
            if mask is not None:
                direction = direction * mask
                dimensions = (shape[0] * mask.sum(dim=(1, 2, 3), keepdim=True)).clamp(min=1)
            # A radius r in d dimensions encloses a share r^d of the ball's volume.
            radius = noise.uniform(keys, (1, 1, 1), stream=2) ** (1.0 / dimensions)
            delta = _unit(direction) * radius * self.eps
        if mask is not None:
            delta = delta * mask
        return self.project(images + delta, images)

    def project(self, adversarial: Tensor, images: Tensor) -> Tensor:
        """Nearest allowed point; for "l2" the ball first, then the range. Never moves an allowed point."""
        if self.norm == "l1":
            return l1.project(adversarial, images, self.eps, self.low, self.high)
        if self.norm == "linf":
            lower = (images - self.eps).clamp_(min=self.low)
            upper = (images + self.eps).clamp_(max=self.high)
            return torch.minimum(torch.maximum(adversarial, lower), upper)
        delta = adversarial - images
        length = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        # Clamping to the range afterwards never moves a point away from an image that lies inside the range.
        factor = torch.where(length > self.eps, self.eps / length.clamp(min=1e-12), torch.ones_like(length))
        return (images + delta * factor).clamp(self.low, self.high)

    def ascent_direction(self, gradient: Tensor) -> Tensor:
        """Steepest ascent of length 1 in the norm; 0 stays 0.

        This is the sign ("linf"), the gradient over its length ("l2"), or the value of largest gradient alone ("l1").
        """
        if self.norm == "l1":
            return l1.unit_ascent(gradient)
        return gradient.sign() if self.norm == "linf" else _unit(gradient)

    def ascent_step(self, x: Tensor, gradient: Tensor, length: float) -> Tensor:
        """`x` (N, 3, H, W) after a steepest step of a length, which may leave the ball around the original.

        Under "l1" one pixel alone would leave its range, so the step keeps to the range and takes the next ones, too.
        """
        if self.norm == "l1":
            return x + l1.steepest_step(x, gradient, length, self.low, self.high)
        return x + length * self.ascent_direction(gradient)

    def dual_norm(self, gradient: Tensor) -> Tensor:
        """(N,) gain of a linear function along the steepest ascent of length 1."""
        flat = gradient.flatten(1)
        if self.norm == "l1":
            return flat.abs().amax(dim=1)
        return flat.abs().sum(dim=1) if self.norm == "linf" else flat.double().norm(dim=1).float()

    def allowed(self, adversarial: Tensor, images: Tensor, perturbable: Tensor | None = None) -> Tensor:
        """Return bool (N,), False where a perturbation is too long, or a pixel must not have the value it has.

        Args:
            adversarial: (N, 3, H, W).
            images: (N, 3, H, W), the originals.
            perturbable: (N, 1, H, W), 0 or False on pixels that must be exactly the original's; None: there are none.
        """
        tolerance = 1e-3 + 1e-5 * self.eps  # float32 at 255 has steps of 1.5e-5 per pixel
        fine = (adversarial >= self.low - 1e-3) & (adversarial <= self.high + 1e-3)
        if perturbable is not None:
            fine &= (perturbable > 0) | (adversarial == images)
        return (self.distance(adversarial, images) <= self.eps + tolerance) & fine.flatten(1).all(dim=1)  # not for NaN

    def verify(self, adversarial: Tensor, images: Tensor, perturbable: Tensor | None = None) -> None:
        """Checks that all images are `allowed`.

        Raises:
            ThreatModelViolation: one is not.
        """
        allowed = self.allowed(adversarial, images, perturbable)
        if not bool(allowed.all()):
            distance = self.distance(adversarial, images)
            index = int((~allowed).nonzero()[0])
            outside = ""
            if perturbable is not None:
                moved = ((adversarial != images) & (perturbable <= 0))[index].any(dim=0)
                outside = f", {int(moved.sum())} pixels moved outside of the mask or on padding"
            raise ThreatModelViolation(
                f"image {index} of the batch: {self.norm} distance {float(distance[index]):.4f} (allowed {self.eps}), "
                f"pixels {float(adversarial[index].min()):.4f} .. {float(adversarial[index].max()):.4f} "
                f"(allowed {self.low} .. {self.high}){outside}"
            )


def check_pixels(low: float, high: float, threat_model: ThreatModel) -> None:
    """Check that all pixels lie in the range of the threat model.

    Raises:
        UserError: pixels are outside of the range.
    """
    if low < threat_model.low - 1e-3 or high > threat_model.high + 1e-3:
        raise UserError(
            f"images must have pixels from {threat_model.low:g} to {threat_model.high:g}, got {low:g} to {high:g}. "
            "Give them as they are in the file: the model normalises them"
        )
    if 0 < high <= 1 < threat_model.high:
        log_every_n_seconds(
            logging.WARNING,
            f"no pixel of a batch is above {high:g}, and images must be in 0..{threat_model.high:g}: multiply images "
            "in 0..1 by 255",
            n=60,
            name=logger.name,
        )


def _unit(x: Tensor) -> Tensor:
    """Each image of (N, ...) divided by its Euclidean length; zero stays zero."""
    # Scaled by the largest entry first: squares of tiny gradients would underflow.
    flat = x.flatten(1)
    flat = flat / flat.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(flat.dtype).tiny)
    return (flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-12)).view_as(x)
