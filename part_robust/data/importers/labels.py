"""The label space of an import: its classes, its parts, and which class has which parts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from part_robust.data.importers.class_rule import shown
from part_robust.data.importers.samples import ImportedImage, ImportSettings


@dataclass(frozen=True)
class LabelSpace:
    """`classes` and `categories` of the part json, and a phrase that says where the parts of a class come from."""

    classes: list[dict]
    categories: list[dict]
    origin: str

    @property
    def class_parts(self) -> dict[str, list[str]]:
        """{class: names of its parts}."""
        names = {category["id"]: category["name"] for category in self.categories}
        return {entry["name"]: [names[part] for part in entry["part_category_ids"]] for entry in self.classes}


def label_space(
    samples: Sequence[ImportedImage],
    names: Sequence[str],
    supercategories: Mapping[str, str],
    listed: Sequence[str],
    given_parts: Mapping[str, Sequence[str]] | None,
    settings: ImportSettings,
) -> LabelSpace:
    """Names of classes and parts with their ids, and the parts of each class.

    Args:
        samples: all images, with their splits.
        names: parts in the order of the source.
        supercategories: {part: object it belongs to}, for the parts that say so.
        listed: all classes in their order; empty: those of the samples, sorted.
        given_parts: {class: parts} of --class-parts FILE.
        settings: see `ImportSettings`.
    """
    if settings.class_parts == "used" and given_parts is None:
        return _used(samples, listed)
    classes, origin = _class_parts(samples, names, supercategories, listed, settings)
    if given_parts is not None:
        classes = {label: list(given_parts[label]) for label in listed}
        origin = f"--class-parts {settings.class_parts}"
    part_ids = {name: index for index, name in enumerate(names, start=1)}
    categories = [
        {"id": part_ids[name], "name": name}
        | ({"supercategory": supercategories[name]} if name in supercategories else {})
        for name in names
    ]
    entries = [
        {"id": index, "name": name, "part_category_ids": [part_ids[part] for part in parts]}
        for index, (name, parts) in enumerate(classes.items(), start=1)
    ]
    return LabelSpace(entries, categories, origin)


def _class_parts(
    samples: Sequence[ImportedImage],
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
        members = [sample.image.part_names for sample in training if sample.label == label]
        needed = max(settings.class_part_share * len(members), 1)
        result[label] = [name for name in names if sum(name in parts for parts in members) >= needed]
    share = f"in at least {settings.class_part_share:.0%}" if settings.class_part_share else "in any"
    return result, f"parts annotated {share} of the class's training images"


def _used(samples: Sequence[ImportedImage], listed: Sequence[str]) -> LabelSpace:
    """Names in alphabetical order; a part belongs to the classes in whose images it is a target's part."""
    owners: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        for part in sample.image.parts:
            owners[part["part"]] |= {sample.label} if part.get("is_target", 1) else set()
    class_names = list(listed) or sorted({sample.label for sample in samples})
    part_ids = {name: rank for rank, name in enumerate(sorted(owners), start=1)}

    def owns(class_name: str, part: str) -> bool:
        # "car:wheel" says itself whose it is.
        prefix = part.split(":", 1)[0] if ":" in part else ""
        return prefix == class_name if prefix in class_names else class_name in owners[part]

    classes = [
        {"id": rank, "name": name, "part_category_ids": [part_ids[p] for p in sorted(owners) if owns(name, p)]}
        for rank, name in enumerate(class_names, start=1)
    ]
    categories = []
    for name in sorted(owners):
        of = [c for c in class_names if owns(c, name)]
        categories.append({"id": part_ids[name], "name": name, "supercategory": of[0] if len(of) == 1 else "shared"})
    return LabelSpace(classes, categories, "parts annotated in any of the class's images")
