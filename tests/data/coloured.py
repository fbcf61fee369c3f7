"""Pictures whose parts have known colours, COCO files about them, and the share of labels that lie on their colour."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from part_robust.cli import import_coco, import_parts
from part_robust.data import PartDatasetMapper
from part_robust.data.part_json import load_part_json
from tests.commands import exit_code

H, W = 24, 32
WHEEL, DOOR = (4, 8, 10, 6), (16, 4, 10, 12)  # XYWH
COLOURS = {"wheel": (230, 20, 20), "door": (20, 230, 20)}
COMMANDS = ("coco", "cvat")


def pixels(seed: int = 0, wheel=WHEEL, door=DOOR, size=(W, H)) -> np.ndarray:
    """uint8 (H, W, 3): dark noise with a red wheel and a green door."""
    image = np.random.default_rng(seed).integers(0, 60, (size[1], size[0], 3), dtype=np.uint8)
    for name, (x, y, w, h) in (("wheel", wheel), ("door", door)):
        image[y : y + h, x : x + w] = COLOURS[name]
    return image


def polygon(box) -> list[float]:
    x, y, w, h = map(float, box)
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def save(path: Path, image: np.ndarray, orientation: int = 1) -> None:
    """Writes an image; with an EXIF orientation 6, turned so that a viewer shows `image`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tags = Image.Exif()
    tags[274] = orientation
    stored = np.rot90(image) if orientation == 6 else image
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=tags)


def coco(folder: Path, count: int = 3, upright: bool = False) -> dict[str, Any]:
    """A COCO dict about `count` new pictures in folder/photos."""
    images, annotations = [], []
    for index in range(count):
        save(folder / "photos" / f"{index}.png", pixels(index))
        images.append({"id": index + 1, "file_name": f"{index}.png", "width": W, "height": H})
        for category, box in ((1, WHEEL), (2, DOOR)):
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": index + 1, "category_id": category, "iscrowd": 0,
                    "bbox": list(map(float, box)), "area": float(box[2] * box[3]), "segmentation": [polygon(box)],
                }
            )  # fmt: skip
    categories = [{"id": 1, "name": "wheel", "supercategory": "car"}, {"id": 2, "name": "door", "supercategory": "car"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def run(
    command: str, folder: Path, data: Any, *more: str, encoding: str = "utf-8", class_from: str = "always:car"
) -> int:
    """Imports folder/parts.json by a command into one split; its exit code."""
    (folder / "parts.json").write_bytes((data if isinstance(data, str) else json.dumps(data)).encode(encoding))
    common = ["--output", str(folder / f"out_{command}"), "--workers", "1", "--split-fractions", "1", "0", "0", *more]
    source, photos = str(folder / "parts.json"), str(folder / "photos")
    if command == "coco":
        return exit_code(
            import_coco.main, ["--json", source, "--image-root", photos, "--class-from", class_from, *common]
        )
    return exit_code(
        import_parts.main, ["cvat", "--json", source, "--images", photos, "--class-from", class_from, *common]
    )


def report(folder: Path, command: str) -> dict[str, int]:
    """Counts by reason."""
    data = json.loads((folder / f"out_{command}" / "report.json").read_text())
    return {reason: e["count"] for kind in ("skipped", "repaired", "noted") for reason, e in data[kind].items()}


def measured(json_file: Path, image_root: Path) -> dict[str, dict]:
    """{file name: {"supervision", "class", part: (share of its label on its colour, share of its colour labelled)}}."""
    records, taxonomy = load_part_json(json_file, image_root)
    boxes = any("segmentation" not in a for r in records for a in r["annotations"])
    mapper = PartDatasetMapper(
        augmentations=[], num_parts=taxonomy.num_parts, ignore_label=taxonomy.ignore_label,
        masks_from="boxes" if boxes else "masks",
    )  # fmt: skip
    result = {}
    for record in records:
        item = mapper(record)
        image, labels = item["image"].permute(1, 2, 0).numpy().astype(int), item["sem_seg"].numpy()
        found: dict[str, Any] = {"supervision": record["part_supervision"]}
        found["class"] = taxonomy.class_names[record["class_id"]]
        for index, name in enumerate(taxonomy.part_names):
            if name.split(":")[-1] in COLOURS:
                colour = np.abs(image - COLOURS[name.split(":")[-1]]).max(2) < 60
                inside = labels == index
                if inside.any():
                    both = (colour & inside).sum()
                    found[name] = (both / inside.sum(), both / max(colour.sum(), 1))
        result[Path(record["file_name"]).relative_to(Path(image_root).resolve()).as_posix()] = found
    return result


def imported(folder: Path, command: str) -> dict[str, dict]:
    return measured(folder / f"out_{command}" / "annotations" / "train.json", (folder / "photos").resolve())


def all_right(folder: Path, command: str, count: int = 3) -> bool:
    """Whether both parts of every picture are labelled to the pixel."""
    found = imported(folder, command)
    parts = [entry.get(name) for entry in found.values() for name in ("wheel", "door")]
    return len(found) == count and all(part == (1, 1) for part in parts)
