"""Mask DINO (Li et al., 2022) as a part segmenter: parts are masks and boxes of queries.

Letters: N images, Q queries, D denoising queries, T sets of predictions, P parts, K class logits of a query (P, and one
more for "no object" under softmax), C channels, S pixels of all levels together, h w pixels of masks (a quarter of the
image's sides), H W image pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from part_robust.layers.ms_deform_attn import MSDeformAttn
from part_robust.losses.mask_losses import DenseMaskLoss
from part_robust.losses.set_criterion import SetCriterion
from part_robust.modeling.features import check_features
from part_robust.modeling.registry import PART_SEGMENTER_REGISTRY
from part_robust.modeling.segmenters.denoising import DenoisingOptions, make_unified_denoising_queries, prepend
from part_robust.modeling.segmenters.mask_dino_criterion import build_criterion
from part_robust.modeling.segmenters.mask_inference import boxes_of_masks, dense_log_scores, find_instances
from part_robust.modeling.segmenters.pixel_decoder import PixelDecoder
from part_robust.modeling.segmenters.query_segmenter import QuerySegmenter, repeated, validate_option
from part_robust.modeling.segmenters.tokens import Tokens, content_size
from part_robust.modeling.segmenters.transformer import MLP, Decoder, QuerySelection, refine
from part_robust.structures import (
    Denoised,
    PartBoxes,
    PartOutput,
    PartTargets,
    PredictedMasks,
    PredictedParts,
    PredictedSets,
)

# Of `inverse_sigmoid`, in Mask DINO's decoder.
EPS = 1e-5

BOX_INITS = ("no", "bitmask", "mask2box")
OUTPUTS = ("semantic", "instance")


@PART_SEGMENTER_REGISTRY.register()
class MaskDinoSegmenter(QuerySegmenter):
    """Backbone features -> Q boxes and masks with K class logits: P and "no object" last (softmax), or P (sigmoids).

    `query_boxes` are 0..1 of the image without its letterbox padding; `query_masks` cover all of the input.
    """

    attack_objective = "pixel_cross_entropy"
    target_fields: tuple[str, ...] = ("sem_seg", "parts", "masks")
    predicts_masks = True

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        mask_feature: str,
        pixel_decoder: PixelDecoder,
        num_parts: int,
        num_queries: int,
        decoder_layers: int,
        levels: int,
        dim: int,
        mask_dim: int,
        heads: int,
        points: int,
        feedforward_dim: int,
        two_stage: bool,
        learned_content: bool,
        box_init: str,
        initial_prediction: bool,
        denoising_number: int,
        label_noise: float,
        box_noise: float,
        detach_references: bool,
        max_detections: int,
        outputs: Sequence[str],
        criterion: SetCriterion,
        backend: str = "auto",
    ) -> None:
        """Build the segmenter.

        Args:
            in_features: backbone features that the encoder sees, fine to coarse.
            mask_feature: backbone feature that has the resolution of masks.
            pixel_decoder: the encoder, and features of pixels.
            num_parts: P.
            num_queries: Q.
            decoder_layers: number of decoder layers.
            levels: of the pixel decoder.
            dim: C.
            mask_dim: channels of the mask features.
            heads: attention heads.
            points: sampling points per head and level.
            feedforward_dim: hidden units of the decoder layers' perceptrons.
            two_stage: queries start from the encoder's most confident pixels instead of learned content and boxes.
            learned_content: with two_stage, of these pixels only the boxes.
            box_init: with two_stage, the box a query starts from: its pixel's ("no"), or the tightest one around the
                mask that is predicted for it ("bitmask"; "mask2box" leaves out the last row and column).
            initial_prediction: parts are also predicted, and learned, from the queries before the first layer.
            denoising_number: of `make_unified_denoising_queries`.
            label_noise: of `make_unified_denoising_queries`.
            box_noise: of `make_unified_denoising_queries`.
            detach_references: see `Decoder`; also of boxes and content that the encoder selects.
            max_detections: instances per image in `inference`.
            outputs: of `inference`: "semantic", "instance" or both.
            criterion: the losses; its class loss decides between softmax and sigmoids.
            backend: of `ms_deform_attn`.

        Raises:
            ValueError: an unknown name; no decoder layer; boxes from masks without two_stage.
        """
        super().__init__()
        validate_option("MASK_DINO.BOX_INIT", box_init, BOX_INITS)
        for name in outputs:
            validate_option("MASK_DINO.OUTPUTS", name, OUTPUTS)
        if not outputs:
            raise ValueError("MODEL.MASK_DINO.OUTPUTS must name semantic, instance or both")
        if decoder_layers < 1:
            raise ValueError("MODEL.MASK_DINO.DECODER_LAYERS must be at least 1")
        if box_init != "no" and not two_stage:
            raise ValueError(f"MODEL.MASK_DINO.BOX_INIT {box_init} needs TWO_STAGE True: learned queries have no masks")
        self.in_features, self.mask_feature = list(in_features), mask_feature
        self.num_parts, self.num_queries = num_parts, num_queries
        self.two_stage, self.box_init, self.initial_prediction = two_stage, box_init, initial_prediction
        self.denoising = DenoisingOptions(number=denoising_number, label_noise=label_noise, box_noise=box_noise)
        self.max_detections, self.outputs = max_detections, tuple(outputs)
        self.softmax = criterion.no_object_weight is not None
        self.criterion = criterion
        # Random points would make attacks weaker and results noisy.
        self.dense_criterion = criterion
        if not isinstance(criterion.mask_loss, DenseMaskLoss):
            self.dense_criterion = criterion.with_mask_loss(DenseMaskLoss())

        self.pixel_decoder = pixel_decoder
        if two_stage:
            self.query_selection = QuerySelection(dim=dim, num_queries=num_queries)
        else:
            self.query_embed = nn.Embedding(num_queries, 4)
        self.query_feat = nn.Embedding(num_queries, dim) if learned_content or not two_stage else None
        self.decoder = Decoder(
            layers=decoder_layers,
            dim=dim,
            detach_references=detach_references,
            eps=EPS,
            heads=heads,
            feedforward_dim=feedforward_dim,
            levels=levels,
            points=points,
            backend=backend,
        )
        self.class_embed = nn.Linear(dim, num_parts + self.softmax)
        self.mask_embed = MLP([dim, dim, dim, mask_dim])
        self.bbox_embed = MLP([dim, dim, dim, 4])
        self.label_enc = nn.Embedding(num_parts, dim)
        self._reset_parameters()

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        node = cfg.MODEL.MASK_DINO
        check_features("MODEL.MASK_DINO.IN_FEATURES", node.IN_FEATURES, input_shape)
        check_features("MODEL.MASK_DINO.MASK_FEATURE", [node.MASK_FEATURE], input_shape)
        shared = {
            "levels": node.LEVELS,
            "dim": node.DIM,
            "mask_dim": node.MASK_DIM,
            "heads": node.HEADS,
            "points": node.POINTS,
            "backend": node.MS_DEFORM_ATTN,
        }
        pixel_decoder = PixelDecoder(
            in_channels=[input_shape[name].channels for name in node.IN_FEATURES],
            mask_in_channels=input_shape[node.MASK_FEATURE].channels,
            level_order=node.LEVEL_ORDER,
            layers=node.ENCODER_LAYERS,
            feedforward_dim=node.ENCODER_FEEDFORWARD_DIM,
            **shared,
        )
        return {
            "in_features": node.IN_FEATURES,
            "mask_feature": node.MASK_FEATURE,
            "pixel_decoder": pixel_decoder,
            "num_parts": cfg.MODEL.PART_CLASSIFIER.NUM_PARTS,
            "num_queries": node.NUM_QUERIES,
            "decoder_layers": node.DECODER_LAYERS,
            "feedforward_dim": node.FEEDFORWARD_DIM,
            "two_stage": node.TWO_STAGE,
            "learned_content": node.LEARNED_CONTENT,
            "box_init": node.BOX_INIT,
            "initial_prediction": node.INITIAL_PREDICTION,
            "denoising_number": node.DENOISING_NUMBER,
            "label_noise": node.LABEL_NOISE,
            "box_noise": node.BOX_NOISE,
            "detach_references": node.DETACH_REFERENCES,
            "max_detections": node.MAX_DETECTIONS,
            "outputs": node.OUTPUTS,
            "criterion": build_criterion(node),
            **shared,
        }

    def _reset_parameters(self) -> None:
        for parameter in self.decoder.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.decoder.modules():
            if isinstance(module, MSDeformAttn):
                module.reset_parameters()
        self.bbox_embed.zero_last_layer()

    @property
    def active_criterion(self) -> SetCriterion:
        return self.criterion if self.training else self.dense_criterion

    def forward(
        self,
        features: dict[str, Tensor],
        image_size: tuple[int, int],
        padding_mask: Tensor | None = None,
        targets: PartTargets | None = None,
        class_only: bool = False,
        denoise: bool = True,
    ) -> PartOutput:
        if class_only:
            targets = None
        memory, tokens = self.pixel_decoder([features[name] for name in self.in_features], padding_mask)
        pixels = None
        if not class_only or self.box_init != "no":
            pixels = self.pixel_decoder.pixels(features[self.mask_feature], memory, tokens)
        output = PartOutput(content_size=content_size(padding_mask, image_size, memory.device), targets=targets)
        content, reference, encoder, starts_at = self._start(memory, tokens, pixels, padding_mask, targets is not None)
        true_parts, denoising = None, None
        if targets is not None:
            assert pixels is not None and output.content_size is not None
            size = (int(pixels.shape[-2]), int(pixels.shape[-1]))
            true_parts = self.true_parts(targets, output.content_size, size)
            if self.training and denoise:
                denoising = make_unified_denoising_queries(
                    true_parts,
                    self.label_enc,
                    num_classes=self.num_parts,
                    num_queries=self.num_queries,
                    eps=EPS,
                    **self.denoising,
                )
        content, reference, attention_mask = prepend(denoising, content, reference)
        box_heads = [self.bbox_embed] * len(self.decoder.layers)
        contents, starts = self.decoder(content, reference, memory, tokens, box_heads, attention_mask)
        if true_parts is None:
            # The published model normalises twice what its class and mask heads read, once what its box head reads.
            last = self.decoder.norm(contents[-1])
            output.query_logits = self.class_embed(last)
            output.query_boxes = refine(starts[-1], self.bbox_embed(contents[-1]), EPS)
            if not class_only:
                assert pixels is not None
                output.query_masks = PredictedMasks(self.mask_embed(last)[None], pixels).logits()[0]
            return output

        # Losses use all layers, everything else the last one.
        assert pixels is not None
        every = torch.stack(contents)
        boxes = refine(torch.stack(starts), self.bbox_embed(every), EPS)
        if self.initial_prediction:
            every, boxes = torch.cat([content[None], every]), torch.cat([starts[0][None], boxes])
        every = self.decoder.norm(every)
        predictions = PredictedParts(self.class_embed(every), boxes, PredictedMasks(self.mask_embed(every), pixels))
        hidden = 0 if denoising is None else denoising.content.shape[1]
        decoder = predictions.of(slice(None), slice(hidden, None))
        output.query_logits, output.query_boxes = decoder.logits[-1], decoder.boxes[-1]
        output.sets = PredictedSets(true_parts, decoder, encoder, starts_at)
        if denoising is not None:
            # Without two stages, the published model predicts nothing from the denoising queries before the first
            # layer.
            first = int(self.initial_prediction and not self.two_stage)
            output.sets.denoising = Denoised(denoising, predictions.of(slice(first, None), slice(0, hidden)))
        return output

    def _start(
        self, memory: Tensor, tokens: Tokens, pixels: Tensor | None, padding_mask: Tensor | None, with_losses: bool
    ) -> tuple[Tensor, Tensor, PredictedParts | None, Tensor | None]:
        """Return where the queries start, what the encoder predicts, and which pixels (N, Q) were chosen.

        They start from content (N, Q, C) and boxes (N, Q, 4). The encoder's prediction is there only `with_losses`.
        """
        images = memory.shape[0]
        if not self.two_stage:
            assert self.query_feat is not None
            content = self.query_feat.weight.to(memory.dtype).expand(images, -1, -1)
            return content, self.query_embed.weight.sigmoid().expand(images, -1, -1), None, None
        selected = self.query_selection(
            # "No object" is not a reason to become a query; the published code has no model with both.
            memory,
            tokens,
            lambda x: self.class_embed(x)[..., : self.num_parts],
            self.bbox_embed,
        )
        encoder = masks = None
        normed = self.decoder.norm(selected.content)
        if with_losses or self.box_init != "no":
            assert pixels is not None
            masks = PredictedMasks(self.mask_embed(normed)[None], pixels)
        if with_losses:
            encoder = PredictedParts(self.class_embed(normed)[None], selected.boxes[None], masks)
        content, reference = selected.content, selected.boxes
        if self.decoder.detach_references:
            content, reference = content.detach(), reference.detach()
        if self.query_feat is not None:
            content = repeated(self.query_feat.weight, reference.shape[1]).to(memory.dtype).expand(images, -1, -1)
        if self.box_init != "no":
            assert masks is not None
            reference = boxes_of_masks(masks, padding_mask, self.box_init, EPS).to(reference.dtype)
        return content, reference, encoder, selected.pixels

    def true_parts(
        self, targets: PartTargets, content_size: Tensor, mask_size: tuple[int, int] | None = None
    ) -> PartBoxes:
        """Return the true parts with their masks, compared at `mask_size` (h, w).

        In images whose labels are incomplete everything but the labelled parts is unknown, so masks learn there only to
        tell these from one another.
        """
        parts = super().true_parts(targets, content_size)
        if mask_size is None:
            return parts
        masks = targets.padded(masks=True).masks
        mask_loss = self.active_criterion.mask_loss
        assert mask_loss is not None and masks is not None and targets.sem_seg is not None
        known = mask_loss.prepare(masks, targets.sem_seg <= self.num_parts, mask_size)
        return dataclasses.replace(parts, masks=known)

    def masks(self, output: PartOutput) -> Tensor:
        """Mask logits (N, Q, h, w) of the last layer, also where the output was made with targets."""
        if output.query_masks is not None:
            return output.query_masks
        masks = self.sets(output).last().masks
        assert masks is not None
        return masks.logits()[0]

    def dense_logits(self, output: PartOutput, image_size: tuple[int, int]) -> Tensor:
        """Log-probabilities of parts (N, P + 1, H, W), background last, see `dense_log_scores`."""
        assert output.query_logits is not None
        masks = _resize(self.masks(output), image_size)
        return dense_log_scores(output.query_logits, masks, self.num_parts)

    def inference(self, output: PartOutput, image_size: tuple[int, int]) -> list[dict]:
        """Return `sem_seg` of `dense_logits` and `instances` of `find_instances`."""
        assert output.query_logits is not None and output.query_boxes is not None
        masks = _resize(self.masks(output), image_size)
        results: list[dict] = [{} for _ in masks]
        if "semantic" in self.outputs:
            scores = dense_log_scores(output.query_logits, masks, self.num_parts)
            for result, own in zip(results, scores, strict=True):
                result["sem_seg"] = own
        if "instance" in self.outputs:
            assert output.content_size is not None
            found = find_instances(
                output.query_logits,
                output.query_boxes,
                masks,
                output.content_size,
                num_parts=self.num_parts,
                most=self.max_detections,
            )
            for result, instances in zip(results, found, strict=True):
                result["instances"] = instances
        return results


def _resize(masks: Tensor, image_size: tuple[int, int]) -> Tensor:
    return F.interpolate(masks.float(), size=image_size, mode="bilinear", align_corners=False)
