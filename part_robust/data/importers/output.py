"""Writes what an import found: part jsons, images and the report, each whole or not at all."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from part_robust.data.importers.clean import ignored_region
from part_robust.data.importers.labels import LabelSpace
from part_robust.data.importers.report import markdown
from part_robust.data.importers.samples import ImportedImage, ImportSettings
from part_robust.data.part_json import UNFINISHED
from part_robust.data.preparation.journal import dump
from part_robust.data.preparation.segmentation import TightMask, box_mask, decode, part_annotation
from part_robust.data.validation import violations
from part_robust.utils.files import replacing


@dataclass(frozen=True)
class Style:
    """Form of a command's files; it differs between the two commands for the sake of files that exist already.

    Attributes:
        generator: name of the writer in `info.part_robust`.
        title: `info.description`; empty leaves it out.
        division: "classes" divides every class by the fractions, "hash" every image by its own hash.
        masks: "given" keeps polygons, "rle" encodes every mask and numbers the ids of each split from 1.
    """

    generator: str = "import_coco"
    title: str = ""
    division: str = "classes"
    masks: str = "given"


GENERATORS = ("import_coco", "import")


def config_hash(described: Sequence[Any], samples: Sequence[ImportedImage], settings: ImportSettings) -> str:
    """Changes with everything the result depends on."""
    found = [[s.name, s.label, s.split, s.picture.content] for s in samples]
    return blake2b(json.dumps([asdict(settings), list(described), found]).encode(), digest_size=16).hexdigest()


def header(digest: str, settings: ImportSettings, style: Style, image_root: str) -> dict:
    """The `info.part_robust` that all splits share."""
    if style.masks == "given":
        return {
            "format": "part-classification",
            "format_version": 1,
            "split_unit": "image_content" if settings.group_by == "content" else settings.group_by,
            "seed": settings.seed,
            "config_hash": digest,
            "generator": style.generator,
        }
    return {
        "format": "part-classification",
        "format_version": 1,
        "generator": style.generator,
        "split_unit": "group",
        "seed": settings.seed,
        "image_root": image_root,
        "config_hash": digest,
    }


def part_jsons(
    by_split: Mapping[str, Sequence[ImportedImage]],
    labels: LabelSpace,
    shared: Mapping,
    settings: ImportSettings,
    style: Style,
) -> dict[str, dict]:
    """{split: part json}. Polygons as given: ids count on from one split to the next, so that no two splits share one.

    Raises:
        ValueError: the result would break the format: an error of this package.
    """
    part_ids = {category["name"]: category["id"] for category in labels.categories}
    class_ids = {entry["name"]: entry["id"] for entry in labels.classes}
    files: dict[str, dict[str, Any]] = {}
    image_id = annotation_id = 0
    for split, samples in by_split.items():
        if style.masks == "rle":
            image_id = annotation_id = 0
        images, annotations = [], []
        for sample in samples:
            image_id += 1
            images.append(_image_entry(sample, image_id, class_ids[sample.label], settings, style))
            for part in sample.image.parts:
                annotation_id += 1
                entry = {"id": annotation_id, "image_id": image_id, "category_id": part_ids[part["part"]], "iscrowd": 0}
                annotations.append(entry | _part_entry(part, entry["category_id"], sample, style))
        files[split] = {
            "info": {"version": "1.0", "part_robust": {**shared, "split": split}},
            "licenses": [],
            "classes": labels.classes,
            "categories": labels.categories,
            "images": images,
            "annotations": annotations,
        }
        if style.title:
            files[split]["info"]["description"] = style.title
        broken = list(islice(violations(files[split]), 3))
        if broken:
            raise ValueError(f"the import of split {split} would break the part format: {'; '.join(broken)}")
    return files


def _part_entry(part: Mapping, category_id: int, sample: ImportedImage, style: Style) -> dict:
    if style.masks == "given":
        return {key: value for key, value in part.items() if key != "part"}
    height, width = sample.image.height, sample.image.width
    if "segmentation" in part:
        mask: TightMask | None = decode(part["segmentation"], height, width)[0]
    else:
        mask = box_mask(part["bbox"], height, width)
    assert mask is not None
    pixels = mask.inside((0, 0, width, height))
    entry = part_annotation(pixels, category_id, part.get("object_id", 1), part.get("is_target", 1))
    if "segmentation" not in part:
        del entry["segmentation"]  # a box is all that is known
    return entry


def _image_entry(sample: ImportedImage, image_id: int, class_id: int, settings: ImportSettings, style: Style) -> dict:
    item = sample.image
    entry = {
        "id": image_id,
        "file_name": sample.name,
        "width": item.width,
        "height": item.height,
        "class_id": class_id,
        "part_supervision": _supervision(sample, settings),
    }
    region = ignored_region(item)
    if region is not None:
        entry["ignore_segmentation"] = region
    if style.masks == "given":
        entry["source"] = {
            "dataset": sample.source.title,
            "image_id": item.source_id,
            "group": sample.picture.content[:16],
        }
    return entry


def _supervision(sample: ImportedImage, settings: ImportSettings) -> str:
    item = sample.image
    if item.parts or item.ignore:
        # The pixels of a part that could not be read are not background.
        return "partial" if item.lost else "full"
    # Nothing says whether an image without annotations has no parts or was never annotated.
    return "none" if item.lost else settings.unannotated


def check_output(output: Path, files: Mapping[str, Mapping], style: Style, force: bool) -> list[Path]:
    """Refuses to replace files of others, and to lie beside splits of another import.

    Returns:
        Split files of an earlier import that this one does not replace; only where `force` is set.

    Raises:
        ValueError: names the file and the way out.
    """
    folder = output / "annotations"
    stale = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            ours = json.loads(path.read_text())["info"]["part_robust"]["generator"] in GENERATORS
        except (ValueError, KeyError, TypeError):
            ours = False
        if path.stem in files:
            if not ours and not force:
                raise ValueError(
                    f"{path} was not written by {style.generator}: choose another --output, or add --force"
                )
        elif ours:
            stale.append(path)
    if stale and not force:
        raise ValueError(
            f"{stale[0]} is a split of an earlier import, and its images may be in the new splits: import all splits "
            "in one call, choose another --output, or add --force, which removes it"
        )
    return stale


def write_all(
    output: Path,
    files: Mapping[str, Mapping],
    report: Mapping,
    to_copy: Sequence[ImportedImage],
    stale: Sequence[Path],
    style: Style,
) -> None:
    """Write the images first, then the jsons that name them.

    Nothing is replaced before everything is written beside it, and a marker says that the folder is unfinished while
    one file after the other is replaced.
    """
    for sample in tqdm(to_copy, desc="copying images", unit="image", disable=None if to_copy else True):
        _copy(sample.path, output / "images" / sample.name)
    folder = output / "annotations"
    folder.mkdir(parents=True, exist_ok=True)
    contents = {folder / f"{split}.json": _text(content, style) for split, content in files.items()}
    contents |= {output / "report.json": json.dumps(report, indent=1) + "\n", output / "report.md": markdown(report)}
    try:
        for path, content in contents.items():
            _beside(path).write_bytes(content.encode())
    except BaseException:
        for path in contents:
            _beside(path).unlink(missing_ok=True)
        raise
    marker = folder / UNFINISHED
    marker.write_text("an import into this folder was interrupted: repeat it\n")
    replaced = False
    try:
        for path in contents:
            os.replace(_beside(path), path)
            replaced = True
        for path in stale:
            path.unlink()
    except OSError:
        if not replaced:
            marker.unlink()  # the earlier import is whole
        raise
    marker.unlink()


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


def _text(content: Mapping, style: Style) -> str:
    if style.masks == "given":
        return json.dumps(content) + "\n"
    lines = []
    for key in sorted(content):
        value = content[key]
        text = "[" + ",\n".join(map(dump, value)) + "]" if key in ("images", "annotations") else dump(value)
        lines.append(f'"{key}":{text}')
    return "{" + ",\n".join(lines) + "}\n"


def _copy(source: Path, target: Path) -> None:
    if target.is_file() and filecmp.cmp(source, target, shallow=False):
        return
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)
