"""First pass over PACO's jsons: which objects become images, and the counts that the public tables give.

Needs no images, so everyone can compare their annotation files with the published numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from part_robust.data.preparation.paco_names import (
    CLASSES_WITHOUT_PARTS,
    PUBLIC_COUNTS,
    THESIS_ABSENT_PARTS,
    THESIS_COUNTS,
    category_differences,
)
from part_robust.data.preparation.paco_source import PacoFile, PacoImage, PacoObject, read_paco_file
from part_robust.data.preparation.report import Check, PreparationCounts
from part_robust.data.preparation.splits import RATIOS, SPLITS, shared_between_splits, split_of_group, thesis_shuffle

MIN_AREA = 0.01  # smallest box area that is kept, as a share of the image (thesis section 3.2)
_SAME_BOX_IOU = 0.9


class KeptObject(NamedTuple):
    """An object that becomes an image."""

    key: str
    group: str
    category_id: int
    has_parts: bool
    source_split: str


@dataclass
class PacoScan:
    """Findings of the first pass.

    Attributes:
        categories: the json's entries, objects and parts, in ascending id.
        kept: in file order, the order that the thesis shuffles.
        seen_parts: part category ids that some kept object has.
        image_files: names of the images with kept objects, by dataset.
        num_units: images with kept objects.
        checks, tally, notes: for the report.
    """

    categories: list[dict] = field(default_factory=list)
    kept: list[KeptObject] = field(default_factory=list)
    seen_parts: set[int] = field(default_factory=set)
    image_files: dict[str, list[str]] = field(default_factory=dict)
    num_units: int = 0
    checks: list[Check] = field(default_factory=list)
    tally: PreparationCounts = field(default_factory=PreparationCounts)
    noted: PreparationCounts = field(default_factory=PreparationCounts)
    notes: list[str] = field(default_factory=list)

    @property
    def objects(self) -> list[dict]:
        """The categories that are objects."""
        return [c for c in self.categories if c["supercategory"].upper() == "OBJECT"]

    @property
    def parts(self) -> list[dict]:
        """The categories that are parts."""
        return [c for c in self.categories if c["supercategory"].upper() == "PART"]


def is_kept(entry: PacoObject, image: PacoImage, min_area: float = MIN_AREA) -> bool:
    """The thesis's rule: area of the box as the json gives it, unclipped, against the area of the whole image."""
    _, _, width, height = entry.annotation.box
    return width * height / (image.height * image.width) >= min_area


def group_of(dataset: str, image: PacoImage) -> str:
    """Return what must stay in one split: the COCO image, whatever file it is listed in, or the whole Ego4D video."""
    if dataset == "lvis":
        return f"coco:{image.id}"
    return f"ego4d:{Path(image.file_name).stem.rsplit('_', 1)[0]}"


def scan_paco(
    files: Mapping[tuple[str, str], Path], min_area: float = MIN_AREA, seed: int = 0, ratios: Sequence[float] = RATIOS
) -> PacoScan:
    """Reads every file once, one at a time.

    Raises:
        ValueError: a file is broken, or two files have different categories.
    """
    scan = PacoScan()
    images_used = objects_before = 0
    with tqdm(files.items(), desc="reading annotations", unit="file") as bar:
        for (dataset, split), path in bar:
            bar.set_postfix_str(path.name)
            file = read_paco_file(path, dataset, split, masks=False, tally=scan.tally)
            if not scan.categories:
                scan.categories = [{k: c[k] for k in ("id", "name", "supercategory")} for c in file.categories]
            elif [(c["id"], c["name"]) for c in scan.categories] != [(c["id"], c["name"]) for c in file.categories]:
                raise ValueError(f"{path} has other categories than the files before it: mix no versions of PACO")
            images_used += len(file.images)
            objects_before += file.num_objects
            _scan_file(file, scan, min_area)
            scan.checks += _file_checks(file)
    scan.checks += _overall_checks(scan, files, images_used, objects_before, seed, ratios)
    differences = category_differences(scan.categories)
    scan.notes += [f"categories: {sentence}" for sentence in differences]
    return scan


def _scan_file(file: PacoFile, scan: PacoScan, min_area: float) -> None:
    files = scan.image_files.setdefault(file.dataset, [])
    for image_id, objects in file.objects.items():
        image = file.images[image_id]
        kept = [entry for entry in objects if is_kept(entry, image, min_area)]
        for entry in objects:
            if not is_kept(entry, image, min_area):
                scan.tally.add("below_area", file.key(image_id, entry.id))
        if not kept:
            continue
        scan.num_units += 1
        files.append(image.file_name)
        for first, second in _same_boxes(kept):
            scan.noted.add("same_box_two_classes", f"{file.key(image_id, first.id)} and {second.id}")
    # The order of the annotations in the file, not of the images: the thesis shuffles that list.
    for entry in sorted((e for objects in file.objects.values() for e in objects), key=lambda e: e.order):
        image = file.images[entry.annotation.image_id]
        if is_kept(entry, image, min_area):
            key = file.key(image.id, entry.id)
            group = group_of(file.dataset, image)
            scan.kept.append(KeptObject(key, group, entry.annotation.category_id, bool(entry.parts), file.split))
            scan.seen_parts.update(part.category_id for part in entry.parts)
            for part in entry.parts:
                size, expected = part.segmentation, (image.height, image.width)
                if isinstance(size, tuple) and size != expected:
                    scan.noted.add("rle_size_mismatch", f"{key}: part {part.id} is {size}, not {expected}")


