"""A grid of PartShapes images beside their part masks, for inspection."""

from __future__ import annotations

import colorsys
import json
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util

LABEL_HEIGHT = 18  # pixels of text above each row


def write_contact_sheet(
    root: str | Path, output: str | Path, split: str = "train", columns: int = 6, tile: int = 128
) -> Path:
    """Draws a row per class, each image with its part masks laid over it on the right.

    It reads the written files, so it shows what a training run will see.

    Args:
        root: folder that `make_part_shapes` wrote.
        output: image file to write, .jpg or .png.
        split: which split.
        columns: images per class.
        tile: side of a shown image in pixels.

    Returns:
        `output` as a path.

    Raises:
        FileNotFoundError: the split or one of its images is not there.
        OSError: the file cannot be written.
    """
    root, output = Path(root), Path(output)
    data = json.loads((root / "annotations" / f"{split}.json").read_text())
    annotations = defaultdict(list)
    for annotation in data["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    names = {category["id"]: category["name"] for category in data["categories"]}

    rows = []
    for object_class in data["classes"]:
        images = [
            image
            for image in data["images"]
            if image["class_id"] == object_class["id"] and image["part_supervision"] != "none"
        ]
        row = np.full((LABEL_HEIGHT + tile, 2 * columns * tile, 3), 255, np.uint8)
        _write_legend(row, object_class["name"], {i: names[i] for i in object_class["part_category_ids"]})
        for column, image in enumerate(images[:columns]):
            picture = cv2.imread(str(root / "images" / image["file_name"]))
            if picture is None:
                raise FileNotFoundError(f"{root / 'images' / image['file_name']} cannot be read")
            overlay = picture.copy()
            for annotation in annotations[image["id"]]:
                inside = mask_util.decode(annotation["segmentation"]).astype(bool)
                overlay[inside] = 0.25 * overlay[inside] + 0.75 * _colour(annotation["category_id"])
            pair = np.hstack([_resized(picture, tile), _resized(overlay, tile)])
            row[LABEL_HEIGHT:, 2 * column * tile : 2 * (column + 1) * tile] = pair
        rows.append(row)
    output.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(output), np.vstack(rows)):
        raise OSError(f"cannot write {output}")
    return output


def _colour(category_id: int) -> np.ndarray:
    """BGR: hues a golden angle apart keep neighbouring ids apart."""
    rgb = colorsys.hsv_to_rgb((0.618034 * category_id) % 1, 0.9, 0.65 + 0.35 * (category_id % 2))
    return 255 * np.array(rgb[::-1])


def _resized(image: np.ndarray, side: int) -> np.ndarray:
    # Nearest when enlarging: the masks must be visible pixel by pixel.
    shrink = image.shape[0] > side
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_NEAREST)


def _write_legend(row: np.ndarray, class_name: str, parts: dict[int, str]) -> None:
    x = 4
    for text, colour in [(f"{class_name}:", np.zeros(3)), *((n, _colour(i)) for i, n in parts.items())]:
        shown = text if text.endswith(":") else text.split(":")[-1]
        cv2.putText(row, shown, (x, LABEL_HEIGHT - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour.tolist(), 1, cv2.LINE_AA)
        x += 12 + cv2.getTextSize(shown, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)[0][0]
