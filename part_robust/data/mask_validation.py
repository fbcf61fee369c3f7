"""The rules of masks in the part json: polygons and run-length codes, and whether they agree with the box.

Letters: h, w image height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from part_robust.data.json_values import has_size, is_int, is_number

# Pixels between the box of an annotation and that of its mask that still count as rounding.
BOX_OFF = 2.0
# Polygons of less area than this are rasterised, to see whether they cover a pixel at all.
_SMALL = 4.0


def check_segmentation(segmentation: Any, image: Mapping) -> Iterator[str]:
    """Yield what is wrong with the `segmentation` of an annotation, polygons or an RLE, as sentences."""
    if isinstance(segmentation, Mapping):
        yield from (f"segmentation {text}" for text in check_rle(segmentation, image, may_be_empty=False))
    elif not isinstance(segmentation, list) or not segmentation:
        yield "segmentation is empty: leave the key out where there is only a box"
    else:
        for index, polygon in enumerate(segmentation):
            good = isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
            if not good or not all(is_number(value) for value in polygon):
                yield f"segmentation[{index}] must be a polygon [x, y, x, y, ...] of 3 or more points"
            elif has_size(image) and not is_near(polygon, image["height"], image["width"]):
                size = f"{image['width']} x {image['height']}"
                yield f"segmentation[{index}] reaches far outside the image of {size} pixels: clip it"


def check_agreement(annotation: Mapping, image: Mapping) -> Iterator[str]:
    """Sentences about a sound box and a sound mask that do not belong together, or a mask without a pixel."""
    height, width = image["height"], image["width"]
    segmentation, box = annotation["segmentation"], annotation["bbox"]
    if isinstance(segmentation, list):
        xs = np.clip(np.concatenate([polygon[0::2] for polygon in segmentation]), 0, width)
        ys = np.clip(np.concatenate([polygon[1::2] for polygon in segmentation]), 0, height)
        outline = [xs.min(), ys.min(), np.ptp(xs), np.ptp(ys)]
        if sum(map(polygon_area, segmentation)) >= _SMALL and box_difference(box, outline) <= BOX_OFF:
            return
        rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        if not coco_mask.area(rle):
            yield "segmentation covers no pixel of the image: leave the annotation out"
            return
    else:
        rle = dict(segmentation)
    found = [float(value) for value in coco_mask.toBbox(rle)]
    if box_difference(box, found) > BOX_OFF:
        yield f"bbox {box} disagrees with the segmentation, whose box is {found}: correct one of them"


def polygon_area(polygon: Sequence[float]) -> float:
    """Area that a polygon [x, y, ...] encloses, in pixels."""
    xs, ys = np.asarray(polygon[0::2], dtype=float), np.asarray(polygon[1::2], dtype=float)
    return abs(float(xs @ np.roll(ys, -1) - ys @ np.roll(xs, -1))) / 2


def box_difference(first: Sequence[float], second: Sequence[float]) -> float:
    """Largest distance between corresponding sides of two XYWH boxes."""
    sides = [(box[0], box[1], box[0] + box[2], box[1] + box[3]) for box in (first, second)]
    return max(abs(a - b) for a, b in zip(*sides, strict=True))


def is_normalised(annotation: Mapping) -> bool:
    """Return whether all coordinates of an annotation lie between 0 and 1, and not on pixels."""
    segmentation = annotation.get("segmentation")
    values = annotation.get("bbox")
    if isinstance(segmentation, list) and all(isinstance(polygon, list) for polygon in segmentation):
        values = [value for polygon in segmentation for value in polygon] or values
    if not isinstance(values, list) or len(values) < 4 or not all(map(is_number, values)):
        return False
    return min(values) >= 0 and max(values) <= 1 and any(value != int(value) for value in values)


def is_near(polygon: Sequence[float], height: int, width: int) -> bool:
    """Return whether a polygon [x, y, ...] sticks out by at most a side of the image: beyond, it is another image's."""
    sides = ((polygon[0::2], width), (polygon[1::2], height))
    return all(-side <= min(values) and max(values) <= 2 * side for values, side in sides)


def check_rle(rle: Any, image: Mapping, may_be_empty: bool = True) -> Iterator[str]:
    """Yield what is wrong with a compressed RLE for an image of this height and width, as sentences."""
    if not isinstance(rle, Mapping) or not isinstance(rle.get("counts"), str):
        yield "must be a compressed RLE {size: [height, width], counts: string}"
    elif not has_size(image):
        return
    elif rle.get("size") != [image["height"], image["width"]] or not all(is_int(side) for side in rle["size"]):
        yield f"has size {rle.get('size')}, the image is [{image['height']}, {image['width']}]"
    else:
        # pycocotools trusts the counts: it reads beyond the end of cut ones, and leaves pixels undefined.
        runs = run_lengths(rle["counts"])
        if runs is None or runs.min() < 0 or runs.sum() != image["height"] * image["width"]:
            yield f"has counts that do not fill its {image['height']} x {image['width']} pixels: encode it again"
        elif not may_be_empty and not runs[1::2].any():
            yield "has no pixel: leave the annotation out"


def is_sound_rle(rle: Mapping, height: int, width: int) -> bool:
    """Return whether a compressed RLE is one of an image of this size.

    pycocotools would read beyond the end of a cut one.
    """
    return not any(check_rle(rle, {"height": height, "width": width}))


def run_lengths(counts: str) -> np.ndarray | None:
    """int64 run lengths, background first, of COCO's compressed RLE; None if the string is none.

    A number is written in digits of 5 bits, the lowest first, as characters from "0" on; bit 32 says that another
    digit follows, bit 16 of the last digit is the sign. From the fourth number on they are differences to the number
    two places before.
    """
    codes = np.frombuffer(counts.encode("utf-8", "surrogatepass"), dtype=np.uint8).astype(np.int64) - ord("0")
    if not codes.size or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    digits = ends - starts + 1
    if digits.max() > 7:  # more than 32 bits
        return None
    places = 5 * (np.arange(codes.size) - np.repeat(starts, digits))
    values = np.add.reduceat((codes & 31) << places, starts)
    values -= np.where(codes[ends] & 16, 1 << (5 * digits), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
