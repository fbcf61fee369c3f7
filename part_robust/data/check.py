"""`python -m part_robust.data.check FILE [--image-root DIR]`: prints every violation of the part format.

Exit code 0 when the file is good, 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from PIL import Image

from part_robust.data.taxonomy import taxonomy_from_json
from part_robust.data.validation import violations


def check_images(data: dict, image_root: Path) -> list[str]:
    """Sentences about image files that are missing, unreadable or of another size than the json says."""
    found = []
    for index, image in enumerate(data["images"]):
        path = image_root / image["file_name"]
        if not path.is_file():
            found.append(f"images[{index}] (id {image['id']}): {path} does not exist")
            continue
        try:
            with Image.open(path) as file:
                size = file.size
                file.verify()
        except Exception as error:  # PIL raises many types for a broken file; all of them mean this image
            found.append(f"images[{index}] (id {image['id']}): {path} cannot be read: {error}")
            continue
        expected = (image["width"], image["height"])
        source = image.get("source") or {}
        cropped = source.get("crop_xyxy") is not None
        if cropped and source.get("image_size"):
            cropped, expected = False, tuple(source["image_size"])
        # A camera's EXIF rotation swaps the sides; the loader tries both.
        if not cropped and size not in (expected, expected[::-1]):
            found.append(f"images[{index}] (id {image['id']}): {path} is {size}, the json says {expected}")
    return found


def summary(data: dict) -> str:
    taxonomy = taxonomy_from_json(data)
    supervision = Counter(image.get("part_supervision", "full") for image in data["images"])
    boxes_only = sum("segmentation" not in annotation for annotation in data["annotations"])
    lines = [
        f"{len(data['images'])} images, {taxonomy.num_classes} classes, {taxonomy.num_parts} parts, "
        f"{len(data['annotations'])} part annotations ({boxes_only} with a box only)",
        "part_supervision: " + ", ".join(f"{key} {count}" for key, count in sorted(supervision.items())),
    ]
    if taxonomy.classes_without_parts:
        lines.append("classes without parts: " + ", ".join(taxonomy.classes_without_parts))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m part_robust.data.check", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--image-root", type=Path, help="also open every image and compare its size")
    args = parser.parse_args(arguments)
    try:
        data = json.loads(args.file.read_text())
    except (OSError, ValueError) as error:
        print(f"{args.file}: {error}")
        return 1
    found = list(violations(data))
    if not found and args.image_root is not None:
        found = check_images(data, args.image_root)
    for text in found:
        print(text)
    if found:
        print(f"{args.file}: {len(found)} violations")
        return 1
    print(summary(data))
    print(f"{args.file}: good")
    return 0


if __name__ == "__main__":
    sys.exit(main())
