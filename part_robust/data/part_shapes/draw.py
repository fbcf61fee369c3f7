"""Draws one PartShapes image: places the object, paints it with background and clutter, makes masks.

Letters: S image side in pixels, F supersampling factor. Shapes are vectors, filled F times larger
than the image; both the colours and the masks of a pixel come from the same F x F block, so the
masks are aligned with the image to the pixel at any size.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from part_robust.data.part_shapes.objects import CLASSES
from part_robust.data.part_shapes.shapes import Piece, Ring, ellipse, polygon, smooth
from part_robust.data.part_shapes.textures import pick_palette, random_texture, textured, unit_grid

MIN_SIZE, MAX_SIZE = 32, 512
PALETTE = 6  # part colours drawn per image whatever the class needs, so their spread tells nothing
MAX_BEHIND, MAX_IN_FRONT = 6, 2
SHIFT = 4  # fractional bits of OpenCV's fixed-point coordinates
BACKGROUND = 0


@dataclass(frozen=True)
class PartMask:
    """One visible part: category name, instance number within the object, mask bool (S, S)."""

    part: str
    instance: int
    mask: np.ndarray


@dataclass(frozen=True)
class Drawing:
    """One image: uint8 RGB (S, S, 3) and the disjoint masks of its visible parts."""

    image: np.ndarray
    parts: list[PartMask]


def draw_part_shape(class_name: str, rng: np.random.Generator, image_size: int = 64) -> Drawing:
    """Draws one object of a class in a random pose, look and place.

    Args:
        class_name: a key of `CLASSES`.
        rng: random generator; it alone decides the drawing.
        image_size: side of the square image in pixels, 32..512.

    Returns:
        The image and its part masks, completely hidden parts left out.

    Raises:
        ValueError: unknown class, or a size out of range.
    """
    if class_name not in CLASSES:
        raise ValueError(f"unknown class {class_name!r}; choose one of {', '.join(CLASSES)}")
    if not MIN_SIZE <= image_size <= MAX_SIZE:
        raise ValueError(f"image_size must be in {MIN_SIZE}..{MAX_SIZE}, is {image_size}")
    pieces = _place(CLASSES[class_name].build(rng), rng)
    behind = [_clutter(rng, 0.08, 0.40) for _ in range(rng.integers(1, MAX_BEHIND + 1))]
    in_front = [_clutter(rng, 0.07, 0.14) for _ in range(rng.integers(0, MAX_IN_FRONT + 1))]

    # Layers: 0 background, then one per part instance, then one per clutter shape.
    keys = list(dict.fromkeys((p.part, p.instance) for p in pieces))
    first_clutter = 1 + len(keys)
    scene = [(first_clutter + i, rings) for i, rings in enumerate(behind)]
    scene += [(1 + keys.index((p.part, p.instance)), p.rings) for p in pieces if not p.mark]
    scene += [(first_clutter + len(behind) + i, rings) for i, rings in enumerate(in_front)]
    marks = [(1 + keys.index((p.part, p.instance)), p.rings) for p in pieces if p.mark]
    cover, ink = _rasterise(scene, marks, image_size, rng.uniform(0.5, 0.8))

    image = _paint(cover, keys, rng, image_size)
    image *= 1 - rng.uniform(0.35, 0.75) * ink
    label = cover.argmax(axis=0)
    parts = []
    for i, (part, instance) in enumerate(keys, start=1):
        mask = label == i
        if mask.any():
            parts.append(PartMask(part, instance, mask))
    return Drawing(_photograph(image, rng, image_size), parts)


def _all_points(pieces: list[Piece]) -> np.ndarray:
    return np.concatenate([p for piece in pieces for ring in piece.rings for p in ring])


def _moved(pieces: list[Piece], matrix: np.ndarray, offset: np.ndarray) -> list[Piece]:
    """Every point through `matrix` (2, 2), then shifted by `offset` (2,)."""
    return [
        Piece(p.part, [[q @ matrix.T + offset for q in ring] for ring in p.rings], p.instance, p.mark) for p in pieces
    ]


def _area(pieces: list[Piece], resolution: int = 64) -> float:
    """Share of the bounding box's longer side squared that the pieces cover."""
    points = _all_points(pieces)
    low = points.min(axis=0)
    scale = (resolution - 1) / (points.max(axis=0) - low).max()
    canvas = np.zeros((resolution, resolution), np.uint8)
    for piece in pieces:
        _fill(canvas, [[(q - low) * scale for q in ring] for ring in piece.rings], 1)
    return float(canvas.mean())


def _place(pieces: list[Piece], rng: np.random.Generator) -> list[Piece]:
    """Turns, shears, stretches, scales and moves an object into the unit square."""
    angle = np.deg2rad(rng.uniform(-22, 22))
    shear, stretch = rng.uniform(-0.15, 0.15), rng.uniform(0.88, 1.14)
    facing = -1.0 if rng.random() < 0.5 else 1.0
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[stretch, shear], [0.0, 1.0 / stretch]]) @ np.diag([facing, 1.0])
    pieces = _moved(pieces, matrix, np.zeros(2))

    # The area is drawn first and the extent follows, not the other way round: at equal extents a
    # bottle covers far less of the image than a car, and the size alone would name the class.
    wanted = rng.uniform(0.13, 0.25)
    extent = float(np.clip(np.sqrt(wanted / _area(pieces)), 0.50, 0.92))
    points = _all_points(pieces)
    low, high = points.min(axis=0), points.max(axis=0)
    scale = extent / (high - low).max()
    room = 0.97 - (high - low) * scale
    offset = 0.015 + rng.uniform(0, 1, 2) * room - low * scale
    return _moved(pieces, np.eye(2) * scale, offset)


