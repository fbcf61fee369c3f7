"""Image files without annotations, read and resized like the images of an evaluation."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from PIL import Image, ImageOps

from part_robust.data.augmentations import build_test_augmentations
from part_robust.data.mapper import content_size, to_rgb
from part_robust.utils.errors import UserError
from part_robust.utils.files import check_file

# What is taken of a folder; a file that is named itself may have any ending.
ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


class ImageFileMapper:
    """Image file of any size -> model input, through the geometry of evaluation (INPUT.TEST_TRANSFORM).

    The result has `file_name`, `height`, `width` and
        image: uint8 (3, H, W), RGB, 0..255.
        image_id: of the pixels, so that what is drawn at random belongs to the image and not to its place in a list.
        content_size: (h, w) of the image's own pixels inside a letterbox; only there.
    """

    @configurable
    def __init__(self, *, augmentations: Sequence[T.Augmentation]) -> None:
        self.augmentations = T.AugmentationList(list(augmentations))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {"augmentations": build_test_augmentations(cfg)}

    def __call__(self, path: str | Path) -> dict:
        """Raises as `read_image_file`."""
        aug_input = T.AugInput(read_image_file(path))
        transforms = self.augmentations(aug_input)
        image = np.ascontiguousarray(aug_input.image.transpose(2, 0, 1))
        result = {
            "file_name": str(path),
            "height": image.shape[1],
            "width": image.shape[2],
            "image_id": zlib.crc32(image.tobytes()),
            "image": torch.from_numpy(image),
        }
        content = content_size(transforms)
        return result if content is None else {**result, "content_size": content}


def read_image_file(path: str | Path) -> np.ndarray:
    """uint8 (height, width, 3) RGB, turned as the camera says; of 16-bit images the upper 8 bits.

    Raises:
        ValueError: it cannot be read as an image.
        UserError: it is not a file.
    """
    try:
        check_file(path, "an image file")
        with Image.open(path) as file:
            return np.asarray(to_rgb(ImageOps.exif_transpose(file)))
    except UserError:
        raise
    except Exception as error:  # Pillow raises many types for a broken file
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def find_image_files(paths: Iterable[str | Path]) -> list[Path]:
    """Files as they are, and of folders the image files directly inside, by name; each once.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a folder without image files.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = [file for file in sorted(path.iterdir()) if file.is_file() and file.suffix.lower() in ENDINGS]
            if not inside:
                raise ValueError(f"{path} has no image file in it (endings {', '.join(ENDINGS)})")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")
    return list(dict.fromkeys(found))
