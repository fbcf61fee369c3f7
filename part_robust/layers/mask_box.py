"""Label maps to boxes and back (thesis section 2.4), so that segmenters and detectors are scored by the same metrics.

Letters: N images, P parts (label P is background), Q boxes of an image, H W pixels.
Boxes are XYXY in pixels with exclusive ends: the pixel in column x, row y is the box (x, y, x + 1, y + 1), as in
detectron2's `BitMasks.get_bounding_boxes`.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

# A part with a lower score does not count as found; the thesis chose 0.2 among 0.1..0.5.
FOUND_SCORE = 0.2


def most_probable(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The label of each pixel, and its softmax probability without the softmax of all the others.

    Args:
        logits: (..., P + 1, H, W).

    Returns:
        int64 (..., H, W) labels, and float32 (..., H, W) probabilities in 0..1, differentiable.
    """
    logits = logits.float()
    highest, labels = logits.max(dim=-3)
    return labels, (highest - logits.logsumexp(dim=-3)).exp()


def mask_bounds(masks: Tensor) -> tuple[Tensor, Tensor]:
    """The tightest box around each mask.

    Args:
        masks: bool (..., H, W).

    Returns:
        (..., 4) boxes, zero where a mask is empty; and bool (...), whether there is any pixel.
    """
    bounds = []
    for side in (-2, -1):  # pixels of a column, of a row
        line = masks.any(dim=side).to(torch.uint8)
        bounds.append((line.argmax(dim=-1), line.shape[-1] - line.flip(-1).argmax(dim=-1)))
    (left, right), (top, bottom) = bounds
    found = masks.flatten(-2).any(dim=-1)
    boxes = torch.stack([left, top, right, bottom], dim=-1).float()
    return boxes * found[..., None], found


def masks_to_boxes(
    labels: Tensor, probabilities: Tensor, num_parts: int, *, min_area: float = 0.01, connectivity: int = 4
) -> list[Instances]:
    """One box per connected component of equal part label.

    The components are found on the CPU (OpenCV), which only the label maps have to reach.

    Args:
        labels: integer (N, H, W); labels from `num_parts` on (background, ignored) give no boxes.
        probabilities: float (N, H, W), of the pixel's label; gradients of the scores flow into it.
        num_parts: P.
        min_area: components of less than this share of the image's H * W pixels are dropped; the thesis's 1 %.
        connectivity: 4 (pixels that share an edge, as in the thesis's notebook) or 8 (or a corner).

    Returns:
        Per image `Instances` on the device of `labels` with pred_boxes, pred_classes (0..P-1), and scores, the mean
        probability over the component. Ascending label, components in reading order.

    Raises:
        ValueError: another connectivity.
    """
    if connectivity not in (4, 8):
        raise ValueError(f"connectivity must be 4 or 8, is {connectivity}")
    height, width = labels.shape[-2:]
    # Compared as shares: 0.05 * 12 * 5 is a little more than 3, and would drop a component of exactly 5 %.
    pixels = height * width
    components = np.zeros(labels.shape, dtype=np.int64)  # numbered from 1 through the whole batch; 0 is not a component
    boxes: list[np.ndarray] = []
    classes: list[int] = []
    counts = []
    for own, image in zip(components, labels.detach().to("cpu", torch.int64).numpy(), strict=True):
        before = len(boxes)
        areas = np.bincount(image.ravel(), minlength=num_parts)[:num_parts]
        for label in np.flatnonzero((areas > 0) & (areas / pixels >= min_area)):
            mask = (image == label).view(np.uint8)
            _, numbers, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=connectivity)
            large = stats[:, cv2.CC_STAT_AREA] / pixels >= min_area
            large[0] = False  # what is not this label
            renumber = np.zeros(len(stats), dtype=np.int64)
            renumber[large] = np.arange(len(boxes) + 1, len(boxes) + large.sum() + 1)
            own += renumber[numbers]
            x, y, w, h = stats[large, :4].T
            boxes.extend(np.stack([x, y, x + w, y + h], axis=1))
            classes.extend([int(label)] * int(large.sum()))
        counts.append(len(boxes) - before)

    device = probabilities.device
    index = torch.from_numpy(components).flatten().to(device)
    sums = probabilities.new_zeros(len(boxes) + 1).index_add(0, index, probabilities.flatten())
    scores = (sums / index.bincount(minlength=len(boxes) + 1).clamp(min=1))[1:]
    corners = torch.tensor(np.array(boxes).reshape(-1, 4), dtype=torch.float32, device=labels.device)
    numbers = torch.tensor(classes, dtype=torch.int64, device=labels.device)
    return [
        Instances((height, width), pred_boxes=Boxes(box), scores=score, pred_classes=part)
        for box, score, part in zip(corners.split(counts), scores.split(counts), numbers.split(counts), strict=True)
    ]


def boxes_to_sem_seg(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    num_parts: int,
    size: tuple[int, int],
    threshold: float = FOUND_SCORE,
) -> Tensor:
    """Label map: every pixel has the class of the most confident box over it, or background where there is none.

    A box covers a pixel if it holds the pixel's centre. Of equal scores the first box wins. Needs memory for
    Q * H * W floats per image.

    Args:
        boxes: (..., Q, 4) XYXY pixels; Q may be 0.
        scores: (..., Q).
        classes: int64 (..., Q), 0..P-1.
        num_parts: P.
        size: (H, W).
        threshold: boxes with a lower score are dropped; the thesis chose 0.2 among 0.1..0.5.

    Returns:
        int64 (..., H, W), 0..P.
    """
    values = scores.detach()[..., None, None].where(_covers(boxes, scores, size, threshold), float("-inf"))
    # One more box, over everything and behind all others: background.
    everywhere = values.new_full((*values.shape[:-3], 1, *size), torch.finfo(values.dtype).min)
    best = torch.cat([values, everywhere], dim=-3).argmax(dim=-3)
    classes = torch.cat([classes, classes.new_full((*classes.shape[:-1], 1), num_parts)], dim=-1)
    return classes.gather(-1, best.flatten(-2)).unflatten(-1, size)


def boxes_to_score_map(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    num_parts: int,
    size: tuple[int, int],
    threshold: float = FOUND_SCORE,
) -> Tensor:
    """The scores behind `boxes_to_sem_seg`, whose labels are their argmax where positive scores do not tie.

    Arguments as there.

    Returns:
        (..., P + 1, H, W): the highest score of a part's boxes over the pixel, 0 where it has none; background is 1
        where no box is, else 0. Differentiable with respect to `scores`.
    """
    covers = _covers(boxes, scores, size, threshold)
    values = scores[..., None, None].where(covers, 0.0)
    result = values.new_zeros(*values.shape[:-3], num_parts, *size)
    result = result.scatter_reduce(-3, classes[..., None, None].expand_as(values), values, "amax")
    background = (~covers.any(dim=-3, keepdim=True)).to(values.dtype)
    return torch.cat([result, background], dim=-3)


def _covers(boxes: Tensor, scores: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """Return bool (..., Q, H, W), whether the box is confident enough and holds the pixel's centre."""
    left, top, right, bottom = boxes.detach()[..., None].unbind(dim=-2)
    y = torch.arange(size[0], device=boxes.device) + 0.5
    x = torch.arange(size[1], device=boxes.device) + 0.5
    rows = (top <= y) & (y < bottom) & (scores.detach() >= threshold)[..., None]
    return rows[..., :, None] & ((left <= x) & (x < right))[..., None, :]