def _clutter(rng: np.random.Generator, low: float, high: float) -> list[Ring]:
    """A random shape in the unit square: ellipse, bar, triangle, quadrilateral or smooth blob."""
    center, r = rng.uniform(0.0, 1.0, 2), rng.uniform(low, high) / 2
    kind, angle = int(rng.integers(5)), rng.uniform(0, 360)
    if kind == 0:
        return ellipse(center, r, r * rng.uniform(0.4, 1.0), angle)
    if kind == 1:
        along = np.array([np.cos(angle), np.sin(angle)]) * r * 1.5
        across = np.array([-along[1], along[0]]) * rng.uniform(0.1, 0.3)
        corners = along + across, along - across, -along - across, -along + across
        return polygon(*(center + c for c in corners))
    count = {2: 3, 3: 4, 4: 6}[kind]
    turns = np.deg2rad(angle) + 2 * np.pi / count * (np.arange(count) + rng.uniform(-0.3, 0.3, count))
    reach = r * rng.uniform(0.6, 1.2, count)
    outline = center + reach[:, None] * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    return smooth(*outline) if kind == 4 else polygon(*outline)


def _fill(canvas: np.ndarray, rings: list[Ring], value: int) -> None:
    """Fills `rings`, in pixels of `canvas` with the centre of the first pixel at 0, 0."""
    for ring in rings:
        points = [np.rint(q * (1 << SHIFT)).astype(np.int32) for q in ring]
        cv2.fillPoly(canvas, points, value, shift=SHIFT)


def _rasterise(
    scene: list[tuple[int, list[Ring]]], marks: list[tuple[int, list[Ring]]], size: int, outline: float
) -> tuple[np.ndarray, np.ndarray]:
    """Fills the scene from back to front.

    Args:
        scene: (layer, rings) from back to front.
        marks: (layer, rings) of the dark marks, seen only where their layer is.
        size: S.
        outline: width of the dark outlines, in pixels of a 64 x 64 image.

    Returns:
        cover: float32 (layers, S, S), share of each pixel's F x F block that shows the layer; sums to 1.
        ink: float32 (S, S), share that is outline or mark.
    """
    factor = 4 if size <= 96 else 3 if size <= 192 else 2
    side = factor * size
    # Every piece has its own number, so that the two near legs get an outline between them.
    canvas = np.zeros((side, side), np.uint8)
    for number, (_, rings) in enumerate(scene, start=1):
        _fill(canvas, [[q * side - 0.5 for q in ring] for ring in rings], number)
    ink: np.ndarray = np.zeros((side, side), np.uint8)
    edge = canvas[1:, :] != canvas[:-1, :]
    ink[1:, :][edge] = 255
    edge = canvas[:, 1:] != canvas[:, :-1]
    ink[:, 1:][edge] = 255
    width = max(1, round(outline * side / 64))
    ink = np.asarray(cv2.dilate(ink, np.ones((width, width), np.uint8)))
    layers = np.array([BACKGROUND, *(layer for layer, _ in scene)], np.uint8)[canvas]
    for layer, rings in marks:
        dark = np.zeros((side, side), np.uint8)
        _fill(dark, [[q * side - 0.5 for q in ring] for ring in rings], 255)
        ink[(dark > 0) & (layers == layer)] = 255
    cover = np.stack(
        [
            cv2.resize((layers == i).astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
            for i in range(1 + max(layer for layer, _ in scene))
        ]
    )
    return cover, cv2.resize(ink, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _paint(cover: np.ndarray, keys: list[tuple[str, int]], rng: np.random.Generator, size: int) -> np.ndarray:
    """Colours every layer: float32 (3, S, S)."""
    num_clutter = len(cover) - 1 - len(keys)
    background, part_colours, clutter_colours = pick_palette(rng, PALETTE, MAX_BEHIND + MAX_IN_FRONT)
    image = textured(rng, size, background, rng.uniform(5, 30))
    image += textured(rng, size, np.zeros(3), rng.uniform(3, 20))
    image *= cover[0]
    looks = _part_looks(list(dict.fromkeys(part for part, _ in keys)), part_colours, rng, size)
    for i, (name, _) in enumerate(keys, start=1):
        image += cover[i] * looks[name]
    for i in range(num_clutter):
        look = textured(rng, size, clutter_colours[i], rng.uniform(3, 34))
        image += cover[1 + len(keys) + i] * look
    return image


def _part_looks(names: list[str], colours: np.ndarray, rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
    """Gives every part its look, float32 (3, S, S).

    An object has 4 or 5 colours whatever the number of its parts, or counting colours would tell
    the classes with few parts from those with many: where colours are left, parts get patterns.
    """
    num_colours = int(rng.integers(4, 6))
    looks: dict[str, np.ndarray] = {}
    for i in range(max(num_colours, len(names))):
        colour = textured(rng, size, colours[i % num_colours], rng.uniform(3, 34))
        name = names[i] if i < len(names) else names[int(rng.integers(len(names)))]
        if name in looks:
            share = 0.5 + 0.5 * np.clip(3 * random_texture(rng, size), -1, 1)
            colour = share * colour + (1 - share) * looks[name]
        looks[name] = colour
    return looks


def _photograph(image: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """Light from one side, a little blur and sensor noise: (3, S, S) -> uint8 RGB (S, S, 3)."""
    x, y = unit_grid(size)
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.3)
    light = 1 + np.float32(strength * np.cos(angle)) * (x - 0.5) + np.float32(strength * np.sin(angle)) * (y - 0.5)
    image = np.ascontiguousarray((image * light).transpose(1, 2, 0))
    sigma = rng.uniform(0.0, 0.6) * size / 64
    if sigma > 0.2:
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    image += np.float32(rng.uniform(1, 7)) * noise
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
