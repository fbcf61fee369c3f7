"""Colours and textures of PartShapes, drawn without knowing the class.

Colours are float RGB, 0..255. A texture is a float32 field (size, size) in -1..1 over the whole
image; its scale is given in waves per image side, so a picture looks alike at every size.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

# Distances are mean absolute differences over the channels, in levels of 255.
PART_FROM_BACKGROUND = 75.0
PART_FROM_PART = 48.0
CLUTTER_FROM_PART = 48.0


def pick_colour(
    rng: np.random.Generator, others: np.ndarray, distances: np.ndarray, candidates: int = 192
) -> np.ndarray:
    """A random colour that keeps its distance.

    Args:
        rng: random generator.
        others: (K, 3) colours.
        distances: (K,) wanted mean absolute difference to each of them, in levels of 255.
        candidates: how many random colours to try.

    Returns:
        (3,) the first candidate that keeps all distances, or the one that comes closest to it.
    """
    colours = rng.uniform(8, 247, (candidates, 3))
    apart = np.abs(colours[:, None] - others[None]).mean(axis=2)
    slack = np.minimum((apart - distances).min(axis=1), 0.0)
    return colours[int(np.argmax(slack))]


def pick_palette(
    rng: np.random.Generator, num_parts: int, num_clutter: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colours of one image: background (3,), parts (num_parts, 3), clutter (num_clutter, 3).

    Parts stand out from the background and from each other, clutter stands out from all parts.
    """
    background = rng.uniform(8, 247, 3)
    parts = background[None]
    for _ in range(num_parts):
        distances = np.full(len(parts), PART_FROM_PART)
        distances[0] = PART_FROM_BACKGROUND
        parts = np.vstack([parts, pick_colour(rng, parts, distances)])
    distances = np.full(num_parts, CLUTTER_FROM_PART)
    clutter = [pick_colour(rng, parts[1:], distances) for _ in range(num_clutter)]
    return background, parts[1:], np.reshape(clutter, (num_clutter, 3))


@lru_cache(maxsize=4)
def unit_grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x (1, size) and y (size, 1) of the pixel centres, in 0..1."""
    line = ((np.arange(size) + 0.5) / size).astype(np.float32)
    return line[None, :], line[:, None]


def _waves(rng: np.random.Generator, size: int, low: float, high: float) -> np.ndarray:
    """A plane wave (size, size) in -1..1 with `low`..`high` waves per image side."""
    x, y = unit_grid(size)
    angle, count, phase = rng.uniform(0, np.pi), rng.uniform(low, high), rng.uniform(0, 2 * np.pi)
    k = 2 * np.pi * count
    return np.sin(np.float32(k * np.cos(angle)) * x + np.float32(k * np.sin(angle)) * y + np.float32(phase))


def _gradient(rng: np.random.Generator, size: int) -> np.ndarray:
    return _waves(rng, size, 0.15, 0.6)


def _stripes(rng: np.random.Generator, size: int) -> np.ndarray:
    # Steep, not square: a hard edge would alias, as textures are not supersampled.
    return np.clip(2.5 * _waves(rng, size, 3, 9), -1, 1)


def _checks(rng: np.random.Generator, size: int) -> np.ndarray:
    return np.clip(4.0 * _waves(rng, size, 2, 5) * _waves(rng, size, 2, 5), -1, 1)


def _noise(rng: np.random.Generator, size: int) -> np.ndarray:
    cells = int(rng.integers(4, 18))
    coarse = rng.uniform(-1.3, 1.3, (cells, cells)).astype(np.float32)
    return np.clip(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), -1, 1)


def _blobs(rng: np.random.Generator, size: int) -> np.ndarray:
    return np.clip(4.0 * (_noise(rng, size) - rng.uniform(-0.1, 0.5)), -1, 1)


TEXTURES = (_gradient, _stripes, _checks, _noise, _blobs)


def random_texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """One texture of a random kind: float32 (size, size) in -1..1."""
    return TEXTURES[int(rng.integers(len(TEXTURES)))](rng, size)


def textured(rng: np.random.Generator, size: int, colour: np.ndarray, amplitude: float) -> np.ndarray:
    """A colour with a texture around it.

    Args:
        rng: random generator.
        size: side of the image, in pixels.
        colour: (3,) mean colour.
        amplitude: largest change of a channel, in levels of 255.

    Returns:
        float32 (3, size, size), not clipped.
    """
    direction = rng.uniform(-1, 1, 3)
    direction *= amplitude / np.abs(direction).max()
    field = random_texture(rng, size)
    shift = direction.astype(np.float32)[:, None, None] * field
    return shift + colour.astype(np.float32)[:, None, None]
