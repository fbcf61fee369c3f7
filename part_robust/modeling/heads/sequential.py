"""Sequential part model of detectors (thesis section 2.3): the class is read from all queries, one after the other.

Letters: N images, Q queries, K part classes, C classes.
"""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, get_norm
from torch import Tensor, nn

from part_robust.modeling.registry import CLASS_HEAD_REGISTRY, ClassHead
from part_robust.structures import PartOutput

PROBABILITIES = {"softmax": lambda logits: logits.softmax(dim=-1), "sigmoid": torch.sigmoid}


@CLASS_HEAD_REGISTRY.register()
class SequentialHead(ClassHead):
    """Part probabilities and box of every query -> norm, linear, ReLU, norm, linear.

    More queries than the layers take (`modeling.gradients.expanded_queries`) are read in groups of Q, the last Q last,
    and the logits are averaged.

    The published release takes the softmax over the queries instead of the classes.
    """

    needs_parts = True
    reads = ("query_logits", "query_boxes")

    @configurable
    def __init__(
        self,
        *,
        num_queries: int,
        num_parts: int,
        num_classes: int,
        hidden_dim: int,
        probabilities: str,
        order: str,
        norm: str,
    ) -> None:
        """Build the perceptron for the given numbers of queries, parts and classes.

        Args:
            num_queries: Q.
            num_parts: K.
            num_classes: C.
            hidden_dim: units of the hidden layer.
            probabilities: "softmax" over a query's classes, or "sigmoid" of each, as the detector is trained.
            order: of the queries: "decoded", or "confidence", most probable part first.
            norm: name for detectron2's get_norm.

        Raises:
            ValueError: an unknown `probabilities` or `order`.
        """
        super().__init__()
        if probabilities not in PROBABILITIES:
            raise ValueError(
                f"MODEL.SEQUENTIAL_HEAD.PROBABILITIES must be one of {', '.join(PROBABILITIES)}, is {probabilities!r}"
            )
        if order not in ("decoded", "confidence"):
            raise ValueError(f"MODEL.SEQUENTIAL_HEAD.ORDER must be decoded or confidence, is {order!r}")
        self.num_queries = num_queries
        self.probabilities = PROBABILITIES[probabilities]
        self.order = order
        features = num_queries * (num_parts + 4)
        self.layers = nn.Sequential(
            get_norm(norm, features) or nn.Identity(),
            nn.Conv2d(features, hidden_dim, 1),  # a linear layer between norms of maps of one pixel
            nn.ReLU(),
            get_norm(norm, hidden_dim) or nn.Identity(),
            nn.Flatten(),
            nn.Linear(hidden_dim, num_classes),
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        node = cfg.MODEL.SEQUENTIAL_HEAD
        return {
            "num_queries": cfg.MODEL.DINO.NUM_QUERIES,
            "num_parts": cfg.MODEL.PART_CLASSIFIER.NUM_PARTS,
            "num_classes": cfg.MODEL.PART_CLASSIFIER.NUM_CLASSES,
            "hidden_dim": node.HIDDEN_DIM,
            "probabilities": node.PROBABILITIES,
            "order": node.ORDER,
            "norm": cfg.MODEL.PART_CLASSIFIER.HEAD_NORM,
        }

    def forward(self, features: dict[str, Tensor], parts: PartOutput | None) -> Tensor:
        assert parts is not None, "SequentialHead needs the segmenter's output"
        if parts.query_logits is None or parts.query_boxes is None:
            raise ValueError("SequentialHead reads queries: MODEL.PART_CLASSIFIER.SEGMENTER must be a detector")
        # Boxes keep float32 also under mixed precision.
        logits = parts.query_logits.to(parts.query_boxes.dtype)
        numbers = torch.cat([self.probabilities(logits), parts.query_boxes], dim=-1)
        if self.order == "confidence":
            order = parts.query_logits.amax(dim=-1).argsort(dim=1, descending=True, stable=True)
            numbers = numbers.gather(1, order[..., None].expand_as(numbers))
        last = numbers.shape[1] - self.num_queries
        class_logits = [
            self.layers(numbers[:, start : start + self.num_queries].flatten(1)[..., None, None])
            for start in (*range(0, last, self.num_queries), last)
        ]
        return class_logits[0] if len(class_logits) == 1 else torch.stack(class_logits).mean(dim=0)
