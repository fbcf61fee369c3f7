"""The classes of PartShapes and the part categories they are made of.

A builder decides shape and pose only. Colour, texture, size, place and background are drawn in
`draw.py` without knowing the class, so none of them can give it away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from part_robust.data.part_shapes import animals, things
from part_robust.data.part_shapes.shapes import Piece


@dataclass(frozen=True)
class ObjectClass:
    """A class: the names of its part categories and the function that builds one object.

    `build(rng)` returns pieces from back to front in the object's own units; the object faces right.
    """

    parts: tuple[str, ...]
    build: Callable[[np.random.Generator], list[Piece]]


def _own(name: str, *parts: str) -> tuple[str, ...]:
    return tuple(f"{name}:{part}" for part in parts)


# A part named without a class is shared: `head` by three animals, `wheel` by two vehicles.
CLASSES: dict[str, ObjectClass] = {
    "quadruped": ObjectClass(("head", *_own("quadruped", "body", "legs", "tail")), animals.quadruped),
    "bird": ObjectClass(("head", *_own("bird", "body", "wing", "tail", "legs")), animals.bird),
    "fish": ObjectClass(_own("fish", "body", "fin", "tail"), animals.fish),
    "snake": ObjectClass(("head", *_own("snake", "body")), animals.snake),
    "car": ObjectClass(("wheel", *_own("car", "body", "window")), things.car),
    "bicycle": ObjectClass(("wheel", *_own("bicycle", "frame", "handlebar", "saddle")), things.bicycle),
    "aeroplane": ObjectClass(_own("aeroplane", "fuselage", "wing", "tail", "engine"), things.aeroplane),
    "boat": ObjectClass(_own("boat", "hull", "mast", "sail"), things.boat),
    "bottle": ObjectClass(_own("bottle", "body", "neck", "cap", "label"), things.bottle),
    "chair": ObjectClass(_own("chair", "seat", "back", "legs"), things.chair),
}

# Category id = position + 1, in the order of first use.
PARTS: tuple[str, ...] = tuple(dict.fromkeys(part for c in CLASSES.values() for part in c.parts))
