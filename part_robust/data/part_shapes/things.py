"""The man-made objects of PartShapes: car, bicycle, aeroplane, boat, bottle, chair.

A builder takes a random generator and returns the pieces of one object from back to front, in its
own units (about 1 long, x right, y down, facing right); see `objects.py`.
"""

from __future__ import annotations

import numpy as np

from part_robust.data.part_shapes.shapes import (
    Piece,
    annulus,
    chance,
    ellipse,
    hull,
    limb,
    polar,
    polygon,
    rotated,
    smooth,
)


def _wheel(center: tuple[float, float], radius: float, hole: float, instance: int) -> list[Piece]:
    """A wheel: a tyre around a round opening with spokes, or a disc where `hole` is 0."""
    if hole == 0:
        rim = annulus(center, 0.62 * radius, 0.5 * radius)
        disc = Piece("wheel", ellipse(center, radius, radius), instance)
        return [disc, Piece("wheel", rim, instance, mark=True)]
    hub = ellipse(center, 0.2 * radius, 0.2 * radius, n=12)
    return [Piece("wheel", annulus(center, radius, hole * radius) + hub, instance)]


def car(rng: np.random.Generator) -> list[Piece]:
    """Return the pieces of a random car."""
    u = rng.uniform
    r, low, tall = u(0.125, 0.17), u(0.20, 0.27), u(0.20, 0.30)
    back, front = u(-0.48, -0.26), u(0.12, 0.30)  # where the cabin meets the body
    rear_slope, wind_slope = u(0.02, 0.14), u(0.10, 0.22)
    bonnet = -low * u(0.75, 0.95)
    top = -low - tall
    shell = polygon(
        *[(-0.54, 0.0), (-0.56, -0.6 * low), (-0.52, -low), (back, -low)],
        *[(back + rear_slope, top), (front - wind_slope, top), (front, -low)],
        *[(0.50, bonnet), (0.56, 0.55 * bonnet), (0.55, 0.0)],
    )
    rim, pillar = u(0.035, 0.05), u(0.02, 0.035)
    sill, roof = -low - 0.01, top + rim
    # The window follows the cabin's slopes, `rim` inside it.
    left, right = back + rear_slope + rim, front - wind_slope - rim
    left_low, right_low = back + rim + 0.02, front - rim - 0.03
    post = u(0.4, 0.6) * (left + right)
    rear = polygon((left_low, sill), (left, roof), (post - pillar, roof), (post - pillar, sill))
    fore = polygon((post + pillar, sill), (post + pillar, roof), (right, roof), (right_low, sill))
    axle = u(-0.02, 0.03)
    hole = 0.0 if chance(rng, 0.8) else u(0.40, 0.55)
    return [
        Piece("car:body", shell),
        Piece("car:window", rear, instance=0),
        Piece("car:window", fore, instance=1),
        *_wheel((-u(0.27, 0.34), axle), r, hole, 0),
        *_wheel((u(0.27, 0.34), axle), r, hole, 1),
    ]


def bicycle(rng: np.random.Generator) -> list[Piece]:
    """Return the pieces of a random bicycle."""
    u = rng.uniform
    r, half, tube = u(0.27, 0.32), u(0.40, 0.46), u(0.065, 0.085)
    rear, front = (-half, 0.0), (half, 0.0)
    pedals = (u(-0.08, 0.0), u(0.0, 0.06))
    seat = (-0.17 + u(-0.04, 0.04), -u(0.40, 0.50))
    head = (half - u(0.12, 0.18), -u(0.38, 0.48))
    frame = []
    for a, b in ((rear, pedals), (rear, seat), (pedals, seat), (seat, head), (pedals, head)):
        frame += limb([a, b], tube)
    steer = np.asarray(head) - front
    stem = np.asarray(head) + steer / np.hypot(*steer) * u(0.10, 0.18)
    frame += limb([front, stem], tube)

    reach, droop = u(0.12, 0.24), u(-60, 60)
    grip = polar(stem, u(-15, 25), reach)
    bar = limb([polar(stem, 180 + u(-20, 20), 0.07), stem, grip], 0.085)
    bar += limb([grip, polar(grip, droop - 90, u(0.06, 0.13))], 0.085)

    post = (seat[0] - 0.03, seat[1] - u(0.05, 0.12))
    tilt, length = u(-10, 10), u(0.13, 0.18)
    saddle = [(-length, -0.06), (-length, 0.04), (-0.02, 0.055), (length, 0.02), (length, -0.03)]
    hole = 0.0 if chance(rng, 0.3) else u(0.60, 0.72)
    return [
        *_wheel(rear, r, hole, 0),
        *_wheel(front, r, hole, 1),
        Piece("bicycle:frame", frame + limb([seat, post], tube)),
        Piece("bicycle:saddle", smooth(*(rotated(saddle, tilt) + np.asarray(post)))),
        Piece("bicycle:handlebar", bar),
    ]


