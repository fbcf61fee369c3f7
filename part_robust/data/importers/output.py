"""Writes what an import found: part jsons, images and the report, each whole or not at all."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from hashlib import blake2b
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from part_robust.data.importers.clean import ignored_region
from part_robust.data.importers.report import markdown
from part_robust.data.importers.samples import ImportSettings, Sample
from part_robust.data.part_shapes.samples import write_file
from part_robust.data.validation import violations

GENERATOR = "import_coco"


def header(data: Sequence[Mapping], samples: Sequence[Sample], settings: ImportSettings) -> dict:
    """The `info.part_robust` that all splits share. Its hash covers everything the result depends on."""
    described = [asdict(settings), list(data), [[s.name, s.label, s.split, s.picture.content] for s in samples]]
    return {
        "format": "part-classification",
        "format_version": 1,
        "split_unit": "image_content" if settings.group_by == "content" else settings.group_by,
        "seed": settings.seed,
        "config_hash": blake2b(json.dumps(described).encode(), digest_size=16).hexdigest(),
        "generator": GENERATOR,
    }


def part_jsons(
    by_split: Mapping[str, Sequence[Sample]],
    names: Sequence[str],
    supercategories: Mapping[str, str],
    classes: Mapping[str, Sequence[str]],
    shared: Mapping,
    settings: ImportSettings,
) -> dict[str, dict]:
    """{split: part json}. Ids count on from one split to the next, so that no two splits share one.

    Raises:
        ValueError: the result would break the format: an error of this package.
    """
    part_ids = {name: index for index, name in enumerate(names, start=1)}
    class_ids = {name: index for index, name in enumerate(classes, start=1)}
    categories = [
        {"id": part_ids[name], "name": name}
        | ({"supercategory": supercategories[name]} if name in supercategories else {})
        for name in names
    ]
    class_entries = [
        {"id": class_ids[name], "name": name, "part_category_ids": [part_ids[part] for part in parts]}
        for name, parts in classes.items()
    ]
    files = {}
    image_id = annotation_id = 0
    for split, samples in by_split.items():
        images, annotations = [], []
        for sample in samples:
            image_id += 1
            images.append(_image_entry(sample, image_id, class_ids[sample.label], settings))
            for part in sample.image.parts:
                annotation_id += 1
                entry = {"id": annotation_id, "image_id": image_id, "category_id": part_ids[part["part"]], "iscrowd": 0}
                annotations.append(entry | {key: value for key, value in part.items() if key != "part"})
        files[split] = {
            "info": {"version": "1.0", "part_robust": {**shared, "split": split}},
            "licenses": [],
            "classes": class_entries,
            "categories": categories,
            "images": images,
            "annotations": annotations,
        }
        broken = list(islice(violations(files[split]), 3))
        if broken:
            raise ValueError(f"the import of split {split} would break the part format: {'; '.join(broken)}")
    return files


def _image_entry(sample: Sample, image_id: int, class_id: int, settings: ImportSettings) -> dict:
    image = sample.image
    labelled = bool(image.parts or image.ignore)
    entry = {
        "id": image_id,
        "file_name": sample.name,
        "width": image.width,
        "height": image.height,
        "class_id": class_id,
        # Nobody says whether an image without annotations has no parts or was never annotated.
        "part_supervision": "full" if labelled else settings.unannotated,
    }
    region = ignored_region(image)
    if region is not None:
        entry["ignore_segmentation"] = region
    entry["source"] = {
        "dataset": sample.source.title,
        "image_id": image.source_id,
        "group": sample.picture.content[:16],
    }
    return entry


def check_output(output: Path, files: Mapping[str, Mapping], force: bool) -> None:
    """Refuses to replace files of others, and to lie beside splits of another label space.

    Raises:
        ValueError: names the file and the way out.
    """
    folder = output / "annotations"
    for path in sorted(folder.glob("*.json")) if folder.is_dir() and not force else ():
        try:
            found = json.loads(path.read_text())
            ours = found["info"]["part_robust"]["generator"] == GENERATOR
        except (ValueError, KeyError, TypeError):
            ours = False
        if path.stem in files:
            if not ours:
                raise ValueError(f"{path} was not written by import_coco: choose another --output, or add --force")
        elif ours and any(
            found[key] != content[key] for content in files.values() for key in ("classes", "categories")
        ):
            raise ValueError(
                f"{path}, of an earlier import, has other classes or parts: import all splits in one call (several "
                "--json), choose another --output, or add --force"
            )


def write_all(output: Path, files: Mapping[str, Mapping], report: Mapping, to_copy: Sequence[Sample]) -> None:
    """Images first, then the jsons that promise them, the report last."""
    for sample in tqdm(to_copy, desc="copying images", unit="image", disable=None if to_copy else True):
        _copy(sample.path, output / "images" / sample.name)
    (output / "annotations").mkdir(parents=True, exist_ok=True)
    for split, content in files.items():
        write_file(output / "annotations" / f"{split}.json", (json.dumps(content) + "\n").encode())
    write_file(output / "report.json", (json.dumps(report, indent=1) + "\n").encode())
    write_file(output / "report.md", markdown(report).encode())


def _copy(source: Path, target: Path) -> None:
    if target.is_file() and filecmp.cmp(source, target, shallow=False):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".tmp")
    shutil.copyfile(source, temporary)
    os.replace(temporary, target)
