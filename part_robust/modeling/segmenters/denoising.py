"""Denoising (Zhang et al., 2023; Li et al., 2022): queries made of disturbed true parts, which need no matching.

Letters: N images, G true parts (padded), M groups, Z queries of a part in a group (2 in DINO, 1 in Mask DINO), D = Z M
G denoising queries, Q ordinary queries, C channels, K part classes.
"""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor, nn

from part_robust.layers.box_ops import cxcywh_to_xyxy, inverse_sigmoid, xyxy_to_cxcywh
from part_robust.structures import DenoisingQueries, Matching, PartBoxes


class DenoisingOptions(TypedDict):
    """Settings of `make_denoising_queries` and `make_unified_denoising_queries`."""

    number: int
    label_noise: float
    box_noise: float


def make_denoising_queries(
    targets: PartBoxes,
    embedding: nn.Embedding,
    *,
    num_classes: int,
    num_queries: int,
    number: int,
    label_noise: float,
    box_noise: float,
    eps: float = 1e-3,
) -> DenoisingQueries | None:
    """Make a positive (small box noise) and a negative query (large box noise) of each ground-truth part in each group.

    Negatives are trained as no-object. Padding is not trained; the published code trains it as background.

    Args:
        targets: of the batch.
        embedding: of part labels, (at least K, C).
        num_classes: K.
        num_queries: Q.
        number: wanted number of denoised parts, M G; 0 turns denoising off.
        label_noise: twice the share of labels that become random ones.
        box_noise: how far corners move: up to this share of half a side (positive), or once to twice that (negative).
        eps: of `inverse_sigmoid`.

    Returns:
        None if there is no true part in the batch or `number` is 0.
    """
    most = targets.present.shape[1]
    if number == 0 or not any(targets.count()):
        return None
    device = targets.labels.device
    shape = (len(targets.labels), max(number // most, 1), 2, most)  # nearby first, then further off
    labels = _flip(targets.labels, shape, num_classes, label_noise)

    boxes = targets.boxes[:, None, None].expand(*shape, 4)
    half = boxes[..., 2:].repeat(1, 1, 1, 1, 2) / 2
    distance = torch.rand(*shape, 4, device=device) + torch.arange(2, device=device).view(2, 1, 1)
    sign = torch.randint(2, (*shape, 4), device=device) * 2 - 1
    corners = (cxcywh_to_xyxy(boxes) + sign * distance * half * box_noise).clamp(0.0, 1.0)
    # Corners that changed places give a negative size, which `inverse_sigmoid` makes the least possible one.
    return _queries(targets, embedding(labels), xyxy_to_cxcywh(corners), num_queries, eps)


def make_unified_denoising_queries(
    targets: PartBoxes,
    embedding: nn.Embedding,
    *,
    num_classes: int,
    num_queries: int,
    number: int,
    label_noise: float,
    box_noise: float,
    eps: float = 1e-5,
) -> DenoisingQueries | None:
    """Make one query of each ground-truth part in each group, as in Mask DINO, which is trained on its mask, too.

    Args:
        targets: of the batch.
        embedding: of part labels, (at least K, C).
        num_classes: K.
        num_queries: Q.
        number: largest number of denoised parts, M G; 0 turns denoising off.
        label_noise: twice the share of labels that become random ones.
        box_noise: how far boxes move: the centre up to this share of half a side, sides up to this share of themselves.
        eps: of `inverse_sigmoid`.

    Returns:
        None if there is no true part in the batch, or an image has more than `number`.
    """
    most = targets.present.shape[1]
    if most > number or not any(targets.count()):
        return None
    shape = (len(targets.labels), number // most, 1, most)
    labels = _flip(targets.labels, shape, num_classes, label_noise)
    boxes = targets.boxes[:, None, None].expand(*shape, 4)
    reach = torch.cat([boxes[..., 2:] / 2, boxes[..., 2:]], dim=-1)
    moved = boxes + (2 * torch.rand_like(boxes) - 1) * reach * box_noise
    return _queries(targets, embedding(labels), moved.clamp(0.0, 1.0), num_queries, eps)


def _flip(labels: Tensor, shape: tuple[int, int, int, int], num_classes: int, label_noise: float) -> Tensor:
    """Labels (N, G) -> (N, M, Z, G), some of them random ones."""
    device = labels.device
    flipped = torch.rand(shape, device=device) < label_noise / 2
    return labels[:, None, None].expand(shape).where(~flipped, torch.randint(num_classes, shape, device=device))


def _queries(targets: PartBoxes, content: Tensor, boxes: Tensor, num_queries: int, eps: float) -> DenoisingQueries:
    """Queries of content (N, M, Z, G, C) and boxes (N, M, Z, G, 4), the first of the Z to be answered by the part."""
    images, groups, ways, most = content.shape[:4]
    device = content.device
    present = targets.present[:, None, None].expand(images, groups, ways, most)
    content = content * present[..., None]
    boxes = inverse_sigmoid(boxes, eps).sigmoid().where(present[..., None], 0.5)

    total = groups * ways * most
    slot = torch.arange(total, device=device)
    group = torch.cat([slot // (ways * most), slot.new_full((num_queries,), -1)])
    attention_mask = (group[None] >= 0) & (group[:, None] != group[None])
    parts = slot.view(groups, ways, most)[:, 0].flatten()
    matched = targets.present.repeat(1, groups)
    return DenoisingQueries(
        content=content.flatten(1, 3),
        boxes=boxes.flatten(1, 3),
        attention_mask=attention_mask,
        groups=groups,
        matching=Matching(parts.expand(1, images, -1), matched[None]),
        counted=present.flatten(1),
    )


def prepend(
    denoising: DenoisingQueries | None, content: Tensor, reference: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Put denoising queries in front of the ordinary ones.

    Args:
        denoising: None where there are none.
        content: (N, Q, C) of the ordinary queries.
        reference: (N, Q, 4), their boxes.

    Returns:
        Content (N, D + Q, C) and boxes (N, D + Q, 4) of all, and the attention mask, None without denoising queries.
    """
    if denoising is None:
        return content, reference, None
    content = torch.cat([denoising.content.to(content.dtype), content], dim=1)
    reference = torch.cat([denoising.boxes.to(reference.dtype), reference], dim=1)
    return content, reference, denoising.attention_mask


def repeat_targets(targets: PartBoxes, groups: int) -> PartBoxes:
    """The true parts once per group, (N, M G); their masks stay G, which mask losses know."""
    return PartBoxes(
        labels=targets.labels.repeat(1, groups),
        boxes=targets.boxes.repeat(1, groups, 1),
        present=targets.present.repeat(1, groups),
        known=targets.known,
        complete=targets.complete,
        masks=targets.masks,
    )
