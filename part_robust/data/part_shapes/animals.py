"""The animals of PartShapes: quadruped, bird, fish, snake.

A builder takes a random generator and returns the pieces of one animal from back to front, in its
own units (about 1 long, x right, y down, facing right); see `objects.py`.
"""

from __future__ import annotations

import numpy as np

from part_robust.data.part_shapes.shapes import (
    Piece,
    Ring,
    bent,
    chance,
    ellipse,
    limb,
    polar,
    polygon,
    rotated,
    smooth,
)


def quadruped(rng: np.random.Generator) -> list[Piece]:
    """Return the pieces of a random quadruped."""
    u = rng.uniform
    h, leg, thick = u(0.32, 0.44), u(0.40, 0.60), u(0.115, 0.15)

    def one_leg(x: float) -> list[Ring]:
        hip = (x, 0.18 * h)
        thigh = u(-112, -68)
        knee = polar(hip, thigh, 0.5 * leg + 0.1)
        return limb([hip, knee, polar(knee, thigh + u(-25, 25), 0.5 * leg)], thick, 0.75 * thick)

    rear, front = u(-0.40, -0.33), u(0.31, 0.38)
    gap = u(0.07, 0.13)
    legs = [one_leg(x) for x in (rear + gap, front - gap, rear, front)]

    tail_end = polar((-0.46, -0.25 * h), u(110, 235), u(0.35, 0.55))
    tail_bend = (-0.62 + u(-0.08, 0.08), -0.3 * h + u(-0.15, 0.15))
    tail_width = u(0.08, 0.12)
    tail = limb(bent((-0.44, -0.25 * h), tail_bend, tail_end), tail_width, 0.7 * tail_width)

    body = smooth(
        *[(-0.52, -0.05 * h), (-0.38, -0.52 * h), (0.0, -u(0.36, 0.50) * h), (0.40, -0.54 * h)],
        *[(0.52, -0.1 * h), (0.36, 0.46 * h), (0.0, u(0.30, 0.50) * h), (-0.38, 0.48 * h)],
    )
    center = polar((0.42, -0.34 * h), u(15, 75), u(0.20, 0.38))
    neck = limb([(0.38, -0.15 * h), center], 0.9 * h, 0.19)

    nod, r = u(-45, 15), u(0.135, 0.165)
    nose = polar(center, nod, 1.35 * r)
    ear_root, ear = nod + u(95, 120), u(0.11, 0.22)
    head = ellipse(center, 1.1 * r, r, nod) + ellipse(nose, 0.8 * r, 0.6 * r, nod)
    for shift in (0, 38):
        root, spread = polar(center, ear_root + shift, 0.75 * r), ear_root + shift + 90
        tip = polar(root, ear_root + shift - 15, ear)
        head += polygon(polar(root, spread, 0.06), tip, polar(root, spread, -0.06))
    eye = ellipse(polar(center, nod + 35, 0.5 * r), 0.03, 0.03)
    return [
        Piece("quadruped:legs", legs[0]),
        Piece("quadruped:legs", legs[1]),
        Piece("quadruped:tail", tail),
        Piece("quadruped:body", body + neck),
        Piece("quadruped:legs", legs[2]),
        Piece("quadruped:legs", legs[3]),
        Piece("head", head),
        Piece("head", eye, mark=True),
    ]


