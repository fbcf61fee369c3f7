"""DINO (Zhang et al., 2023) as a part detector: parts are boxes of queries.

Letters: N images, Q queries, D denoising queries, T sets of predictions, K = P part classes (no background),
C channels, L feature levels, S pixels of all levels together, H W image pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from part_robust.layers.box_ops import cxcywh_to_xyxy
from part_robust.layers.ms_deform_attn import MSDeformAttn
from part_robust.losses.matcher import HungarianMatcher
from part_robust.losses.set_criterion import SetCriterion
from part_robust.modeling.features import check_features
from part_robust.modeling.registry import PART_SEGMENTER_REGISTRY
from part_robust.modeling.segmenters.denoising import DenoisingOptions, make_denoising_queries, prepend
from part_robust.modeling.segmenters.query_segmenter import LOSS_SCALES, QuerySegmenter, repeated, validate_option
from part_robust.modeling.segmenters.tokens import (
    Tokens,
    content_size,
    input_projection,
    make_tokens,
    reset_projections,
)
from part_robust.modeling.segmenters.transformer import MLP, Decoder, Encoder, LayerOptions, QuerySelection, refine
from part_robust.structures import (
    Denoised,
    DenoisingQueries,
    PartBoxes,
    PartOutput,
    PartTargets,
    PredictedParts,
    PredictedSets,
)

# Of `inverse_sigmoid`, in DINO's decoder.
EPS = 1e-3


@PART_SEGMENTER_REGISTRY.register()
class DinoSegmenter(QuerySegmenter):
    """Backbone features -> Q boxes with K class logits (sigmoid, focal loss).

    `query_boxes` are 0..1 of the image without its letterbox padding.
    """

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        in_channels: Sequence[int],
        num_classes: int,
        num_queries: int,
        encoder_layers: int,
        decoder_layers: int,
        levels: int,
        dim: int,
        heads: int,
        points: int,
        feedforward_dim: int,
        share_heads: bool,
        position_temperature: float,
        position_offset: float,
        num_label_embeddings: int,
        denoising_number: int,
        label_noise: float,
        box_noise: float,
        detach_references: bool,
        max_detections: int,
        criterion: SetCriterion,
        backend: str = "auto",
    ) -> None:
        """Build the detector.

        Args:
            in_features: backbone features, fine to coarse.
            in_channels: their channels.
            num_classes: K.
            num_queries: Q.
            encoder_layers: number of encoder layers.
            decoder_layers: number of decoder layers.
            levels: L, at least the number of features; more are made from the last one by strided convolutions.
            dim: C.
            heads: attention heads.
            points: sampling points per head and level.
            feedforward_dim: hidden units of the layers' perceptrons.
            share_heads: one class and one box head for all decoder layers.
            position_temperature: of `sine_position`.
            position_offset: of `sine_position`.
            num_label_embeddings: part labels the denoising embedding has room for; one more row is never used.
            denoising_number: of `make_denoising_queries`.
            label_noise: of `make_denoising_queries`.
            box_noise: of `make_denoising_queries`.
            detach_references: see `Decoder`; also of the boxes that the encoder selects.
            max_detections: boxes per image in `inference`.
            criterion: the losses.
            backend: of `ms_deform_attn`.

        Raises:
            ValueError: more labels than `num_label_embeddings`; fewer levels than features; no decoder layer.
        """
        super().__init__()
        if num_classes > num_label_embeddings:
            raise ValueError(f"MODEL.DINO.LABEL_BOOK_SIZE {num_label_embeddings} is less than the {num_classes} parts")
        if levels < len(in_features):
            raise ValueError(f"MODEL.DINO.LEVELS {levels} is less than the {len(in_features)} MODEL.DINO.IN_FEATURES")
        if decoder_layers < 1:
            raise ValueError("MODEL.DINO.DECODER_LAYERS must be at least 1")
        self.in_features = list(in_features)
        self.num_classes, self.num_queries = num_classes, num_queries
        self.position_temperature, self.position_offset = position_temperature, position_offset
        self.denoising = DenoisingOptions(number=denoising_number, label_noise=label_noise, box_noise=box_noise)
        self.max_detections = max_detections
        self.criterion = criterion

        self.input_proj = nn.ModuleList(input_projection(channels, dim) for channels in in_channels)
        for extra in range(levels - len(in_channels)):
            self.input_proj.append(input_projection(dim if extra else in_channels[-1], dim, stride=2))
        self.level_embed = nn.Parameter(torch.empty(levels, dim))
        layer_options: LayerOptions = {
            "heads": heads,
            "feedforward_dim": feedforward_dim,
            "levels": levels,
            "points": points,
            "backend": backend,
        }
        self.encoder = Encoder(layers=encoder_layers, dim=dim, **layer_options)
        self.query_selection = QuerySelection(dim=dim, num_classes=num_classes, num_queries=num_queries)
        self.tgt_embed = nn.Embedding(num_queries, dim)
        self.decoder = Decoder(
            layers=decoder_layers, dim=dim, detach_references=detach_references, eps=EPS, **layer_options
        )
        head_count = 1 if share_heads else decoder_layers
        self.class_embed = nn.ModuleList(nn.Linear(dim, num_classes) for _ in range(head_count))
        self.bbox_embed = nn.ModuleList(MLP([dim, dim, dim, 4]) for _ in range(head_count))
        self.label_enc = nn.Embedding(num_label_embeddings + 1, dim)
        self._reset_parameters()

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        node = cfg.MODEL.DINO
        check_features("MODEL.DINO.IN_FEATURES", node.IN_FEATURES, input_shape)
        parts = cfg.MODEL.PART_CLASSIFIER.NUM_PARTS
        return {
            "in_features": node.IN_FEATURES,
            "in_channels": [input_shape[name].channels for name in node.IN_FEATURES],
            "num_classes": parts,
            "num_queries": node.NUM_QUERIES,
            "encoder_layers": node.ENCODER_LAYERS,
            "decoder_layers": node.DECODER_LAYERS,
            "levels": node.LEVELS,
            "dim": node.DIM,
            "heads": node.HEADS,
            "points": node.POINTS,
            "feedforward_dim": node.FEEDFORWARD_DIM,
            "share_heads": node.SHARE_HEADS,
            "position_temperature": node.POSITION_TEMPERATURE,
            "position_offset": node.POSITION_OFFSET,
            "num_label_embeddings": max(node.LABEL_BOOK_SIZE, parts),
            "denoising_number": node.DENOISING_NUMBER,
            "label_noise": node.LABEL_NOISE,
            "box_noise": node.BOX_NOISE,
            "detach_references": node.DETACH_REFERENCES,
            "max_detections": node.MAX_DETECTIONS,
            "criterion": SetCriterion(
                matcher=HungarianMatcher(
                    class_cost=node.MATCH_CLASS_COST, box_cost=node.MATCH_BOX_COST, giou_cost=node.MATCH_GIOU_COST
                ),
                class_weight=node.CLASS_WEIGHT,
                box_weight=node.BOX_WEIGHT,
                giou_weight=node.GIOU_WEIGHT,
                sum_sets=validate_option("DINO.LOSS_SCALE", node.LOSS_SCALE, LOSS_SCALES) == "thesis",
            ),
            "backend": node.MS_DEFORM_ATTN,
        }

    def _reset_parameters(self) -> None:
        for part in (self.encoder, self.decoder, self.query_selection):
            for parameter in part.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
        nn.init.xavier_uniform_(self.tgt_embed.weight)
        for module in self.modules():
            if isinstance(module, MSDeformAttn):
                module.reset_parameters()
        nn.init.normal_(self.level_embed)
        reset_projections(self.input_proj)
        for head in (*self.class_embed, self.query_selection.enc_out_class_embed):
            reset_class_bias(head)
        for head in (*self.bbox_embed, self.query_selection.enc_out_bbox_embed):
            head.zero_last_layer()

    def forward(
        self,
        features: dict[str, Tensor],
        image_size: tuple[int, int],
        padding_mask: Tensor | None = None,
        targets: PartTargets | None = None,
        class_only: bool = False,
        denoise: bool = True,
    ) -> PartOutput:
        tokens = self.tokens(features, padding_mask)
        memory = self.encoder(tokens)
        selected = self.query_selection(memory, tokens)
        reference = selected.boxes.detach() if self.decoder.detach_references else selected.boxes
        content = repeated(self.tgt_embed.weight, reference.shape[1]).to(memory.dtype).expand(memory.shape[0], -1, -1)
        size = content_size(padding_mask, image_size, memory.device)
        true_parts = None if targets is None else self.true_parts(targets, size)
        denoising = None
        if true_parts is not None and self.training and denoise:
            denoising = self._denoising_queries(true_parts)
        content, reference, attention_mask = prepend(denoising, content, reference)
        last = len(self.decoder.layers) - 1
        heads = [self.bbox_embed[min(i, len(self.bbox_embed) - 1)] for i in range(last + 1)]
        contents, starts = self.decoder(content, reference, memory, tokens, heads, attention_mask)
        # Losses use all layers, everything else the last one.
        layers = range(last + 1) if targets is not None else [last]
        sets = [self._predict(i, contents[i], starts[i]) for i in layers]
        ordinary = slice(0 if denoising is None else denoising.content.shape[1], None)
        last_logits, last_boxes = (x[:, ordinary] for x in sets[-1])
        output = PartOutput(query_logits=last_logits, query_boxes=last_boxes, content_size=size, targets=targets)
        if true_parts is not None:
            logits, boxes = (torch.stack(x) for x in zip(*sets, strict=True))
            output.sets = PredictedSets(
                true_parts,
                decoder=PredictedParts(logits[:, :, ordinary], boxes[:, :, ordinary]),
                encoder=PredictedParts(selected.logits[None], selected.boxes[None]),
                pixels=selected.pixels,
            )
            if denoising is not None:
                hidden = slice(0, ordinary.start)
                output.sets.denoising = Denoised(denoising, PredictedParts(logits[:, :, hidden], boxes[:, :, hidden]))
        return output

    def tokens(self, features: dict[str, Tensor], padding_mask: Tensor | None) -> Tokens:
        """All levels as one sequence."""
        maps = [features[name] for name in self.in_features]
        levels: list[Tensor] = []
        for index, projection in enumerate(self.input_proj):
            source = maps[index] if index < len(maps) else maps[-1] if index == len(maps) else levels[-1]
            levels.append(projection(source))
        return make_tokens(levels, padding_mask, self.level_embed, self.position_temperature, self.position_offset)

    def _predict(self, layer: int, content: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        own = min(layer, len(self.class_embed) - 1)
        return self.class_embed[own](content), refine(start, self.bbox_embed[own](content), EPS)

    def _denoising_queries(self, true_parts: PartBoxes) -> DenoisingQueries | None:
        return make_denoising_queries(
            true_parts,
            self.label_enc,
            num_classes=self.num_classes,
            num_queries=self.num_queries,
            eps=EPS,
            **self.denoising,
        )

    def inference(self, output: PartOutput, image_size: tuple[int, int]) -> list[dict]:
        """Return `instances` with pred_boxes (XYXY pixels), scores 0..1 and pred_classes, most confident first.

        A query may give several boxes of different parts, and there is no suppression of double ones.
        """
        assert output.query_logits is not None and output.query_boxes is not None and output.content_size is not None
        scores, index = output.query_logits.float().sigmoid().flatten(1).sort(dim=1, descending=True, stable=True)
        scores, index = scores[:, : self.max_detections], index[:, : self.max_detections]
        query = index // self.num_classes
        scale = output.content_size.flip(-1).repeat(1, 2)[:, None]
        boxes = cxcywh_to_xyxy(output.query_boxes.float()) * scale
        boxes = boxes.gather(1, query[..., None].expand(-1, -1, 4))
        return [
            {"instances": Instances(image_size, pred_boxes=Boxes(box), scores=score, pred_classes=part)}
            for box, score, part in zip(boxes, scores, index % self.num_classes, strict=True)
        ]


def reset_class_bias(head: nn.Linear, probability: float = 0.01) -> None:
    """Every class starts at this probability, or the many queries without a part would drown the loss."""
    nn.init.constant_(head.bias, -math.log((1 - probability) / probability))
