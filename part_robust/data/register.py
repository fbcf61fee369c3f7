"""Registration of part datasets: one public function for users' data, for PartShapes, PACO and PartImageNet."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from part_robust.data.part_json import image_root_of, part_records, read_part_json
from part_robust.data.taxonomy import PartTaxonomy, bare_part_name

logger = logging.getLogger(__name__)


def register_part_dataset(
    name: str, json_file: str | Path, image_root: str | Path | None = None, hint: str = ""
) -> None:
    """Registers one split under `name` for `DATASETS.TRAIN` / `DATASETS.TEST`. Nothing is read until it is used.

    Args:
        name: dataset name, new to detectron2's `DatasetCatalog`.
        json_file: part json (docs/data_format.md).
        image_root: folder that `file_name` of its images is relative to; None: the json says it
            (`info.part_robust.image_root`, as the preparation tools write it), else it is `../images`.
        hint: sentence added to the error when the json does not exist: how to make it.

    Raises:
        ValueError: the name is taken, or was, and its metadata are still there.
    """
    if name in DatasetCatalog.list():
        raise ValueError(f"a dataset named {name!r} is already registered: choose another name")
    try:
        MetadataCatalog.get(name).set(
            json_file=str(json_file),
            evaluator_type="coco",  # what foreign tools understand: parts are the json's instances
            part_robust=True,
            **({} if image_root is None else {"image_root": str(image_root)}),
        )
    except AssertionError as error:  # detectron2's, when a value is there already and differs
        raise ValueError(
            f"metadata of another dataset named {name!r} are still there: MetadataCatalog.remove({name!r}) first"
        ) from error
    DatasetCatalog.register(name, functools.partial(_load, name, str(json_file), image_root, hint))


def register_from_config(cfg: CfgNode) -> None:
    """Registers what DATASETS.REGISTER lists; the same entry may come again, as when a process runs twice.

    Raises:
        ValueError: an entry is not [name, json, image root], or its name is registered for other files already.
    """
    for entry in cfg.DATASETS.REGISTER:
        if len(entry) != 3 or not all(isinstance(value, str) for value in entry):
            raise ValueError(f"DATASETS.REGISTER needs entries [name, part json, image root], one is {entry}")
        name, json_file, image_root = entry
        if name in DatasetCatalog.list():
            metadata = MetadataCatalog.get(name)
            if (metadata.get("json_file"), metadata.get("image_root")) == (json_file, image_root):
                continue
        register_part_dataset(name, json_file, image_root)


def _load(name: str, json_file: str, image_root: str | Path | None, hint: str) -> list[dict]:
    if hint and not Path(json_file).is_file():
        raise FileNotFoundError(f"dataset {name!r}: annotation file {json_file} does not exist. {hint}")
    data = read_part_json(json_file)
    if image_root is None:
        image_root = image_root_of(data, json_file)
        MetadataCatalog.get(name).set(image_root=image_root)
    records, taxonomy = part_records(data, json_file, image_root)
    set_metadata(name, taxonomy)
    if taxonomy.classes_without_parts:
        logger.warning(
            "dataset %s: classes without parts: %s. Models that read the class from parts alone need "
            "their treatment of such classes chosen in the config.",
            name,
            ", ".join(taxonomy.classes_without_parts),
        )
    return records


def set_metadata(name: str, taxonomy: PartTaxonomy) -> None:
    """Writes the names under the keys that detectron2, PACO and part-segmentation code bases read."""
    MetadataCatalog.get(name).set(
        thing_classes=list(taxonomy.part_names),
        stuff_classes=[*taxonomy.part_names, "background"],
        object_classes=list(taxonomy.class_names),
        obj_classes=list(taxonomy.class_names),
        part_classes=sorted({bare_part_name(part) for part in taxonomy.part_names}),
        part_to_class=taxonomy.part_to_class.astype(int).tolist(),
        part_to_class_ids=[list(parts) for parts in taxonomy.class_parts],
        # COCOEvaluator writes its results with the json's ids.
        thing_dataset_id_to_contiguous_id={part_id: i for i, part_id in enumerate(taxonomy.part_ids)},
        ignore_label=taxonomy.ignore_label,
    )


def get_taxonomy(name: str) -> PartTaxonomy:
    """Class and part names of a registered part dataset; reads its json on the first call.

    Raises:
        KeyError: the dataset is not registered.
        ValueError: it was registered by something else than `register_part_dataset`.
    """
    metadata = MetadataCatalog.get(name)
    if not metadata.get("part_robust", False):
        if name not in DatasetCatalog.list():
            raise KeyError(
                f"dataset {name!r} is not registered: call part_robust.data.register_part_dataset first, or name its "
                "json in DATASETS.REGISTER"
            )
        raise ValueError(f"dataset {name!r} is not a part dataset: use part_robust.data.register_part_dataset")
    if not metadata.get("object_classes"):
        DatasetCatalog.get(name)
    return PartTaxonomy(
        class_names=tuple(metadata.object_classes),
        part_names=tuple(metadata.thing_classes),
        class_parts=tuple(tuple(parts) for parts in metadata.part_to_class_ids),
        part_ids=tuple(metadata.thing_dataset_id_to_contiguous_id),
    )
