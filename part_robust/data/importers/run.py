"""Imports plain COCO part files plus a class per image into the part format (docs/import_coco.md).

Nothing is written before everything is read and checked; the files are the same bytes on every run.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import numpy as np

from part_robust.data.importers.classes import (
    ClassRule,
    ClassSource,
    CsvClasses,
    known_only,
    read_class_parts,
    shown,
)
from part_robust.data.importers.clean import part_names, read_coco
from part_robust.data.importers.output import check_output, header, part_jsons, write_all
from part_robust.data.importers.report import REASONS, Tally, class_counts
from part_robust.data.importers.samples import DIVIDE, SPLITS, ImportSettings, Sample, Source, read_source
from part_robust.data.importers.splits import divide, join, name_keys, near_pairs, require_few

logger = logging.getLogger(__name__)


def import_coco(
    sources: Sequence[Source],
    output: Path,
    class_source: ClassSource,
    settings: ImportSettings,
    tally: Tally,
    force: bool = False,
) -> dict:
    """Reads, checks and writes `output`/annotations/<split>.json, report.json and report.md.

    Args:
        sources: COCO files, all with the parts of one label space (united by name).
        output: folder to write; split files of an earlier import are replaced.
        class_source: names the class of every image.
        settings: see `ImportSettings`.
        tally: the one `class_source` counts into.
        force: also replace split files that something else wrote.

    Returns:
        The report, as written to report.json.

    Raises:
        FileNotFoundError: a json, the image root, or images are missing.
        ValueError: something in the input or the settings is wrong; one sentence says what.
    """
    fractions = _fractions(settings.fractions)
    _check_settings(sources, settings)
    data = [read_coco(source.json_file) for source in sources]
    if settings.group_by == "near":
        require_few(sum(len(content["images"]) for content in data))
    names = _part_names(sources, data)
    listed = list(settings.class_names)
    given_parts = None
    if settings.class_parts not in ("auto", "training", "supercategory"):
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
        for source, content in zip(sources, data, strict=True)
        for sample in read_source(source, content, root, checked, needs_parts, settings, tally)
    ]
    if isinstance(class_source, CsvClasses):
        class_source.count_unused()
    used = {part["part"] for sample in samples for part in sample.image.parts}
    for name in names:
        if name not in used:
            tally.add("category_without_annotations", name)
    samples = _split(samples, fractions, settings, tally)
    by_split = {split: [sample for sample in samples if sample.split == split] for split in _split_order(samples)}
    _require_images(sources, by_split, fractions, tally)

    supercategories = _supercategories(data)
    classes, origin = _class_parts(samples, names, supercategories, listed, settings)
    if given_parts is not None:
        classes, origin = {label: given_parts[label] for label in listed}, f"--class-parts {settings.class_parts}"
    files = part_jsons(by_split, names, supercategories, classes, header(data, samples, settings), settings)
    check_output(output, files, force)
    report = {
        "sources": [
            {
                "json": s.title,
                "split": s.split,
                **{k: len(d[k]) for k in ("images", "annotations", "categories")},
            }
            for s, d in zip(sources, data, strict=True)
        ],
        "image_root": "images" if settings.copy_images else os.path.relpath(root, output.resolve()),
        "settings": asdict(settings),
        "images": class_counts(list(classes), {split: [s.label for s in found] for split, found in by_split.items()}),
        "annotations": {split: len(content["annotations"]) for split, content in files.items()},
        "classes": classes,
        "class_parts_from": origin,
        **tally.by_kind(),
    }
    write_all(output, files, report, samples if settings.copy_images else ())
    _warn(report)
    return report


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


def _part_names(sources: Sequence[Source], data: Sequence[Mapping]) -> list[str]:
    """Parts in the order of the first json's category ids, then what later ones add."""
    found = [part_names(s.json_file, d, Tally()).values() for s, d in zip(sources, data, strict=True)]
    names = list(dict.fromkeys(name for listed in found for name in listed if name is not None))
    if not names:
        raise ValueError(f"{sources[0].json_file} has no category that could be a part")
    return names


def _supercategories(data: Sequence[Mapping]) -> dict[str, str]:
    """{part: object it belongs to}, for the categories that say so."""
    found: dict[str, str] = {}
    for category in (category for content in data for category in content["categories"]):
        if category.get("supercategory"):
            found.setdefault(str(category["name"]).strip(), str(category["supercategory"]).strip())
    return found