def _same_boxes(objects: list[PacoObject]) -> Iterator[tuple[PacoObject, PacoObject]]:
    """Pairs of different classes whose boxes nearly coincide: one picture with two labels."""
    for index, first in enumerate(objects):
        for second in objects[index + 1 :]:
            if first.annotation.category_id == second.annotation.category_id:
                continue
            ax, ay, aw, ah = first.annotation.box
            bx, by, bw, bh = second.annotation.box
            width, height = min(ax + aw, bx + bw) - max(ax, bx), min(ay + ah, by + bh) - max(ay, by)
            inter = max(width, 0) * max(height, 0)
            if inter > _SAME_BOX_IOU * (aw * ah + bw * bh - inter):
                yield first, second


def _file_checks(file: PacoFile) -> list[Check]:
    name = f"{file.dataset} {file.split}"
    images, objects, parts = PUBLIC_COUNTS[file.dataset, file.split]
    checks = [
        Check(f"{name}: images", (images,), len(file.images)),
        Check(f"{name}: object boxes", (objects,), file.num_objects),
        Check(f"{name}: part masks", (parts,), file.num_parts),
    ]
    if file.split == "train":
        wrong = [
            c["name"]
            for c in file.categories
            if "instance_count" in c and c["instance_count"] != file.instances[c["id"]]
        ]
        checks.append(Check(f"{name}: categories whose recount is not instance_count", (0,), len(wrong), exact=True))
    return checks


def _overall_checks(
    scan: PacoScan, files: Collection[tuple[str, str]], images: int, objects: int, seed: int, ratios: Sequence[float]
) -> list[Check]:
    kept = scan.kept
    part_owners = {c["name"].split(":", 1)[0] for c in scan.parts}
    partless = ", ".join(sorted(c["name"] for c in scan.objects if c["name"] not in part_owners))
    absent = [c["name"] for c in scan.parts if c["id"] not in scan.seen_parts]
    public = sum(PUBLIC_COUNTS[name][1] for name in files)
    # The thesis's numbers hold for its five files only.
    is_thesis = set(files) == set(PUBLIC_COUNTS) - {("ego4d", "test")}

    def thesis(key: str) -> tuple:
        return (THESIS_COUNTS[key],) if is_thesis else ()

    dropped = tuple(total - THESIS_COUNTS["kept"] for total in (public, THESIS_COUNTS["objects"]))
    shown = ", ".join(absent[:4]) + (f" and {len(absent) - 4} more" if len(absent) > 4 else "")
    checks = [
        Check("images used", (sum(PUBLIC_COUNTS[name][0] for name in files),), images),
        Check("object boxes before the filter (public table or thesis)", (public, *thesis("objects")), objects),
        Check("objects kept (box at least 1 % of the image)", thesis("kept"), len(kept)),
        Check(
            "objects dropped as too small (public table or thesis)", dropped if is_thesis else (), objects - len(kept)
        ),
        Check("kept without parts", thesis("kept_without_parts"), sum(not k.has_parts for k in kept)),
        Check("object classes", (75,), len(scan.objects), exact=True),
        Check("part categories", (456,), len(scan.parts), exact=True),
        Check("classes without part categories", (", ".join(CLASSES_WITHOUT_PARTS),), partless or "none", exact=True),
        Check("part classes of kept objects", thesis("part_classes"), len(scan.seen_parts)),
        Check("absent part classes", (", ".join(THESIS_ABSENT_PARTS),) if is_thesis else (), shown or "none"),
    ]
    drawn: dict[str, Sequence[str | None]] = {
        "thesis": thesis_shuffle(len(kept)),
        "grouped": [split_of_group(k.group, seed, ratios) for k in kept],
        "official": [k.source_split for k in kept],
    }
    for mode, splits in drawn.items():
        count = Counter(splits)
        checks += [
            Check(f"{mode} split: {split}", thesis(split) if mode == "thesis" else (), count[split]) for split in SPLITS
        ]
        members = [(k.group, split) for k, split in zip(kept, splits, strict=True) if split]
        leaks = len(shared_between_splits(members))
        must = mode == "grouped"
        checks.append(Check(f"{mode} split: images or videos in two splits", (0,) if must else (), leaks, exact=must))
    return checks
