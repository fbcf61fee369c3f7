"""Denoising queries: where they lie, what they see, what they must give back."""

from __future__ import annotations

import torch
from torch import nn

from part_robust.layers.box_ops import cxcywh_to_xyxy
from part_robust.losses.matcher import pad_part_boxes
from part_robust.modeling.segmenters.denoising import make_denoising_queries, repeat_targets

CLASSES, QUERIES, NUMBER = 5, 7, 12


def targets(*counts: int):
    torch.manual_seed(0)
    labels = [torch.randint(CLASSES, (count,)) for count in counts]
    boxes = [torch.tensor([[0.5, 0.5, 0.3, 0.2]]).expand(count, -1) for count in counts]
    return pad_part_boxes(labels, boxes, torch.ones(len(counts), dtype=torch.bool))


def make(true_parts, **options):
    embedding = nn.Embedding(CLASSES + 1, 8)
    options = {"number": NUMBER, "label_noise": 0.0, "box_noise": 1.0, **options}
    return make_denoising_queries(
        true_parts, embedding, num_classes=CLASSES, num_queries=QUERIES, **options
    ), embedding.weight.detach()


def test_groups_and_padding():
    queries, _ = make(targets(3, 1))
    assert queries.groups == NUMBER // 3
    assert queries.content.shape == (2, 2 * 3 * queries.groups, 8)
    assert queries.counted.view(2, queries.groups, 2, 3)[0].all()
    assert queries.counted.view(2, queries.groups, 2, 3)[1].any(dim=(0, 1)).tolist() == [True, False, False]
    assert not queries.content[~queries.counted].any()


def test_true_parts_that_exceed_the_number_make_one_group():
    assert make(targets(NUMBER + 5))[0].groups == 1


def test_nothing_to_ask_for():
    assert make(targets(0, 0))[0] is None
    assert make(targets(2), number=0)[0] is None


def test_each_group_gives_back_each_true_part():
    true_parts = targets(3, 2)
    queries, weight = make(true_parts)
    repeated = repeat_targets(true_parts, queries.groups)
    assert queries.matching.query.shape == (1, 2, 3 * queries.groups)
    for image in range(2):
        matched = queries.matching.matched[0, image]
        assert int(matched.sum()) == (3, 2)[image] * queries.groups
        asked = queries.content[image, queries.matching.query[0, image][matched]].detach()
        torch.testing.assert_close(asked, weight[repeated.labels[image][matched]])
    assert (queries.matching.query[0, 0] // 6).bincount().tolist() == [3] * queries.groups, "all groups"
    assert (queries.matching.query[0, 0] % 6).max() < 3, "the first half of each group"


def test_near_queries_stay_within_half_a_side_and_far_ones_leave_it():
    true_parts = targets(1)
    queries, _ = make(true_parts, number=400, box_noise=0.8)
    corners = cxcywh_to_xyxy(queries.boxes[0]).view(400, 2, 4)
    half = torch.tensor([0.15, 0.1, 0.15, 0.1]) * 0.8
    moved = (corners - cxcywh_to_xyxy(true_parts.boxes[0])).abs() / half
    assert (moved[:, 0] <= 1.001).all()
    straight = queries.boxes[0].view(400, 2, 4)[:, 1, 2:].amin(dim=-1) > 1e-2  # corners that did not change places
    assert straight.any() and (moved[:, 1][straight] >= 0.999).all() and (moved[:, 1][straight] <= 2.001).all()
    assert ((queries.boxes > 0) & (queries.boxes < 1)).all()


def test_labels_flip_at_half_the_noise():
    true_parts = targets(1)
    queries, weight = make(true_parts, number=4000, label_noise=0.5)
    same = (queries.content[0].detach() == weight[true_parts.labels[0, 0]]).all(dim=-1).float().mean()
    assert abs(float(same) - (1 - 0.25 * (CLASSES - 1) / CLASSES)) < 0.03


def test_who_sees_whom():
    queries, _ = make(targets(2))
    hidden = queries.attention_mask
    denoising = queries.content.shape[1]
    assert hidden.shape == (denoising + QUERIES,) * 2
    assert hidden[denoising:, :denoising].all(), "ordinary queries see no denoising query"
    assert not hidden[:, denoising:].any(), "everyone sees the ordinary queries"
    group = torch.arange(denoising) // 4
    assert torch.equal(hidden[:denoising, :denoising], group[:, None] != group[None])
