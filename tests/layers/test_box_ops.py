"""Boxes: the generalised IoU against its definition, logits of 0..1 at the ends, embeddings of positions."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import generalized_box_iou, generalized_box_iou_loss

from part_robust.layers.box_ops import (
    cxcywh_to_xyxy,
    inverse_sigmoid,
    paired_generalized_iou,
    pairwise_generalized_iou,
    xyxy_to_cxcywh,
)
from part_robust.layers.position_encoding import box_embedding, sine_position


def random_boxes(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return cxcywh_to_xyxy(torch.rand(*shape, 4, generator=generator) * torch.tensor([1.0, 1.0, 0.5, 0.5]))


def test_paired_generalized_iou_has_torchvisions_values_and_gradients():
    first, second = random_boxes(40), random_boxes(40)
    second[:5] = first[:5]  # the same boxes
    second[5:9, [2, 3]] = first[5:9, [0, 1]]  # boxes that touch in a corner
    first[9:12, 2:] = first[9:12, :2]  # boxes without an area
    grads = []
    for loss in (
        lambda a, b: 1.0 - paired_generalized_iou(a, b),
        lambda a, b: generalized_box_iou_loss(a, b, eps=1e-6),
    ):
        a, b = first.clone().requires_grad_(True), second.clone().requires_grad_(True)
        value = loss(a, b)
        grads.append((value, *torch.autograd.grad(value.sum(), (a, b))))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_pairwise_generalized_iou():
    first, second = random_boxes(2, 3, 5), random_boxes(3, 4)
    result = pairwise_generalized_iou(first, second)
    assert result.shape == (2, 3, 5, 4)
    for t in range(2):
        for n in range(3):
            torch.testing.assert_close(result[t, n], generalized_box_iou(first[t, n], second[n]), atol=2e-4, rtol=0)


def test_degenerate_boxes_are_finite():
    point = torch.tensor([[0.3, 0.3, 0.3, 0.3]])
    assert torch.isfinite(pairwise_generalized_iou(point, torch.cat([point, random_boxes(2)]))).all()
    assert pairwise_generalized_iou(point, torch.zeros(0, 4)).shape == (1, 0)


def test_corners_and_centres():
    boxes = random_boxes(7)
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)
    assert xyxy_to_cxcywh(torch.tensor([1.0, 2.0, 5.0, 4.0])).tolist() == [3.0, 3.0, 4.0, 2.0]


def test_inverse_sigmoid():
    x = torch.linspace(0.01, 0.99, 9)
    torch.testing.assert_close(inverse_sigmoid(x).sigmoid(), x)
    ends = inverse_sigmoid(torch.tensor([-1.0, 0.0, 1.0, 2.0]))
    expected = math.log(1e-3)
    torch.testing.assert_close(ends, torch.tensor([expected, expected, -expected, -expected]))


def test_box_embedding_is_y_x_w_h_with_sines_and_cosines():
    box = torch.tensor([0.1, 0.2, 0.3, 0.4])
    result = box_embedding(box, 8).view(4, 4, 2)
    for row, value in enumerate((0.2, 0.1, 0.3, 0.4)):
        for pair in range(4):
            angle = value * 2 * math.pi / 10000 ** (2 * pair / 8)
            torch.testing.assert_close(result[row, pair], torch.tensor([math.sin(angle), math.cos(angle)]))


@pytest.mark.parametrize("offset", [0.0, -0.5])
def test_sine_position_counts_valid_pixels(offset):
    valid = torch.ones(1, 4, 6, dtype=torch.bool)
    padded = torch.zeros(1, 6, 9, dtype=torch.bool)
    padded[:, :4, :6] = True
    inside = sine_position(padded, 8, 20.0, offset)[:, :4, :6]
    torch.testing.assert_close(inside, sine_position(valid, 8, 20.0, offset))
    angle = (2 + 1 + offset) / (4 + 1e-6) * 2 * math.pi  # third row; the first half of the channels is y
    torch.testing.assert_close(inside[0, 2, 5, :2], torch.tensor([math.sin(angle), math.cos(angle)]))
