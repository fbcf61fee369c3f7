"""Geometry that detectron2 does not have: the classifiers' training crop and the two evaluation crops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.data import transforms as T
from fvcore.transforms.transform import CropTransform, PadTransform, Transform, TransformList
from PIL import Image
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop


class RandomResizedCrop(T.Augmentation):
    """torchvision's RandomResizedCrop (Szegedy et al., 2015) as a detectron2 augmentation.

    Args:
        size: side of the square result in pixels.
        scale: smallest and largest area of the crop relative to the image, 0..1.
        ratio: smallest and largest width / height of the crop.
    """

    def __init__(self, size: int, scale: Sequence[float], ratio: Sequence[float]) -> None:
        super().__init__()
        self._init({"size": size, "scale": scale, "ratio": ratio})

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        # get_params reads the shape only.
        shape = torch.empty(1, device="meta").expand(1, height, width)
        top, left, h, w = TorchvisionCrop.get_params(shape, list(self.scale), list(self.ratio))
        return TransformList(
            [CropTransform(left, top, w, h, width, height), T.ResizeTransform(h, w, self.size, self.size)]
        )


class CenterCrop(T.Augmentation):
    """Cuts the middle size x size square; the image must be at least that large."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._init({"size": size})

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return CropTransform(left, top, self.size, self.size, width, height)


class ContentPad(PadTransform):
    """Padding at the right and the bottom that stores the size of the image inside: `content_size` (h, w)."""

    def __init__(self, height: int, width: int, size: int, colour: Sequence[float]) -> None:
        super().__init__(0, 0, size - width, size - height, width, height)
        self.content_size = (height, width)
        self.colour = np.asarray(colour)

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        padded = super().apply_image(img)
        height, width = self.content_size
        # The mean colour is 0 after normalisation, like the network's own zero padding.
        padded[height:, :] = self.colour.round().astype(img.dtype)
        padded[:, width:] = self.colour.round().astype(img.dtype)
        return padded

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return PadTransform.apply_image(self, segmentation)


class Letterbox(T.Augmentation):
    """Resizes the long side to `size` and pads to a square with `colour` (three values, 0..255)."""

    def __init__(self, size: int, colour: Sequence[float], interpolation: int = Image.Resampling.BILINEAR) -> None:
        super().__init__()
        self._init({"size": size, "colour": colour, "interpolation": interpolation})

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        factor = self.size / max(height, width)
        new_h, new_w = max(round(height * factor), 1), max(round(width * factor), 1)
        resize = T.ResizeTransform(height, width, new_h, new_w, self.interpolation)
        return TransformList([resize, ContentPad(new_h, new_w, self.size, self.colour)])
