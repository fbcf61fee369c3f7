"""PartImageNet (He et al., 2022) as a part-classification data set of 11 super-categories or 158 ImageNet classes.

Modes:
    thesis: all images in one pool, shuffled within each super-category, 0.8 / 0.1 / 0.1; the default.
    grouped: random split by the hash of the image's name.
    official: the data set's own splits; those of the OOD version have different ImageNet classes.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from part_robust.data.preparation.images import missing_files_message
from part_robust.data.preparation.part_imagenet_files import PartImageNetFiles
from part_robust.data.preparation.part_imagenet_names import IMAGENET_CLASSES
from part_robust.data.preparation.part_imagenet_scan import (
    PartImageNetOptions,
    PartImageNetScan,
    count_part_imagenet,
    draw_within_classes,
    part_name,
)
from part_robust.data.preparation.part_imagenet_units import ImageUnit, image_sample
from part_robust.data.preparation.pipeline import Preparation, PreparedImage, file_hash, prepare
from part_robust.data.preparation.report import Check, PreparationCounts
from part_robust.data.preparation.splits import join_groups, split_of_group


def prepare_part_imagenet(
    files: PartImageNetFiles, output: Path, options: PartImageNetOptions, workers: int = 1, restart: bool = False
) -> dict[str, Path]:
    """Writes `output/annotations/{train,val,test}.json`, report and split lists; the images stay where they are.

    Returns:
        The json of each split.

    Raises:
        FileNotFoundError: images are missing; names the first ones and what to do.
        ValueError: see `count_part_imagenet`; or the label maps of the Seg version contradict its json.
        RuntimeError: see `pipeline.prepare`.
    """
    for split, path in files.annotations.items():
        if path.resolve() == (output / "annotations" / f"{split}.json").resolve():
            raise ValueError(f"the output would replace the source {path}: name another folder with --output")
    scan = count_part_imagenet(files, options)
    missing = [unit.name for unit in scan.units if unit.name not in files.images]
    if missing and not options.allow_missing:
        remedy = (
            "Unpack train.zip, val.zip and test.zip (--unpack), or name a folder with the images (--images; ImageNet's "
            "train/ has them all). The old Google Drive folder holds only jsons. Partial copies: --allow-missing"
        )
        raise FileNotFoundError(missing_files_message("images", missing, len(scan.units), remedy))
    found = [files.images[unit.name].resolve() for unit in scan.units if unit.name in files.images]
    if not found:
        raise FileNotFoundError(missing_files_message("images", missing, len(scan.units), "There is none at all"))
    base = Path(os.path.commonpath([path.parent for path in found]))
    image_root = os.path.relpath(base, (output / "annotations").resolve())
    classes, categories, class_ids, part_ids = label_space(scan, options.classes)
    title = f"PartImageNet ({files.layout}, {len(classes)} classes, {options.mode} split)"
    preparation = Preparation(
        output=output,
        title=title,
        settings=asdict(options) | {
            "layout": files.layout,
            "image_root": image_root,
            "inputs": {split: [path.stat().st_size, file_hash(path)] for split, path in files.annotations.items()},
        },
        header={
            "generator": "part_imagenet",
            "split_unit": "official" if options.mode == "official" else "image",
            "mode": options.mode,
            "seed": options.seed,
            "image_root": image_root,
        },
        classes=classes,
        categories=categories,
        units=partial(_units, scan, files, base),
        total=len(scan.units),
        process=partial(image_sample, class_ids=class_ids, part_ids=part_ids, components=options.boxes == "component"),
        assign=partial(assign_splits, options),
        leak_free=options.mode != "official",
        checks=list(scan.checks),
        tallies={"In the annotations": scan.tally, "Left out": PreparationCounts(), "Worth knowing": scan.noted},
        notes=_notes(scan, files, options),
        conclude=partial(_conclude, scan.categories),
    )  # fmt: skip
    return prepare(preparation, workers, restart)


def label_space(scan: PartImageNetScan, kind: str) -> tuple[list[dict], list[dict], dict[str, int], dict[int, int]]:
    """Classes and categories of the part json, wnid -> class id, source category id -> category id."""
    part_ids = {c["id"]: rank for rank, c in enumerate(scan.categories, start=1)}
    parts_of: dict[str, list[int]] = defaultdict(list)
    for category in scan.categories:
        parts_of[str(category.get("supercategory"))].append(part_ids[category["id"]])
    categories = [
        {"id": part_ids[c["id"]], "name": part_name(c), "supercategory": c.get("supercategory"), "source_id": c["id"]}
        for c in scan.categories
    ]
    if kind == "super":
        names = sorted({group for _, group in IMAGENET_CLASSES.values()})
        ids = {name: rank for rank, name in enumerate(names, start=1)}
        classes = [{"id": ids[name], "name": name, "part_category_ids": parts_of[name]} for name in names]
        return classes, categories, {wnid: ids[group] for wnid, (_, group) in IMAGENET_CLASSES.items()}, part_ids
    class_ids = {wnid: rank for rank, wnid in enumerate(sorted(IMAGENET_CLASSES), start=1)}
    classes = [
        {"id": class_ids[wnid], "name": f"{wnid} {name}", "part_category_ids": parts_of[group], "wnid": wnid}
        for wnid, (name, group) in sorted(IMAGENET_CLASSES.items())
    ]
    return classes, categories, class_ids, part_ids


def assign_splits(options: PartImageNetOptions, samples: Sequence[PreparedImage]) -> list[str]:
    """Split of every sample; "duplicate_content" for a file that is there already under another name.

    The thesis's own order depends on how Python iterates over sets, so its split sizes can be met, not its membership.
    """
    if options.mode == "official":
        return [sample.source_split for sample in samples]
    if options.mode == "grouped":
        joined = join_groups((sample.group, sample.content) for sample in samples)
        return [split_of_group(joined[sample.group], options.seed, options.ratios) for sample in samples]
    first: dict[str, str] = {}
    for sample in samples:
        first.setdefault(sample.content, sample.key)
    unique = [sample for sample in samples if first[sample.content] == sample.key]
    groups = [IMAGENET_CLASSES[sample.key.split("_")[0]][1] for sample in unique]
    drawn = dict(zip((s.key for s in unique), draw_within_classes(groups, options.seed, options.ratios), strict=True))
    return [drawn.get(sample.key, "duplicate_content") for sample in samples]


def _units(
    scan: PartImageNetScan, files: PartImageNetFiles, base: Path, done: frozenset[str]
) -> Iterable[tuple[str, ImageUnit]]:
    for unit in scan.units:
        if unit.key in done:
            continue
        path = files.images.get(unit.name)
        file_name = path.resolve().relative_to(base).as_posix() if path else unit.name
        label_map = files.label_maps.get(unit.key)
        yield (
            unit.key,
            unit._replace(
                path=str(path) if path else unit.name,
                file_name=file_name,
                label_map=str(label_map) if label_map else None,
            ),
        )


def _notes(scan: PartImageNetScan, files: PartImageNetFiles, options: PartImageNetOptions) -> list[str]:
    notes = list(scan.notes)
    if options.mode == "official" and options.classes == "imagenet" and files.layout == "ood":
        notes.append("the official OOD splits have different ImageNet classes: no model can name those of val and test")
    if options.mode == "thesis":
        notes.append("the thesis's split sizes, not its membership: that depends on Python's set order")
    return notes


def _conclude(categories: list[dict], counts: Counter) -> tuple[list[Check], list[str]]:
    """Checks that need the pixels: label maps against polygons, background share.

    Raises:
        ValueError: the label maps call a part by another number than the json.
    """
    checks = []
    votes: dict[int, Counter] = defaultdict(Counter)
    for name, count in counts.items():
        if name.startswith("vote "):
            _, category, label = name.split()
            votes[int(category)][int(label)] += count
    wrong = [
        f"{c['name']} (id {c['id']}) is {votes[c['id']].most_common(1)[0][0]} in the label maps"
        for c in categories
        if c["id"] in votes and votes[c["id"]].most_common(1)[0][0] != c["id"]
    ]
    if wrong:
        raise ValueError(
            f"label maps and json number the parts differently: {'; '.join(wrong[:5])}. Fix one of them and run again"
        )
    if votes:
        agreeing = sum(votes[c][c] for c in votes) / sum(sum(v.values()) for v in votes.values())
        checks.append(Check("parts whose label map agrees with the json", (), f"{agreeing:.4f}"))
    total = max(counts["pixels"], 1)
    checks.append(Check("share of pixels on background", (), f"{1 - counts['pixels_of_parts'] / total:.3f}"))
    return checks, []
