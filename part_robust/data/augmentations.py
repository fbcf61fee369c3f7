"""How images change in training and are cut in evaluation: the augmentations that INPUT names, in their order.

Changes of one image, in the loader's workers. CutMix and MixUp, which need two, are in data/mixing.py, and colour
jitter, which the device computes, is in data/colour_jitter.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from fvcore.transforms.transform import NoOpTransform, Transform
from PIL import Image
from torchvision import transforms as vision

from part_robust.data.transforms import CenterCrop, Letterbox, RandomResizedCrop

# Area of an erased rectangle relative to the image, and its aspect ratio (Zhong et al., 2017).
ERASED_AREA, ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)


def build_train_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """Return a random crop of INPUT.SIZE, and what else INPUT turns on: rotation, flip, RandAugment, erasing."""
    node = cfg.INPUT
    augmentations: list[T.Augmentation] = []
    if node.ROTATION > 0:
        augmentations.append(RandomRotation(node.ROTATION, cfg.MODEL.PIXEL_MEAN))
    augmentations.append(RandomResizedCrop(node.SIZE, node.CROP_SCALE, node.CROP_RATIO))
    if node.FLIP_PROB > 0:
        augmentations.append(T.RandomFlip(prob=node.FLIP_PROB))
    operations, magnitude = node.RAND_AUGMENT
    if operations > 0:
        augmentations.append(RandomColours(ColourRandAugment(num_ops=operations, magnitude=magnitude)))
    if node.ERASING_PROB > 0:
        augmentations.append(RandomErasing(node.ERASING_PROB, cfg.MODEL.PIXEL_MEAN))
    return augmentations


def build_test_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """The same for every model family.

    Raises:
        ValueError: INPUT.TEST_TRANSFORM or INPUT.TEST_RESIZE is none of the possible ones.
    """
    size, interpolation = cfg.INPUT.SIZE, getattr(Image.Resampling, cfg.INPUT.TEST_INTERPOLATION.upper())
    if cfg.INPUT.TEST_TRANSFORM == "letterbox":
        return [Letterbox(size, cfg.MODEL.PIXEL_MEAN, interpolation)]
    if cfg.INPUT.TEST_TRANSFORM == "stretch":
        return [T.Resize((size, size), interpolation)]
    if cfg.INPUT.TEST_TRANSFORM != "center_crop":
        raise ValueError(
            f"INPUT.TEST_TRANSFORM must be center_crop, letterbox or stretch, got {cfg.INPUT.TEST_TRANSFORM}"
        )
    short_side = cfg.INPUT.TEST_RESIZE or size
    if short_side < size:
        raise ValueError(f"INPUT.TEST_RESIZE {short_side} is smaller than INPUT.SIZE {size}")
    return [T.ResizeShortestEdge(short_side, max_size=1 << 30, interp=interpolation), CenterCrop(size)]


class RandomColours(T.Augmentation):
    """Changes colours by a transform of torchvision on Pillow images, and leaves every pixel where it is."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self._init({"change": change})

    def get_transform(self, image: np.ndarray) -> Transform:
        return T.PILColorTransform(self.change)


class ColourRandAugment(vision.RandAugment):
    """RandAugment (Cubuk et al., 2020) without the operations that move pixels, which would leave the masks behind."""

    def _augmentation_space(self, num_bins: int, image_size: tuple[int, int]) -> dict:
        space = super()._augmentation_space(num_bins, image_size)
        return {name: space[name] for name in space if not name.startswith(("Shear", "Translate", "Rotate"))}


class RandomRotation(T.Augmentation):
    """Rotates by an angle that is uniform in -degrees .. degrees; the size stays, corners get `colour`."""

    def __init__(self, degrees: float, colour: Sequence[float]) -> None:
        super().__init__()
        self._init({"degrees": degrees, "colour": colour})

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        return Rotation(height, width, float(self._rand_range(-self.degrees, self.degrees)), self.colour)


class Rotation(T.RotationTransform):
    """Rotation about the centre by degrees, counter-clockwise; what comes from outside of an image has `colour`."""

    def __init__(self, height: int, width: int, angle: float, colour: Sequence[float]) -> None:
        super().__init__(height, width, angle, expand=False)
        self.colour = tuple(round(value) for value in colour)

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        if interp is not None:  # of a mask
            return super().apply_image(img, interp)
        size = (self.bound_w, self.bound_h)
        return cv2.warpAffine(img, self.rm_image, size, flags=self.interp, borderValue=self.colour)


class RandomErasing(T.Augmentation):
    """Covers a rectangle with `colour` (Zhong et al., 2017); parts under it are hidden, its pixels count nowhere."""

    def __init__(self, prob: float, colour: Sequence[float]) -> None:
        super().__init__()
        self._init({"prob": prob, "colour": colour})

    def get_transform(self, image: np.ndarray) -> Transform:
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        # get_params reads the shape only.
        shape = torch.empty(1, device="meta").expand(3, *image.shape[:2])
        top, left, height, width, _ = vision.RandomErasing.get_params(shape, ERASED_AREA, list(ERASED_RATIO), [0.0])
        return Erase(top, left, height, width, self.colour)


class Erase(Transform):
    """Covers the rectangle at (top, left) of (height, width) pixels with `colour`; masks lose it."""

    def __init__(self, top: int, left: int, height: int, width: int, colour: Sequence[float]) -> None:
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return self._filled(img, np.asarray(self.colour).round())

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self._filled(segmentation, 0)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def _filled(self, array: np.ndarray, value: Any) -> np.ndarray:
        result = array.copy()
        result[self.top : self.top + self.height, self.left : self.left + self.width] = value
        return result
