"""Part masks at the size that the model sees, without transforming every mask: one pair of source indices for all.

Letters: h, w of the image's own pixels; H, W after the transform.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import (
    BlendTransform,
    CropTransform,
    HFlipTransform,
    NoOpTransform,
    PadTransform,
    Transform,
    TransformList,
    VFlipTransform,
)
from pycocotools import mask as coco_mask

from part_robust.data.augmentations import Erase
from part_robust.data.mask_validation import run_lengths
from part_robust.data.transforms import ContentPad

# They change colours at most.
_WITHOUT_GEOMETRY = (NoOpTransform, BlendTransform, T.ColorTransform)
# Pixels that are decoded in the time of looking one up among the runs.
_LOOK_UPS = 80


class Block(NamedTuple):
    """The part of a transformed mask (H, W) that is not empty: bool `pixels` whose top left corner is (row, column)."""

    row: int
    column: int
    pixels: np.ndarray

    def inside(self, whole: np.ndarray) -> np.ndarray:
        """View of an array (H, W) where the block lies."""
        rows, columns = self.pixels.shape
        return whole[self.row : self.row + rows, self.column : self.column + columns]

    def box(self) -> list[int] | None:
        """Smallest box XYXY of its pixels in the array; None where there is none."""
        rows, columns = np.flatnonzero(self.pixels.any(axis=1)), np.flatnonzero(self.pixels.any(axis=0))
        if not rows.size:
            return None
        left, top = self.column + int(columns[0]), self.row + int(rows[0])
        return [left, top, self.column + int(columns[-1]) + 1, self.row + int(rows[-1]) + 1]


class MaskSampler:
    """Masks of one image after one transform, by nearest pixel: equal to `transform.apply_segmentation` of each.

    Geometry made of crops, resizes, flips and padding moves rows and columns apart, so the source of every row and
    every column is computed once; with rotations and erasing among them, that of every pixel. Other transforms are
    applied to each mask.
    """

    def __init__(self, transform: Transform, height: int, width: int) -> None:
        """Compute the source of every row and every column, or of every pixel, where the transform allows it.

        Args:
            transform: what the image went through.
            height: h.
            width: w.
        """
        self._transform = transform
        self._size = height, width
        self._indices = source_indices(transform, height, width)
        self._places = None if self._indices is not None else source_places(transform, height, width)

    def rle(self, rle: Mapping) -> Block | None:
        """Block of a compressed run-length code; None where nothing of its box is left."""
        x, y, w, h = (int(side) for side in coco_mask.toBbox(rle))
        if self._indices is None:
            return self._whole(coco_mask.decode(dict(rle)))
        window = self._window(x, y, x + w, y + h)
        if window is None:
            return None
        rows, columns = window
        source_rows, source_columns = self._indices[0][rows], self._indices[1][columns]
        # Run-length codes and decoded arrays go by columns.
        if source_rows.size * source_columns.size * _LOOK_UPS < self._size[0] * self._size[1]:
            counts = rle["counts"]
            lengths = run_lengths(counts.decode() if isinstance(counts, bytes) else counts)
            assert lengths is not None  # the json was validated
            ends = np.cumsum(lengths)
            places = source_columns[:, None] * self._size[0] + source_rows
            found = np.searchsorted(ends, places, side="right") & 1
        else:
            found = coco_mask.decode(dict(rle)).T[source_columns, y : y + h][:, source_rows - y]
        return Block(rows.start, columns.start, found.T.astype(bool))

    def box(self, left: int, top: int, right: int, bottom: int) -> Block | None:
        """Block of a rectangle of whole pixels."""
        if self._indices is None:
            mask = np.zeros(self._size, dtype=np.uint8)
            mask[top:bottom, left:right] = 1
            return self._whole(mask)
        window = self._window(left, top, right, bottom)
        if window is None:
            return None
        rows, columns = window
        return Block(rows.start, columns.start, np.ones((rows.stop - rows.start, columns.stop - columns.start), bool))

    def outside(self) -> Block | None:
        """Pixels that show nothing of the image: corners of a rotation, erased ones; None where there are none.

        Padding is not among them.
        """
        if self._indices is not None:
            return None
        if self._places is not None:
            hidden = self._places == 0
            return Block(0, 0, hidden) if hidden.any() else None
        shown = self._transform.apply_segmentation(np.ones(self._size, dtype=np.uint8)) > 0
        return None if shown.all() else Block(0, 0, ~shown)

    def _window(self, left: int, top: int, right: int, bottom: int) -> tuple[slice, slice] | None:
        """Rows and columns whose source lies in a box; they are neighbours, as no transform reorders them."""
        assert self._indices is not None
        slices = []
        for sources, low, high in ((self._indices[0], top, bottom), (self._indices[1], left, right)):
            inside = np.flatnonzero((sources >= max(low, 0)) & (sources < high))
            if not inside.size:
                return None
            slices.append(slice(int(inside[0]), int(inside[-1]) + 1))
        return slices[0], slices[1]

    def _whole(self, mask: np.ndarray) -> Block:
        if self._places is not None:
            by_columns = np.concatenate([np.zeros(1, dtype=mask.dtype), mask.ravel(order="F")])
            return Block(0, 0, by_columns[self._places] > 0)
        # uint8, which detectron2 resizes with Pillow; wider integers take another interpolation whose pixel centres lie
        # elsewhere.
        return Block(0, 0, self._transform.apply_segmentation(mask) > 0)


def source_indices(transform: Transform, height: int, width: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the source row of every row (H,) and the source column of every column (W,) of a transformed mask.

    They are -1 for padding; None where the transform is made of anything but crops, resizes, flips and padding with
    zeros.
    """
    rows: np.ndarray = np.arange(height)
    columns: np.ndarray = np.arange(width)
    for step in _steps(transform):
        moved = _moved(rows, columns, step)
        if moved is None:
            return None
        rows, columns = moved
    return rows, columns


