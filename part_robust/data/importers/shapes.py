"""Shapes of annotation tools as polygons and masks in pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from part_robust.data.importers.numbers import as_number
from part_robust.data.importers.report import ImportCounts
from part_robust.data.preparation.segmentation import encode

_ELLIPSE_POINTS = 48


def turned_rectangle(
    x: float, y: float, width: float, height: float, degrees: float, centre: tuple[float, float]
) -> list[float]:
    """Polygon [x, y, ...] of a rectangle turned clockwise about a point, in pixels."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = ((x, y), (x + width, y), (x + width, y + height), (x, y + height))
    polygon = []
    for corner_x, corner_y in corners:
        right, down = corner_x - centre[0], corner_y - centre[1]
        polygon += [centre[0] + right * cosine - down * sine, centre[1] + right * sine + down * cosine]
    return polygon


def rotation_of(raw: Mapping) -> Any:
    """CVAT's and Datumaro's attribute `rotation` of a rectangle, degrees."""
    attributes = raw.get("attributes")
    return attributes.get("rotation") if isinstance(attributes, Mapping) else None


def turned(raw: dict, rotation: Any, tally: ImportCounts) -> dict:
    """A part whose rectangle is turned, as a polygon; any other part as it is.

    Args:
        raw: the part, see `Item.raw`.
        rotation: degrees, clockwise about the centre, as the file spells it.
        tally: counts the turned one.
    """
    angle, box = as_number(rotation), raw.get("bbox")
    if not angle or raw.get("segmentation") or not isinstance(box, list) or len(box) != 4:
        return raw
    numbers = [as_number(value) for value in box]
    if any(number is None for number in numbers):
        return raw
    x, y, width, height = (float(number) for number in numbers if number is not None)
    tally.add("turned_box", raw["where"])
    polygon = turned_rectangle(x, y, width, height, angle, (x + width / 2, y + height / 2))
    return {**raw, "segmentation": [polygon], "no_box": True}


def ellipse(x: float, y: float, radius_x: float, radius_y: float, degrees: float = 0) -> list[float]:
    """Polygon of an ellipse about (x, y) turned clockwise, in pixels."""
    turn, polygon = math.radians(degrees), []
    for step in range(_ELLIPSE_POINTS):
        angle = 2 * math.pi * step / _ELLIPSE_POINTS
        right, down = radius_x * math.cos(angle), radius_y * math.sin(angle)
        polygon += [
            x + right * math.cos(turn) - down * math.sin(turn),
            y + right * math.sin(turn) + down * math.cos(turn),
        ]
    return polygon


def check_picture_size(height: int, width: int) -> None:
    """Raise ValueError where a file says that an image is larger than any that Pillow opens."""
    if height * width > 2 * (Image.MAX_IMAGE_PIXELS or 0):
        raise ValueError(f"the file says that the image is {width} x {height} pixels")


def pasted(pixels: np.ndarray, left: int, top: int, height: int, width: int) -> dict:
    """Return the run-length code of an image that shows a mask whose top left corner is at (left, top).

    Args:
        pixels: bool or 0/1 (h, w); what leaves the image is cut off.
        left: of the mask in the image, pixels, may be negative.
        top: of the mask in the image, pixels, may be negative.
        height: of the image, pixels.
        width: of the image, pixels.

    Raises:
        ValueError: no picture is that large.
    """
    check_picture_size(height, width)
    whole = np.zeros((height, width), dtype=np.uint8)
    cut = pixels[max(-top, 0) : max(height - top, 0), max(-left, 0) : max(width - left, 0)]
    whole[max(top, 0) : max(top, 0) + cut.shape[0], max(left, 0) : max(left, 0) + cut.shape[1]] = cut
    return encode(whole)
