"""From the classes and masks of queries to label maps and to instances.

Letters: N images, Q queries, P parts, K class logits of a query (P, and one more for "no object" under softmax),
D instances of an image, H W pixels.
"""

from __future__ import annotations

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torch.nn import functional as F

from part_robust.layers.box_ops import cxcywh_to_xyxy, inverse_sigmoid, xyxy_to_cxcywh
from part_robust.layers.constants import constant
from part_robust.layers.mask_box import mask_bounds
from part_robust.modeling.segmenters.tokens import content_size
from part_robust.structures import PredictedMasks

CACHED_NUMBERS = 2**18


def part_probabilities(logits: Tensor, num_parts: int) -> tuple[Tensor, Tensor]:
    """Class logits (N, Q, K) -> probabilities of the parts (N, Q, P), and of none of them (N, Q)."""
    logits = logits.float()
    if logits.shape[-1] > num_parts:
        probability = logits.softmax(dim=-1)
        return probability[..., :num_parts], probability[..., num_parts:].sum(dim=-1)
    return logits.sigmoid(), torch.nn.functional.logsigmoid(-logits).sum(dim=-1).exp()


def semantic_scores(parts: Tensor, masks: Tensor) -> Tensor:
    """Return the published map: scores 0..Q (N, P, H, W) of part (N, Q, P) and mask probabilities (N, Q, H, W)."""
    return torch.einsum("nqp,nqhw->nphw", parts, masks)


def dense_log_scores(logits: Tensor, masks: Tensor, num_parts: int) -> Tensor:
    """Log-probabilities of the parts and of background at each pixel.

    The published map has no background, and its scores are not logits: cross-entropy on them has a flat gradient.
    Background scores 1 less the claim of the surest query on the pixel: in a product over all queries, many unsure ones
    would leave none. Then all scores are divided by their sum, so the order of the parts stays as published.

    Args:
        logits: (N, Q, K).
        masks: (N, Q, H, W) logits at the resolution wanted.
        num_parts: P.

    Returns:
        (N, P + 1, H, W), background last: what `softmax` leaves as it is.
    """
    parts, nothing = part_probabilities(logits, num_parts)
    if masks.device.type != "cpu" or torch.is_grad_enabled():
        return _dense_log_scores(parts, nothing, masks)
    # The masks at full resolution are the largest tensor of the model: a block of rows at a time, its intermediate
    # results stay in the processor's cache.
    images, queries, height, width = masks.shape
    rows = max(1, CACHED_NUMBERS // (images * queries * width))
    result = masks.new_empty(images, num_parts + 1, height, width)
    for block, own in zip(masks.split(rows, dim=2), result.split(rows, dim=2), strict=True):
        own.copy_(_dense_log_scores(parts, nothing, block))
    return result


def _dense_log_scores(parts: Tensor, nothing: Tensor, masks: Tensor) -> Tensor:
    scores = semantic_scores(parts, masks.sigmoid())
    # 1 - (1 - nothing) * sigmoid(mask), without the difference of almost equal numbers, and with few copies of what
    # is the largest tensor of the model.
    nothing = nothing[..., None, None]
    background = torch.addcmul(nothing, 1.0 - nothing, masks.neg().sigmoid_()).amin(dim=1, keepdim=True)
    everything = torch.cat([scores, background], dim=1).clamp(min=1e-30)
    return everything.log() - everything.sum(dim=1, keepdim=True).log()


def find_instances(
    logits: Tensor, boxes: Tensor, masks: Tensor, content_size: Tensor, *, num_parts: int, most: int
) -> list[Instances]:
    """The most confident pairs of query and part.

    Args:
        logits: (N, Q, K).
        boxes: (N, Q, 4) cxcywh, 0..1 of the images without their padding.
        masks: (N, Q, H, W) logits.
        content_size: (N or 1, 2) height and width in pixels of the images without their padding.
        num_parts: P.
        most: instances per image.

    Returns:
        Per image pred_boxes (XYXY pixels), pred_masks bool (D, H, W), pred_classes, and scores 0..1: the part's
        probability times the mean probability inside the mask; most confident first.
    """
    height, width = masks.shape[-2:]
    parts, _ = part_probabilities(logits, num_parts)
    scores, index = parts.flatten(1).sort(dim=1, descending=True, stable=True)
    scores, index = scores[:, :most], index[:, :most]
    query, part = index // num_parts, index % num_parts
    inside_y = torch.arange(height, device=masks.device) < content_size[:, :1]
    inside_x = torch.arange(width, device=masks.device) < content_size[:, 1:]
    found = (masks > 0) & (inside_y[:, :, None] & inside_x[:, None])[:, None]
    # Of each query once, also where several instances are of one query.
    area = found.flatten(2).sum(dim=2)
    sure = (masks.sigmoid() * found).flatten(2).sum(dim=2) / area.clamp(min=1)
    scores, order = (scores * sure.gather(1, query)).sort(dim=1, descending=True, stable=True)
    query, part = query.gather(1, order), part.gather(1, order)
    scale = content_size.flip(-1).repeat(1, 2)[:, None]
    corners = (cxcywh_to_xyxy(boxes.float()) * scale).gather(1, query[..., None].expand(-1, -1, 4))
    return [
        Instances((height, width), pred_boxes=Boxes(box), pred_masks=mask[own], scores=score, pred_classes=label)
        for box, mask, own, score, label in zip(corners, found, query, scores, part, strict=True)
    ]


@torch.no_grad()
def boxes_of_masks(masks: PredictedMasks, padding_mask: Tensor | None, box_init: str, eps: float) -> Tensor:
    """Mask-enhanced boxes (N, Q, 4) cxcywh of one set of masks: a threshold, which has no gradient.

    Args:
        masks: of one set.
        padding_mask: bool (N, H, W), True on letterbox padding.
        box_init: "bitmask" or "mask2box", see `MaskDinoSegmenter`.
        eps: of `inverse_sigmoid`.
    """
    found = masks.logits()[0] > 0
    height, width = found.shape[-2:]
    size = constant(((height, width),), torch.float32, found.device)
    if padding_mask is not None:
        valid = F.interpolate((~padding_mask)[:, None].float(), size=(height, width), mode="nearest")[:, 0].bool()
        found = found & valid[:, None]
        size = content_size(~valid, (height, width), found.device)
    boxes, any_pixel = mask_bounds(found)
    if box_init == "mask2box":
        # Ends are the last pixels' indices, and an empty mask becomes the corner point (1, 1), as published.
        boxes = boxes - constant((0.0, 0.0, 1.0, 1.0), boxes.dtype, boxes.device)
        nowhere = constant((1e8, 1e8, 0.0, 0.0), boxes.dtype, boxes.device)
        boxes = boxes.where(any_pixel[..., None], nowhere)
    boxes = xyxy_to_cxcywh(boxes) / size.flip(-1).repeat(1, 2)[:, None]
    return inverse_sigmoid(boxes, eps).sigmoid()
