"""Small foreign COCO files with noise images, and what the tests of their import share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from part_robust.data.importers.items import Source
from part_robust.data.importers.report import ImportCounts
from part_robust.data.importers.run import import_coco
from part_robust.data.importers.samples import ImportSettings

ROOT = Path(__file__).parents[2]
CAR_RULE = ROOT / "datasets" / "rules" / "car_view.yaml"
H, W = 16, 20
SQUARE = [2, 3, 8, 3, 8, 9, 2, 9]  # 6 x 6 pixels
CAR_PART_NAMES = [
    *("back_bumper", "back_glass", "back_left_door", "back_left_light", "back_right_door", "back_right_light"),
    *("front_bumper", "front_glass", "front_left_door", "front_left_light", "front_right_door", "front_right_light"),
    *("hood", "left_mirror", "right_mirror", "tailgate", "trunk", "wheel"),
]


def picture(path: Path, seed: int, size: tuple[int, int] = (W, H), exif: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    tags = Image.Exif()
    tags[274] = exif
    Image.fromarray(noise).save(path, exif=tags) if exif else Image.fromarray(noise).save(path)


def annotation(identifier, image_id=1, category_id=1, **fields) -> dict:
    entry = {"id": identifier, "image_id": image_id, "category_id": category_id, "iscrowd": 0}
    return entry | {"segmentation": [SQUARE], "bbox": [2, 3, 6, 6], "area": 36} | fields


def write_source(folder: Path, names: list[str], annotations: list[dict], categories=None, sizes=None) -> Source:
    """A json and its noise images; image i has id i + 1 and the pixels of seed i."""
    images = []
    for index, name in enumerate(names):
        if not (folder / "photos" / name).exists():
            picture(folder / "photos" / name, index)
        images.append({"id": index + 1, "file_name": name, "width": W, "height": H} | (sizes or {}).get(name, {}))
    data = {
        "images": images,
        "annotations": annotations,
        "categories": categories or [{"id": 1, "name": "base"}, {"id": 2, "name": "shade"}],
    }
    (folder / "parts.json").write_text(json.dumps(data))
    return Source(folder / "parts.json", folder / "photos")


def write_csv(folder: Path, rows: dict[str, str]) -> Path:
    path = folder / "classes.csv"
    path.write_text("file_name,class\n" + "".join(f"{name},{label}\n" for name, label in rows.items()))
    return path


def one_class(items):
    return ["lamp"] * len(items)


def run(source, output, class_source=one_class, tally=None, force=False, **fields):
    """Import into one given split unless the settings say otherwise."""
    sources = source if isinstance(source, list) else [source]
    fractions = fields.pop("fractions", ("1", "0", "0"))
    return import_coco(
        sources, output, class_source, ImportSettings(fractions=fractions, **fields), tally or ImportCounts(), force
    )


def read(output: Path, split: str = "train") -> dict:
    return json.loads((output / "annotations" / f"{split}.json").read_text())


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def counted(report: dict) -> dict[str, int]:
    return {reason: e["count"] for kind in ("skipped", "repaired", "noted") for reason, e in report[kind].items()}


def many(folder: Path, count: int = 40) -> Source:
    names = [f"{'lamp' if i % 4 else 'desk'}/{i:02d}.png" for i in range(count)]
    return write_source(folder, names, [annotation(i + 1, i + 1, 1 + i % 2) for i in range(count)])


def membership(output: Path) -> dict[str, str]:
    return {
        image["file_name"]: path.stem
        for path in (output / "annotations").glob("*.json")
        for image in read(output, path.stem)["images"]
    }
