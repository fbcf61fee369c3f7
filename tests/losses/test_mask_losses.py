"""Mask losses: against a slow loop, on pixels and on points, under ignored pixels and every number of parts."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from part_robust.losses.mask_losses import DenseMaskLoss, PointMaskLoss, PredictedMasks
from part_robust.losses.matcher import HungarianMatcher, Matching, pad_part_boxes
from part_robust.losses.set_criterion import PredictedParts, SetCriterion

SETS, IMAGES, QUERIES, CHANNELS, PARTS = 2, 2, 5, 4, 3
SMALL, LARGE = (6, 8), (24, 32)


def problem(parts: int = PARTS, ignored: bool = False):
    torch.manual_seed(0)
    predicted = PredictedMasks(
        torch.randn(SETS, IMAGES, QUERIES, CHANNELS).requires_grad_(True),
        torch.randn(IMAGES, CHANNELS, *SMALL).requires_grad_(True),
    )
    masks = torch.rand(IMAGES, parts, *LARGE) > 0.5
    counted = torch.ones(IMAGES, *LARGE, dtype=torch.bool)
    if ignored:
        counted[0, :12] = False  # whole cells, and half of one
        counted[0, 12:14] = False
    return predicted, masks, counted


def matching(parts: int = PARTS, groups: int = 1) -> Matching:
    query = torch.stack([torch.randperm(QUERIES)[:parts] for _ in range(SETS * IMAGES * groups)])
    query = query.view(SETS, IMAGES, groups * parts)
    matched = torch.ones_like(query, dtype=torch.bool)
    matched[0, 1, -1] = False
    return Matching(query, matched)


def slow_terms(logits, wanted, weight) -> tuple[torch.Tensor, torch.Tensor]:
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    p = logits.sigmoid() * weight
    dice = 1 - (2 * (p * wanted).sum() + 1) / (p.sum() + (wanted * weight).sum() + 1)
    return (entropy * weight).sum() / weight.sum(), dice


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_dense_losses_equal_the_slow_loop(ignored, groups):
    predicted, masks, counted = problem(ignored=ignored)
    loss = DenseMaskLoss()
    true = loss.prepare(masks, counted, SMALL)
    found = matching(groups=groups)
    sums, costs = loss.sums(predicted, true, found), loss.cost(predicted, true)
    logits = torch.einsum("tnqe,nehw->tnqhw", predicted.embedding, predicted.pixels)
    share = F.avg_pool2d(counted[:, None].float(), 4)[:, 0]
    wanted = F.avg_pool2d((masks & counted[:, None]).float(), 4) / share.clamp(min=1e-9)[:, None]
    for t in range(SETS):
        for n in range(IMAGES):
            expected = torch.zeros(2)
            for g in range(PARTS):
                for q in range(QUERIES):
                    terms = slow_terms(logits[t, n, q], wanted[n, g], share[n])
                    for cost, term in zip(costs, terms, strict=True):
                        torch.testing.assert_close(cost[t, n, q, g], term.detach(), atol=1e-5, rtol=1e-4)
                for pair in range(g, groups * PARTS, PARTS):
                    if found.matched[t, n, pair]:
                        terms = slow_terms(logits[t, n, found.query[t, n, pair]], wanted[n, g], share[n])
                        expected += torch.stack(terms).detach()
            torch.testing.assert_close(sums["mask"][t, n].detach(), expected[0], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(sums["dice"][t, n].detach(), expected[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("loss", [DenseMaskLoss(), PointMaskLoss(num_points=64)], ids=["dense", "points"])
def test_ignored_pixels_enter_no_mask_loss(loss):
    """Neither what is predicted there nor what is drawn there changes anything, and no gradient reaches them."""
    predicted, masks, counted = problem(ignored=True)
    found = matching()
    values = []
    for other in (False, True):
        changed = masks.clone()
        pixels = predicted.pixels.detach().clone()
        if other:
            changed[0, :, :14] ^= True
            pixels[0, :, :2] += 3.0  # of three rows of cells, the third is known in part
        pixels.requires_grad_(True)
        own = PredictedMasks(predicted.embedding, pixels)
        if isinstance(loss, PointMaskLoss):
            loss.batches = 0
            true = loss.prepare(changed, counted, SMALL)
            # Between cells a point sees both neighbours: only points a cell away from the border see known cells alone.
            true.counted[0, :16] = 0.0
        else:
            true = loss.prepare(changed, counted, SMALL)
        sums = loss.sums(own, true, found)
        sum(value.sum() for value in sums.values()).backward()
        assert not pixels.grad[0, :, :2].any() and pixels.grad[0, :, 4:].any()
        values.append(torch.stack(list(sums.values())).detach())
    torch.testing.assert_close(values[0], values[1])


def test_points_repeat_and_change_with_the_batch():
    predicted, masks, counted = problem()
    found = matching()

    def run(batches: int, seed: int = 3):
        loss = PointMaskLoss(num_points=50, seed=seed)
        results = []
        for _ in range(batches):
            true = loss.prepare(masks, counted, SMALL)
            results.append((loss.cost(predicted, true)[0], loss.sums(predicted, true, found)["mask"].detach()))
        return results

    first, second = run(2), run(2)
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(first[0][1], first[1][1]) and not torch.equal(first[0][1], run(1, seed=4)[0][1])
    state = torch.get_rng_state()
    run(1)
    assert torch.equal(torch.get_rng_state(), state), "the trainer's own random numbers stay"


def test_points_agree_with_pixels_where_masks_are_large():
    """Uniform points of smooth masks: nearly the dense loss."""
    torch.manual_seed(0)
    predicted = PredictedMasks(
        torch.randn(1, 1, 2, 2), F.interpolate(torch.randn(1, 2, 3, 3), (32, 32), mode="bilinear")
    )
    masks = torch.zeros(1, 1, 128, 128, dtype=torch.bool)
    masks[..., 30:90, 20:100] = True
    counted = torch.ones(1, 128, 128, dtype=torch.bool)
    dense, points = DenseMaskLoss(), PointMaskLoss(num_points=20000, importance=0.0)
    found = Matching(torch.tensor([[[1]]]), torch.tensor([[[True]]]))
    exact, near = (
        (loss.cost(predicted, true := loss.prepare(masks, counted, (32, 32))), loss.sums(predicted, true, found))
        for loss in (dense, points)
    )
    for one, other in zip(exact[0], near[0], strict=True):
        torch.testing.assert_close(one, other, rtol=0.03, atol=0.01)
    for name in ("mask", "dice"):
        torch.testing.assert_close(exact[1][name], near[1][name], rtol=0.03, atol=0.01)


def test_most_points_lie_where_the_mask_is_unsure():
    loss = PointMaskLoss(num_points=100)
    ramp = torch.linspace(-5, 5, 21).expand(1, 1, 21, 21)
    points = loss._uncertain_points(ramp, torch.ones(1, 1, 21, 21))
    near = ((points[0, :, 0] - 0.5).abs() < 0.15).float().mean()
    assert points.shape == (1, 100, 2) and near > 0.7, "three quarters, of three times as many uniform ones"


@pytest.mark.parametrize("parts", [0, QUERIES + 2])
@pytest.mark.parametrize("loss", [DenseMaskLoss(), PointMaskLoss(num_points=20)], ids=["dense", "points"])
@pytest.mark.parametrize("no_object_weight", [0.1, None])
def test_no_part_and_more_parts_than_queries(parts, loss, no_object_weight):
    predicted, masks, counted = problem(parts)
    labels = [torch.randint(3, (parts,)) for _ in range(IMAGES)]
    boxes = [torch.rand(parts, 4) * 0.5 + 0.25 for _ in range(IMAGES)]
    targets = pad_part_boxes(labels, boxes, torch.ones(IMAGES, dtype=torch.bool))
    targets.masks = loss.prepare(masks, counted, SMALL)
    logits = torch.randn(SETS, IMAGES, QUERIES, 4).requires_grad_(True)
    own = (torch.rand(SETS, IMAGES, QUERIES, 4) * 0.5 + 0.25).requires_grad_(True)
    criterion = SetCriterion(
        matcher=HungarianMatcher(mask_cost=5.0, dice_cost=5.0), mask_loss=loss, no_object_weight=no_object_weight
    )
    predictions = PredictedParts(logits, own, predicted)
    assert criterion.match(predictions, targets).matched.sum(dim=-1).eq(min(parts, QUERIES)).all()
    sums = criterion.sums(predictions, targets)
    losses = criterion.batch_losses(sums, criterion.normalizers(targets, [sums])[0])
    assert set(losses) == {f"loss_part_{name}" for name in ("class", "box", "giou", "mask", "dice")}
    sum(losses.values()).backward()
    for tensor in (logits, own, predicted.embedding, predicted.pixels):
        assert torch.isfinite(tensor.grad).all()
    assert (losses["loss_part_mask"] > 0) == (parts > 0)


def softmax_problem(known=(True, True), complete=(True, True)):
    torch.manual_seed(0)
    labels, boxes = [torch.tensor([0, 2]), torch.tensor([1])], [torch.rand(2, 4), torch.rand(1, 4)]
    targets = pad_part_boxes(labels, boxes, torch.tensor(known), torch.tensor(complete))
    logits = torch.randn(SETS, IMAGES, QUERIES, 4).requires_grad_(True)
    predictions = PredictedParts(logits, torch.rand(SETS, IMAGES, QUERIES, 4))
    found = Matching(torch.tensor([[[1, 4], [2, 0]], [[0, 3], [1, 0]]]), targets.present.expand(SETS, -1, -1))
    return SetCriterion(matcher=HungarianMatcher(), no_object_weight=0.1), predictions, targets, found


def test_softmax_loss_is_pytorchs_weighted_mean():
    criterion, predictions, targets, found = softmax_problem()
    sums = criterion.sums(predictions, targets, found)
    losses = criterion.batch_losses(sums, criterion.normalizers(targets, [sums])[0])
    weight = torch.tensor([1.0, 1.0, 1.0, 0.1])
    expected = []
    for t in range(SETS):
        classes = torch.full((IMAGES, QUERIES), 3)
        for n in range(IMAGES):
            for g in range(int(targets.present[n].sum())):
                classes[n, found.query[t, n, g]] = targets.labels[n, g]
        expected.append(F.cross_entropy(predictions.logits[t].flatten(0, 1), classes.flatten(), weight))
    torch.testing.assert_close(losses["loss_part_class"], torch.stack(expected).mean())


@pytest.mark.parametrize("known", [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("complete", [(True, True), (False, True)])
def test_softmax_loss_counts_what_no_prediction_changes(known, complete):
    criterion, predictions, targets, found = softmax_problem(known, complete)
    count = criterion.class_count(targets.present.sum(dim=1), targets.complete, QUERIES)
    for matching in (found, criterion.match(predictions, targets)):
        counts = criterion.sums(predictions, targets, matching)["class_count"].sum(dim=1)
        torch.testing.assert_close(counts, count.expand(SETS))
    if all(known) and all(complete):
        assert float(count) == pytest.approx(3 + 0.1 * (2 * QUERIES - 3))
    # More parts than queries: each query finds one.
    assert float(criterion.class_count(torch.tensor([QUERIES + 2]), torch.tensor([True]), QUERIES)) == QUERIES


def test_softmax_loss_of_unlabelled_and_incomplete_images():
    criterion, predictions, targets, found = softmax_problem(known=(True, False))
    criterion.sums(predictions, targets, found)["class"].sum().backward()
    assert predictions.logits.grad[:, 0].any() and not predictions.logits.grad[:, 1].any()
    criterion, predictions, targets, found = softmax_problem(complete=(False, True))
    criterion.sums(predictions, targets, found)["class"].sum().backward()
    touched = predictions.logits.grad.abs().sum(dim=-1) > 0
    assert touched[:, 0].sum(dim=-1).tolist() == [2, 2] and touched[:, 1].all()
