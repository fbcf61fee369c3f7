"""The images of PartShapes by number: which class, which drawing, which json entries.

Everything follows from (seed, split, index) alone, so neither the order nor the number of the images
drawn, nor the number of processes, changes a byte.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util

from part_robust.data.part_shapes.draw import draw_part_shape
from part_robust.data.part_shapes.objects import CLASSES, PARTS
from part_robust.utils.files import write_bytes

MIN_AREA = 4 / 64**2  # smallest part that gets an annotation, as a share of the image


def digest(*values: object) -> bytes:
    """16 bytes that depend on the values only, not on the process as `hash` does."""
    return hashlib.blake2b(json.dumps(values).encode(), digest_size=16).digest()


def _generator(*values: object) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest(*values), "big")))


def _class_index(seed: int, split: str, index: int) -> int:
    """Each block of C consecutive images has every one of the C classes once, in random order."""
    block, position = divmod(index, len(CLASSES))
    return int(_generator(seed, split, "classes", block).permutation(len(CLASSES))[position])


def _without_parts(index: int, fraction: float) -> bool:
    """Spreads the part-free images evenly, so that any first n images have `fraction` of them."""
    return math.floor((index + 1) * fraction + 0.5) > math.floor(index * fraction + 0.5)


def draw_chunk(
    indices: range, folder: Path, split: str, image_size: int, seed: int, part_free_fraction: float
) -> list[tuple[dict, list[dict]]]:
    """Draws and saves some images; returns their json entries, annotations still without `id`."""
    return [
        _draw_one(index, folder, split, image_size, seed, with_parts=not _without_parts(index, part_free_fraction))
        for index in indices
    ]


def _draw_one(
    index: int, folder: Path, split: str, image_size: int, seed: int, with_parts: bool
) -> tuple[dict, list[dict]]:
    class_index = _class_index(seed, split, index)
    drawing = draw_part_shape(list(CLASSES)[class_index], _generator(seed, split, "image", index), image_size)
    name = f"{index + 1:06d}.png"
    _, png = cv2.imencode(".png", drawing.image[:, :, ::-1])
    write_bytes(folder / name, png.tobytes())
    image = {
        "id": index + 1,
        "file_name": f"{split}/{name}",
        "width": image_size,
        "height": image_size,
        "class_id": class_index + 1,
        "part_supervision": "full" if with_parts else "none",
        "source": {"dataset": "part_shapes", "split": split, "image_id": index + 1},
    }
    smallest = max(1.0, MIN_AREA * image_size**2)
    annotations = []
    for part in drawing.parts if with_parts else ():
        area = int(part.mask.sum())
        if area < smallest:
            continue
        rle = mask_util.encode(np.asfortranarray(part.mask.view(np.uint8)))
        annotations.append(
            {
                "image_id": index + 1,
                "category_id": PARTS.index(part.part) + 1,
                "bbox": mask_util.toBbox(rle).tolist(),
                "area": area,
                "iscrowd": 0,
                "segmentation": {"size": [image_size, image_size], "counts": rle["counts"].decode("ascii")},
                "object_id": index + 1,
                "is_target": 1,
            }
        )
    return image, annotations


def class_entries() -> list[dict]:
    """Return the `classes` of the part json."""
    return [
        {"id": i, "name": name, "part_category_ids": sorted(PARTS.index(part) + 1 for part in c.parts)}
        for i, (name, c) in enumerate(CLASSES.items(), start=1)
    ]


def category_entries() -> list[dict]:
    """A part that several classes share has no class as `supercategory`, but "shared"."""
    return [
        {"id": i, "name": part, "supercategory": part.split(":")[0] if ":" in part else "shared"}
        for i, part in enumerate(PARTS, start=1)
    ]