def source_places(transform: Transform, height: int, width: int) -> np.ndarray | None:
    """Return the source of every pixel of a transformed mask, (H, W) int32: 1 + row + column * height.

    That is 0 for pixels that show nothing; None where the transform is made of anything but rotations, erasing, and
    what `source_indices` takes.
    """
    places: np.ndarray | None = None
    rows, columns = np.arange(height), np.arange(width)

    def gathered() -> np.ndarray:
        shown = (rows >= 0)[:, None] & (columns >= 0)
        found = 1 + rows[:, None] + columns * height if places is None else places[rows[:, None], columns]
        return np.where(shown, found, 0).astype(np.int32)

    for step in _steps(transform):
        if isinstance(step, (T.RotationTransform, Erase)):
            # They put 0 where nothing is, and interpolate no mask, whatever its type.
            places = step.apply_segmentation(gathered())
            rows, columns = (np.arange(side) for side in places.shape)
        elif (moved := _moved(rows, columns, step)) is not None:
            rows, columns = moved
        else:
            return None
    return gathered()


def _moved(rows: np.ndarray, columns: np.ndarray, step: Transform) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the sources of rows and of columns after one more step, None if it does not keep them apart."""
    kind = type(step)
    if kind is CropTransform:
        return rows[step.y0 : step.y0 + step.h], columns[step.x0 : step.x0 + step.w]
    if kind is T.ResizeTransform:
        return _resized(rows, step.new_h), _resized(columns, step.new_w)
    if kind is HFlipTransform:
        return rows, columns[::-1]
    if kind is VFlipTransform:
        return rows[::-1], columns
    if kind is ContentPad or (kind is PadTransform and step.seg_pad_value == 0):
        padded = np.pad(rows, (step.y0, step.y1), constant_values=-1)
        return padded, np.pad(columns, (step.x0, step.x1), constant_values=-1)
    return (rows, columns) if isinstance(step, _WITHOUT_GEOMETRY) else None


def _steps(transform: Transform) -> Iterator[Transform]:
    if isinstance(transform, TransformList):
        for step in transform.transforms:
            yield from _steps(step)
    else:
        yield transform


def _resized(sources: np.ndarray, size: int) -> np.ndarray:
    """The sources that Pillow's nearest-neighbour resize takes; it adds up the step, so rounding adds up as well."""
    step = len(sources) / size
    places = np.add.accumulate(np.concatenate([[0.5 * step], np.full(size - 1, step)])).astype(np.int64)
    return np.where(places < len(sources), sources[np.minimum(places, len(sources) - 1)], -1)
