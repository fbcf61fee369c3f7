"""Requirements on an import: settings that fit, names of parts and classes, images and parts that are left."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

from part_robust.data.importers.class_rule import ClassRule, read_class_parts, shown
from part_robust.data.importers.classes import ClassSource
from part_robust.data.importers.items import DIVIDE, Contents, Source
from part_robust.data.importers.output import Style
from part_robust.data.importers.report import REASONS, ImportCounts, counted_text
from part_robust.data.importers.samples import SPLITS, ImportedImage, ImportSettings
from part_robust.data.importers.splits import name_keys

_CLASS_PARTS = ("auto", "training", "supercategory", "used")


def read_fractions(texts: Sequence[str]) -> dict[str, Fraction]:
    """{split: share} of --split-fractions, exact.

    Raises:
        ValueError: not three numbers, or their sum is not 1.
    """
    try:
        shares = [Fraction(text) for text in texts]
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"--split-fractions must be three numbers, are {' '.join(texts)}") from error
    if len(shares) != len(SPLITS) or min(shares) < 0 or sum(shares) != 1:
        raise ValueError(f"--split-fractions (train, val, test) must be 0 or more and sum to 1, are {' '.join(texts)}")
    return dict(zip(SPLITS, shares, strict=True))


def check_settings(sources: Sequence[Source], settings: ImportSettings) -> None:
    """Check what can be checked before anything is read.

    Raises:
        FileNotFoundError: an image root does not exist.
        ValueError: a setting has an impossible value.
    """
    for source in sources:
        if not source.image_root.is_dir():
            raise FileNotFoundError(f"--image-root {source.image_root} is not a folder")
        if not re.fullmatch(r"[A-Za-z0-9_-]+", source.split):
            raise ValueError(f"--split {source.split!r} must be a plain name, such as train")
    name_keys([], settings.group_by)  # complains about a broken expression
    if not 0 <= settings.class_part_share <= 1:
        raise ValueError(f"--class-part-share must be 0..1, is {settings.class_part_share}")


def part_names_of(sources: Sequence[Source], contents: Sequence[Contents], tally: ImportCounts) -> list[str]:
    """Parts of all sources in their order.

    Raises:
        ValueError: there is none.
    """
    names = list(dict.fromkeys(name for found in contents for name in found.parts))
    first: dict[str, str] = {}
    for name in names:
        twin = first.setdefault(name.lower(), name)
        if twin != name:
            tally.add("names_differ_in_case", f"{name} and {twin}")
    if not names:
        raise ValueError(
            f"{sources[0].json_file} has no category that could be a part (counted: {counted_text(tally)}): add parts"
        )
    return names


def listed_classes(
    class_source: ClassSource, settings: ImportSettings, names: Sequence[str]
) -> tuple[list[str], dict[str, list[str]] | None]:
    """Classes in the order that the user fixes, [] where nothing does; and {class: parts} of --class-parts FILE.

    Raises:
        FileNotFoundError, ValueError: a file is missing or broken, or names other classes or parts.
    """
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
    return listed, given_parts


def require_parts(
    sources: Sequence[Source], samples: Sequence[ImportedImage], contents: Sequence[Contents], tally: ImportCounts
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
    without = tally.counts["no_mask"]
    if without == sum(len(found.items) for found in contents):
        raise ValueError(
            f"{where}: none of the {without} images has a file with its parts, first {tally.examples['no_mask'][0]}: "
            "add the files, or correct their names"
        )
    had_parts = any(found.counts.get("annotations", 1) for found in contents)
    if had_parts and not any(sample.image.parts for sample in samples):
        raise ValueError(
            f"{where}: none of the parts could be used (counted: {counted_text(tally)}){_first(tally)}: correct the "
            "file, or name another one"
        )


def _first(tally: ImportCounts) -> str:
    """The first example of what was left out."""
    for reason, (kind, _) in REASONS.items():
        if kind == "skipped" and tally.counts[reason]:
            return f", first {tally.examples[reason][0]}"
    return ""


def require_images(
    sources: Sequence[Source],
    by_split: Mapping[str, Sequence[ImportedImage]],
    fractions: Mapping[str, Fraction],
    style: Style,
    tally: ImportCounts,
) -> None:
    """Raise ValueError where a split that must have images has none."""
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
