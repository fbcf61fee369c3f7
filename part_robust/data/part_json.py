"""Loads the part json (docs/data_format.md) as detectron2's `list[dict]`, validated and in a stable order."""

from __future__ import annotations

import itertools
import json
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode

from part_robust.data.json_values import is_int
from part_robust.data.taxonomy import PartTaxonomy, derive_classes, taxonomy_from_json
from part_robust.data.validation import violations
from part_robust.utils.files import check_file

# Writers whose splits divide one set of images, under one `config_hash`.
_DIVIDERS = ("import", "import_coco", "paco", "part_imagenet")
UNFINISHED = "UNFINISHED"  # beside the split files of an import or preparation that was interrupted


def read_part_json(json_file: str | Path) -> dict:
    """Parses and validates one part json.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not json, or a rule of the format is broken; names the file and the first violations.
    """
    path = Path(json_file)
    data = parse_json(path)
    found = list(itertools.islice(violations(data), 4))
    if found:
        more = "; and more" if len(found) > 3 else ""
        raise ValueError(
            f"{path} breaks the part format: {'; '.join(found[:3])}{more}. "
            f"All of it: python -m part_robust.data.check {path}"
        )
    return data


def parse_json(path: Path) -> Any:
    """The json value in a file, unchecked.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not json or no file, or the import that wrote it was interrupted.
    """
    if not path.exists():
        raise FileNotFoundError(f"annotation file {path} does not exist")
    check_file(path, "an annotation file")
    if (path.parent / UNFINISHED).is_file():
        raise ValueError(
            f"{path.parent} was left unfinished, so its splits may be of different imports: repeat the import"
        )
    try:
        # From bytes: any of json's encodings, with or without a byte order mark.
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid json: {error}") from error


def header_of(data: Mapping) -> Mapping:
    """`info.part_robust` of a json; empty where there is none, or `info` is something else than an object."""
    info = data.get("info")
    header = info.get("part_robust") if isinstance(info, Mapping) else None
    return header if isinstance(header, Mapping) else {}


def import_id(data: Mapping) -> str:
    """Return what all splits of one import or preparation have in common; empty for other files."""
    header = header_of(data)
    return str(header.get("config_hash") or "") if header.get("generator") in _DIVIDERS else ""


def image_root_of(data: Mapping, json_file: str | Path) -> str:
    """Return the default folder of images: `info.part_robust.image_root`, relative to the json, else `../images`."""
    header = header_of(data)
    return os.path.normpath(os.path.join(os.path.dirname(json_file), header.get("image_root") or "../images"))


def load_part_json(json_file: str | Path, image_root: str | Path | None = None) -> tuple[list[dict], PartTaxonomy]:
    """Reads a part json.

    Args:
        json_file: part json.
        image_root: folder that `file_name` of the images is relative to; None takes the json's own, `image_root_of`.

    Returns:
        One dict per image in ascending image id, images without parts included, and the taxonomy. Keys:
        `file_name` (joined with image_root), `height`, `width` (pixels), `image_id`, `class_id` (0..C-1),
        `part_supervision` ("full", "partial" or "none"), `annotations`, and where given `ignore_segmentation` (RLE)
        and `crop_xyxy` (window of the file that is the image) and `source_size` (its file's, see `read_image`). An
        annotation has `id`, `bbox` XYWH
        in pixels, `bbox_mode`, `category_id` (0..P-1), `area`, `iscrowd` 0, `is_target`, and `segmentation` unless
        only a box is known.

    Raises:
        FileNotFoundError: the json or some images do not exist; names the first ones.
        ValueError: a rule of the format is broken.
    """
    data = read_part_json(json_file)
    return part_records(data, json_file, image_root_of(data, json_file) if image_root is None else image_root)


