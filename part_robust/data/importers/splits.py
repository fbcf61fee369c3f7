"""Divides images into splits: stratified by class, and never the same picture on two sides.

Letters: N images.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from part_robust.data.mapper import to_rgb
from part_robust.data.preparation.splits import split_of_group

GRADIENT_SIDE = 16
# Bits of the 256 gradient signs in which two pictures of one scene may differ. On the photographs of Car Parts the
# pairs that show one picture differ by 1 to 8, the nearest others by 28.
NEAR_BITS = 10
ORIENTATION_TAG = 274
NEAR_LIMIT = 20_000  # images; comparing all pairs takes minutes from here on


@dataclass(frozen=True)
class Picture:
    """Facts about an image file that an import needs."""

    width: int  # as stored, before any EXIF rotation
    height: int
    turned: bool  # EXIF swaps width and height
    rotated: bool  # EXIF has an orientation at all
    content: str  # hash of the decoded pixels
    gradient: np.ndarray  # bool (256,): is each cell of the shrunken picture brighter than its left neighbour


def read_picture(path: Path) -> Picture:
    """Decodes an image completely.

    Raises:
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: it cannot be decoded (Pillow raises all these).
    """
    with Image.open(path) as file:
        orientation = file.getexif().get(ORIENTATION_TAG, 1)
        image = to_rgb(file)
    digest = hashlib.sha256(f"{image.size}".encode())
    digest.update(image.tobytes())
    small = image.convert("L").resize((GRADIENT_SIDE + 1, GRADIENT_SIDE), Image.Resampling.BOX)
    grey = np.asarray(small, dtype=np.int16)
    return Picture(
        width=image.width,
        height=image.height,
        turned=orientation in (5, 6, 7, 8),
        rotated=orientation in range(2, 9),
        content=digest.hexdigest(),
        gradient=(grey[:, 1:] > grey[:, :-1]).ravel(),
    )


def require_few(count: int) -> None:
    """Check that comparing all pairs of images does not take too long.

    Raises:
        ValueError: there are more than NEAR_LIMIT images.
    """
    if count > NEAR_LIMIT:
        raise ValueError(f"--group-by near compares all pairs and takes at most {NEAR_LIMIT} images, not {count}")


def near_pairs(gradients: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of rows of a bool (N, 256) that differ in at most NEAR_BITS places."""
    signs = np.where(gradients, 1.0, -1.0).astype(np.float32)
    pairs = []
    for i in range(len(signs) - 1):
        differing = (signs.shape[1] - signs[i + 1 :] @ signs[i]) / 2
        pairs += [(i, int(j)) for j in i + 1 + np.nonzero(differing <= NEAR_BITS)[0]]
    return pairs


def join(count: int, keys: Sequence[Sequence[Hashable]], pairs: Sequence[tuple[int, int]] = ()) -> list[int]:
    """Groups of N items that share any key or are a pair, however long the chain: the smallest index of each's group.

    Args:
        count: N.
        keys: lists of N keys; items with equal keys of one list belong together, None belongs to no other item.
        pairs: more items that belong together.
    """
    parent = list(range(count))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    def unite(a: int, b: int) -> None:
        low, high = sorted((root(a), root(b)))
        parent[high] = low

    for listed in keys:
        first: dict[Hashable, int] = {}
        for index, key in enumerate(listed):
            if key is not None:
                unite(first.setdefault(key, index), index)
    for a, b in pairs:
        unite(a, b)
    return [root(item) for item in range(count)]


def name_keys(file_names: Sequence[str], group_by: str, everywhere: bool = True) -> list[str | None]:
    """Group of each file name: its folder ("folder"), or what the first group of a regular expression finds.

    Args:
        file_names: names relative to the image root.
        group_by: "content", "near", "folder", or the expression.
        everywhere: the expression must match every name; else None where it does not.

    Raises:
        ValueError: not a regular expression with a group, or one that does not match some names.
    """
    if group_by in ("content", "near"):
        return [None] * len(file_names)
    if group_by == "folder":
        return [str(PurePosixPath(name).parent) for name in file_names]
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise ValueError(f"--group-by {group_by!r} is not a regular expression: {error}") from error
    if pattern.groups < 1:
        raise ValueError(f"--group-by {group_by!r} must be content, near, folder, or an expression with a (group)")
    found = [pattern.search(name) for name in file_names]
    missing = [name for name, match in zip(file_names, found, strict=True) if match is None]
    if missing and everywhere:
        raise ValueError(f"--group-by {group_by!r} finds nothing in {len(missing)} file names, first: {missing[0]}")
    return [match.group(1) if match is not None else None for match in found]


def divide_by_hash(
    names: Sequence[str],
    keys: Sequence[str | None],
    groups: Sequence[int],
    fractions: Mapping[str, Fraction],
    seed: int,
) -> list[str]:
    """The split of each image from a hash of its group's name: more images never move the others.

    Args:
        names: N unique file names.
        keys: N names of groups; None is called by its file name.
        groups: N group labels, as `join` gives them.
        fractions: {split: share} of train, val and test.
        seed: another seed divides differently.
    """
    called: dict[int, str] = {}
    for name, key, group in zip(names, keys, groups, strict=True):
        called[group] = min(called.get(group, key or name), key or name)
    ratios = tuple(float(share) for share in fractions.values())
    return [split_of_group(called[group], seed, ratios) for group in groups]


def divide(
    names: Sequence[str], classes: Sequence[str], groups: Sequence[int], fractions: Mapping[str, Fraction], seed: int
) -> list[str]:
    """The split of each image; images of one group always share it.

    Every class is divided by the fractions as nearly as whole groups allow: groups come in an order that depends on
    the seed and the file names only, larger ones first, and each goes where its class lacks most images.

    Args:
        names: N unique file names.
        classes: N class names; a group counts for the class most of its images have.
        groups: N group labels.
        fractions: {split: share}; they sum to 1.
        seed: another seed divides differently.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    strata: dict[str, list[list[int]]] = defaultdict(list)
    for inside in members.values():
        found = [classes[index] for index in inside]
        strata[max(sorted(set(found)), key=found.count)].append(inside)

    def order(inside: list[int]) -> tuple[int, bytes]:
        key = f"{seed}|{min(names[index] for index in inside)}".encode()
        return -len(inside), hashlib.blake2b(key, digest_size=8).digest()

    splits = [split for split, share in fractions.items() if share > 0]
    result = [""] * len(names)
    lacking_in_all = dict.fromkeys(splits, Fraction(0))
    for label in sorted(strata):
        total = sum(map(len, strata[label]))
        lacking = {split: fractions[split] * total for split in splits}
        for split in splits:
            lacking_in_all[split] += lacking[split]
        for inside in sorted(strata[label], key=order):
            # Ties and roundings of small classes are settled by what a split lacks over all classes so far.
            target = max(splits, key=lambda split: (lacking[split], lacking_in_all[split]))
            lacking[target] -= len(inside)
            lacking_in_all[target] -= len(inside)
            for index in inside:
                result[index] = target
    return result
