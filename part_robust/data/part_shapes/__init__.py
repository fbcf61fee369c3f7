"""PartShapes: a data set of jointed objects with exact part masks, drawn by the package itself.

It needs no download, so tests, demos and first experiments run everywhere. The class can be recognised
from shape and parts only: colour, texture, size, place, background and clutter are drawn without it.
"""

from part_robust.data.part_shapes.build import make_part_shapes
from part_robust.data.part_shapes.contact_sheet import write_contact_sheet
from part_robust.data.part_shapes.draw import Drawing, PartMask, draw_part_shape
from part_robust.data.part_shapes.objects import CLASSES, PARTS

__all__ = [
    "CLASSES",
    "PARTS",
    "Drawing",
    "PartMask",
    "draw_part_shape",
    "make_part_shapes",
    "write_contact_sheet",
]
