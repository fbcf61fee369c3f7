"""Which split a sample belongs to, and the proof that no source is in two."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

SPLITS = ("train", "val", "test")
RATIOS = (0.8, 0.1, 0.1)  # thesis section 3.2


def split_of_group(group: str, seed: int = 0, ratios: Sequence[float] = RATIOS) -> str:
    """Split of a group of samples that must stay together; depends on nothing but the arguments.

    The hash of seed and group is a number in [0, 1): adding data or changing their order moves no group.
    """
    digest = hashlib.blake2b(f"{seed}\0{group}".encode(), digest_size=8).digest()
    position = int.from_bytes(digest, "big") / 2**64
    for split, end in zip(SPLITS, np.cumsum(ratios), strict=True):
        if position < end:
            return split
    return SPLITS[-1]


def check_ratios(ratios: Sequence[float]) -> tuple[float, ...]:
    """Check the shares of train, val and test.

    Raises:
        ValueError: they are not three shares that add up to 1.
    """
    if len(ratios) != 3 or min(ratios) < 0 or abs(sum(ratios) - 1) > 1e-6:
        raise ValueError(f"split ratios must be three shares of train, val and test that add up to 1, are {ratios}")
    return tuple(float(ratio) for ratio in ratios)


def join_groups(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Groups that share a file content become one, called by its first name.

    Args:
        pairs: (group, content hash) of every sample.

    Returns:
        For every group the name of the joined group it is in.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    first_of_content: dict[str, str] = {}
    for group, content in pairs:
        parent.setdefault(group, group)
        other = first_of_content.setdefault(content, group)
        low, high = sorted((root(group), root(other)))
        parent[high] = low
    return {group: root(group) for group in parent}


def thesis_shuffle(count: int, seed: int = 0, ratios: Sequence[float] = RATIOS) -> list[str | None]:
    """Split of each of `count` items in their file order, as the thesis draws it.

    NumPy's legacy shuffle of a list; the first int(0.1 n) are val, the next int(0.1 n) test, the next int(0.8 n) train.
    Rounding can leave an item over, whose split is None.
    """
    order = list(range(count))
    np.random.RandomState(seed).shuffle(order)
    train, val, test = (int(ratio * count) for ratio in ratios)
    result: list[str | None] = [None] * count
    for split, start, size in (("val", 0, val), ("test", val, test), ("train", val + test, train)):
        for index in order[start : start + size]:
            result[index] = split
    return result


def shared_between_splits(members: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Names (groups or content hashes) that occur in more than one split.

    Args:
        members: (name, split).
    """
    splits: Mapping[str, set[str]] = defaultdict(set)
    for name, split in members:
        splits[name].add(split)
    return {name: sorted(found) for name, found in sorted(splits.items()) if len(found) > 1}
