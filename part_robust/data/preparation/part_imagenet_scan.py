"""First pass over PartImageNet's jsons: which images can be used, and the counts.

Needs no images, so everyone can compare their annotation files with the published numbers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Any

from part_robust.data.preparation.entries import read_entries
from part_robust.data.preparation.part_imagenet_files import PartImageNetFiles
from part_robust.data.preparation.part_imagenet_names import IMAGENET_CLASSES, OOD_IMAGES, PARTS
from part_robust.data.preparation.part_imagenet_units import ImageUnit
from part_robust.data.preparation.report import Check, PreparationCounts
from part_robust.data.preparation.splits import RATIOS, SPLITS, check_ratios, thesis_shuffle

_REQUIRED = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("image_id", "category_id"),
    "categories": ("id", "name"),
}
MODES = ("thesis", "grouped", "official")
CLASS_KINDS = ("super", "imagenet")


@dataclass(frozen=True)
class PartImageNetOptions:
    """Options of the command.

    Attributes:
        mode: one of MODES.
        classes: "super" for the 11 super-categories, "imagenet" for the 158 ImageNet classes.
        boxes: one part per "annotation", or per 4-connected "component" of the label map (the thesis's notebook).
        seed: of the split.
        ratios: shares of train, val and test.
        allow_missing: count and skip images that do not exist instead of refusing to begin.
    """

    mode: str = "thesis"
    classes: str = "super"
    boxes: str = "annotation"
    seed: int = 0
    ratios: tuple[float, ...] = RATIOS
    allow_missing: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("mode", self.mode, MODES),
            ("classes", self.classes, CLASS_KINDS),
            ("boxes", self.boxes, ("annotation", "component")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, is {value!r}")
        check_ratios(self.ratios)


@dataclass
class PartImageNetScan:
    """The jsons, read.

    Attributes:
        categories: entries of the json, in ascending id.
        units: one per usable image, in the order of their keys; `path` is empty until the images are looked up.
        checks, tally, noted, notes: for the report.
    """

    categories: list[dict] = field(default_factory=list)
    units: list[ImageUnit] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    tally: PreparationCounts = field(default_factory=PreparationCounts)
    noted: PreparationCounts = field(default_factory=PreparationCounts)
    notes: list[str] = field(default_factory=list)


def count_part_imagenet(files: PartImageNetFiles, options: PartImageNetOptions) -> PartImageNetScan:
    """Reads the jsons and counts; needs no images.

    Raises:
        ValueError: a json is broken, or the splits have different categories.
    """
    scan = PartImageNetScan()
    seen: set[str] = set()
    for split, path in sorted(files.annotations.items(), key=lambda item: SPLITS.index(item[0])):
        data = read_entries(path, _REQUIRED)
        images, annotations = data["images"], data["annotations"]
        categories = sorted(data["categories"], key=lambda c: c["id"])
        if not categories:
            raise ValueError(f"{path}: categories is empty: download the file again")
        names = _named(categories)
        if not scan.categories:
            scan.categories = categories
        elif names != _named(scan.categories):
            different = next((a for a, b in zip_longest(names, _named(scan.categories)) if a != b), None)
            raise ValueError(
                f"{path} has other categories than the split before it ({len(names)} and {len(scan.categories)}, first "
                f"different: {different}): take all jsons from one download"
            )
        before = len(scan.units)
        _require_unique(path, images)
        _scan_split(split, images, annotations, files.layout, scan, seen, options)
        expected = (OOD_IMAGES[split],) if files.layout == "ood" else ()
        scan.checks.append(Check(f"{split}: images", expected, len(images)))
        used = Counter(unit.wnid for unit in scan.units[before:])
        scan.checks.append(Check(f"{split}: ImageNet classes", (), len(used)))
        scan.checks.append(Check(f"{split}: part annotations", (), len(annotations)))
    scan.units.sort(key=lambda unit: unit.key)
    scan.checks += _checks(scan, files, options)
    return scan


def _require_unique(path: Path, images: list[dict]) -> None:
    """Raises ValueError where two files have one id."""
    names: dict[int | str, str] = {}
    for image in images:
        first = names.setdefault(image["id"], image["file_name"])
        if first != image["file_name"]:
            raise ValueError(
                f"{path}: image id {image['id']!r} is both {first} and {image['file_name']}, so it is unknown which "
                "image its annotations belong to: download the file again"
            )


def _named(categories: list[dict]) -> list[tuple]:
    return [(c["id"], c["name"], c.get("supercategory")) for c in categories]


def _scan_split(
    split: str,
    images: list[dict],
    annotations: list[dict],
    layout: str,
    scan: PartImageNetScan,
    seen: set[str],
    options: PartImageNetOptions,
) -> None:
    owner = {c["id"]: c.get("supercategory") for c in scan.categories}
    by_image: dict[Any, list[dict]] = defaultdict(list)
    lost: Counter = Counter()
    known = {image["id"] for image in images}
    for annotation in annotations:
        where = f"{split}: annotation {annotation.get('id')}"
        if annotation.get("image_id") not in known:
            scan.tally.add("unknown_image", where)
        elif annotation.get("category_id") not in owner:
            scan.tally.add("unknown_category", f"{where} has category_id {annotation.get('category_id')}")
            lost[annotation["image_id"]] += 1
        else:
            by_image[annotation["image_id"]].append(annotation)
    for image in images:
        name = PurePosixPath(str(image["file_name"]).replace("\\", "/")).name
        wnid = name.split("_")[0]
        parts = by_image[image["id"]]
        where = f"{split}/{name}"
        if wnid not in IMAGENET_CLASSES:
            scan.tally.add("unknown_class", f"{where}: {wnid} is none of the 158 ImageNet classes")
            continue
        if name in seen:
            scan.tally.add("duplicate_image", where)
            continue
        seen.add(name)
        if not parts and options.mode == "thesis":
            scan.tally.add("no_annotations", where)
            continue
        group = IMAGENET_CLASSES[wnid][1]
        foreign = sorted({str(owner[a["category_id"]]) for a in parts} - {group})
        if foreign:
            scan.noted.add("parts_of_another_super_category", f"{where}: a {group} with parts of {', '.join(foreign)}")
        scan.units.append(
            ImageUnit(
                key=name.rsplit(".", 1)[0],
                split=split,
                name=name,
                wnid=wnid,
                image_id=image["id"],
                width=int(image["width"]),
                height=int(image["height"]),
                annotations=[
                    (a.get("id"), a["category_id"], a.get("segmentation"))
                    for a in sorted(parts, key=lambda a: (a["category_id"], a.get("id") or 0))
                ],
                dataset=f"part_imagenet_{layout}",
                lost=lost[image["id"]],
            )
        )


def _checks(scan: PartImageNetScan, files: PartImageNetFiles, options: PartImageNetOptions) -> list[Check]:
    documented = [f"{group} {part}" for group, parts in PARTS.items() for part in parts]
    found = [part_name(c) for c in scan.categories]
    if found != documented:
        different = [
            f"{i}: {a} instead of {b}" for i, (a, b) in enumerate(zip(found, documented, strict=False)) if a != b
        ]
        scan.notes.append(f"categories differ from the documented ones: {'; '.join(different[:5]) or len(found)}")
    pool = draw_within_classes([IMAGENET_CLASSES[u.wnid][1] for u in scan.units], options.seed, options.ratios)
    count = Counter(pool)
    is_whole = files.layout == "ood"
    checks = [
        Check("part categories", (40,), len(scan.categories), exact=True),
        Check("category ids", ("0..39",), f"{scan.categories[0]['id']}..{scan.categories[-1]['id']}"),
        Check("images in all", (24_095,) if is_whole else (), len(scan.units)),
        Check("ImageNet classes", (158,), len({unit.wnid for unit in scan.units})),
        Check("images with parts of another super-category", (0,),
              scan.noted.counts["parts_of_another_super_category"]),
    ]  # fmt: skip
    # Eleven roundings can lose at most eleven images (datasets.md 2.5 gives the interval for 24,095).
    for split, low, high in (("train", 19_277, 19_297), ("val", 2_399, 2_409), ("test", 2_399, 2_409)):
        inside = low <= count[split] <= high
        text = f"{low:,}..{high:,}"
        expected = (text,) if is_whole else ()
        checks.append(Check(f"thesis shuffle: {split}", expected, text if inside else count[split]))
    return checks


def part_name(category: dict) -> str:
    """Return a part's name such as "Quadruped Head", also where the json has the bare part."""
    name, group = str(category["name"]), str(category.get("supercategory") or "")
    return name if not group or name.startswith(group) else f"{group} {name}"


def draw_within_classes(groups: Sequence[str], seed: int, ratios: Sequence[float]) -> list[str]:
    """int(0.1 n) of each group are val, as many test, the rest train."""
    members: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    result = ["train"] * len(groups)
    for _, indices in sorted(members.items()):
        for index, split in zip(indices, thesis_shuffle(len(indices), seed, ratios), strict=True):
            # What rounding leaves over is train here, unlike in PACO.
            result[index] = split or "train"
    return result
