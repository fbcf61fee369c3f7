"""Bounding-Box part model (Sitawarin et al., 2023): the class is read from where each part is, how large and how sure.

Letters: N images, C classes, D part maps that are read, F numbers per map, h w pixels of the decoder's output.
"""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, get_norm
from torch import Tensor, nn

from part_robust.modeling.heads.pixel import foreground_weights
from part_robust.modeling.registry import CLASS_HEAD_REGISTRY, ClassHead
from part_robust.structures import PartOutput
from part_robust.utils.errors import UserError

# Added to sums by `published_box_features`.
FLOOR = 1e-6


@CLASS_HEAD_REGISTRY.register()
class BoundingBoxHead(ClassHead):
    """Soft score, centroid and spread of every part map, then a two-layer perceptron."""

    needs_parts = True
    reads = ("sem_seg_logits",)

    @configurable
    def __init__(
        self,
        *,
        num_parts: int,
        num_classes: int,
        hidden_dim: int,
        normalize: str,
        use_score: bool,
        drop_background: bool,
        norm: str,
    ) -> None:
        """Build the perceptron for the given numbers of parts and classes.

        Args:
            num_parts: P, without background.
            num_classes: C.
            hidden_dim: units of the hidden layer.
            normalize: "image" or "object", see `box_features`; "published": `published_box_features`.
            use_score: five numbers per map instead of four.
            drop_background: read the P part maps only (D = P), not the background's (D = P + 1).
            norm: name for detectron2's get_norm.

        Raises:
            ValueError: an unknown `normalize`; "published" with the background's box, which it has not.
        """
        super().__init__()
        if normalize not in ("image", "object", "published"):
            raise ValueError(f"MODEL.BOUNDING_BOX_HEAD.NORMALIZE must be image, object or published, is {normalize!r}")
        if normalize == "published" and not drop_background:
            raise UserError(
                "MODEL.BOUNDING_BOX_HEAD.DROP_BACKGROUND must be True with NORMALIZE published, got False: the "
                "published head reads the parts alone"
            )
        self.normalize = normalize
        self.use_score = use_score
        self.drop_background = drop_background
        maps = num_parts if drop_background else num_parts + 1
        channels = (5 if use_score else 4) * maps
        # No norm in front, where the published head has a batch norm. A young decoder's boxes hardly differ from image
        # to image, the norm blows those differences up, and the gradients that come back through it can kill the
        # decoder (tests/toy.py, batches of 4, 200 iterations: 1 of 5 seeds learned the classes with it, 5 without).
        self.layers = nn.Sequential(
            nn.Conv2d(channels, hidden_dim, 1),  # a linear layer that any of the norms can follow
            nn.ReLU(),
            get_norm(norm, hidden_dim) or nn.Identity(),
            nn.Flatten(),
            nn.Linear(hidden_dim, num_classes),
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        node = cfg.MODEL.BOUNDING_BOX_HEAD
        return {
            "num_parts": cfg.MODEL.PART_CLASSIFIER.NUM_PARTS,
            "num_classes": cfg.MODEL.PART_CLASSIFIER.NUM_CLASSES,
            "hidden_dim": node.HIDDEN_DIM,
            "normalize": node.NORMALIZE,
            "use_score": node.USE_SCORE,
            "drop_background": node.DROP_BACKGROUND,
            "norm": cfg.MODEL.PART_CLASSIFIER.HEAD_NORM,
        }

    def forward(self, features: dict[str, Tensor], parts: PartOutput | None) -> Tensor:
        assert parts is not None and parts.sem_seg_logits is not None, "BoundingBoxHead needs a dense segmenter"
        if self.normalize == "published":
            boxes = published_box_features(parts.sem_seg_logits)
        else:
            boxes = box_features(parts.sem_seg_logits, self.normalize)
            boxes = boxes[:, :-1] if self.drop_background else boxes
        boxes = boxes if self.use_score else boxes[..., 1:]
        return self.layers(boxes.flatten(1)[..., None, None])


def box_features(logits: Tensor, normalize: str = "image") -> Tensor:
    """Soft boxes of all part maps, finite and with finite gradients also for a part that is nowhere.

    A part's pixel weights are its softmax probabilities divided by their sum, taken in the log domain: they add up to 1
    even where every probability underflows. Whether the part is there at all is the score's to tell.

    Args:
        logits: (N, P + 1, h, w), background last, any h and w.
        normalize: "image": -1 and 1 are the image's left and right (top and bottom) edges. "object": from the
            foreground's centroid, in units of the foreground's spread, so that moving and scaling the object in the
            image changes nothing.

    Returns:
        float32 (N, P + 1, 5): score (mean logit over the foreground), centroid x, y, spread (standard deviation) x, y.
    """
    flat = logits.float().flatten(2)
    foreground = foreground_weights(flat)
    score = (flat * foreground).sum(dim=-1, keepdim=True)
    weights = flat.log_softmax(dim=1).softmax(dim=-1)
    center, spread = _moments(weights.unflatten(-1, logits.shape[-2:]))
    if normalize == "object":
        object_center, object_spread = _moments(foreground.unflatten(-1, logits.shape[-2:]))
        center = (center - object_center) / object_spread
        spread = spread / object_spread
    return torch.cat([score, center, spread], dim=-1)


def published_box_features(logits: Tensor) -> Tensor:
    """Soft boxes of the parts as the code of Sitawarin et al. (2023) computes them, for its checkpoints.

    Beside `box_features`: the score's weights are sigmoid(sum of all parts' logits - background's), pixels are at their
    left and upper edges, and sums have a floor of 1e-6 instead of being taken in the log domain, so that the less there
    is of a part, the further outside of the image is its centre.

    Args:
        logits: (N, P + 1, h, w), background last, at the size of the image.

    Returns:
        float32 (N, P, 5): score, centroid x, y, spread x, y, as `box_features`.
    """
    logits = logits.float()
    parts = logits[:, :-1]
    foreground = (parts.sum(dim=1, keepdim=True) - logits[:, -1:]).sigmoid()
    foreground = foreground / foreground.sum(dim=(-2, -1), keepdim=True).clamp_min(FLOOR)
    score = (parts * foreground).sum(dim=(-2, -1))
    probabilities = logits.softmax(dim=1)[:, :-1]
    total = probabilities.sum(dim=(-2, -1)) + FLOOR
    centers, spreads = [], []
    for side, other in ((-1, -2), (-2, -1)):
        marginal = probabilities.sum(dim=other) + FLOOR
        count = logits.shape[side]
        position = torch.arange(count, device=logits.device, dtype=logits.dtype)
        center = (marginal * position).sum(dim=-1) / total
        variance = (marginal * (position - center[..., None]) ** 2).sum(dim=-1) / total
        centers.append(center / count * 2 - 1)
        # The root's slope is infinite at 0, the variance in an image of one pixel.
        spreads.append(variance.clamp_min(FLOOR**2).sqrt() / count * 2)
    return torch.stack([score, *centers, *spreads], dim=-1)


def _moments(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation (N, D, 2) of x and y in -1..1, of weights (N, D, h, w) that add up to 1."""
    means, spreads = [], []
    for side, other in ((-1, -2), (-2, -1)):
        marginal = weights.sum(dim=other)
        count = weights.shape[side]
        # Pixel centres between the edges -1 and 1.
        position = (torch.arange(count, device=weights.device, dtype=weights.dtype) * 2 + 1) / count - 1
        mean = marginal @ position
        # Around the mean: the difference of two large moments would lose a small part's digits.
        variance = (marginal * (position - mean[..., None]) ** 2).sum(dim=-1)
        means.append(mean)
        # The root's slope is infinite at 0, the spread of a part of one pixel.
        spreads.append((variance + 1e-6).sqrt())
    return torch.stack(means, dim=-1), torch.stack(spreads, dim=-1)
