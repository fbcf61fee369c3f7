"""Deformable encoder and decoder of DINO (Zhang et al., 2023), shared by DINO and Mask DINO.

Letters: N images, Q queries, L feature levels, S pixels of all levels together, C channels, K part classes.
Boxes are cxcywh, 0..1 of the image without its padding. Parameter names are those of public checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from part_robust.layers.box_ops import inverse_sigmoid
from part_robust.layers.ms_deform_attn import MSDeformAttn
from part_robust.layers.position_encoding import box_embedding
from part_robust.modeling.segmenters.tokens import Tokens, pixel_centers

if TYPE_CHECKING:
    from typing_extensions import Unpack  # Python 3.10 has none


class LayerOptions(TypedDict):
    """Settings that encoder and decoder layers share: heads, hidden units, levels, points, `ms_deform_attn`'s name."""

    heads: int
    feedforward_dim: int
    levels: int
    points: int
    backend: str


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, sizes: Sequence[int]) -> None:
        """Build the layers.

        Args:
            sizes: of input, hidden layers and output.
        """
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in zip(sizes[:-1], sizes[1:], strict=True))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x), inplace=True)
        return self.layers[-1](x)

    def zero_last_layer(self) -> None:
        """Set the last layer to zero, so that refined boxes are at first those that they start from."""
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)


class EncoderLayer(nn.Module):
    """Deformable self-attention and a perceptron, each followed by a norm."""

    def __init__(self, *, dim: int, heads: int, feedforward_dim: int, levels: int, points: int, backend: str) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(dim=dim, heads=heads, levels=levels, points=points, backend=backend)
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, tokens: Tokens, reference: Tensor) -> Tensor:
        attended = self.self_attn(x + tokens.position, reference, x, tokens.shapes, tokens.padding)
        x = self.norm1(x + attended)
        return self.norm2(x + self.linear2(F.relu(self.linear1(x), inplace=True)))


class Encoder(nn.Module):
    """Layers over the tokens; without a norm at the end, as published."""

    def __init__(self, *, layers: int, dim: int, **layer_options: Unpack[LayerOptions]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(dim=dim, **layer_options) for _ in range(layers))

    def forward(self, tokens: Tokens) -> Tensor:
        """Returns (N, S, C)."""
        centers = pixel_centers(tokens.shapes, tokens.valid_ratio)
        reference = centers[:, :, None] * tokens.valid_ratio[:, None]
        x = tokens.features
        for layer in self.layers:
            x = layer(x, tokens, reference)
        return x


class DecoderLayer(nn.Module):
    """Self-attention, deformable attention to the image, a perceptron; the norms are numbered as in checkpoints."""

    def __init__(self, *, dim: int, heads: int, feedforward_dim: int, levels: int, points: int, backend: str) -> None:
        super().__init__()
        self.cross_attn = MSDeformAttn(dim=dim, heads=heads, levels=levels, points=points, backend=backend)
        self.norm1 = nn.LayerNorm(dim)
        self.self_attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        reference: Tensor,
        memory: Tensor,
        tokens: Tokens,
        attention_mask: Tensor | None,
    ) -> Tensor:
        query = x + position
        # Without the attention weights as a result the fused kernels run.
        attended, _ = self.self_attn(query, query, x, attn_mask=attention_mask, need_weights=False)
        x = self.norm2(x + attended)
        x = self.norm1(x + self.cross_attn(x + position, reference, memory, tokens.shapes, tokens.padding))
        return self.norm3(x + self.linear2(F.relu(self.linear1(x), inplace=True)))


