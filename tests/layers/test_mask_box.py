"""Label maps to boxes and back, against scipy, a painter's algorithm, and each other."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from part_robust.layers.mask_box import boxes_to_score_map, boxes_to_sem_seg, masks_to_boxes, most_probable

PARTS = 5
CELL = 9  # side of the cells in which the disjoint rectangles lie, with a gap at the right and at the bottom


@st.composite
def disjoint_rectangles(draw):
    """((H, W), [(x1, y1, x2, y2, label)]), at most one rectangle per cell of a grid, no two touching."""
    rows, columns = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    rectangles = []
    for row in range(rows):
        for column in range(columns):
            if draw(st.booleans()):
                x, y = draw(st.integers(0, CELL - 2)), draw(st.integers(0, CELL - 2))
                w, h = draw(st.integers(1, CELL - 1 - x)), draw(st.integers(1, CELL - 1 - y))
                x, y = x + column * CELL, y + row * CELL
                rectangles.append((x, y, x + w, y + h, draw(st.integers(0, PARTS - 1))))
    return (rows * CELL, columns * CELL), rectangles


@st.composite
def scored_boxes(draw):
    """Boxes (Q, 4), also beyond the image and empty, distinct scores (Q,), classes (Q,), and the size of the image."""
    count = draw(st.integers(0, 7))
    coordinate = st.floats(-5, 25, width=32)
    boxes = torch.tensor(draw(st.lists(st.tuples(*[coordinate] * 4), min_size=count, max_size=count)))
    boxes = boxes.reshape(count, 4)
    order = draw(st.permutations(range(count)))
    scores = (torch.tensor(order, dtype=torch.float32) + 1) / 8
    classes = torch.tensor(draw(st.lists(st.integers(0, PARTS - 1), min_size=count, max_size=count)), dtype=torch.int64)
    return boxes, scores, classes, (draw(st.integers(1, 20)), draw(st.integers(1, 20)))


def painted(boxes, scores, classes, size, threshold):
    """The most confident box last."""
    result = np.full(size, PARTS)
    for index in np.argsort(scores.numpy()):
        if scores[index] >= threshold:
            for y in range(size[0]):
                for x in range(size[1]):
                    left, top, right, bottom = boxes[index].tolist()
                    if left <= x + 0.5 < right and top <= y + 0.5 < bottom:
                        result[y, x] = classes[index]
    return result


@settings(max_examples=60, deadline=None)
@given(disjoint_rectangles(), st.sampled_from([4, 8]))
def test_round_trip_of_disjoint_rectangles_is_exact(drawn, connectivity):
    size, rectangles = drawn
    labels = torch.full(size, PARTS)
    for x1, y1, x2, y2, label in rectangles:
        labels[y1:y2, x1:x2] = label
    (found,) = masks_to_boxes(labels[None], torch.ones(1, *size), PARTS, min_area=0.0, connectivity=connectivity)
    rows = torch.cat([found.pred_boxes.tensor, found.pred_classes[:, None]], dim=1).int().tolist()
    assert sorted(map(tuple, rows)) == sorted(rectangles)
    assert found.image_size == size and torch.equal(found.scores, torch.ones(len(rectangles)))
    back = boxes_to_sem_seg(found.pred_boxes.tensor, found.scores, found.pred_classes, PARTS, size)
    assert torch.equal(back, labels)


@settings(max_examples=60, deadline=None)
@given(scored_boxes(), st.randoms(use_true_random=False), st.sampled_from([0.0, 0.2, 0.5]))
def test_boxes_to_labels_is_the_painters_algorithm_in_any_order(drawn, random, threshold):
    boxes, scores, classes, size = drawn
    order = list(range(len(boxes)))
    random.shuffle(order)
    labels = boxes_to_sem_seg(boxes, scores, classes, PARTS, size, threshold)
    assert labels.dtype == torch.int64
    assert np.array_equal(labels.numpy(), painted(boxes, scores, classes, size, threshold))
    assert torch.equal(labels, boxes_to_sem_seg(boxes[order], scores[order], classes[order], PARTS, size, threshold))
    score_map = boxes_to_score_map(boxes, scores, classes, PARTS, size, threshold)
    assert score_map.shape == (PARTS + 1, *size)
    assert torch.equal(score_map.argmax(dim=0), labels)
    assert torch.equal(
        score_map, boxes_to_score_map(boxes[order], scores[order], classes[order], PARTS, size, threshold)
    )


@example(seed=0, size=(12, 5), connectivity=4, min_area=0.05)  # a component of exactly 5 %
@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    st.sampled_from([4, 8]),
    st.sampled_from([0.0, 0.01, 0.05]),
)
def test_components_agree_with_scipy(seed, size, connectivity, min_area):
    generator = np.random.default_rng(seed)
    # Smoothed noise has components of all sizes and shapes.
    noise = ndimage.gaussian_filter(generator.random((2, PARTS + 1, *size)), (0, 0, 1, 1))
    labels, probabilities = noise.argmax(axis=1), generator.random((2, *size))
    found = masks_to_boxes(
        torch.tensor(labels), torch.tensor(probabilities), PARTS, min_area=min_area, connectivity=connectivity
    )
    structure = ndimage.generate_binary_structure(2, 1 if connectivity == 4 else 2)
    for image, probability, instances in zip(labels, probabilities, found, strict=True):
        expected = []
        for label in range(PARTS):
            components, count = ndimage.label(image == label, structure)
            for number, (rows, columns) in enumerate(ndimage.find_objects(components), start=1):
                area = int((components == number).sum())
                if Fraction(area, image.size) >= Fraction(str(min_area)):
                    score = ndimage.mean(probability, components, number)
                    expected.append((columns.start, rows.start, columns.stop, rows.stop, label, score))
            assert count == components.max(initial=0)
        fields = [instances.pred_boxes.tensor, instances.pred_classes[:, None], instances.scores[:, None]]
        got = torch.cat([field.double() for field in fields], dim=1).numpy().reshape(-1, 6)
        wanted = np.array(sorted(expected), dtype=float).reshape(-1, 6)
        assert np.allclose(np.array(sorted(map(tuple, got))).reshape(-1, 6), wanted, atol=1e-6)


def test_boxes_are_those_of_detectron2():
    mask = torch.zeros(1, 7, 11, dtype=torch.bool)
    mask[0, 2:4, 3:9] = True
    (found,) = masks_to_boxes((~mask).long() * PARTS, torch.ones(1, 7, 11), PARTS)
    assert torch.equal(found.pred_boxes.tensor, BitMasks(mask).get_bounding_boxes().tensor)


def test_components_under_one_percent_are_dropped():
    labels = torch.full((1, 10, 20), PARTS)
    labels[0, 0, 0:2] = 1  # 2 of 200 pixels: exactly 1 %
    labels[0, 5, 5] = 1  # 0.5 %, and of the same label
    (found,) = masks_to_boxes(labels, torch.ones(1, 10, 20), PARTS)
    assert found.pred_boxes.tensor.tolist() == [[0, 0, 2, 1]]


@pytest.mark.parametrize("min_area", ["0.01", "0.05"])
def test_components_of_exactly_the_smallest_share_are_kept(min_area):
    share = Fraction(min_area)
    for height in range(1, 60):
        for width in range(1, 60):
            area = share * height * width
            if area.denominator == 1 and area <= width:
                labels = torch.full((1, height, width), PARTS)
                labels[0, 0, : int(area)] = 0
                (found,) = masks_to_boxes(labels, torch.ones(1, height, width), PARTS, min_area=float(share))
                assert len(found) == 1, (height, width)


def test_background_and_ignored_labels_give_no_boxes():
    labels = torch.tensor([[[PARTS, 255], [255, PARTS]]])
    (found,) = masks_to_boxes(labels, torch.ones(1, 2, 2), PARTS)
    assert len(found) == 0 and found.pred_boxes.tensor.shape == (0, 4)


def test_diagonal_neighbours_touch_only_under_8():
    labels = torch.tensor([[[0, PARTS], [PARTS, 0]]])
    assert len(masks_to_boxes(labels, torch.ones(1, 2, 2), PARTS)[0]) == 2
    assert len(masks_to_boxes(labels, torch.ones(1, 2, 2), PARTS, connectivity=8)[0]) == 1
    with pytest.raises(ValueError, match="connectivity"):
        masks_to_boxes(labels, torch.ones(1, 2, 2), PARTS, connectivity=1)


def test_most_probable_is_the_softmax():
    logits = 30 * torch.randn(2, PARTS + 1, 6, 5, generator=torch.Generator().manual_seed(0))
    labels, probabilities = most_probable(logits)
    expected, expected_labels = logits.softmax(dim=1).max(dim=1)
    assert torch.equal(labels, expected_labels)
    torch.testing.assert_close(probabilities, expected)


def test_scores_carry_the_gradient_of_their_own_component():
    logits = torch.zeros(1, PARTS + 1, 8, 8)
    logits[:, PARTS] = 1.0
    logits[:, 2, 1:4, 1:4] = 2.0
    logits[:, 3, 5:8, 5:8] = 2.0
    logits.requires_grad_(True)
    (found,) = masks_to_boxes(*most_probable(logits), PARTS)
    assert found.pred_classes.tolist() == [2, 3]
    (gradient,) = torch.autograd.grad(found.scores[0], logits)
    touched = gradient[0].abs().sum(dim=0) > 0
    assert touched[1:4, 1:4].all() and touched.sum() == 9


def test_score_map_carries_the_gradient_of_the_winning_scores():
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 4.0]])
    scores = torch.tensor([0.9, 0.5, 0.1], requires_grad=True)
    scores_of_one = boxes_to_score_map(boxes, scores, torch.tensor([1, 1, 1]), PARTS, (4, 4))[1]
    (gradient,) = torch.autograd.grad(scores_of_one.sum(), scores)
    assert gradient.tolist() == [4.0, 12.0, 0.0], "4 pixels, 12 pixels, under the threshold"


def test_threshold_keeps_what_reaches_it():
    boxes, classes = torch.tensor([[0.0, 0.0, 3.0, 3.0]]), torch.tensor([2])
    assert (boxes_to_sem_seg(boxes, torch.tensor([0.2]), classes, PARTS, (3, 3)) == 2).all()
    assert (boxes_to_sem_seg(boxes, torch.tensor([0.19]), classes, PARTS, (3, 3)) == PARTS).all()


def test_a_batch_is_its_images():
    generator = torch.Generator().manual_seed(0)
    boxes = 12 * torch.rand(3, 2, 6, 4, generator=generator)
    scores = torch.rand(3, 2, 6, generator=generator)
    classes = torch.randint(0, PARTS, (3, 2, 6), generator=generator)
    for function in (boxes_to_sem_seg, boxes_to_score_map):
        together = function(boxes, scores, classes, PARTS, (11, 9))
        alone = [
            [function(boxes[i, j], scores[i, j], classes[i, j], PARTS, (11, 9)) for j in range(2)] for i in range(3)
        ]
        assert torch.equal(together, torch.stack([torch.stack(row) for row in alone]))


def test_no_boxes_is_background():
    empty = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    assert (boxes_to_sem_seg(*empty, PARTS, (3, 4)) == PARTS).all()
    assert boxes_to_score_map(*empty, PARTS, (3, 4))[PARTS].eq(1).all()
