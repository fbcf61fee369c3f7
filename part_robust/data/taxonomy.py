"""Which parts belong to which object class: names and the part-to-class matrix.

Letters: C object classes, P parts (background is not a part; as a semantic label it is index P, the last).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PartTaxonomy:
    """Class and part names in the order of their contiguous indices.

    Attributes:
        class_names: C names.
        part_names: P names, as written in the json ("bottle:cap").
        class_parts: for each class the sorted indices of its parts; a part may belong to several classes.
        part_ids: P category ids of the json.
    """

    class_names: tuple[str, ...]
    part_names: tuple[str, ...]
    class_parts: tuple[tuple[int, ...], ...]
    part_ids: tuple[int, ...] = ()

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return len(self.class_names)

    @property
    def num_parts(self) -> int:
        """P, the number of parts, without background."""
        return len(self.part_names)

    @property
    def ignore_label(self) -> int:
        """Semantic label of pixels that count nowhere: 255, or 65535 when labels need 16 bits."""
        return 255 if self.num_parts <= 254 else 65535

    @property
    def part_to_class(self) -> np.ndarray:
        """float32 (P, C): 1 where the part belongs to the class, else 0."""
        matrix = np.zeros((self.num_parts, self.num_classes), dtype=np.float32)
        for class_index, parts in enumerate(self.class_parts):
            matrix[list(parts), class_index] = 1.0
        return matrix

    @property
    def classes_without_parts(self) -> tuple[str, ...]:
        """Return the classes without a part: a fixed part-to-class matrix gives them no evidence."""
        return tuple(name for name, parts in zip(self.class_names, self.class_parts, strict=True) if not parts)


def bare_part_name(part_name: str) -> str:
    """Return the part of "bottle:cap", which is "cap"; a name without a colon stays."""
    return part_name.split(":", 1)[-1]


def object_of_part(category: Mapping) -> str | None:
    """Object class a json category belongs to by its `supercategory`, else by the "object:part" spelling."""
    if category.get("supercategory"):
        return str(category["supercategory"])
    name = str(category["name"])
    return name.split(":", 1)[0] if ":" in name else None


def derive_classes(categories: list[Mapping]) -> list[dict]:
    """`classes` of a json that has none: one per object the categories name, sorted by name.

    Raises:
        ValueError: a category names no object.
    """
    parts: dict[str, list[int]] = {}
    for category in categories:
        name = object_of_part(category)
        if name is None:
            raise ValueError(
                f"the json has no `classes` and category {category['name']!r} names no object: add `classes`, "
                'or a `supercategory`, or call it "object:part"'
            )
        parts.setdefault(name, []).append(category["id"])
    return [
        {"id": index, "name": name, "part_category_ids": sorted(parts[name])}
        for index, name in enumerate(sorted(parts), start=1)
    ]


def taxonomy_from_json(data: Mapping) -> PartTaxonomy:
    """Reads a (validated) part json. Contiguous indices are the rank of the json ids."""
    categories = sorted(data["categories"], key=lambda category: category["id"])
    classes = sorted(data.get("classes") or derive_classes(categories), key=lambda object_class: object_class["id"])
    part_index = {category["id"]: index for index, category in enumerate(categories)}
    return PartTaxonomy(
        class_names=tuple(object_class["name"] for object_class in classes),
        part_names=tuple(category["name"] for category in categories),
        class_parts=tuple(
            tuple(sorted(part_index[i] for i in object_class.get("part_category_ids", ()))) for object_class in classes
        ),
        part_ids=tuple(part_index),
    )
