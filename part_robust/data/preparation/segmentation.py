"""Masks from every way COCO-like files spell them, defects repaired or named.

Letters: H, W pixels of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from part_robust.data.mask_validation import is_near


class SkippedError(ValueError):
    """Something of the source that cannot be used; `reason` is the key it is counted under."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class TightMask:
    """A mask without its empty margin: uint8 0/1 `pixels` (h, w) whose top left corner is at (x, y) of the image."""

    x: int
    y: int
    pixels: np.ndarray

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(self.pixels.sum())

    def inside(self, window: Sequence[int]) -> np.ndarray:
        """uint8 0/1 (bottom - top, right - left): the part of the mask in the window [left, top, right, bottom]."""
        left, top, right, bottom = window
        result = np.zeros((bottom - top, right - left), dtype=np.uint8)
        x0, x1 = max(self.x, left), min(self.x + self.pixels.shape[1], right)
        y0, y1 = max(self.y, top), min(self.y + self.pixels.shape[0], bottom)
        if x0 < x1 and y0 < y1:
            result[y0 - top : y1 - top, x0 - left : x1 - left] = self.pixels[
                y0 - self.y : y1 - self.y, x0 - self.x : x1 - self.x
            ]
        return result


def tight(mask: np.ndarray) -> TightMask | None:
    """The mask (H, W) without its margin; None where it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    top, left = int(rows[0]), int(columns[0])
    pixels = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    return TightMask(left, top, np.ascontiguousarray(pixels, dtype=np.uint8))


def box_mask(box: Sequence[float], height: int, width: int) -> TightMask | None:
    """Every pixel of the image that an XYWH box touches; None where it touches none."""
    left, top = max(math.floor(box[0]), 0), max(math.floor(box[1]), 0)
    right, bottom = min(math.ceil(box[0] + box[2]), width), min(math.ceil(box[1] + box[3]), height)
    if left >= right or top >= bottom:
        return None
    return TightMask(left, top, np.ones((bottom - top, right - left), dtype=np.uint8))


def clean_polygons(polygons: Sequence[Any]) -> tuple[list[list[float]], int]:
    """Polygons of at least 3 distinct points with finite coordinates, and how many others there were.

    COCO tools take four numbers for a box and fail on two, so PartImageNet's polygons of 1 or 2 points must go.
    """
    good = []
    for polygon in polygons:
        try:
            values = [float(value) for value in polygon]
        except (TypeError, ValueError):
            continue
        points = set(zip(values[::2], values[1::2], strict=False))
        if len(values) % 2 == 0 and len(points) >= 3 and all(map(math.isfinite, values)):
            good.append(values)
    return good, len(polygons) - len(good)


def decode(segmentation: Any, height: int, width: int) -> tuple[TightMask, int]:
    """Mask of polygons or of a run-length code, compressed (str or bytes) or not (list of counts).

    Returns:
        The mask, and the number of broken polygons that were left out.

    Raises:
        SkippedError: with the reason no_mask (nothing given), bad_polygon, far_outside, bad_rle, rle_size_mismatch or
            empty_mask.
    """
    if not segmentation:
        raise SkippedError("no_mask")
    if isinstance(segmentation, dict):
        return _decode_rle(segmentation, height, width), 0
    if not isinstance(segmentation, list):
        raise SkippedError("bad_polygon", f"the segmentation must be a list of polygons, got {segmentation!r}")
    polygons, dropped = clean_polygons(segmentation)
    if not polygons:
        raise SkippedError("bad_polygon", f"none of {dropped} polygons has 3 distinct points")
    if not all(is_near(polygon, height, width) for polygon in polygons):
        # pycocotools rasterises what lies outside too, and takes all memory for a vertex that is far away.
        raise SkippedError("far_outside", "a polygon reaches further outside than a side of the image")
    rle = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    mask = tight(coco_mask.decode(rle))
    if mask is None:
        raise SkippedError("empty_mask", "the polygons cover no pixel of the image")
    return mask, dropped


def _decode_rle(rle: dict, height: int, width: int) -> TightMask:
    size, counts = rle.get("size"), rle.get("counts")
    if size != [height, width] and size != (height, width):
        raise SkippedError("rle_size_mismatch", f"the mask is {size}, the image {[height, width]} (height, width)")
    try:
        if isinstance(counts, (list, tuple)):
            if sum(counts) != height * width:
                raise SkippedError("bad_rle", f"the runs cover {sum(counts)} of {height * width} pixels")
            rle = coco_mask.frPyObjects({"size": [height, width], "counts": list(counts)}, height, width)
        elif isinstance(counts, str):
            rle = {"size": [height, width], "counts": counts.encode("ascii")}
        elif not isinstance(counts, bytes):
            raise SkippedError("bad_rle", f"counts are {type(counts).__name__}")
        mask = tight(coco_mask.decode(rle))
    except SkippedError:
        raise
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise SkippedError("bad_rle", str(error)) from error
    if mask is None:
        raise SkippedError("empty_mask", "the run-length code has no pixel")
    return mask


def encode(mask: np.ndarray) -> dict:
    """Compressed run-length code, as json takes it, of a mask (H, W)."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def part_annotation(mask: np.ndarray, category_id: int, object_id: int = 1, is_target: int = 1) -> dict:
    """Annotation of the part json without `id` and `image_id`: box and area are those of the mask (H, W), not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return {
        "category_id": category_id,
        "bbox": [float(left), float(top), float(columns[-1] + 1 - left), float(rows[-1] + 1 - top)],
        "area": int(np.count_nonzero(mask)),
        "iscrowd": 0,
        "segmentation": encode(mask),
        "object_id": object_id,
        "is_target": is_target,
    }
