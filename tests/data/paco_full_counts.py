"""Six jsons with PACO's real numbers of images, objects and parts, drawn: for time and memory of the real size.

    python -m tests.data.paco_full_counts FOLDER          # 0.9 GB below FOLDER/paco/annotations
    python -m tests.data.paco_full_counts FOLDER --scale 0.1 --images

The totals of the thesis hold by construction: 123,315 of 310,423 objects have at least 1 % of their image's area,
19,030 of those no parts, and two part categories belong to no kept object.
"""

from __future__ import annotations

import argparse
import json
import uuid
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from part_robust.data.preparation.paco_names import CLASSES_WITHOUT_PARTS, OBJECTS, PUBLIC_COUNTS, THESIS_ABSENT_PARTS
from tests.data.paco_fixture import CATEGORY_IDS, categories, rle

WIDTH, HEIGHT = 640, 480
KEPT, PARTLESS, TOTAL = 123_315, 19_030, 310_423


def blobs(count: int = 64) -> list[tuple[str, str]]:
    """(compressed code, polygon) of wavy ellipses, as json text; as long as real ones are."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    found = []
    for _ in range(count):
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        wave = 1 + 0.2 * np.sin(angles * generator.integers(2, 6)) + 0.05 * generator.standard_normal(48)
        x = 320 + generator.uniform(20, 120) * wave * np.cos(angles)
        y = 240 + generator.uniform(20, 90) * wave * np.sin(angles)
        angle = np.arctan2(rows - 240, columns - 320) % (2 * np.pi)
        radius = np.interp(angle, angles, np.hypot(x - 320, y - 240), period=2 * np.pi)
        mask = np.hypot(rows - 240, columns - 320) < radius
        polygon = np.stack([x, y], 1).round(2).ravel().tolist()
        found.append((json.dumps(rle(mask)), json.dumps([polygon])))
    return found


def _step(index: int, wanted: int, total: int) -> bool:
    """Spreads `wanted` of `total` evenly: true for exactly that many of the indices 0..total-1."""
    return (index + 1) * wanted // total > index * wanted // total


class _Numbers:
    """Running totals over all files."""

    def __init__(self) -> None:
        self.objects = self.kept = self.with_parts = self.partless = 0

    def next_object(self) -> tuple[bool, bool]:
        """(kept, has parts)."""
        kept = _step(self.objects % TOTAL, KEPT, TOTAL)
        self.objects += 1
        if not kept:
            return False, False
        partless = _step(self.kept % KEPT, PARTLESS, KEPT)
        self.kept += 1
        return True, not partless


def write_full_counts(root: Path, scale: float = 1.0, images: bool = False) -> Path:
    """Writes the six jsons; with `images` also a distinct picture for every image."""
    numbers, shapes = _Numbers(), blobs()
    part_names = {
        name: [p for p in parts if f"{name}:{p}" not in THESIS_ABSENT_PARTS] for name, parts in OBJECTS.values()
    }
    with_parts = [name for name in part_names if name not in CLASSES_WITHOUT_PARTS]
    picture = _jpeg()
    folder = root / "paco" / "annotations"
    folder.mkdir(parents=True, exist_ok=True)
    for (dataset, split), counts in PUBLIC_COUNTS.items():
        n_images, n_objects, n_parts = (max(round(count * scale), 1) for count in counts)
        plans = [numbers.next_object() for _ in range(n_objects)]
        owners = max(sum(has_parts for _, has_parts in plans), 1)
        instances = dict.fromkeys(CATEGORY_IDS.values(), 0)
        first = {"train": 1, "val": 200_000, "test": 300_000}[split]
        with open(folder / f"paco_{dataset}_v1_{split}.json", "w") as file:
            file.write('{"images": [')
            for index in range(n_images):
                name = _file_name(dataset, split, first + index, index)
                entry = {"id": first + index, "file_name": name, "width": WIDTH, "height": HEIGHT, "license": 1}
                entry |= {"neg_category_ids": [23, 41, 2001, 2100], "not_exhaustive_category_ids": [2004]}
                entry |= {"neg_category_ids_attrs": list(range(20)), "not_exhaustive_category_ids_attrs": [3]}
                file.write((", " if index else "") + json.dumps(entry))
                if images:
                    path = root / ("coco" if dataset == "lvis" else "paco/images") / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(picture + f"{dataset}{split}{index}".encode())
            file.write('], "annotations": [')
            identifier = owner = 0
            for index, (kept, has_parts) in enumerate(plans):
                identifier += 1
                object_id = identifier
                image_id = first + index % n_images
                name = with_parts[index % len(with_parts)]
                if not has_parts and kept:
                    name = OBJECTS[sorted(OBJECTS)[index % len(OBJECTS)]][0]
                size = (200, 150) if kept else (30, 30)
                shape = shapes[index % len(shapes)]
                file.write((", " if index else "") + _annotation(
                    object_id, image_id, CATEGORY_IDS[name], size, shape[1], object_id, False))  # fmt: skip
                instances[CATEGORY_IDS[name]] += 1
                if not has_parts:
                    continue
                count = n_parts // owners + (owner < n_parts % owners)
                for k in range(count):
                    identifier += 1
                    part = part_names[name][(owner + k) % len(part_names[name])]
                    category = CATEGORY_IDS[f"{name}:{part}"]
                    shape = shapes[(index + k) % len(shapes)]
                    file.write(", " + _annotation(identifier, image_id, category, size, shape[0], object_id, True))
                    instances[category] += 1
                owner += 1
            entries = [{**c, "instance_count": instances[c["id"]]} for c in categories()]
            file.write('], "categories": ' + json.dumps(entries) + "}")
    return root


def _annotation(
    identifier: int, image_id: int, category: int, size: tuple[int, int], shape: str, owner: int, part: bool
) -> str:
    return (
        f'{{"id": {identifier}, "image_id": {image_id}, "category_id": {category}, "bbox": [200.5, 150.25, {size[0]}, '
        f'{size[1]}], "area": {size[0] * size[1] * 0.7}, "segmentation": {shape}, "obj_ann_id": {owner}, '
        '"attribute_ids": [3, 31, 45, 57], "dom_color_ids": [3, 7], "unknown_color": 0, "unknown_pattern_marking": 0, '
        f'"unknown_material": 0, "unknown_transparency": 0{", " if part else ""}' + ('"iscrowd": 0}' if part else "}")
    )


def _file_name(dataset: str, split: str, identifier: int, index: int) -> str:
    if dataset == "lvis":
        return f"{'val2017' if split == 'test' and index % 2 else 'train2017'}/{identifier:012d}.jpg"
    video = uuid.UUID(int=(index % 1500) + {"train": 0, "val": 5000, "test": 9000}[split])
    return f"{video}_{index:06d}.jpeg"


def _jpeg() -> bytes:
    pixels = np.random.default_rng(1).integers(60, 200, (HEIGHT // 8, WIDTH // 8, 3)).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--images", action="store_true")
    args = parser.parse_args()
    write_full_counts(args.folder, args.scale, args.images)