def bird(rng: np.random.Generator) -> list[Piece]:
    """Return the pieces of a random bird."""
    u = rng.uniform
    tilt, rx, ry = u(5, 40), u(0.36, 0.44), u(0.20, 0.26)
    body = ellipse((0, 0), rx, ry, tilt)
    chest, rump = polar((0, 0), tilt, 0.72 * rx), polar((0, 0), tilt + 180, 0.8 * rx)

    r, nod = u(0.14, 0.18), u(-25, 25)
    center = polar(chest, tilt + u(15, 55), u(0.20, 0.30))
    neck = limb([polar((0, 0), tilt, 0.5 * rx), center], 0.26, 1.3 * r)
    beak = polygon(
        polar(center, nod + 55, 0.85 * r),
        polar(center, nod, r + u(0.14, 0.26)),
        polar(center, nod - 55, 0.85 * r),
    )
    eye = ellipse(polar(center, nod + 40, 0.45 * r), 0.033, 0.033)

    length, spread, aim = u(0.26, 0.42), u(11, 22), tilt + 180 + u(-25, 20)
    tail = polygon(
        polar(rump, aim + 90, 0.07),
        polar(rump, aim + spread, length),
        polar(rump, aim, 0.9 * length),
        polar(rump, aim - spread, length),
        polar(rump, aim - 90, 0.07),
    )

    def wing(angle: float, scale: float) -> list[Ring]:
        root, span, chord = polar((0, 0), tilt, 0.3 * rx), scale * u(0.52, 0.72), u(0.13, 0.18)
        outline = [(0.08, -0.03), (0.35 * span, -chord), (0.8 * span, -0.75 * chord), (span, 0.02)]
        outline += [(0.62 * span, 0.5 * chord), (0.25 * span, 0.75 * chord), (-0.05, 0.06)]
        # Drawn pointing right with the leading edge up; beyond 90 degrees that edge looks forward.
        return smooth(*(rotated(outline, angle) + np.asarray(root)))

    raised = chance(rng, 0.5)
    angle = u(75, 125) if raised else tilt + u(165, 190)
    feet = []
    for x, step in ((-0.06, u(-30, 10)), (0.06, u(-10, 30))):
        hip = (x, 0.6 * ry)
        foot = polar(hip, -90 + step, u(0.34, 0.46))
        feet.append(limb([hip, foot, (foot[0] + 0.13, foot[1] + 0.02)], 0.06))
    pieces = [Piece("bird:legs", feet[0]), Piece("bird:legs", feet[1])]
    if raised:
        pieces.append(Piece("bird:wing", wing(angle - u(25, 50), 0.95), instance=1))
    return [
        *pieces,
        Piece("bird:tail", tail),
        Piece("bird:body", body + neck),
        Piece("head", beak + ellipse(center, r, r)),
        Piece("head", eye, mark=True),
        Piece("bird:wing", wing(angle, 1.0)),
    ]


def fish(rng: np.random.Generator) -> list[Piece]:
    """Return the pieces of a random fish."""
    u = rng.uniform
    h, root = u(0.19, 0.31), (-0.36, 0.0)
    body = smooth(
        *[(0.50, u(-0.03, 0.05)), (0.32, -0.72 * h), (0.05, -h), (-0.22, -0.62 * h)],
        *[(-0.40, -0.07), (-0.40, 0.07), (-0.22, 0.62 * h), (0.05, h), (0.32, 0.72 * h)],
    )
    reach, spread, notch = u(0.26, 0.36), u(0.19, 0.30), u(0.4, 0.85)
    tail = [(-0.33, -0.06), (-0.36 - reach, -spread), (-0.38 - notch * reach, 0.0)]
    tail += [(-0.36 - reach, u(0.8, 1.1) * spread), (-0.33, 0.06)]
    height, lean = u(0.14, 0.24), u(0.08, 0.22)
    dorsal = [(0.20, -0.75 * h), (0.10 - lean, -0.9 * h - height)]
    dorsal += [(-0.22 - 0.5 * lean, -0.6 * h - u(0.3, 0.9) * height), (-0.24, -0.45 * h)]
    belly = [(0.08, 0.85 * h), (-0.05 - lean, 0.85 * h + 0.8 * height), (-0.18, 0.55 * h)]
    flap, at, long = u(150, 250), (u(0.08, 0.16), u(0.02, 0.3 * h)), u(0.17, 0.25)
    side = polygon(at, polar(at, flap + 22, long), polar(at, flap - 22, long))
    eye = ellipse((0.33, -0.22 * h), 0.038, 0.038)
    return [
        Piece("fish:fin", polygon(*dorsal), instance=0),
        Piece("fish:fin", polygon(*belly), instance=1),
        Piece("fish:tail", polygon(*rotated(tail, u(-30, 30), root))),
        Piece("fish:body", body),
        Piece("fish:fin", side, instance=2),
        Piece("fish:body", eye, mark=True),
    ]


def snake(rng: np.random.Generator) -> list[Piece]:
    """Return the pieces of a random snake."""
    u = rng.uniform
    n = 30
    s = np.linspace(0, 1, n)
    # A winding snake is a heading that swings like a sine along its length.
    swing, turns, phase = u(55, 95), u(0.9, 1.6), u(0, 360)
    heading = np.deg2rad(swing * np.sin(2 * np.pi * turns * s + np.deg2rad(phase)) + u(-15, 15))
    step = 1.75 / (n - 1)
    path = np.stack([np.cumsum(np.cos(heading)), -np.cumsum(np.sin(heading))], axis=1) * step
    width = u(0.19, 0.25)
    look = float(np.rad2deg(heading[-1])) + u(-35, 35)
    neck = path[-1]
    center = polar(neck, look, 0.10)
    head = ellipse(center, 0.19, 0.145, look)
    eye = ellipse(polar(center, look + 50, 0.075), 0.03, 0.03)
    return [
        Piece("snake:body", limb(path, 0.06, width)),
        Piece("head", head),
        Piece("head", eye, mark=True),
    ]
