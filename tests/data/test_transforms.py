"""The three geometries of our own, training crop, centre crop, letterbox, and which of them a config asks for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop
from torchvision.transforms.functional import center_crop

from part_robust.data.augmentations import build_test_augmentations, build_train_augmentations
from part_robust.data.transforms import CenterCrop, Letterbox, RandomResizedCrop
from tests.toy import SIZE, tiny_cfg

SHAPES = [(224, 224), (37, 53), (53, 37), (10, 400), (400, 10), (1, 9), (1, 1)]
MEAN = [123.675, 116.28, 103.53]


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3)).astype(np.uint8)


def crop_of(transform: T.TransformList) -> tuple[int, int, int, int]:
    """Top, left, height, width, as torchvision's get_params gives them."""
    crop = transform.transforms[0]
    return crop.y0, crop.x0, crop.h, crop.w


# --- training crop ---


@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 1.0)])
def test_training_crop_is_torchvision_s(height, width, scale):
    ratio = (0.75, 1.3333)
    augmentation = RandomResizedCrop(24, scale, ratio)
    image = picture(height, width)
    for seed in range(30):
        torch.manual_seed(seed)
        ours = crop_of(augmentation.get_transform(image))
        torch.manual_seed(seed)
        assert ours == tuple(TorchvisionCrop.get_params(torch.zeros(3, height, width), list(scale), list(ratio)))


def test_area_and_ratio_of_training_crops_are_spread_as_configured():
    """On a large square image: area uniform over the scale, ratio uniform in its logarithm."""
    torch.manual_seed(0)
    image = np.broadcast_to(np.uint8(0), (2000, 2000, 3))
    augmentation = RandomResizedCrop(24, (0.1, 0.5), (0.5, 2.0))
    crops = np.array([crop_of(augmentation.get_transform(image)) for _ in range(2000)], dtype=float)
    area = crops[:, 2] * crops[:, 3] / 2000**2
    ratio = np.log2(crops[:, 3] / crops[:, 2])
    assert 0.1 * 0.99 < area.min() < 0.105 and 0.495 < area.max() < 0.5 * 1.01
    assert -1.01 < ratio.min() < -0.98 and 0.98 < ratio.max() < 1.01
    # 2000 uniform draws: the mean's standard error is 0.0026 for the area, 0.013 for the logarithm.
    assert abs(area.mean() - 0.3) < 0.01
    assert abs(ratio.mean()) < 0.05
    for values, low, high in ((area, 0.1, 0.5), (ratio, -1.0, 1.0)):
        quarters, _ = np.histogram(values, bins=np.linspace(low, high, 5))
        assert quarters.min() > 420 and quarters.max() < 580


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_training_crop_is_the_window_at_the_asked_size(height, width):
    torch.manual_seed(1)
    image = picture(height, width)
    transform = RandomResizedCrop(24, (0.5, 1.0), (0.75, 1.3333)).get_transform(image)
    top, left, h, w = crop_of(transform)
    assert 0 <= top <= top + h <= height and 0 <= left <= left + w <= width and h * w > 0
    result = transform.apply_image(image)
    assert result.shape == (24, 24, 3) and result.dtype == np.uint8
    expected = T.ResizeTransform(h, w, 24, 24).apply_image(image[top : top + h, left : left + w])
    assert np.array_equal(result, expected)


# --- centre crop ---


@pytest.mark.parametrize("size", [1, 8, 9])
@pytest.mark.parametrize(("height", "width"), [(9, 9), (9, 30), (31, 9), (10, 12)])
def test_centre_crop_leaves_the_same_margin_on_both_sides(size, height, width):
    image = picture(height, width)
    result = CenterCrop(size).get_transform(image).apply_image(image)
    assert result.shape == (size, size, 3)
    top, left = (height - size) // 2, (width - size) // 2
    assert np.array_equal(result, image[top : top + size, left : left + size])
    if (height - size) % 2 == (width - size) % 2 == 0:
        tensor = torch.from_numpy(image).permute(2, 0, 1)
        assert np.array_equal(result, center_crop(tensor, [size]).permute(1, 2, 0).numpy())


# --- letterbox ---


