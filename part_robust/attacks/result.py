"""Result of an attack on a batch.

Letters: N images of (3, H, W), RGB, 0..255; S steps of all runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from part_robust.utils.renamed import renamed


@dataclass
class AttackResult:
    """Result of an attack on a batch of images.

    Attributes:
        images: (N, 3, H, W), allowed by the threat model (verified).
        zero_gradient: bool (N,), images whose gradient was zero at every step of every run, so that a failed attack is
            not evidence of robustness. False for images that were removed before the first step, and for attacks that
            use no gradient.
        num_zero_gradient: number of these images, an integer on the host.
        success: bool (N,), the model is wrong on `images`; None where it was not computed (one run, last iterate kept,
            `scored` False).
        forwards: images sent through the model: a batch of 4 for 3 steps counts 12.
        backwards: images whose gradient was taken, counted in the same way.
        history: (S, N), the loss at each step, run after run, NaN where an image had been removed; None unless
            `record_history`.
        distance: (N,), norm of the smallest perturbation found that changes the class, inside eps or not, 0 for images
            that are wrong already, `inf` where none was found; None for attacks that do not look for it.
    """

    images: Tensor
    zero_gradient: Tensor
    num_zero_gradient: int
    success: Tensor | None = None
    forwards: int = 0
    backwards: int = 0
    history: Tensor | None = None
    distance: Tensor | None = None

    fooled = renamed("success")