class Decoder(nn.Module):
    """Layers that refine content and boxes of the queries.

    Attributes:
        detach_references: each layer's boxes go into the next one as constants (published training). An attacker who
            follows such gradients misses every path through the boxes; see modeling/gradients.py.
    """

    def __init__(
        self,
        *,
        layers: int,
        dim: int,
        detach_references: bool,
        eps: float = 1e-3,
        **layer_options: Unpack[LayerOptions],
    ) -> None:
        """Build the layers.

        Args:
            layers: number of layers.
            dim: C.
            detach_references: see above.
            eps: of `inverse_sigmoid`.
            **layer_options: of `DecoderLayer`.
        """
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(dim=dim, **layer_options) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.ref_point_head = MLP([2 * dim, dim, dim])
        self.detach_references = detach_references
        self.eps = eps

    def forward(
        self,
        content: Tensor,
        reference: Tensor,
        memory: Tensor,
        tokens: Tokens,
        box_heads: Sequence[Callable[[Tensor], Tensor]],
        attention_mask: Tensor | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Refine content and boxes of the queries, layer by layer.

        Args:
            content: (N, Q, C).
            reference: (N, Q, 4).
            memory: (N, S, C), the encoder's output.
            tokens: what the encoder saw.
            box_heads: one per layer, (N, Q, C) -> (N, Q, 4) changes of the box logits.
            attention_mask: bool (Q, Q), True where a query (row) must not see another (column).

        Returns:
            Per layer the normalised content (N, Q, C), and the boxes (N, Q, 4) the layer started from: with their
            gradient to the layer before, so that a loss on a layer's boxes trains two (look forward twice).
        """
        scale = tokens.valid_ratio.repeat(1, 1, 2)[:, None]
        contents, starts = [], []
        start = reference
        for index, layer in enumerate(self.layers):
            starts.append(start)
            reference = start.detach() if self.detach_references and index else start
            scaled = reference[:, :, None] * scale
            position = self.ref_point_head(box_embedding(scaled[:, :, 0], content.shape[-1] // 2).to(content.dtype))
            content = layer(content, position, scaled, memory, tokens, attention_mask)
            contents.append(self.norm(content))
            if index + 1 < len(self.layers):
                # On the content before the norm, unlike the predicted boxes.
                start = refine(reference, box_heads[index](content), self.eps)
        return contents, starts


def refine(boxes: Tensor, change: Tensor, eps: float) -> Tensor:
    """Boxes (..., 4) moved by changes (..., 4) of their logits."""
    return (change.to(boxes.dtype) + inverse_sigmoid(boxes, eps)).sigmoid()


def proposals(tokens: Tokens, size: float = 0.05) -> tuple[Tensor, Tensor]:
    """One box per pixel, of sides `size` * 2^level around its centre.

    Returns:
        (N or 1, S, 4), and bool (N or 1, S): False on padding and where a side or a centre is outside of 0.01..0.99.
    """
    centers = pixel_centers(tokens.shapes, tokens.valid_ratio)
    sides = torch.cat([centers.new_full((h * w, 2), size * 2.0**level) for level, (h, w) in enumerate(tokens.shapes)])
    boxes = torch.cat([centers, sides.expand(len(centers), -1, -1)], dim=-1)
    valid = ((boxes > 0.01) & (boxes < 0.99)).all(dim=-1)
    return boxes, valid if tokens.padding is None else valid & ~tokens.padding


class Selected(NamedTuple):
    """Pixels that become queries, most confident first.

    Attributes:
        content: (N, Q, C).
        logits: (N, Q, K) of the classes.
        boxes: (N, Q, 4).
        pixels: int64 (N, Q), which of the S they are.
    """

    content: Tensor
    logits: Tensor
    boxes: Tensor
    pixels: Tensor


class QuerySelection(nn.Module):
    """The encoder's own predictions; the most confident ones give the decoder's first boxes (mixed query selection).

    Attributes:
        factor: this many times Q pixels are chosen, or all there are; above 1 only within
            `modeling.gradients.expanded_queries`.
        padding_last: padding is chosen only where an image has fewer pixels than queries. In the published code (False)
            it competes with the one confidence that it has everywhere, and a model whose training images have no
            padding never learns to make that low.
    """

    factor = 1
    padding_last = True

    def __init__(self, *, dim: int, num_queries: int, num_classes: int | None = None) -> None:
        """Set how many queries are chosen, and by which heads.

        Args:
            dim: C.
            num_queries: Q.
            num_classes: K of heads of its own; None where the decoder's are used, which the caller then gives.
        """
        super().__init__()
        self.num_queries = num_queries
        self.enc_output = nn.Linear(dim, dim)
        self.enc_output_norm = nn.LayerNorm(dim)
        if num_classes is not None:
            self.enc_out_class_embed = nn.Linear(dim, num_classes)
            self.enc_out_bbox_embed = MLP([dim, dim, dim, 4])

    def forward(
        self,
        memory: Tensor,
        tokens: Tokens,
        class_head: Callable[[Tensor], Tensor] | None = None,
        box_head: Callable[[Tensor], Tensor] | None = None,
    ) -> Selected:
        """Choose the pixels whose most probable class is most confident.

        Args:
            memory: (N, S, C), the encoder's output.
            tokens: what the encoder saw.
            class_head: (N, S, C) -> (N, S, K), instead of its own.
            box_head: (N, Q, C) -> (N, Q, 4) changes of the box logits, instead of its own.

        Raises:
            ValueError: the image has fewer pixels in all levels than there are queries.
        """
        if memory.shape[1] < self.num_queries:
            raise ValueError(
                f"{self.num_queries} queries are chosen from feature pixels, of which levels {list(tokens.shapes)} "
                f"have {memory.shape[1]}: lower NUM_QUERIES (of MODEL.DINO or MODEL.MASK_DINO) or raise INPUT.SIZE"
            )
        boxes, valid = proposals(tokens)
        x = self.enc_output_norm(self.enc_output(memory * valid[..., None]))
        logits = (class_head or self.enc_out_class_embed)(x)
        scores = logits.amax(dim=-1)
        if tokens.padding is not None and self.padding_last:
            scores = scores.masked_fill(tokens.padding, float("-inf"))
        index = self.select(scores)[..., None]
        images = memory.shape[0]
        content = x.gather(1, index.expand(-1, -1, x.shape[-1]))
        # The box head on the selected pixels only: the others' boxes are used nowhere.
        change = (box_head or self.enc_out_bbox_embed)(content)
        # Pixels that are not proposals can be selected all the same; their box is the corner point (1, 1).
        start = boxes.logit().masked_fill(~valid[..., None], float("inf")).expand(images, -1, -1)
        boxes = (change.to(start.dtype) + start.gather(1, index.expand(-1, -1, 4))).sigmoid()
        return Selected(content, logits.gather(1, index.expand(-1, -1, logits.shape[-1])), boxes, index[..., 0])

    def select(self, scores: Tensor) -> Tensor:
        """Scores (N, S) -> int64 (N, Q)."""
        return scores.topk(min(self.factor * self.num_queries, scores.shape[1]), dim=1).indices