def aeroplane(rng: np.random.Generator) -> list[Piece]:
    """Return the pieces of a random aeroplane."""
    u = rng.uniform
    half, sweep, span, root, tip = u(0.08, 0.105), u(0.05, 0.30), u(0.50, 0.66), u(0.24, 0.32), u(0.12, 0.17)
    at, fin, fin_sweep = u(0.05, 0.20), u(0.18, 0.27), u(0.05, 0.15)
    with_engines, along = chance(rng, 0.7), u(0.38, 0.55)
    wings, tails, engines = [], [], []
    # Seen from above and a little from one side: the far half is foreshortened.
    for i, side in enumerate((-u(0.65, 1.0), u(0.85, 1.0))):
        wing = polygon(
            *[(at, 0.0), (at - sweep, side * span), (at - sweep - tip, side * span)],
            (at - root, 0.0),
        )
        tail = polygon(
            *[(-0.36, 0.0), (-0.40 - fin_sweep, side * fin)],
            *[(-0.51 - fin_sweep, side * fin), (-0.52, 0.0)],
        )
        nacelle = ellipse((at - along * sweep, side * span * along), 0.10, 0.05)
        wings.append(Piece("aeroplane:wing", wing, i))
        tails.append(Piece("aeroplane:tail", tail, i))
        engines.append(Piece("aeroplane:engine", nacelle, i))
    body = smooth(
        *[(0.56, 0.0), (0.47, -0.75 * half), (0.25, -half), (-0.15, -half), (-0.56, -0.025)],
        *[(-0.56, 0.025), (-0.15, half), (0.25, half), (0.47, 0.75 * half)],
    )
    cockpit = ellipse((0.45, 0.0), 0.035, 0.5 * half)
    return [
        *wings,
        *tails,
        *(engines if with_engines else []),
        Piece("aeroplane:fuselage", body),
        Piece("aeroplane:fuselage", cockpit, mark=True),
    ]


def boat(rng: np.random.Generator) -> list[Piece]:
    """Return the pieces of a random boat."""
    u = rng.uniform
    depth, sheer, mast_x, top = u(0.17, 0.26), u(0.0, 0.08), u(-0.06, 0.12), u(0.75, 0.98)
    hull_outline = polygon(
        *[(-0.52, -0.02), (0.0, 0.02), (0.56, -sheer - 0.02), (u(0.36, 0.46), 0.75 * depth)],
        *[(0.28, depth), (-u(0.30, 0.38), depth), (-0.47, 0.6 * depth)],
    )
    lean = u(-0.06, 0.06)
    peak = (mast_x + lean, -top)
    mast = limb([(mast_x, 0.0), peak], 0.085, 0.07)
    gap, boom = 0.055, u(0.08, 0.16)
    aft, bulge = mast_x - u(0.36, 0.48), u(-0.02, 0.10)
    main = smooth(
        *[(peak[0] - gap, -0.92 * top), (peak[0] - gap, -0.90 * top)],
        *[((aft + mast_x) / 2 - bulge, -0.5 * top), (aft, -boom - 0.02), (aft + 0.01, -boom)],
        *[(mast_x - gap - 0.01, -boom), (mast_x - gap, -boom - 0.02)],
    )
    pieces = [Piece("boat:mast", mast), Piece("boat:sail", main, instance=0)]
    if chance(rng, 0.75):
        jib_top, tack = -top * u(0.70, 0.92), u(0.42, 0.53)
        x = mast_x + lean * 0.8 + gap
        jib = polygon((x, jib_top), (tack, -boom), ((x + tack) / 2, -boom + 0.03), (x, -boom - 0.03))
        pieces.append(Piece("boat:sail", jib, instance=1))
    return [*pieces, Piece("boat:hull", hull_outline)]


