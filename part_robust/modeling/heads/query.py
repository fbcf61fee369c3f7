"""Mask DINO Simple (thesis section 3.3): the part logits of queries vote for classes through the part-to-class matrix.

Letters: N images, Q queries, K logits of a query (parts first), P parts, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from part_robust.modeling.part_to_class import PartToClass
from part_robust.modeling.registry import CLASS_HEAD_REGISTRY, ClassHead
from part_robust.structures import PartOutput

AGGREGATIONS = ("mean", "max", "topk", "confidence")


@CLASS_HEAD_REGISTRY.register()
class QueryHead(ClassHead):
    """Class logits B = Q M of every query, put together over the queries.

    "mean" is the thesis's. Most queries of an image see no part, and share the class's gradient with those that do;
    "max" and "topk" listen to the queries that speak loudest for a class, "confidence" to those that see a part.
    """

    needs_parts = True
    reads = ("query_logits",)

    @configurable
    def __init__(
        self,
        *,
        part_to_class: Callable[[Tensor], Tensor] | nn.Module,
        num_parts: int,
        aggregation: str = "mean",
        top_k: int = 10,
    ) -> None:
        """Set how the logits of queries become class logits.

        Args:
            part_to_class: (..., P) -> (..., C), linear.
            num_parts: P; logits behind them (background, no object) vote for no class.
            aggregation: "mean", "max", "topk" or "confidence".
            top_k: queries that count for each class under "topk"; all of them where there are fewer.

        Raises:
            ValueError: an unknown aggregation; `top_k` below 1.
        """
        super().__init__()
        if aggregation not in AGGREGATIONS:
            raise ValueError(
                f"MODEL.QUERY_HEAD.AGGREGATION must be one of {', '.join(AGGREGATIONS)}, is {aggregation!r}"
            )
        if top_k < 1:
            raise ValueError(f"MODEL.QUERY_HEAD.TOP_K must be at least 1, is {top_k}")
        self.part_to_class = part_to_class
        self.num_parts = num_parts
        self.aggregation = aggregation
        self.top_k = top_k

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        return {
            "part_to_class": PartToClass(cfg),
            "num_parts": cfg.MODEL.PART_CLASSIFIER.NUM_PARTS,
            "aggregation": cfg.MODEL.QUERY_HEAD.AGGREGATION,
            "top_k": cfg.MODEL.QUERY_HEAD.TOP_K,
        }

    def forward(self, features: dict[str, Tensor], parts: PartOutput | None) -> Tensor:
        assert parts is not None, "QueryHead needs the segmenter's output"
        if parts.query_logits is None:
            raise ValueError("QueryHead reads queries: set MODEL.PART_CLASSIFIER.SEGMENTER to MaskDinoSegmenter")
        logits = parts.query_logits.float()
        votes = logits[..., : self.num_parts]
        # The matrix is linear: weighted means are taken of part logits, before it, without (N, Q, C) numbers.
        if self.aggregation == "mean":
            return self.part_to_class(votes.mean(dim=1))
        if self.aggregation == "confidence":
            return self.part_to_class((votes * part_weights(logits, self.num_parts)).sum(dim=1))
        count = 1 if self.aggregation == "max" else min(self.top_k, votes.shape[1])
        return self.part_to_class(votes).topk(count, dim=1).values.mean(dim=1)


def part_weights(logits: Tensor, num_parts: int) -> Tensor:
    """Share of each query in what its image's queries see of parts.

    In the log domain, so that an image whose queries all see nothing still has weights that add up to 1, and gradients.

    Args:
        logits: (N, Q, K), the parts first. Where nothing comes behind them (a sigmoid detector), "no part" has logit 0.
        num_parts: P.

    Returns:
        (N, Q, 1), proportional to the probability that the query sees a part, adding up to 1 over the queries.
    """
    everything = logits if logits.shape[-1] > num_parts else F.pad(logits, (0, 1))
    part = logits[..., :num_parts].logsumexp(dim=-1, keepdim=True) - everything.logsumexp(dim=-1, keepdim=True)
    return torch.softmax(part, dim=1)
