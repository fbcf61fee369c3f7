"""Files in the exact format of PACO, drawn: coloured rectangles, all of the traps of the real ones, no real picture.

`write_paco(root)` makes the layout of `$DETECTRON2_DATASETS`; `TRAPS` says what is in it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from part_robust.data.preparation.paco_names import FIRST_PART_ID, OBJECTS

WIDTH, HEIGHT = 64, 48
VIDEOS = (
    "000cd456-ff8d-499b-b0c1-4acead128a8b",
    "1a2b3c4d-0000-4e5f-8a9b-0c1d2e3f4a5b",
    "9f8e7d6c-1111-4222-8333-444455556666",
)
# Regular objects go round these.
CLASSES = ("car_(automobile)", "cup", "dog", "chair", "bottle", "guitar")
# What the LVIS train file holds besides regular images, by image id.
TRAPS = {
    "ball": 101,  # a class without parts, object mask a polygon
    "partless_rle": 102,  # no parts, object mask a compressed code
    "partless_counts": 103,  # no parts, object mask an uncompressed code
    "partless_box": 104,  # no parts and no mask: `segmentation: []`
    "small": 105,  # an object with parts below 1 %, beside a kept one
    "one_percent": 106,  # box exactly 1 %
    "outside": 107,  # boxes partly outside, wholly outside, and of no width
    "wrong_size": 108,  # a part whose code is of another size than the image
    "same_box": 109,  # two classes, one box
    "nothing_kept": 110,
    "grey": 111,
    "cmyk": 112,
    "exif": 113,  # camera held upright, json sizes as seen
    "truncated": 114,
    "missing": 115,
    "twins": 116,  # the same file as image 117 under another name
    "twin": 117,
    "ring": 118,  # a part with a hole
    "bad_parts": 119,  # its only part cannot be decoded
}


def categories() -> list[dict]:
    """The 531 categories: objects with their LVIS ids, parts from 2000 on."""
    found = [
        {"id": i, "name": name, "supercategory": "OBJECT", "synset": name, "frequency": "f"}
        for i, (name, _) in OBJECTS.items()
    ]
    parts = sorted((part, name) for name, parts in OBJECTS.values() for part in parts)
    found += [
        {"id": FIRST_PART_ID + k, "name": f"{name}:{part}", "supercategory": "PART", "synset": part, "frequency": "c"}
        for k, (part, name) in enumerate(parts)
    ]
    return found


CATEGORY_IDS = {category["name"]: category["id"] for category in categories()}
PARTS_OF = dict(OBJECTS.values())


class PacoFileBuilder:
    """Collects the records of one json. Annotation ids start at 1 in every file, as ids are unique within one only."""

    def __init__(self) -> None:
        self.images: list[dict] = []
        self.annotations: list[dict] = []

    def image(self, identifier: int, file_name: str, width: int = WIDTH, height: int = HEIGHT) -> dict:
        image = {
            "id": identifier,
            "file_name": file_name,
            "width": width,
            "height": height,
            "neg_category_ids": [CATEGORY_IDS["cup"], CATEGORY_IDS["cup:rim"]],
            "not_exhaustive_category_ids": [CATEGORY_IDS["dog:leg"]],
            "license": 1,
        }
        self.images.append(image)
        return image

    def object(self, image: dict, name: str, box: list, segmentation="polygon") -> dict:
        """Object annotations have no `iscrowd`."""
        x, y, w, h = box
        if segmentation == "polygon":
            segmentation = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        return self._add(image, name, box, segmentation, None)

    def part(self, owner: dict, name: str, box: list, size=None, mask: np.ndarray | None = None) -> dict:
        """A part, by its box or its mask; `size` (height, width) lies about the image."""
        image = next(i for i in self.images if i["id"] == owner["image_id"])
        if mask is None:
            x, y, w, h = (int(value) for value in box)
            mask = np.zeros(size or (image["height"], image["width"]), dtype=np.uint8)
            mask[max(y, 0) : y + h, max(x, 0) : x + w] = 1
        label = next(c for c, i in CATEGORY_IDS.items() if i == owner["category_id"])
        return self._add(image, f"{label}:{name}", box, rle(mask), owner["id"])

    def regular(self, image: dict, name: str, box: list) -> dict:
        """An object whose first two parts are its upper and lower half."""
        owner = self.object(image, name, box)
        x, y, w, h = box
        self.part(owner, PARTS_OF[name][0], [x, y, w, h // 2])
        self.part(owner, PARTS_OF[name][1], [x, y + h // 2, w, h - h // 2])
        return owner

    def _add(self, image: dict, category: str, box: list, segmentation, owner: int | None) -> dict:
        identifier = len(self.annotations) + 1
        annotation = {
            "id": identifier,
            "image_id": image["id"],
            "category_id": CATEGORY_IDS[category],
            "bbox": [float(v) for v in box],
            "area": float(box[2] * box[3]),
            "segmentation": segmentation,
            "obj_ann_id": identifier if owner is None else owner,
            "attribute_ids": [3, 31],
            "dom_color_ids": [3],
            "unknown_color": 0,
        }
        if owner is not None:
            annotation["iscrowd"] = 0
        self.annotations.append(annotation)
        return annotation

    def write(self, path: Path, **extra) -> None:
        counts: dict[int, int] = {}
        for annotation in self.annotations:
            counts[annotation["category_id"]] = counts.get(annotation["category_id"], 0) + 1
        entries = [{**c, "instance_count": counts.get(c["id"], 0), "image_count": 0} for c in categories()]
        data = {
            "images": self.images,
            "annotations": self.annotations,
            "categories": entries,
            "part_categories": [{"id": 0, "name": "antenna", "supercategory": "PART"}],
            "attributes": [{"id": 3, "name": "blue"}],
            "attr_type_to_attr_idxs": {"color": [3]},
            **extra,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data))


def rle(mask: np.ndarray) -> dict:
    found = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(s) for s in found["size"]], "counts": found["counts"].decode()}


def uncompressed(mask: np.ndarray) -> dict:
    runs, value, length = [], 0, 0
    for pixel in mask.flatten(order="F"):
        if pixel != value:
            runs.append(length)
            value, length = pixel, 0
        length += 1
    return {"size": list(mask.shape), "counts": [*runs, length]}


def box_pixels(x: int, y: int, w: int, h: int, size=(HEIGHT, WIDTH)) -> np.ndarray:
    mask = np.zeros(size, dtype=np.uint8)
    mask[y : y + h, x : x + w] = 1
    return mask


def picture(seed: int, boxes: list, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Noise with a rectangle for every box, dark above and bright below."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(90, 140, (height, width, 3)).astype(np.uint8)
    for index, (x, y, w, h) in enumerate(boxes):
        colour = generator.integers(0, 80, 3)
        x, y = max(int(x), 0), max(int(y), 0)
        pixels[y : y + max(int(h) // 2, 0), x : x + int(w)] = colour
        pixels[y + int(h) // 2 : y + int(h), x : x + int(w)] = 255 - colour + index % 2
    return Image.fromarray(pixels)


def write_paco(root: Path, regular: int = 24, ego4d_test: str = "full") -> Path:
    """Writes the six jsons and the pictures below `root`.

    Args:
        root: becomes a `$DETECTRON2_DATASETS`: coco/train2017, coco/val2017, paco/images, paco/annotations.
        regular: ordinary LVIS train images.
        ego4d_test: "full", "withheld" (objects only, as before 12 February 2024) or "absent".

    Returns:
        `root`.
    """
    annotations = root / "paco" / "annotations"
    train = PacoFileBuilder()
    for index in range(regular):
        image = train.image(391000 + index, f"train2017/{391000 + index:012d}.jpg")
        train.regular(image, CLASSES[index % 6], [8, 6, 20, 24])
        if index % 2:
            train.regular(image, CLASSES[(index + 1) % 6], [30, 10, 24, 28])
    _traps(train)
    train.write(annotations / "paco_lvis_v1_train.json")
    val = _few("val2017", 500, 8)
    val.write(
        annotations / "paco_lvis_v1_val.json", joint_obj_attribute_categories=[{"obj": 1, "attr": 2, "obj-attr": 3}]
    )
    test = _few("train2017", 600, 8)
    queries = [{"id": 1, "query_string": "a blue cup", "pos_ids": [1]}]
    test.write(annotations / "paco_lvis_v1_test.json", queries=queries, joint_obj_attribute_categories=[])
    for builder in (train, val, test):
        _draw(builder, root / "coco")
    for split, videos in (("train", VIDEOS[:2]), ("val", VIDEOS[2:])):
        frames = _frames(videos, with_parts=True)
        frames.write(annotations / f"paco_ego4d_v1_{split}.json")
        _draw(frames, root / "paco" / "images")
    if ego4d_test != "absent":
        frames = _frames(VIDEOS[:1], with_parts=ego4d_test == "full", first=7)
        frames.write(annotations / "paco_ego4d_v1_test.json")
        _draw(frames, root / "paco" / "images")
    return root


def _few(folder: str, first: int, count: int) -> PacoFileBuilder:
    builder = PacoFileBuilder()
    for index in range(count):
        image = builder.image(first + index, f"{folder}/{first + index:012d}.jpg")
        builder.regular(image, CLASSES[index % 6], [5 + index, 8, 24, 26])
    return builder


def _frames(videos, with_parts: bool, first: int = 1) -> PacoFileBuilder:
    builder = PacoFileBuilder()
    for video in videos:
        for frame in range(first, first + 3):
            image = builder.image(len(builder.images) + 1, f"{video}_{24 * frame:06d}.jpeg")
            if with_parts:
                builder.regular(image, CLASSES[frame % 6], [10, 5, 30, 30])
            else:
                builder.object(image, CLASSES[frame % 6], [10, 5, 30, 30])
    return builder


def _traps(train: PacoFileBuilder) -> None:
    images = {
        name: train.image(identifier, f"train2017/{identifier:012d}.jpg")
        for name, identifier in TRAPS.items()
        if name != "one_percent"
    }
    images["one_percent"] = train.image(TRAPS["one_percent"], f"train2017/{TRAPS['one_percent']:012d}.jpg", 50, 40)
    train.object(images["ball"], "ball", [10, 10, 20, 20])
    train.object(images["partless_rle"], "cup", [10, 10, 20, 20], rle(box_pixels(10, 10, 20, 20)))
    train.object(images["partless_counts"], "cup", [10, 10, 20, 20], uncompressed(box_pixels(10, 10, 20, 20)))
    train.object(images["partless_box"], "dog", [10.5, 10.5, 20, 20], [])
    train.regular(images["partless_box"], "chair", [20, 5, 30, 30])
    train.regular(images["small"], "dog", [20, 14, 4, 4])
    train.regular(images["small"], "car_(automobile)", [10, 10, 30, 30])
    train.regular(images["one_percent"], "cup", [20, 20, 5, 4])
    train.regular(images["outside"], "cup", [-10, 10, 30, 20])
    train.object(images["outside"], "dog", [WIDTH + 5, 10, 30, 20])
    train.object(images["outside"], "dog", [10, 10, 0, 20])
    owner = train.regular(images["wrong_size"], "bottle", [10, 10, 30, 30])
    train.part(owner, PARTS_OF["bottle"][2], [12, 12, 4, 4], size=(HEIGHT // 2, WIDTH // 2))
    train.regular(images["same_box"], "cup", [10, 10, 30, 30])
    train.regular(images["same_box"], "mug", [10, 10, 30, 30])
    train.regular(images["nothing_kept"], "cup", [10, 10, 4, 4])
    for name in ("grey", "cmyk", "exif", "truncated", "missing", "twins", "twin"):
        train.regular(images[name], "guitar", [12, 8, 30, 30])
    owner = train.object(images["ring"], "watch", [10, 10, 30, 30])
    ring = box_pixels(10, 10, 30, 30) - box_pixels(20, 20, 10, 10)
    train.part(owner, "strap", [10, 10, 30, 30], mask=ring)
    owner = train.object(images["bad_parts"], "knife", [10, 10, 30, 30])
    train.part(owner, "blade", [10, 10, 10, 10], size=(HEIGHT // 2, WIDTH // 2))


def _draw(builder: PacoFileBuilder, folder: Path) -> None:
    special = {identifier: name for name, identifier in TRAPS.items()}
    for image in builder.images:
        path = folder / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        boxes = [a["bbox"] for a in builder.annotations if a["image_id"] == image["id"] and a["id"] == a["obj_ann_id"]]
        name = special.get(image["id"]) if image["file_name"].startswith("train2017/0000000001") else None
        seed = TRAPS["twin"] if name == "twins" else image["id"]
        drawn = picture(seed, boxes, image["width"], image["height"])
        if name == "missing":
            continue
        if name == "grey":
            drawn = drawn.convert("L")
        elif name == "cmyk":
            drawn = drawn.convert("CMYK")
        if name == "exif":
            exif = Image.Exif()
            exif[0x0112] = 6  # shown after a quarter turn clockwise
            drawn.transpose(Image.Transpose.ROTATE_90).save(path, quality=95, subsampling=0, exif=exif)
        else:
            drawn.save(path, quality=95, subsampling=0)
        if name == "truncated":
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2])