def bottle(rng: np.random.Generator) -> list[Piece]:
    """Return the pieces of a random bottle."""
    u = rng.uniform
    w, h, neck_w, neck_h = u(0.17, 0.23), u(0.52, 0.68), u(0.065, 0.085), u(0.14, 0.24)
    shoulder, waist, cap_h, cap_w = u(0.06, 0.16), u(0.82, 1.08), u(0.09, 0.13), u(1.15, 1.5)
    right = [
        *[(neck_w, -0.02), (neck_w + 0.4 * (w - neck_w), 0.45 * shoulder), (w, shoulder + 0.02)],
        *[(waist * w, 0.55 * h), (w, h - 0.05), (w - 0.04, h)],
    ]
    body = right + [(-x, y) for x, y in right[::-1]]
    flare = u(0.9, 1.2)
    neck = [(neck_w, 0.02), (flare * neck_w, -neck_h), (-flare * neck_w, -neck_h), (-neck_w, 0.02)]
    cap_top, cap = -neck_h - cap_h, cap_w * neck_w
    lid = [(-cap, -neck_h), (-0.9 * cap, cap_top), (0.9 * cap, cap_top), (cap, -neck_h)]
    low, high, inset = h - u(0.07, 0.14), shoulder + u(0.07, 0.14), u(0.90, 1.0) * min(waist, 1) * w
    label = [(-inset, high), (inset, high), (inset, low), (-inset, low)]
    pieces = [Piece("bottle:neck", polygon(*neck)), Piece("bottle:body", polygon(*body))]
    if chance(rng, 0.7):
        pieces.append(Piece("bottle:label", polygon(*label)))
    return [*pieces, Piece("bottle:cap", polygon(*lid))]


def chair(rng: np.random.Generator) -> list[Piece]:
    """Return the pieces of a random chair."""
    u = rng.uniform
    turn, view = np.deg2rad(u(-50, 50)), np.deg2rad(u(12, 28))
    w, d, leg, back, thick = u(0.25, 0.31), u(0.24, 0.30), u(0.34, 0.46), u(0.42, 0.60), 0.07
    lean = u(0.02, 0.14)

    def project(x: float, y: float, z: float) -> tuple[float, float]:
        """Right, away, up -> the picture: turned around the upright axis, seen from above."""
        across, away = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
        return across, -(z * np.cos(view) + away * np.sin(view))

    def slab(x: float, low: float, high: float, tilt: float) -> list:
        """A flat upright board along the back edge, from height `low` to `high`."""
        corners = []
        for z in (low, high):
            shift = tilt * z / back
            corners += [project(sx * x, sy + shift, z) for sx in (-1, 1) for sy in (d - 0.05, d)]
        return hull(corners)

    seat = hull(
        [project(x, y, z) for x in (-w, w) for y in (-d, d) for z in (-thick, 0.0)],
    )
    legs = []
    feet = [(x, y) for y in (d, -d) for x in (-w, w)]
    for x, y in feet:
        x, y, splay = 0.9 * x, 0.9 * y, u(1.0, 1.12)
        legs.append(limb([project(x, y, -0.02), project(splay * x, splay * y, -leg)], 0.085, 0.07))
    if chance(rng, 0.5):
        rest = slab(w, 0.0, back, lean)
    else:  # two posts with a broad board on top
        rest = slab(w, back * u(0.40, 0.55), back, lean)
        for x in (-0.88 * w, 0.88 * w):
            top = project(x, d - 0.02 + lean * 0.9, 0.9 * back)
            rest = limb([project(x, d - 0.02, -0.02), top], 0.085) + rest
    return [
        Piece("chair:legs", legs[0]),
        Piece("chair:legs", legs[1]),
        Piece("chair:back", rest),
        Piece("chair:legs", legs[2]),
        Piece("chair:legs", legs[3]),
        Piece("chair:seat", seat),
    ]
