"""Part labels for control experiments: does the part model gain from the parts, or would any mask do?

`INPUT.PART_LABELS` replaces the data sets of a run by derived ones, named "NAME@KIND"; images, classes and splits stay.
`DATASETS.PART_LABEL_SHARE` takes the part labels of most training images away.

Letters: C classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from pycocotools import mask as coco_mask

from part_robust.data.register import get_taxonomy, set_metadata
from part_robust.data.taxonomy import PartTaxonomy


def use_part_labels(cfg: CfgNode) -> None:
    """Replaces the names in DATASETS by those of the data sets with the part labels of INPUT.PART_LABELS, in place.

    The labels of "shuffled" are for training alone: VAL and TEST keep the true ones.

    Raises:
        KeyError, ValueError: a data set is not a registered part data set.
    """
    kind = cfg.INPUT.PART_LABELS
    if kind == "parts":
        return
    for key in ("TRAIN",) if kind == "shuffled" else ("TRAIN", "VAL", "TEST"):
        cfg.DATASETS[key] = tuple(derived_dataset(name, kind) for name in cfg.DATASETS[key])


def derived_dataset(name: str, kind: str) -> str:
    """Registers the data set `name` with other part labels, and returns its name, "NAME@KIND".

    Args:
        name: of a registered part data set; one that is derived already stays as it is.
        kind: "object": the union of an image's parts, labelled with its class (C labels); parts of neighbouring objects
            count nowhere. "foreground": the union, with one label for all classes. "shuffled": each part has the label
            of another part of its class, in each image anew.

    Raises:
        KeyError, ValueError: the data set is not a registered part data set.
    """
    base = name.removesuffix(f"@{kind}")
    derived = f"{base}@{kind}"
    if derived not in DatasetCatalog.list():
        taxonomy = get_taxonomy(base)
        metadata = MetadataCatalog.get(base)
        known = {key: metadata.get(key) for key in ("json_file", "image_root", "evaluator_type", "part_robust")}
        MetadataCatalog.get(derived).set(**{key: value for key, value in known.items() if value is not None})
        set_metadata(derived, _TAXONOMIES[kind](taxonomy))
        DatasetCatalog.register(derived, functools.partial(_load, base, kind))
    return derived


def labels_of(name: str) -> str:
    """Return which labels the parts of a data set have, by its name: "parts", or the kind of a derived one."""
    return next((kind for kind in CHANGES if name.endswith(f"@{kind}")), "parts")


def with_label_share(records: Sequence[dict], share: float) -> list[dict]:
    """The training images, of which a share keeps its part labels.

    The same images keep them in every run, those of a smaller share are among those of a larger one, and every class
    keeps its share, rounded.

    Args:
        records: of `load_part_json`.
        share: 0..1, of the images of each class that have part labels.

    Returns:
        The records in their order; those without labels have `part_supervision` "none" and no annotations.
    """
    if share >= 1:
        return list(records)
    by_class: dict[int, list[dict]] = {}
    for record in records:
        if record["part_supervision"] != "none":
            by_class.setdefault(record["class_id"], []).append(record)
    kept: set[int] = set()
    for members in by_class.values():
        members.sort(key=_order)
        kept |= {id(record) for record in members[: round(share * len(members))]}
    return [
        record if id(record) in kept else {**record, "part_supervision": "none", "annotations": []}
        for record in records
    ]


def _order(record: dict) -> tuple[float, str]:
    # Ids of several data sets may be the same.
    return float(np.random.default_rng(record["image_id"]).random()), record["file_name"]


def _load(base: str, kind: str) -> list[dict]:
    taxonomy = get_taxonomy(base)
    change = CHANGES[kind]
    return [change(record, taxonomy) for record in DatasetCatalog.get(base)]


def _object(record: dict, taxonomy: PartTaxonomy) -> dict:
    target = [annotation for annotation in record["annotations"] if annotation["is_target"]]
    neighbours = [_rle(annotation, record) for annotation in record["annotations"] if not annotation["is_target"]]
    changed = {**record, "annotations": _union(target, record, record["class_id"])}
    if ignored := [*neighbours, *([record["ignore_segmentation"]] if "ignore_segmentation" in record else [])]:
        changed["ignore_segmentation"] = coco_mask.merge([_rle({"segmentation": one}, record) for one in ignored])
    return changed


def _foreground(record: dict, taxonomy: PartTaxonomy) -> dict:
    return {**record, "annotations": _union(record["annotations"], record, 0)}


def _shuffled(record: dict, taxonomy: PartTaxonomy) -> dict:
    # Parts of a neighbouring object of another class are shuffled among themselves.
    own = set(taxonomy.class_parts[record["class_id"]])
    labels = list(range(taxonomy.num_parts))
    generator = np.random.default_rng(record["image_id"])
    for group in (sorted(own), sorted(set(labels) - own)):
        for part, other in zip(group, generator.permutation(group).tolist(), strict=True):
            labels[part] = other
    annotations = [{**one, "category_id": labels[one["category_id"]]} for one in record["annotations"]]
    return {**record, "annotations": annotations}


def _union(annotations: Sequence[dict], record: dict, label: int) -> list[dict]:
    """One annotation for all; its mask is the union of theirs, where each has one, and its box the union's."""
    if not annotations:
        return []
    first = min(annotations, key=lambda one: one["id"])
    if all("segmentation" in one for one in annotations):
        mask = coco_mask.merge([_rle(one, record) for one in annotations])
        shape = {"segmentation": mask, "area": float(coco_mask.area(mask)), "bbox": coco_mask.toBbox(mask).tolist()}
    else:
        boxes = np.array([one["bbox"] for one in annotations], dtype=np.float64)
        low, high = boxes[:, :2].min(axis=0), (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
        shape = {"bbox": [*low.tolist(), *(high - low).tolist()], "area": float(np.prod(high - low))}
    kept = {"id": first["id"], "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": 0, "is_target": 1}
    return [{**kept, "category_id": label, **shape}]


def _rle(annotation: dict, record: dict) -> dict:
    segmentation = annotation.get("segmentation")
    height, width = record["height"], record["width"]
    if segmentation is None:  # a box alone
        x, y, w, h = annotation["bbox"]
        segmentation = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    return segmentation


def _class_labels(taxonomy: PartTaxonomy) -> PartTaxonomy:
    numbers = range(taxonomy.num_classes)
    return replace(
        taxonomy,
        part_names=taxonomy.class_names,
        class_parts=tuple((i,) for i in numbers),
        part_ids=tuple(i + 1 for i in numbers),
    )


def _one_label(taxonomy: PartTaxonomy) -> PartTaxonomy:
    everywhere = ((0,),) * taxonomy.num_classes
    return replace(taxonomy, part_names=("foreground",), class_parts=everywhere, part_ids=(1,))


CHANGES: dict[str, Callable[[dict, PartTaxonomy], dict]] = {
    "object": _object,
    "foreground": _foreground,
    "shuffled": _shuffled,
}
_TAXONOMIES: dict[str, Callable[[PartTaxonomy], PartTaxonomy]] = {
    "object": _class_labels,
    "foreground": _one_label,
    "shuffled": lambda taxonomy: taxonomy,
}
