"""Files in the exact format of both versions of PartImageNet, drawn, with the defects that the real ones have."""

from __future__ import annotations

import json
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from part_robust.data.preparation.part_imagenet_names import IMAGENET_CLASSES, PARTS

WIDTH, HEIGHT = 40, 32
SPLITS = ("train", "val", "test")
# One ImageNet class of every super-category.
WNIDS = tuple(
    next(wnid for wnid, (_, group) in IMAGENET_CLASSES.items() if group == super_category) for super_category in PARTS
)
CATEGORIES = [
    {"id": index, "name": f"{group} {part}", "supercategory": group}
    for index, (group, part) in enumerate((g, p) for g, parts in PARTS.items() for p in parts)
]
FIRST_ID = {group: next(c["id"] for c in CATEGORIES if c["supercategory"] == group) for group in PARTS}


def polygon(x: int, y: int, w: int, h: int) -> list[float]:
    return [float(v) for v in (x, y, x + w, y, x + w, y + h, x, y + h)]


class _Split:
    def __init__(self) -> None:
        self.images: list[dict] = []
        self.annotations: list[dict] = []
        self.pictures: dict[str, Image.Image] = {}
        self.label_maps: dict[str, np.ndarray] = {}

    def image(self, name: str, seed: int, file_name: str | None = None) -> dict:
        """`file_name` is what the json says, where that is not the bare name."""
        image = {"id": len(self.images), "file_name": file_name or name, "width": WIDTH, "height": HEIGHT}
        pixels = np.random.default_rng(seed).integers(60, 200, (HEIGHT // 4, WIDTH // 4, 3)).astype(np.uint8)
        self.pictures[name] = Image.fromarray(pixels).resize((WIDTH, HEIGHT))
        self.label_maps[name.split(".")[0]] = np.full((HEIGHT, WIDTH), 40, dtype=np.uint8)
        self.images.append(image)
        return image

    def part(self, image: dict, category: int, box: tuple[int, int, int, int], before=(), area: float | None = None):
        """`before` are further polygons in front of the good one. Annotation ids start at 0, as they may."""
        x, y, w, h = box
        self.annotations.append(
            {
                "id": len(self.annotations),
                "image_id": image["id"],
                "category_id": category,
                "bbox": [float(v) for v in box],
                "area": float(w * h) if area is None else area,
                "iscrowd": 0,
                "segmentation": [*before, *([polygon(*box)] if area is None else [[1.0, 1.0, 5.0, 5.0]])],
            }
        )
        stem = image["file_name"].replace("\\", "/").split("/")[-1].split(".")[0]
        if area is None:
            self.label_maps[stem][y : y + h, x : x + w] = category


def _splits(per_class: int) -> dict[str, _Split]:
    """Ordinary images of all eleven super-categories; the defects are in train."""
    result = {split: _Split() for split in SPLITS}
    number = 0
    for split, count in zip(SPLITS, (per_class, 1, 1), strict=True):
        for wnid in WNIDS:
            first = FIRST_ID[IMAGENET_CLASSES[wnid][1]]
            for _ in range(count):
                image = result[split].image(f"{wnid}_{number}.JPEG", number)
                result[split].part(image, first, (4, 4, 10, 8))
                result[split].part(image, first + 1, (14, 4, 16, 20))
                number += 1
    train, fish = result["train"], "n01440764"
    head = FIRST_ID["Fish"]
    broken = train.image(f"{fish}_9001.JPEG", 9001)
    train.part(broken, head, (4, 4, 10, 8), before=[[2.0, 3.0, 4.0, 5.0]])  # 2 points in front
    train.part(broken, head + 1, (14, 4, 10, 8), before=[[2.0, 3.0]])  # 1 point
    train.part(broken, head + 2, (1, 1, 0, 0), area=0.0)  # 2 points only
    train.image(f"{fish}_9002.JPEG", 9002)  # nothing annotated
    mixed = train.image(f"{fish}_9003.JPEG", 9003)
    train.part(mixed, head, (4, 4, 10, 8))
    train.part(mixed, FIRST_ID["Bird"], (20, 4, 10, 8))
    slashes = train.image(f"{fish}_9004.JPEG", 9004, file_name=f"train\\{fish}\\{fish}_9004.JPEG")
    train.part(slashes, head, (4, 4, 10, 8))
    stranger = train.image("n99999999_1.JPEG", 9005)
    train.part(stranger, head, (4, 4, 10, 8))
    cmyk = train.image(f"{fish}_9006.JPEG", 9006)
    train.part(cmyk, head, (4, 4, 10, 8))
    train.pictures[f"{fish}_9006.JPEG"] = train.pictures[f"{fish}_9006.JPEG"].convert("CMYK")
    twin = result["val"].image(f"{fish}_9007.JPEG", 9004)  # the picture of 9004 again
    result["val"].part(twin, head, (4, 4, 10, 8))
    occluded = train.image(f"{fish}_9008.JPEG", 9008)
    train.part(occluded, head, (0, 0, 6, 6))
    train.part(occluded, head, (20, 20, 6, 6))  # one part in two pieces
    return result


def _json(split: _Split) -> str:
    return json.dumps({"images": split.images, "annotations": split.annotations, "categories": CATEGORIES})


def _jpeg(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write_ood(folder: Path, per_class: int = 10) -> Path:
    """jsons and the nested zips train.zip, val.zip, test.zip, all inside PartImageNet_OOD.zip."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "PartImageNet_OOD.zip", "w") as outer:
        for name, split in _splits(per_class).items():
            outer.writestr(f"{name}.json", _json(split))
            inner = BytesIO()
            with zipfile.ZipFile(inner, "w") as file:
                for image, picture in split.pictures.items():
                    file.writestr(f"{name}/{image.split('_')[0]}/{image}", _jpeg(picture))
                    file.writestr(f"__MACOSX/{name}/._{image}", b"shadow")
            outer.writestr(f"{name}.zip", inner.getvalue())
    return folder


def write_seg(folder: Path, per_class: int = 10, swap: tuple[int, int] | None = None) -> Path:
    """The flat version with PNG label maps; `swap` exchanges two labels in them."""
    root = folder / "PartImageNet"
    for name, split in _splits(per_class).items():
        for sub in (f"images/{name}", f"annotations/{name}", f"annotations/{name}_whole"):
            (root / sub).mkdir(parents=True)
        (root / "annotations" / name / f"{name}.json").write_text(_json(split))
        (root / "annotations" / f"{name}_whole" / f"{name}.json").write_text("{}")
        for image, picture in split.pictures.items():
            stem = image.split(".")[0]
            (root / "images" / name / image).write_bytes(_jpeg(picture))
            (root / "images" / name / f"._{image}").write_bytes(b"shadow")
            labels = split.label_maps[stem]
            if swap is not None:
                labels = labels.copy()
                labels[split.label_maps[stem] == swap[0]] = swap[1]
                labels[split.label_maps[stem] == swap[1]] = swap[0]
            Image.fromarray(labels).save(root / "annotations" / name / f"{stem}.png")
            whole = np.where(labels < 40, 0, 158).astype(np.uint8)
            Image.fromarray(whole).save(root / "annotations" / f"{name}_whole" / f"{stem}.png")
            size = {"imgHeight": HEIGHT, "imgWidth": WIDTH}
            (root / "annotations" / name / f"{stem}.json").write_text(json.dumps(size))
    return folder