@pytest.mark.parametrize(
    ("height", "width", "content"),
    [
        (64, 64, (32, 32)),
        (64, 32, (32, 16)),
        (30, 90, (11, 32)),
        (8, 8, (32, 32)),
        (5, 3, (32, 19)),
        (1, 1000, (1, 32)),
        (1000, 1, (32, 1)),
        (1, 1, (32, 32)),
    ],
)
def test_letterbox_keeps_the_whole_image_and_its_shape(height, width, content):
    image = picture(height, width)
    transform = Letterbox(32, MEAN).get_transform(image)
    result = transform.apply_image(image)
    assert transform.transforms[1].content_size == content
    assert result.shape == (32, 32, 3) and result.dtype == np.uint8
    h, w = content
    assert np.array_equal(result[:h, :w], T.ResizeTransform(height, width, h, w).apply_image(image))
    padding = np.ones((32, 32), bool)
    padding[:h, :w] = False
    assert (result[padding] == [124, 116, 104]).all()

    labels = np.ones((height, width), np.uint8)
    mapped = transform.apply_segmentation(labels)
    assert mapped.dtype == np.uint8 and np.array_equal(mapped, ~padding)


def test_letterbox_moves_points_with_the_image():
    transform = Letterbox(32, MEAN).get_transform(picture(30, 90))
    corners = transform.apply_coords(np.array([[0.0, 0.0], [90.0, 30.0]]))
    assert corners == pytest.approx(np.array([[0.0, 0.0], [32.0, 11.0]]))


@pytest.mark.parametrize("size", [1, 7, 224, 333])
def test_long_side_of_a_letterbox_is_exactly_its_size(size):
    for height, width in ((3, 7), (123, 457), (997, 991), (641, 480)):
        content = Letterbox(size, MEAN).get_transform(picture(height, width)).transforms[1].content_size
        assert max(content) == size
        assert min(content) == max(round(size * min(height, width) / max(height, width)), 1)
        assert math.isclose(content[1] / content[0], width / height, rel_tol=1.0 / min(content))


# --- stretch ---


@pytest.mark.parametrize(("height", "width"), [(48, 100), (100, 48), (SIZE, SIZE), (7, 5)])
def test_stretch_keeps_the_whole_image_and_moves_parts_along(height, width):
    """A rectangle of the image is the same share of the result in both directions."""
    image, labels = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
    image[: height // 2, : width // 4] = 255
    labels[: height // 2, : width // 4] = 1
    (stretch,) = build_test_augmentations(tiny_cfg("resnet", "INPUT.TEST_TRANSFORM", "stretch"))
    transform = stretch.get_transform(image)
    result, moved = transform.apply_image(image), transform.apply_segmentation(labels)
    assert result.shape == (SIZE, SIZE, 3) and result.dtype == np.uint8 and moved.shape == (SIZE, SIZE)
    corner = transform.apply_coords(np.array([[width // 4, height // 2]], dtype=float))[0]
    assert corner == pytest.approx([SIZE * (width // 4) / width, SIZE * (height // 2) / height])
    assert moved.sum() == pytest.approx(corner.prod(), abs=SIZE)
    assert result.mean() / 255 == pytest.approx(corner.prod() / SIZE**2, abs=0.02)
    assert getattr(transform, "content_size", None) is None


# --- from a config ---


def test_augmentations_of_a_config():
    crop, flip = build_train_augmentations(
        tiny_cfg("resnet", "INPUT.CROP_SCALE", (0.08, 1.0), "INPUT.CROP_RATIO", (0.5, 2.0), "INPUT.FLIP_PROB", 0.3)
    )
    assert (crop.size, crop.scale, crop.ratio, flip.prob) == (SIZE, (0.08, 1.0), (0.5, 2.0), 0.3)
    assert len(build_train_augmentations(tiny_cfg("resnet", "INPUT.FLIP_PROB", 0.0))) == 1
    for resize, short_side in ((0, SIZE), (40, 40)):
        shortest, centre = build_test_augmentations(tiny_cfg("resnet", "INPUT.TEST_RESIZE", resize))
        small = shortest.get_transform(np.zeros((100, 3000, 3), np.uint8))
        assert (small.new_h, small.new_w, centre.size) == (short_side, 30 * short_side, SIZE)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("TEST_TRANSFORM", "resize", "INPUT.TEST_TRANSFORM must be center_crop, letterbox or stretch, got resize"),
        ("TEST_RESIZE", SIZE - 1, "INPUT.TEST_RESIZE 31 is smaller than INPUT.SIZE 32"),
    ],
)
def test_wrong_config_values_are_named(key, value, message):
    with pytest.raises(ValueError, match=message):
        build_test_augmentations(tiny_cfg("resnet", f"INPUT.{key}", value))
