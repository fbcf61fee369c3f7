"""Masks by source indices are those of the transforms themselves, to the pixel, at any sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from fvcore.transforms.transform import CropTransform, HFlipTransform, PadTransform, TransformList, VFlipTransform
from hypothesis import given, settings
from hypothesis import strategies as st

from part_robust.data.augmentations import RandomErasing, RandomRotation
from part_robust.data.mask_sampling import MaskSampler, source_indices, source_places
from part_robust.data.preparation.segmentation import encode
from part_robust.data.transforms import CenterCrop, Letterbox, RandomResizedCrop

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def whole(block, shape) -> np.ndarray:
    result = np.zeros(shape, dtype=bool)
    if block is not None:
        block.inside(result)[:] = block.pixels
    return result


def drawn(seed: int, height: int, width: int) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """A mask of noise in a random box."""
    generator = np.random.default_rng(seed)
    left, top = generator.integers(0, width), generator.integers(0, height)
    right, bottom = generator.integers(left + 1, width + 1), generator.integers(top + 1, height + 1)
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[top:bottom, left:right] = generator.integers(0, 2, (bottom - top, right - left))
    return mask, (int(left), int(top), int(right), int(bottom))


def check(transform, height: int, width: int, seed: int) -> None:
    sampler = MaskSampler(transform, height, width)
    mask, (left, top, right, bottom) = drawn(seed, height, width)
    expected = transform.apply_segmentation(mask) > 0
    block = sampler.rle(encode(mask))
    assert np.array_equal(whole(block, expected.shape), expected)
    if expected.any():
        rows, columns = np.flatnonzero(expected.any(1)), np.flatnonzero(expected.any(0))
        assert block.box() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    else:
        assert block is None or block.box() is None
    rectangle = np.zeros((height, width), dtype=np.uint8)
    rectangle[top:bottom, left:right] = 1
    expected = transform.apply_segmentation(rectangle) > 0
    assert np.array_equal(whole(sampler.box(left, top, right, bottom), expected.shape), expected)


sides = st.integers(1, 90)


@settings(max_examples=150, deadline=None)
@given(height=sides, width=sides, new_height=sides, new_width=sides, seed=st.integers(0, 999), flip=st.integers(0, 2))
def test_resizes_and_flips(height, width, new_height, new_width, seed, flip):
    steps = [T.ResizeTransform(height, width, new_height, new_width)]
    # fvcore cannot flip vertically what was flipped before.
    steps += [[], [HFlipTransform(new_width)], [VFlipTransform(new_height)]][flip]
    check(TransformList(steps), height, width, seed)


@settings(max_examples=60, deadline=None)
@given(height=st.integers(8, 700), width=st.integers(8, 700), seed=st.integers(0, 999))
def test_training_and_evaluation_geometry(height, width, seed):
    torch.manual_seed(seed)
    image = np.zeros((height, width, 3), dtype=np.uint8)
    training = T.AugmentationList([RandomResizedCrop(64, (0.08, 1.0), (0.75, 1.33)), T.RandomFlip(prob=0.5)])
    evaluation = T.AugmentationList([T.ResizeShortestEdge(64, max_size=1 << 30), CenterCrop(64)])
    for augmentations in (training, evaluation, T.AugmentationList([Letterbox(64, (1, 2, 3))])):
        transform = augmentations(T.AugInput(image))
        assert source_indices(transform, height, width) is not None
        check(transform, height, width, seed)


@settings(max_examples=60, deadline=None)
@given(st.integers(8, 300), st.integers(8, 300), st.integers(0, 999), st.floats(0, 180), st.sampled_from([0.0, 1.0]))
def test_rotations_and_erasing_among_other_geometry(height, width, seed, degrees, erasing):
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (what detectron2's augmentations draw from)
    steps = [RandomRotation(degrees, (1, 2, 3)), RandomResizedCrop(64, (0.2, 1.0), (0.75, 1.33))]
    steps += [T.RandomFlip(prob=0.5), RandomErasing(erasing, (1, 2, 3)), Letterbox(80, (1, 2, 3))]
    transform = T.AugmentationList(steps)(T.AugInput(np.zeros((height, width, 3), dtype=np.uint8)))
    assert source_places(transform, height, width) is not None
    check(transform, height, width, seed)
    shown = transform.apply_segmentation(np.ones((height, width), dtype=np.uint8)) > 0
    assert np.array_equal(~whole(MaskSampler(transform, height, width).outside(), shown.shape), shown)


@pytest.mark.parametrize(
    "transform",
    [
        TransformList([CropTransform(3, 2, 10, 12, 20, 24), PadTransform(1, 2, 3, 4, 10, 12)]),
        PadTransform(1, 1, 1, 1, 20, 24, seg_pad_value=1),
        T.ExtentTransform((2, 3, 15, 20), (20, 12)),
    ],
    ids=["crop and pad", "padding with ones", "extent"],
)
def test_other_transforms_are_applied_to_each_mask(transform):
    indices = source_indices(transform, 24, 20)
    assert (indices is None) == (not isinstance(transform, TransformList))
    assert (source_places(transform, 24, 20) is None) == (indices is None)
    for seed in range(20):
        check(transform, 24, 20, seed)
