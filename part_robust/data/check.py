"""Prints every violation of the part format in a json: `python -m part_robust.data.check FILE [--image-root DIR]`.

Exit code 0 when the file is good, 1 otherwise.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from pycocotools import mask as coco_mask
from tqdm import tqdm

from part_robust.data.mapper import read_image
from part_robust.data.part_json import crop_of, image_record, import_id, other_spelling, parse_json
from part_robust.data.taxonomy import taxonomy_from_json
from part_robust.data.validation import violations
from part_robust.utils.errors import user_errors


def check_images(data: dict, image_root: Path) -> list[str]:
    """Sentences about image files that are missing, unreadable or of another size than the json says."""
    found = []
    for index, image in enumerate(tqdm(data["images"], desc="images", unit="image", disable=None)):
        path = image_root / image["file_name"]
        if not path.is_file():
            found.append(f"images[{index}] (id {image['id']}): {path} does not exist{other_spelling(path)}")
            continue
        try:
            read_image(image_record(image, image_root))
        except ValueError as error:
            found.append(f"images[{index}]: {error}")
    return found


def other_imports(path: Path, data: dict) -> list[str]:
    """Sentences about split files beside this one that another import wrote."""
    own = import_id(data)
    found = []
    for other in sorted(path.parent.glob("*.json")) if own else ():
        try:
            theirs = import_id(parse_json(other))
        except (AttributeError, ValueError):
            continue  # some other file
        if theirs and theirs != own:
            found.append(f"{other.name}: is a split of another import (config_hash), whose images may be in this one")
    return found


def wrong_areas(data: dict) -> list[str]:
    """Return where annotations lie whose `area` is not that of their mask."""
    found = []
    sizes = {image["id"]: (image["height"], image["width"]) for image in data["images"]}
    for index, annotation in enumerate(data["annotations"]):
        segmentation = annotation.get("segmentation")
        if segmentation is None:
            continue
        if isinstance(segmentation, list):
            segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, *sizes[annotation["image_id"]]))
        area = float(coco_mask.area(segmentation))
        # A polygon's own area differs from that of its pixels by about half its outline.
        if abs(area - annotation["area"]) > max(0.25 * area, 4 * area**0.5):
            found.append(f"annotations[{index}] (id {annotation['id']})")
    return found


def summary(data: dict) -> str:
    """Return what a valid part json holds, line by line, with what looks unusual about it."""
    taxonomy = taxonomy_from_json(data)
    supervision = Counter(image.get("part_supervision", "full") for image in data["images"])
    boxes_only = sum("segmentation" not in annotation for annotation in data["annotations"])
    lines = [
        f"{len(data['images'])} images, {taxonomy.num_classes} classes, {taxonomy.num_parts} parts, "
        f"{len(data['annotations'])} part annotations ({boxes_only} with a box only)",
        "part_supervision: " + ", ".join(f"{key} {count}" for key, count in sorted(supervision.items())),
    ]
    shown = Counter((image["file_name"], str(crop_of(image))) for image in data["images"])
    repeated = sum(count - 1 for count in shown.values())
    if repeated:
        lines.append(f"images that show the same pixels as an earlier one: {repeated}")
    areas = wrong_areas(data)
    if areas:
        lines.append(
            f"annotations whose area is not that of their mask: {len(areas)}, first {areas[0]} (small parts are "
            "painted on large ones by the masks' own areas)"
        )
    if taxonomy.classes_without_parts:
        lines.append("classes without parts: " + ", ".join(taxonomy.classes_without_parts))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Check a part json; return 0 where it is valid, else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--image-root", type=Path, help="also open every image and compare its size")
    args = parser.parse_args(arguments)
    with user_errors(ValueError):
        data = parse_json(args.file)
    found = list(violations(data))
    if not found:
        found = other_imports(args.file, data)
    if not found and args.image_root is not None:
        if args.image_root.is_dir():
            found = check_images(data, args.image_root)
        else:
            found = [f"--image-root {args.image_root}: is not a folder"]
    for text in found:
        print(text)
    if found:
        print(f"{args.file}: {len(found)} violation{'s' * (len(found) > 1)}")
        return 1
    print(summary(data))
    print(f"{args.file}: good")
    return 0


if __name__ == "__main__":
    sys.exit(main())
