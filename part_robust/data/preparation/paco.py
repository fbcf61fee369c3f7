"""PACO (Ramanathan et al., 2023) as a part-classification data set: thesis section 3.2 and its corrected variant.

Modes:
    grouped: leak-free random split by COCO image and Ego4D video; the default.
    thesis: the split, label space, window rounding and masks of the thesis.
    official: the data set's own splits.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from part_robust.data.preparation.images import Folders, missing_files_message
from part_robust.data.preparation.paco_crops import CropRules, ImageUnit, Target, crop_unit
from part_robust.data.preparation.paco_files import (
    COCO_HINT,
    FILES,
    LICENCE_HINT,
    PacoRoots,
    archive_state,
    find_annotation_files,
    find_archives,
    image_roots,
)
from part_robust.data.preparation.paco_scan import MIN_AREA, PacoScan, group_of, is_kept, scan_paco
from part_robust.data.preparation.paco_source import PacoFile, read_paco_file
from part_robust.data.preparation.pipeline import Preparation, PreparedImage, file_hash, prepare
from part_robust.data.preparation.report import Check, PreparationCounts
from part_robust.data.preparation.splits import RATIOS, check_ratios, join_groups, split_of_group, thesis_shuffle

MODES = ("grouped", "thesis", "official")


@dataclass(frozen=True)
class PacoOptions:
    """Options of the command.

    Attributes:
        mode: one of MODES.
        sources: "lvis" and / or "ego4d".
        ego4d_test: use the Ego4D test file too, which the thesis could not; never in thesis mode.
        seed: of the split.
        ratios: shares of train, val and test.
        min_area: smallest box area that is kept, as a share of the image.
        rules: how objects become crops.
        allow_missing: count and skip images that do not exist instead of refusing to begin.
    """

    mode: str = "grouped"
    sources: tuple[str, ...] = ("lvis", "ego4d")
    ego4d_test: bool = False
    seed: int = 0
    ratios: tuple[float, ...] = RATIOS
    min_area: float = MIN_AREA
    rules: CropRules = field(default_factory=CropRules)
    allow_missing: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, is {self.mode!r}")
        if not self.sources or not set(self.sources) <= {"lvis", "ego4d"}:
            raise ValueError(f"sources must be lvis and / or ego4d, are {self.sources}")
        check_ratios(self.ratios)

    @property
    def files(self) -> list[tuple[str, str]]:
        """The annotation files to read, in the thesis's order."""
        with_test = self.ego4d_test and self.mode != "thesis"
        return [f for f in FILES if f[0] in self.sources and (f != ("ego4d", "test") or with_test)]


def thesis_rules(rules: CropRules) -> CropRules:
    """The thesis's choices where they are not ours; what to materialize stays the user's."""
    return replace(rules, truncate=True, small_objects="background", partless="object", nearest=True)


def count_paco(roots: PacoRoots, options: PacoOptions) -> PacoScan:
    """Counts only: needs the jsons and no image.

    Raises:
        FileNotFoundError: a json is missing; says where it was looked for.
        ValueError: a json is broken, or the requested Ego4D test file has no parts.
    """
    files = find_annotation_files(roots, options.files)
    scan = scan_paco(files, options.min_area, options.seed, options.ratios)
    for path in find_archives(roots):
        scan.checks.append(Check(f"sha256 of {path.name}", ("current",), archive_state(path)))
    test_parts = next((c.found for c in scan.checks if c.name == "ego4d test: part masks"), None)
    if test_parts == 0:
        raise ValueError(
            f"{files['ego4d', 'test']} has no parts: it is the withheld version of before 12 February 2024. "
            "Download paco_ego4d_v1.zip again, or leave --ego4d-test out"
        )
    return scan


def prepare_paco(
    roots: PacoRoots, output: Path, options: PacoOptions, workers: int = 1, restart: bool = False
) -> dict[str, Path]:
    """Writes `output/annotations/{train,val,test}.json` (and crops, if the rules say so), report and split lists.

    Without materialized crops the json points at the original images and the loader cuts the crops out.

    Returns:
        The json of each split.

    Raises:
        FileNotFoundError: annotation files or images are missing; names the first ones and what to do.
        ValueError, RuntimeError: see `pipeline.prepare`.
    """
    files = find_annotation_files(roots, options.files)
    folders = image_roots(roots, [source for source in ("lvis", "ego4d") if source in options.sources])
    scan = count_paco(roots, options)
    if not options.allow_missing:
        _require_images(scan, folders)
    rules = options.rules
    base = Path(os.path.commonpath([folder.resolve() for folder in folders.values()]))
    materialized = rules.materialize != "none"
    classes, categories, class_ids, part_ids = label_space(scan, options.mode)
    image_root = "../images" if materialized else os.path.relpath(base, (output / "annotations").resolve())
    header: dict[str, Any] = {
        "generator": "paco",
        "split_unit": {"grouped": "source_image_or_video", "thesis": "object", "official": "official"}[options.mode],
        "mode": options.mode,
        "seed": options.seed,
        "image_root": image_root,
    }
    if not materialized:
        header["load"] = "crop"
    settings = asdict(options) | {
        "image_root": image_root,
        "inputs": {path.name: [path.stat().st_size, file_hash(path)] for path in files.values()},
    }
    preparation = Preparation(
        output=output,
        title=f"PACO ({options.mode} split)",
        settings=settings,
        header=header,
        classes=classes,
        categories=categories,
        units=partial(_units, files, folders, base, options),
        total=scan.num_units,
        process=partial(crop_unit, rules=rules, class_ids=class_ids, part_ids=part_ids, output=output),
        assign=partial(assign_splits, scan, options),
        # Ego4D's own splits are by object instance and may share a video.
        leak_free=options.mode == "grouped",
        checks=list(scan.checks),
        tallies={"In the annotations": scan.tally, "Left out": PreparationCounts(), "Worth knowing": scan.noted},
        notes=_notes(scan, options, categories),
        conclude=_pixel_shares,
    )
    return prepare(preparation, workers, restart)


