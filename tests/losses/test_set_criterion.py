"""Matching and set losses: against a slow loop, per image, under every kind of missing label."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou

from part_robust.layers.box_ops import cxcywh_to_xyxy
from part_robust.losses.matcher import HungarianMatcher, Matching, pad_part_boxes
from part_robust.losses.set_criterion import PredictedParts, SetCriterion

CLASSES, QUERIES = 4, 6


def random_boxes(count: int) -> torch.Tensor:
    return torch.rand(count, 4) * 0.5 + 0.25


def problem(counts=(2, 0, 3), sets: int = 2, known=None, complete=None):
    torch.manual_seed(0)
    images = len(counts)
    labels = [torch.randint(CLASSES, (count,)) for count in counts]
    boxes = [random_boxes(count) for count in counts]
    known = torch.ones(images, dtype=torch.bool) if known is None else torch.tensor(known)
    complete = None if complete is None else torch.tensor(complete)
    predictions = PredictedParts(
        torch.randn(sets, images, QUERIES, CLASSES).requires_grad_(True),
        (torch.rand(sets, images, QUERIES, 4) * 0.5 + 0.25).requires_grad_(True),
    )
    return predictions, pad_part_boxes(labels, boxes, known, complete), labels, boxes


def criterion() -> SetCriterion:
    return SetCriterion(matcher=HungarianMatcher())


def slow_cost(logits, boxes, labels, true):
    p = logits.sigmoid()
    focal = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log() - 0.75 * p**2 * -(1 - p + 1e-8).log()
    giou = generalized_box_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(true))
    return 2 * focal[:, labels] + 5 * torch.cdist(boxes, true, p=1) - 2 * giou


def test_costs_and_assignment_are_those_of_each_image_alone():
    predictions, targets, labels, boxes = problem()
    matcher = HungarianMatcher()
    cost = matcher.cost(predictions.logits, predictions.boxes, targets)
    matching = matcher(predictions.logits, predictions.boxes, targets)
    for t in range(2):
        for n, count in enumerate((2, 0, 3)):
            expected = slow_cost(predictions.logits[t, n], predictions.boxes[t, n], labels[n], boxes[n]).detach()
            torch.testing.assert_close(cost[t, n, :, :count], expected, atol=1e-4, rtol=1e-4)
            rows, columns = linear_sum_assignment(expected)
            assert matching.query[t, n, columns].tolist() == rows.tolist()
            assert matching.matched[t, n].tolist() == [True] * count + [False] * (3 - count)


def test_losses_equal_the_slow_loop():
    predictions, targets, labels, boxes = problem()
    sums = criterion().sums(predictions, targets)
    for t in range(2):
        for n in range(3):
            logits, own = predictions.logits[t, n], predictions.boxes[t, n]
            rows, columns = linear_sum_assignment(slow_cost(logits, own, labels[n], boxes[n]).detach())
            wanted = torch.zeros(QUERIES, CLASSES)
            wanted[rows, labels[n][columns]] = 1.0
            p = logits.sigmoid()
            right = torch.where(wanted > 0, p, 1 - p)
            alpha = torch.where(wanted > 0, 0.25, 0.75)
            torch.testing.assert_close(sums["class"][t, n], (-alpha * (1 - right) ** 2 * right.log()).sum())
            torch.testing.assert_close(sums["box"][t, n], F.l1_loss(own[rows], boxes[n][columns], reduction="sum"))
            giou = generalized_box_iou(cxcywh_to_xyxy(own[rows]), cxcywh_to_xyxy(boxes[n][columns])).diag()
            torch.testing.assert_close(sums["giou"][t, n], (1 - giou).sum(), atol=1e-4, rtol=1e-4)
    losses = batch_losses(sums, targets)
    torch.testing.assert_close(losses["loss_part_box"], 5 * sums["box"].sum() / 2 / 5)  # 2 sets, 5 parts


def batch_losses(sums, targets):
    return criterion().batch_losses(sums, criterion().normalizers(targets, [sums])[0])


def test_an_image_has_the_same_loss_in_any_company():
    predictions, targets, labels, boxes = problem()
    sums = criterion().sums(predictions, targets)
    together = criterion().image_losses(sums, targets)
    for n in range(3):
        alone = pad_part_boxes([labels[n]], [boxes[n]], torch.ones(1, dtype=torch.bool))
        own = PredictedParts(predictions.logits[:, n : n + 1], predictions.boxes[:, n : n + 1])
        result = criterion().image_losses(criterion().sums(own, alone), alone)
        torch.testing.assert_close(result[0], together[n])


def test_unlabelled_images_teach_nothing():
    predictions, targets, _, _ = problem(known=[True, True, False])
    sums = criterion().sums(predictions, targets)
    assert all(not value[:, 2].any() for value in sums.values())
    sum(value.sum() for value in sums.values()).backward()
    assert predictions.logits.grad[:, :2].any() and not predictions.logits.grad[:, 2].any()
    assert not predictions.boxes.grad[:, 2].any()
    alone = batch_losses(sums, targets)
    assert float(alone["loss_part_box"]) == pytest.approx(float(5 * sums["box"].sum() / 2 / 2)), "2 parts are known"


def test_incomplete_labels_blame_no_other_prediction():
    predictions, targets, _, _ = problem(complete=[True, False, False])
    criterion().sums(predictions, targets)["class"].sum().backward()
    touched = predictions.logits.grad.abs().sum(dim=-1) > 0
    assert touched[:, 0].all() and not touched[:, 1].any()
    assert (touched[:, 2].sum(dim=1) == 3).all(), "the queries of the three known parts"


@pytest.mark.parametrize("counts", [(0, 0), (QUERIES + 3, 1)])
def test_no_part_and_more_parts_than_queries(counts):
    predictions, targets, _, _ = problem(counts)
    matching = HungarianMatcher()(predictions.logits, predictions.boxes, targets)
    assert matching.matched.sum(dim=-1)[0].tolist() == [min(count, QUERIES) for count in counts]
    losses = batch_losses(criterion().sums(predictions, targets), targets)
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert torch.isfinite(predictions.boxes.grad).all()


def test_a_given_matching_is_used():
    predictions, targets, _, boxes = problem((1,), sets=1)
    for query in range(QUERIES):
        matching = Matching(torch.tensor([[[query]]]), torch.tensor([[[True]]]))
        sums = criterion().sums(predictions, targets, matching)
        torch.testing.assert_close(sums["box"][0, 0], (predictions.boxes[0, 0, query] - boxes[0][0]).abs().sum())


@pytest.mark.parametrize("broken", ["logits", "boxes"])
def test_diverged_predictions_find_a_matching_and_a_loss_that_is_not_finite(broken):
    """SOLVER.NON_FINITE decides what happens then."""
    predictions, targets, _, _ = problem()
    setattr(predictions, broken, getattr(predictions, broken) * float("nan"))
    matching = HungarianMatcher()(predictions.logits, predictions.boxes, targets)
    assert torch.equal(matching.matched, targets.present.expand_as(matching.matched))
    losses = batch_losses(criterion().sums(predictions, targets, matching), targets)
    assert not torch.isfinite(sum(losses.values()))