def _split(
    samples: list[Sample], fractions: Mapping[str, Fraction], settings: ImportSettings, tally: Tally
) -> list[Sample]:
    """Sets group and split of every sample; leaves out what would leak into a given split."""
    contents = [sample.picture.content for sample in samples]
    near = near_pairs(np.array([s.picture.gradient for s in samples])) if settings.group_by == "near" else []
    for low, high in near:
        if contents[low] != contents[high]:
            tally.add("near_duplicate", f"{samples[high].name} like {samples[low].name}")
    keys = name_keys([sample.name for sample in samples], settings.group_by)
    groups = join(len(samples), [contents, keys, [sample.name for sample in samples]], near)
    first: dict[str, Sample] = {}
    given: set[int] = set()
    for sample, group in zip(samples, groups, strict=True):
        sample.group = group
        if sample.split != DIVIDE:
            given.add(group)
        earlier = first.setdefault(sample.picture.content, sample)
        if earlier is sample:
            continue
        pair = f"{sample.name} like {earlier.name}"
        if DIVIDE not in (sample.split, earlier.split) and sample.split != earlier.split:
            tally.add("duplicate_across_given_splits", pair)
        else:
            tally.add("duplicate_content", pair)
        if sample.label != earlier.label:
            tally.add("duplicate_with_other_class", f"{pair}: {sample.label} and {earlier.label}")
    kept = []
    for sample in samples:
        if sample.split == DIVIDE and sample.group in given:
            tally.add("duplicate_of_given_split", sample.name)
        else:
            kept.append(sample)
    free = [sample for sample in kept if sample.split == DIVIDE]
    chosen = divide([s.name for s in free], [s.label for s in free], [s.group for s in free], fractions, settings.seed)
    for sample, split in zip(free, chosen, strict=True):
        sample.split = split
    return kept


def _split_order(samples: Iterable[Sample]) -> list[str]:
    found = {sample.split for sample in samples}
    return [*(split for split in SPLITS if split in found), *sorted(found - set(SPLITS))]


def _require_images(
    sources: Sequence[Source], by_split: Mapping[str, Sequence[Sample]], fractions: Mapping[str, Fraction], tally: Tally
) -> None:
    needed = {source.split for source in sources if source.split != DIVIDE}
    if any(source.split == DIVIDE for source in sources):
        needed |= {split for split, share in fractions.items() if share > 0}
    empty = sorted(needed - set(by_split))
    if empty:
        reasons = ", ".join(f"{count} {reason}" for reason, count in tally.counts.items())
        raise ValueError(
            f"no image is left for split {empty[0]} (counted: {reasons or 'nothing'}): import more images, or change "
            "--split-fractions"
        )


def _class_parts(
    samples: Sequence[Sample],
    names: Sequence[str],
    supercategories: Mapping[str, str],
    listed: Sequence[str],
    settings: ImportSettings,
) -> tuple[dict[str, list[str]], str]:
    """{class: its parts} in class order, and a phrase that says where that comes from."""
    labels = list(listed) or sorted({sample.label for sample in samples})
    foreign = [name for name in names if supercategories.get(name) not in labels]
    if settings.class_parts == "supercategory" and foreign:
        raise ValueError(
            f"--class-parts supercategory: the supercategory of {foreign[0]!r} is "
            f"{supercategories.get(foreign[0])!r}, which is none of the classes {shown(labels)}; use --class-parts "
            "training or a file"
        )
    if not foreign and settings.class_parts != "training":
        parts = {label: [name for name in names if supercategories[name] == label] for label in labels}
        return parts, "the json's supercategory"
    training = [sample for sample in samples if sample.split == "train"] or list(samples)
    result = {}
    for label in labels:
        members = [{part["part"] for part in sample.image.parts} for sample in training if sample.label == label]
        needed = max(settings.class_part_share * len(members), 1)
        result[label] = [name for name in names if sum(name in parts for parts in members) >= needed]
    share = f"in at least {settings.class_part_share:.0%}" if settings.class_part_share else "in any"
    return result, f"parts annotated {share} of the class's training images"


def _warn(report: Mapping) -> None:
    """What a user must know before training, once more where it is seen."""
    for split, counts in report["images"].items():
        without = [name for name, count in counts.items() if not count]
        if without:
            logger.warning("split %s has no image of class %s", split, shown(without))
    for kind, reason in (("noted", "duplicate_across_given_splits"), ("noted", "box_only"), ("skipped", "no_class")):
        if reason in report[kind]:
            logger.warning("%d %s", report[kind][reason]["count"], REASONS[reason][1])
