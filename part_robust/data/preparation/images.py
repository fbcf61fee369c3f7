"""Source images: looked at before any work, so that a broken one fails here and not in the second night of training."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from part_robust.data.preparation.segmentation import SkippedError

_ORIENTATION = 0x0112  # EXIF tag; 5..8 swap the sides


def check_image(path: str | Path, width: int, height: int) -> str:
    """Decodes an image file of the expected size.

    The size may be that of the file's own pixels or that after the camera's EXIF rotation: annotation tools differ.

    Returns:
        Hash of the file's bytes (32 hexadecimal digits), the same for the same content under another name.

    Raises:
        SkippedError: no_image, bad_image or size_mismatch.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise SkippedError("no_image", f"{path}: {error.strerror}") from error
    try:
        with Image.open(BytesIO(content)) as image:
            size, orientation = image.size, image.getexif().get(_ORIENTATION, 1)
            if size != (width, height) and not (orientation in (5, 6, 7, 8) and size == (height, width)):
                raise SkippedError(
                    "size_mismatch", f"{path} is {size[0]} x {size[1]}, the json says {width} x {height}"
                )
            # Reads all of a JPEG's data but computes an eighth of its pixels: finds a truncated file at less cost.
            image.draft(None, (max(width // 8, 1), max(height // 8, 1)))
            image.load()
    except SkippedError:
        raise
    except Exception as error:  # Pillow raises many types for a broken file; all of them mean this image
        raise SkippedError("bad_image", f"{path}: {error}") from error
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def read_rgb(path: str | Path, width: int, height: int) -> np.ndarray:
    """uint8 (height, width, 3) RGB of an image that `check_image` accepted; grey and CMYK files are converted."""
    with Image.open(path) as file:
        image = file if file.size == (width, height) else ImageOps.exif_transpose(file)
        return np.asarray(image.convert("RGB"))


class Folders:
    """Names of the files that exist.

    Every folder is listed once: network file systems are slow at one look-up per image.
    """

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}

    def has(self, path: str | Path) -> bool:
        """Return whether a file exists; each folder is listed once."""
        folder, name = os.path.split(path)
        if folder not in self._names:
            self._names[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        return name in self._names[folder]


def missing_files_message(what: str, missing: Iterable[str], total: int, remedy: str) -> str:
    """One message: how many of the `total` files are missing, the first five of them, and what to do."""
    names = sorted(missing)
    shown = "".join(f"\n  {name}" for name in names[:5])
    return f"{len(names)} of {total} {what} do not exist, first:{shown}\n{remedy}"