def part_records(data: dict, json_file: str | Path, image_root: str | Path) -> tuple[list[dict], PartTaxonomy]:
    """`load_part_json` of a json that is read already; `json_file` is for messages only."""
    taxonomy = taxonomy_from_json(data)
    part_index = {c["id"]: i for i, c in enumerate(sorted(data["categories"], key=lambda c: c["id"]))}
    class_index = _class_index(data)

    annotations: dict[int, list[dict]] = defaultdict(list)
    for annotation in sorted(data["annotations"], key=lambda a: a["id"]):
        record = {
            "id": annotation["id"],
            "bbox": annotation["bbox"],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": part_index[annotation["category_id"]],
            "area": annotation["area"],
            "iscrowd": 0,
            "is_target": int(annotation.get("is_target", 1)),
        }
        if "segmentation" in annotation:
            record["segmentation"] = annotation["segmentation"]
        annotations[annotation["image_id"]].append(record)

    records = []
    for image in sorted(data["images"], key=lambda i: i["id"]):
        record = image_record(image, image_root)
        record["class_id"] = class_index(image)
        record["part_supervision"] = image.get("part_supervision", "full")
        record["annotations"] = annotations[image["id"]]
        if image.get("ignore_segmentation") is not None:
            record["ignore_segmentation"] = image["ignore_segmentation"]
        records.append(record)
    _require_files(records, json_file)
    return records, taxonomy


def crop_of(image: Mapping) -> list[int] | None:
    """Window XYXY of the file that an image of the json is; None where it says nothing.

    In the file's stored pixels, unless `source.image_size` [width, height] is their size after EXIF rotation.
    """
    return (image.get("source") or {}).get("crop_xyxy")


def image_record(image: Mapping, image_root: str | Path) -> dict:
    """Return what `read_image` needs to know of an image of the json."""
    record = {
        "file_name": os.path.join(image_root, image["file_name"]),
        "height": image["height"],
        "width": image["width"],
        "image_id": image["id"],
    }
    if crop_of(image) is not None:
        record["crop_xyxy"] = crop_of(image)
        size = image["source"].get("image_size")
        if isinstance(size, list) and len(size) == 2 and all(is_int(side) for side in size):
            record["source_size"] = tuple(size)
    return record


def other_spelling(path: str | Path) -> str:
    """A phrase about the file of the same name in other Unicode characters, capitals or blanks; empty without one."""
    folder, name = os.path.split(path)
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    twin = next((other for other in names if folded_name(other) == folded_name(name)), None)
    return "" if twin is None else f" (there is {twin!r}, spelled otherwise: rename one of them)"


def folded_name(name: str) -> str:
    """Return a file name as names are compared: composed letters, lower case, no blanks around it."""
    return unicodedata.normalize("NFC", name).casefold().strip()


def _class_index(data: Mapping) -> Callable[[Mapping], int]:
    classes = sorted(data.get("classes") or derive_classes(data["categories"]), key=lambda c: c["id"])
    by_id = {c["id"]: i for i, c in enumerate(classes)}
    by_name = {c["name"]: i for i, c in enumerate(classes)}

    def index_of(image: Mapping) -> int:
        if "class_id" in image:
            return by_id[image["class_id"]]
        return by_name[image["class_name"] if "class_name" in image else image["file_name"].split("/")[0]]

    return index_of


def _require_files(records: list[dict], json_file: str | Path) -> None:
    """One directory listing per folder, not one look-up per image: network file systems are slow at those."""
    folders: dict[str, set[str]] = {}
    missing: list[str] = []
    for record in records:
        folder, name = os.path.split(record["file_name"])
        if folder not in folders:
            folders[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name not in folders[folder]:
            missing.append(record["file_name"])
    if missing:
        shown = ", ".join(f"{name}{other_spelling(name)}" for name in missing[:3])
        raise FileNotFoundError(
            f"{len(missing)} of {len(records)} images of {json_file} do not exist, first: {shown}. "
            "Is image_root the folder that the json's file_name is relative to?"
        )
