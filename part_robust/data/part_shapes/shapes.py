"""Flat shapes every PartShapes object is put together from.

A *polygon* is a float array (K, 2) of x, y in the object's own units, x to the right and y down.
A *ring* is a list of polygons filled by the even-odd rule, so the second one is a hole; a piece of
an object is the union of its rings. Angles are in degrees, counter-clockwise as seen on the screen:
0 points right, 90 points up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Point = Sequence[float] | np.ndarray
Points = Sequence[Point] | np.ndarray
Ring = list[np.ndarray]


@dataclass(frozen=True)
class Piece:
    """One painted piece of an object.

    `part` is the name of its part category; pieces with the same part and `instance` make one
    annotation. `mark` says it is only a dark mark (an eye, an axle): it changes the look of what
    lies under it, not the label.
    """

    part: str
    rings: list[Ring]
    instance: int = 0
    mark: bool = False


def chance(rng: np.random.Generator, probability: float) -> bool:
    """True with the given probability."""
    return bool(rng.random() < probability)


def polar(origin: Point, angle: float, length: float) -> tuple[float, float]:
    """The point `length` away from `origin` in the direction `angle`."""
    radians = np.deg2rad(angle)
    return origin[0] + length * np.cos(radians), origin[1] - length * np.sin(radians)


def rotated(points: Points, angle: float, pivot: Point = (0.0, 0.0)) -> np.ndarray:
    """`points` (K, 2) turned by `angle` around `pivot`."""
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    return (np.asarray(points, float) - pivot) @ np.array([[cos, -sin], [sin, cos]]) + pivot


def polygon(*points: Point) -> list[Ring]:
    """A straight-edged polygon."""
    return [[np.asarray(points, float)]]


def ellipse(center: Point, rx: float, ry: float, angle: float = 0.0, n: int = 28) -> list[Ring]:
    """An ellipse with half axes `rx` and `ry`, turned by `angle`."""
    t = np.arange(n) * (2 * np.pi / n)
    outline = np.stack([rx * np.cos(t), ry * np.sin(t)], axis=1)
    return [[rotated(outline, angle) + np.asarray(center, float)]]


def annulus(center: Point, outer: float, inner: float) -> list[Ring]:
    """A disc of radius `outer` with a round hole of radius `inner`."""
    return [[ellipse(center, outer, outer)[0][0], ellipse(center, inner, inner)[0][0]]]


def smooth(*points: Point, steps: int = 5) -> list[Ring]:
    """A closed, smooth outline through `points` (Catmull-Rom spline)."""
    p1 = np.asarray(points, float)
    p0, p2, p3 = np.roll(p1, 1, axis=0), np.roll(p1, -1, axis=0), np.roll(p1, -2, axis=0)
    t = (np.arange(steps) / steps)[None, :, None]
    p0, p1, p2, p3 = (p[:, None, :] for p in (p0, p1, p2, p3))
    outline = 0.5 * (
        2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    )
    return [[outline.reshape(-1, 2)]]


def bent(start: Point, control: Point, end: Point, n: int = 8) -> np.ndarray:
    """(n, 2) points along the quadratic Bezier curve from `start` to `end`."""
    t = np.linspace(0.0, 1.0, n)[:, None]
    a, b, c = (np.asarray(p, float) for p in (start, control, end))
    return (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c


def limb(path: Points, width: float, end_width: float | None = None) -> list[Ring]:
    """A round-ended stroke along `path`, its width going linearly from `width` to `end_width`.

    It is a union of discs and trapezia, not one outline, because an outline crosses itself in
    tight bends and would get holes there.
    """
    points = np.asarray(path, float)
    radii = np.linspace(width, width if end_width is None else end_width, len(points)) / 2
    rings = [ellipse(p, r, r, n=12)[0] for p, r in zip(points, radii, strict=True)]
    for a, b, ra, rb in zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True):
        along = (b - a) / max(float(np.hypot(*(b - a))), 1e-9)
        normal = np.array([-along[1], along[0]])
        quad = [a + ra * normal, b + rb * normal, b - rb * normal, a - ra * normal]
        rings.append([np.stack(quad)])
    return rings


def hull(points: Points) -> list[Ring]:
    """The convex hull of `points`: the outline of a convex solid from its projected corners."""
    rest = sorted((float(x), float(y)) for x, y in np.asarray(points, float))
    sides: list[tuple[float, float]] = []
    for sequence in (rest, rest[::-1]):
        chain: list[tuple[float, float]] = []
        for p in sequence:
            while len(chain) > 1 and _turn(chain[-2], chain[-1], p) <= 0:
                chain.pop()
            chain.append(p)
        sides += chain[:-1]
    return [[np.asarray(sides, float)]]


def _turn(a: Point, b: Point, c: Point) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
