"""Whether the data sets of a run go together: one label space, splits of one import, masks where masks are needed."""

from __future__ import annotations

import filecmp
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from part_robust.data.part_json import header_of, image_root_of, import_id, parse_json
from part_robust.data.taxonomy import taxonomy_from_json


@dataclass
class SplitFacts:
    """Facts about one registered data set that the comparison needs.

    Attributes:
        name: of the data set.
        path: its json.
        classes, parts: names in the order of their indices.
        import_id: of the import that wrote the json; empty where none did.
        images: {path of a picture, or ("content", hash of its pixels): its file name}.
        box_only: number of annotations without a mask.
        annotations: number of annotations.
    """

    name: str
    path: Path
    classes: Sequence[str]
    parts: Sequence[str]
    import_id: str = ""
    images: dict[Any, str] = field(default_factory=dict)
    box_only: int = 0
    annotations: int = 0


def check_datasets(cfg: CfgNode) -> None:
    """Compare the data sets of DATASETS.TRAIN, VAL and TEST; missing ones are reported when they are read.

    Raises:
        ValueError: two have other classes or parts, in names or order; two are of different imports and may share
            images; one has boxes where INPUT.PART_MASKS is masks, or no part at all for a model that needs them.
    """
    names = list(dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.VAL, *cfg.DATASETS.TEST]))
    facts = {name: found for name in names if (found := split_facts(name)) is not None}
    for found in facts.values():
        _require_parts(found, cfg)
        _require_same_names(next(iter(facts.values())), found)
    train, val, test = (
        [facts[name] for name in dict.fromkeys(listed) if name in facts]
        for listed in (cfg.DATASETS.TRAIN, cfg.DATASETS.VAL, cfg.DATASETS.TEST)
    )
    for first, other in (*product(train, [*val, *test]), *product(val, test)):
        _require_one_import(first, other)


def split_facts(name: str) -> SplitFacts | None:
    """Facts of a registered data set; None where it is not a part data set, or its json cannot be read as one."""
    metadata = MetadataCatalog.get(name)
    path = Path(metadata.get("json_file", ""))
    if not metadata.get("part_robust", False) or not path.is_file():
        return None
    data = parse_json(path)
    try:
        return facts_of_json(name, path, data, metadata.get("image_root"))
    except (AttributeError, KeyError, TypeError, ValueError):
        return None  # reading it in full says what is wrong


def facts_of_json(name: str, path: Path, data: Mapping, image_root: str | None = None) -> SplitFacts:
    """Facts of a parsed part json."""
    taxonomy = taxonomy_from_json(data)
    root = os.path.realpath(image_root if image_root is not None else image_root_of(data, path))
    images: dict[Any, str] = {}
    for image in data["images"]:
        images[os.path.join(root, image["file_name"])] = image["file_name"]
        group = (image.get("source") or {}).get("group")
        if group and header_of(data).get("generator") == "import_coco":
            images["content", group] = image["file_name"]  # the hash of its pixels
    return SplitFacts(
        name=name,
        path=path,
        classes=taxonomy.class_names,
        parts=taxonomy.part_names,
        import_id=import_id(data),
        images=images,
        box_only=sum("segmentation" not in annotation for annotation in data["annotations"]),
        annotations=len(data["annotations"]),
    )


def _require_parts(found: SplitFacts, cfg: CfgNode) -> None:
    if found.box_only and cfg.INPUT.PART_MASKS == "masks":
        raise ValueError(
            f"INPUT.PART_MASKS must be boxes, got masks: {found.box_only} of {found.annotations} annotations of "
            f"dataset {found.name!r} have only a box. Set INPUT.PART_MASKS boxes, which paints every part's box"
        )
    if not found.parts and cfg.MODEL.PART_CLASSIFIER.SEGMENTER:
        raise ValueError(
            f"dataset {found.name!r} has no parts, and MODEL.PART_CLASSIFIER.SEGMENTER "
            f"{cfg.MODEL.PART_CLASSIFIER.SEGMENTER} learns parts: take a config without a segmenter, such as resnet50"
        )


def _require_same_names(first: SplitFacts, other: SplitFacts) -> None:
    for what, wanted, found in (("classes", first.classes, other.classes), ("parts", first.parts, other.parts)):
        if tuple(wanted) == tuple(found):
            continue
        place = next(
            (i for i, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b), min(len(wanted), len(found))
        )
        a, b = (repr(names[place]) if place < len(names) else "nothing" for names in (wanted, found))
        raise ValueError(
            f"datasets {first.name!r} and {other.name!r} must have the same {what} in the same order, got "
            f"{len(wanted)} and {len(found)}, and at place {place + 1} {a} and {b}: an index would mean another name. "
            "Import both in one call, or reorder one"
        )


def _require_one_import(first: SplitFacts, other: SplitFacts) -> None:
    if not first.import_id or not other.import_id or first.import_id == other.import_id:
        return
    shared = _shared_image(first, other)
    if shared is not None:
        raise ValueError(
            f"datasets {first.name!r} and {other.name!r} are of different imports and share images, first "
            f"{shared}: the result would be measured on images that the model has seen. Import both in one call"
        )
    if first.path.parent.resolve() == other.path.parent.resolve():
        raise ValueError(
            f"{first.path} and {other.path.name} are of different imports (config_hash): repeat the import, so that "
            "all splits are of one division"
        )


def _shared_image(first: SplitFacts, other: SplitFacts) -> str | None:
    """An image that both have: one file, equal pixels where the json says so, or a copy of a file under its name."""
    for key, name in other.images.items():
        if key in first.images:
            return name
    originals, copies = _by_name(first), _by_name(other)
    for base in originals.keys() & copies.keys():
        sizes: dict[int, list[str]] = defaultdict(list)
        for path in filter(os.path.isfile, originals[base]):
            sizes[os.path.getsize(path)].append(path)
        for path in filter(os.path.isfile, copies[base]):
            if any(filecmp.cmp(path, original, shallow=False) for original in sizes[os.path.getsize(path)]):
                return other.images[path]
    return None


def _by_name(facts: SplitFacts) -> dict[str, list[str]]:
    """{name without folder: paths}."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in facts.images:
        if isinstance(path, str):
            found[os.path.basename(path)].append(path)
    return found
