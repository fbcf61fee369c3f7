"""The one pipeline of all imports: reader -> items -> checks and repairs -> classes -> splits -> files and report.

Nothing is written before everything is read and checked; the files are the same bytes on every run.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

from part_robust.data.importers.assignment import assign_splits
from part_robust.data.importers.class_rule import ClassRule, read_class_parts, shown
from part_robust.data.importers.classes import ClassSource, CsvClasses, known_only
from part_robust.data.importers.coco import coco_contents, read_coco
from part_robust.data.importers.items import DIVIDE, Contents, Source
from part_robust.data.importers.labels import label_space
from part_robust.data.importers.output import Style, check_output, config_hash, header, part_jsons, write_all
from part_robust.data.importers.report import REASONS, Tally, class_counts, counted_text
from part_robust.data.importers.samples import SPLITS, ImportSettings, Sample, read_samples
from part_robust.data.importers.splits import name_keys, require_few

logger = logging.getLogger(__name__)

_WARNED = (
    ("noted", "duplicate_across_given_splits"),
    ("noted", "origin_across_given_splits"),
    ("noted", "box_only"),
    ("skipped", "no_class"),
)
_CLASS_PARTS = ("auto", "training", "supercategory", "used")


def import_coco(
    sources: Sequence[Source],
    output: Path,
    class_source: ClassSource,
    settings: ImportSettings,
    tally: Tally,
    force: bool = False,
    workers: int = 1,
) -> dict:
    """Imports plain COCO files: `run_import` with their reader.

    Raises:
        FileNotFoundError, ValueError: as `run_import`; or a json is broken.
    """
    _fractions(settings.fractions)
    _check_settings(sources, settings)
    contents = [coco_contents(s.json_file, read_coco(s.json_file), tally) for s in sources]
    return run_import(sources, contents, output, class_source, settings, tally, force=force, workers=workers)


def run_import(
    sources: Sequence[Source],
    contents: Sequence[Contents],
    output: Path,
    class_source: ClassSource,
    settings: ImportSettings,
    tally: Tally,
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
    fractions = _fractions(settings.fractions)
    _check_settings(sources, settings)
    if settings.group_by == "near":
        require_few(sum(len(found.items) for found in contents))
    names = list(dict.fromkeys(name for found in contents for name in found.parts))
    for name in names:
        twin = next((other for other in names[: names.index(name)] if other.lower() == name.lower()), None)
        if twin is not None:
            tally.add("names_differ_in_case", f"{name} and {twin}")
    if not names:
        raise ValueError(
            f"{sources[0].json_file} has no category that could be a part (counted: {counted_text(tally)}): add parts"
        )
    listed = list(settings.class_names)
    given_parts = None
    if settings.class_parts not in _CLASS_PARTS:
        given_parts = read_class_parts(Path(settings.class_parts), names)
        listed = listed or list(given_parts)
    if isinstance(class_source, ClassRule):
        class_source.check_parts(names)
        listed = listed or class_source.class_names
    if given_parts is not None and set(given_parts) != set(listed):
        raise ValueError(f"--class-parts {settings.class_parts} must list the classes {shown(listed)}, and no others")

    root = Path(os.path.commonpath([source.image_root.resolve() for source in sources]))
    checked, needs_parts = known_only(class_source, listed), isinstance(class_source, ClassRule)
    samples = [
        sample
        for source, found in zip(sources, contents, strict=True)
        for sample in read_samples(source, found, root, checked, needs_parts, settings, tally, workers)
    ]
    if isinstance(class_source, CsvClasses):
        class_source.count_unused()
    used = {name for sample in samples for name in sample.image.part_names}
    for name in names:
        if name not in used:
            tally.add("category_without_annotations", name)
    _require_parts(sources, samples, contents, tally)
    samples = assign_splits(samples, fractions, settings, style.division == "hash", tally)
    by_split = {split: [sample for sample in samples if sample.split == split] for split in _split_order(samples)}
    if style.masks == "rle":
        by_split = {split: sorted(members, key=lambda sample: sample.key) for split, members in by_split.items()}
    _require_images(sources, by_split, fractions, style, tally)

    labels = label_space(samples, names, _supercategories(contents), listed, given_parts, settings)
    digest = config_hash([found.described for found in contents], samples, settings)
    image_root = os.path.relpath(root, (output / "annotations").resolve())
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


def _report(
    sources: Sequence[Source],
    contents: Sequence[Contents],
    by_split: Mapping[str, Sequence[Sample]],
    classes: Mapping[str, Sequence[str]],
    origin: str,
    settings: ImportSettings,
    tally: Tally,
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


def _fractions(texts: Sequence[str]) -> dict[str, Fraction]:
    try:
        shares = [Fraction(text) for text in texts]
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"--split-fractions must be three numbers, are {' '.join(texts)}") from error
    if len(shares) != len(SPLITS) or min(shares) < 0 or sum(shares) != 1:
        raise ValueError(f"--split-fractions (train, val, test) must be 0 or more and sum to 1, are {' '.join(texts)}")
    return dict(zip(SPLITS, shares, strict=True))


def _check_settings(sources: Sequence[Source], settings: ImportSettings) -> None:
    for source in sources:
        if not source.image_root.is_dir():
            raise FileNotFoundError(f"--image-root {source.image_root} is no folder")
        if not re.fullmatch(r"[A-Za-z0-9_-]+", source.split):
            raise ValueError(f"--split {source.split!r} must be a plain name, such as train")
    name_keys([], settings.group_by)  # complains about a broken expression
    if not 0 <= settings.class_part_share <= 1:
        raise ValueError(f"--class-part-share must be 0..1, is {settings.class_part_share}")


def _supercategories(contents: Sequence[Contents]) -> dict[str, str]:
    """{part: object it belongs to}; the first source that says so decides."""
    found: dict[str, str] = {}
    for entry in contents:
        for name, supercategory in entry.supercategories.items():
            found.setdefault(name, supercategory)
    return found


def _split_order(samples: Iterable[Sample]) -> list[str]:
    found = {sample.split for sample in samples}
    return [*(split for split in SPLITS if split in found), *sorted(found - set(SPLITS))]


def _require_parts(
    sources: Sequence[Source], samples: Sequence[Sample], contents: Sequence[Contents], tally: Tally
) -> None:
    """Raises ValueError where no image is left, or no part of any of them."""
    where = ", ".join(str(source.json_file) for source in sources)
    if not samples:
        remedies = {
            "no_class": "name the class with --class-from",
            "ambiguous_rotation": "save the images as a viewer shows them, without an EXIF rotation",
            "size_mismatch": "export again with the images' own sizes, or resize the images to what the file says",
        }
        remedy = next((text for reason, text in remedies.items() if tally.counts[reason]), "correct what is counted")
        raise ValueError(f"{where}: no image is left (counted: {counted_text(tally)}){_first(tally)}: {remedy}")
    had_parts = any(found.counts.get("annotations", 1) for found in contents)
    if had_parts and not any(sample.image.parts for sample in samples):
        raise ValueError(
            f"{where}: none of the parts could be used (counted: {counted_text(tally)}){_first(tally)}: correct the "
            "file, or name another one"
        )


def _first(tally: Tally) -> str:
    """The first example of what was left out."""
    for reason, (kind, _) in REASONS.items():
        if kind == "skipped" and tally.counts[reason]:
            return f", first {tally.examples[reason][0]}"
    return ""


def _require_images(
    sources: Sequence[Source],
    by_split: Mapping[str, Sequence[Sample]],
    fractions: Mapping[str, Fraction],
    style: Style,
    tally: Tally,
) -> None:
    needed = {source.split for source in sources if source.split != DIVIDE}
    if any(source.split == DIVIDE for source in sources) and style.division == "classes":
        needed |= {split for split, share in fractions.items() if share > 0}
    empty = sorted(needed - set(by_split))
    if empty:
        raise ValueError(
            f"no image is left for split {empty[0]} (counted: {_reasons(tally.counts)}): import more images, or change "
            "--split-fractions"
        )


def _reasons(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "nothing"


def _warn(
    report: Mapping,
    by_split: Mapping[str, Sequence[Sample]],
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
