"""The one pipeline of all imports: reader -> items -> checks and repairs -> classes -> splits -> files and report.

Nothing is written before everything is read and checked; the files are the same bytes on every run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

from part_robust.data.importers.assignment import assign_splits
from part_robust.data.importers.class_rule import ClassRule, shown
from part_robust.data.importers.classes import ClassSource, CsvClasses, known_only
from part_robust.data.importers.coco import coco_contents, read_coco
from part_robust.data.importers.items import DIVIDE, Contents, Source
from part_robust.data.importers.labels import label_space
from part_robust.data.importers.output import Style, check_output, config_hash, header, part_jsons, write_all
from part_robust.data.importers.report import REASONS, ImportCounts, class_counts
from part_robust.data.importers.requirements import (
    check_settings,
    listed_classes,
    part_names_of,
    read_fractions,
    require_images,
    require_parts,
)
from part_robust.data.importers.samples import SPLITS, ImportedImage, ImportSettings, read_samples
from part_robust.data.importers.splits import require_few

logger = logging.getLogger(__name__)

_WARNED = (
    ("noted", "duplicate_across_given_splits"),
    ("noted", "origin_across_given_splits"),
    ("noted", "box_only"),
    ("skipped", "no_class"),
)


def import_coco(
    sources: Sequence[Source],
    output: Path,
    class_source: ClassSource,
    settings: ImportSettings,
    tally: ImportCounts,
    force: bool = False,
    workers: int = 1,
) -> dict:
    """Imports plain COCO files: `run_import` with their reader.

    Raises:
        FileNotFoundError, ValueError: as `run_import`; or a json is broken.
    """
    read_fractions(settings.fractions)
    check_settings(sources, settings)
    contents = [coco_contents(s.json_file, read_coco(s.json_file), tally) for s in sources]
    return run_import(sources, contents, output, class_source, settings, tally, force=force, workers=workers)


def run_import(
    sources: Sequence[Source],
    contents: Sequence[Contents],
    output: Path,
    class_source: ClassSource,
    settings: ImportSettings,
    tally: ImportCounts,
    style: Style | None = None,
    force: bool = False,
    workers: int = 1,
) -> dict:
    """Checks, divides and writes `output`/annotations/<split>.json, report.json and report.md.

    Args:
        sources: files or folders, all with the parts of one label space (united by name).
        contents: what the reader found in each.
        output: folder to write; split files of an earlier import are replaced.
        class_source: names the class of every image.
        settings: see `ImportSettings`.
        tally: the one that the reader and `class_source` count into.
        style: how the files look.
        force: also replace split files that something else wrote, and remove those that this import does not replace.
        workers: processes that decode images; the result does not depend on it.

    Returns:
        The report, as written to report.json.

    Raises:
        FileNotFoundError: the image root, or images are missing.
        ValueError: something in the input or the settings is wrong, or nothing is left; one sentence says what.
        RuntimeError: a worker process died.
    """
    style = style or Style()
    fractions = read_fractions(settings.fractions)
    check_settings(sources, settings)
    if settings.group_by == "near":
        require_few(sum(len(found.items) for found in contents))
    names = part_names_of(sources, contents, tally)
    listed, given_parts = listed_classes(class_source, settings, names)
    root = Path(os.path.commonpath([source.image_root.resolve() for source in sources]))
    samples = _read_all(
        sources, contents, root, known_only(class_source, listed), class_source, settings, tally, workers
    )
    require_parts(sources, samples, contents, tally)
    samples = assign_splits(samples, fractions, settings, style.division == "hash", tally)
    by_split = {split: [sample for sample in samples if sample.split == split] for split in _split_order(samples)}
    if style.masks == "rle":
        by_split = {split: sorted(members, key=lambda sample: sample.key) for split, members in by_split.items()}
    require_images(sources, by_split, fractions, style, tally)
    _count_shapes(by_split, tally)

    labels = label_space(samples, names, _supercategories(contents), listed, given_parts, settings)
    digest = config_hash([found.described for found in contents], samples, settings)
    image_root = "../images" if settings.copy_images else os.path.relpath(root, (output / "annotations").resolve())
    files = part_jsons(by_split, labels, header(digest, settings, style, image_root), settings, style)
    stale = check_output(output, files, style, force)
    report = _report(sources, contents, by_split, labels.class_parts, labels.origin, settings, tally)
    report["image_root"] = "images" if settings.copy_images else os.path.relpath(root, output.resolve())
    report["annotations"] = {split: len(content["annotations"]) for split, content in files.items()}
    if style.masks == "rle":
        report |= {"counted": {"all": _flat(report)}, "per_class": report["images"], "title": style.title}
    write_all(output, files, report, samples if settings.copy_images else (), stale, style)
    _warn(report, by_split, fractions, sources)
    return report


def _read_all(
    sources: Sequence[Source],
    contents: Sequence[Contents],
    root: Path,
    checked: ClassSource,
    class_source: ClassSource,
    settings: ImportSettings,
    tally: ImportCounts,
    workers: int,
) -> list[ImportedImage]:
    """Usable images of all sources; counts rows of a class table and parts that none of them uses."""
    needs_parts = isinstance(class_source, ClassRule)
    samples = [
        sample
        for source, found in zip(sources, contents, strict=True)
        for sample in read_samples(source, found, root, checked, needs_parts, settings, tally, workers)
    ]
    if isinstance(class_source, CsvClasses):
        class_source.count_unused()
    used = {name for sample in samples for name in sample.image.part_names}
    for name in dict.fromkeys(name for found in contents for name in found.parts):
        if name not in used:
            tally.add("category_without_annotations", name)
    return samples


def _count_shapes(by_split: Mapping[str, Sequence[ImportedImage]], tally: ImportCounts) -> None:
    """Notes images to evaluate that are not square where all training images are."""
    training = by_split.get("train", ())
    if not training or any(sample.image.width != sample.image.height for sample in training):
        return
    for split in ("val", "test"):
        for sample in by_split.get(split, ()):
            if sample.image.width != sample.image.height:
                size = f"{sample.image.width} x {sample.image.height}"
                tally.add("shape_unlike_training", f"{sample.name} ({size})")


def _report(
    sources: Sequence[Source],
    contents: Sequence[Contents],
    by_split: Mapping[str, Sequence[ImportedImage]],
    classes: Mapping[str, Sequence[str]],
    origin: str,
    settings: ImportSettings,
    tally: ImportCounts,
) -> dict:
    """The report, keys in the order of the file."""
    return {
        "sources": [
            {"json": s.title, "split": s.split, **found.counts} for s, found in zip(sources, contents, strict=True)
        ],
        "image_root": "",
        "settings": asdict(settings),
        "images": class_counts(list(classes), {split: [s.label for s in found] for split, found in by_split.items()}),
        "annotations": {},
        "classes": classes,
        "class_parts_from": origin,
        **tally.by_kind(),
    }


def _flat(report: Mapping) -> dict:
    return {reason: entry for kind in ("skipped", "repaired", "noted") for reason, entry in report[kind].items()}


def _supercategories(contents: Sequence[Contents]) -> dict[str, str]:
    """{part: object it belongs to}; the first source that has it decides."""
    found: dict[str, str] = {}
    for entry in contents:
        for name, supercategory in entry.supercategories.items():
            found.setdefault(name, supercategory)
    return found


def _split_order(samples: Iterable[ImportedImage]) -> list[str]:
    found = {sample.split for sample in samples}
    return [*(split for split in SPLITS if split in found), *sorted(found - set(SPLITS))]


def _warn(
    report: Mapping,
    by_split: Mapping[str, Sequence[ImportedImage]],
    fractions: Mapping[str, Fraction],
    sources: Sequence[Source],
) -> None:
    """Warn of what a user must know before training; it is in the report too, but more easily missed there."""
    for split, counts in report["images"].items():
        without = [name for name, count in counts.items() if not count]
        if without:
            logger.warning("split %s has no image of class %s", split, shown(without))
    if any(source.split == DIVIDE for source in sources):
        for split, share in fractions.items():
            if share > 0 and split not in by_split:
                logger.warning("split %s is empty: no json was written for it", split)
    for kind, reason in _WARNED:
        if reason in report[kind]:
            logger.warning("%d %s", report[kind][reason]["count"], REASONS[reason][1])
