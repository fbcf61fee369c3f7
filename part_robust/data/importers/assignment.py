"""Which split each image of an import goes to: given ones stay, the others are divided, and nothing is in two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from part_robust.data.importers.items import DIVIDE
from part_robust.data.importers.report import ImportCounts
from part_robust.data.importers.samples import ImportedImage, ImportSettings
from part_robust.data.importers.splits import divide, divide_by_hash, join, name_keys, near_pairs


def assign_splits(
    samples: list[ImportedImage],
    fractions: Mapping[str, Fraction],
    settings: ImportSettings,
    is_hashed: bool,
    tally: ImportCounts,
) -> list[ImportedImage]:
    """Sets group and split of every sample; leaves out what would leak into a given split.

    Args:
        samples: changed in place.
        fractions: {split: share} of the images whose split is DIVIDE.
        settings: see `ImportSettings`.
        is_hashed: divide every image by its own hash, not every class by the fractions.
        tally: counts images that show the same.

    Returns:
        The samples that stay.

    Raises:
        ValueError: one file is in two given splits, or `settings.group_by` does not fit the file names.
    """
    contents = [sample.picture.content for sample in samples]
    near = near_pairs(np.array([s.picture.gradient for s in samples])) if settings.group_by == "near" else []
    for low, high in near:
        if contents[low] != contents[high]:
            tally.add("near_duplicate", f"{samples[high].name} like {samples[low].name}")
    keys = name_keys([sample.name for sample in samples], settings.group_by, everywhere=not is_hashed)
    origins = [_origin(sample) for sample in samples]
    groups = join(len(samples), [contents, keys, [sample.name for sample in samples], origins], near)
    for sample, group in zip(samples, groups, strict=True):
        sample.group = group
    _count_copies(samples, tally)
    given = {sample.group for sample in samples if sample.split != DIVIDE}
    kept = []
    for sample in samples:
        if sample.split == DIVIDE and sample.group in given:
            tally.add("duplicate_of_given_split", sample.name)
        else:
            kept.append(sample)
    free = [sample for sample in kept if sample.split == DIVIDE]
    free_groups = [sample.group for sample in free]
    if is_hashed:
        key_of = {sample.name: key for sample, key in zip(samples, keys, strict=True)}
        chosen = divide_by_hash(
            [s.key for s in free], [key_of[s.name] for s in free], free_groups, fractions, settings.seed
        )
    else:
        chosen = divide([s.name for s in free], [s.label for s in free], free_groups, fractions, settings.seed)
    for sample, split in zip(free, chosen, strict=True):
        sample.split = split
    return kept


def _origin(sample: ImportedImage) -> tuple[Path, str] | None:
    """The picture that an image was made of, in the export that both are of."""
    return (sample.source.json_file.resolve().parent.parent, sample.image.origin) if sample.image.origin else None


def _count_copies(samples: Sequence[ImportedImage], tally: ImportCounts) -> None:
    """Counts images that show what an earlier one shows.

    Raises:
        ValueError: one file is in two given splits.
    """
    first: dict[Any, ImportedImage] = {}
    for sample in samples:
        file = first.setdefault(("file", sample.name), sample)
        if _are_given(file, sample):
            raise ValueError(
                f"{sample.path} is in the splits {file.split} and {sample.split}, so a model would be tested on images "
                "that it was trained on: give each split separate images, or import one split and divide it"
            )
        origin = first.setdefault(("origin", _origin(sample)), sample) if sample.image.origin else sample
        if _are_given(origin, sample):
            tally.add("origin_across_given_splits", f"{sample.name} and {origin.name}")
        earlier = first.setdefault(sample.picture.content, sample)
        if earlier is sample:
            continue
        pair = f"{sample.name} like {earlier.name}"
        tally.add("duplicate_across_given_splits" if _are_given(earlier, sample) else "duplicate_content", pair)
        if sample.label != earlier.label:
            tally.add("duplicate_with_other_class", f"{pair}: {sample.label} and {earlier.label}")


def _are_given(first: ImportedImage, second: ImportedImage) -> bool:
    """Return whether two images are in two splits that the import must keep."""
    return DIVIDE not in (first.split, second.split) and first.split != second.split