def label_space(scan: PacoScan, mode: str) -> tuple[list[dict], list[dict], dict[int, int], dict[int, int]]:
    """Classes and categories of the part json, and source id -> id for both. Indices are ranks of the source ids.

    In thesis mode only parts that some kept object has are labels (454 of the 456).
    """
    parts = [c for c in scan.parts if mode != "thesis" or c["id"] in scan.seen_parts]
    part_ids = {c["id"]: rank for rank, c in enumerate(parts, start=1)}
    class_ids = {c["id"]: rank for rank, c in enumerate(scan.objects, start=1)}
    owner = {c["id"]: c["name"].split(":", 1)[0] for c in parts}
    classes = [
        {
            "id": class_ids[c["id"]],
            "name": c["name"],
            "part_category_ids": [part_ids[i] for i in part_ids if owner[i] == c["name"]],
            "source_id": c["id"],
        }
        for c in scan.objects
    ]
    categories = [
        {"id": part_ids[c["id"]], "name": c["name"], "supercategory": owner[c["id"]], "source_id": c["id"]}
        for c in parts
    ]
    return classes, categories, class_ids, part_ids


def assign_splits(scan: PacoScan, options: PacoOptions, samples: Sequence[PreparedImage]) -> list[str]:
    """Split of every sample; in thesis mode "thesis_split_remainder" for the object that its rounding loses."""
    if options.mode == "official":
        return [sample.source_split for sample in samples]
    if options.mode == "thesis":
        # Drawn over all kept objects, those whose crop failed included, as the thesis does.
        drawn = thesis_shuffle(len(scan.kept), options.seed, options.ratios)
        split_of = {kept.key: split or "thesis_split_remainder" for kept, split in zip(scan.kept, drawn, strict=True)}
        return [split_of[sample.key] for sample in samples]
    joined = join_groups((sample.group, sample.content) for sample in samples)
    return [split_of_group(joined[sample.group], options.seed, options.ratios) for sample in samples]


def _units(
    files: dict[tuple[str, str], Path],
    folders: dict[str, Path],
    base: Path,
    options: PacoOptions,
    done: frozenset[str],
) -> Iterable[tuple[str, ImageUnit]]:
    """One file at a time in memory."""
    for (dataset, split), path in files.items():
        file = read_paco_file(path, dataset, split, masks=True)
        yield from _file_units(file, folders[dataset], base, options, done)
        del file


def _file_units(
    file: PacoFile, folder: Path, base: Path, options: PacoOptions, done: frozenset[str]
) -> Iterable[tuple[str, ImageUnit]]:
    prefix = os.path.relpath(folder.resolve(), base)
    for image_id, objects in file.objects.items():
        image = file.images[image_id]
        key = file.key(image_id)
        targets = [Target(o.annotation, o.parts, is_kept(o, image, options.min_area)) for o in objects]
        if key in done or not any(target.kept for target in targets):
            continue
        yield (
            key,
            ImageUnit(
                key=key,
                group=group_of(file.dataset, image),
                split=file.split,
                dataset=file.dataset,
                image=image,
                path=str(folder / image.file_name),
                file_name=Path(os.path.normpath(os.path.join(prefix, image.file_name))).as_posix(),
                objects=targets,
                lost=file.lost.get(image_id, []),
            ),
        )


def _require_images(scan: PacoScan, folders: dict[str, Path]) -> None:
    for dataset, names in scan.image_files.items():
        listing = Folders()
        paths = {str(folders[dataset] / name) for name in names}
        missing = [path for path in paths if not listing.has(path)]
        if missing:
            hint = COCO_HINT if dataset == "lvis" else f"{LICENCE_HINT}. Partial copies: --allow-missing"
            what = "COCO images" if dataset == "lvis" else "Ego4D frames"
            raise FileNotFoundError(missing_files_message(what, missing, len(paths), hint))


def _notes(scan: PacoScan, options: PacoOptions, categories: list[dict]) -> list[str]:
    notes = list(scan.notes)
    partless = sorted({c["name"] for c in scan.objects} - {c["supercategory"] for c in categories})
    if partless:
        notes.append(
            f"classes without parts: {', '.join(partless)}; a model that reads the class from parts alone cannot "
            "tell them apart (MODEL.PART_TO_CLASS.EMPTY_CLASSES)"
        )
    if len(categories) != len(scan.parts):
        notes.append(f"{len(categories)} of {len(scan.parts)} parts are labels: set MODEL.PART_CLASSIFIER.NUM_PARTS")
    if options.mode == "thesis":
        notes.append("crops of one image are in several splits, as in the thesis: held-out numbers are optimistic")
    return notes


def _pixel_shares(counts: Counter) -> tuple[list[Check], list[str]]:
    total = max(counts["pixels"], 1)
    parts, ignored = counts["pixels_of_parts"] / total, counts["pixels_ignored"] / total
    checks = [
        Check("share of pixels on parts", (), f"{parts:.3f}"),
        Check("share of pixels ignored", (), f"{ignored:.3f}"),
        Check("share of pixels on background", (), f"{1 - parts - ignored:.3f}"),
    ]
    return checks, []
