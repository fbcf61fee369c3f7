"""Numbers of classes and parts: from the config, or from the data where it leaves them open."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode

from part_robust.modeling.part_to_class import part_metadata
from part_robust.utils.errors import UserError


def with_counts(cfg: CfgNode) -> CfgNode:
    """A copy of `cfg` whose NUM_CLASSES and NUM_PARTS are numbers: 0 is read from the first training set.

    Raises:
        ValueError: a number is 0 and no training set with part metadata is named.
    """
    cfg = cfg.clone()
    cfg.defrost()
    node = cfg.MODEL.PART_CLASSIFIER
    if node.NUM_CLASSES > 0 and (node.NUM_PARTS > 0 or not node.SEGMENTER):
        return cfg
    if not cfg.DATASETS.TRAIN:
        raise ValueError(
            "MODEL.PART_CLASSIFIER.NUM_CLASSES and NUM_PARTS are 0 and DATASETS.TRAIN is empty: set one or the other"
        )
    metadata = part_metadata(cfg.DATASETS.TRAIN[0])
    node.NUM_CLASSES = node.NUM_CLASSES or len(metadata.object_classes)
    node.NUM_PARTS = node.NUM_PARTS or len(metadata.thing_classes)
    return cfg


def check_counts(cfg: CfgNode, trained: Sequence[str], evaluated: Sequence[str]) -> None:
    """Compares NUM_CLASSES and NUM_PARTS with the data, whose labels would not fit otherwise.

    Args:
        cfg: complete.
        trained: data sets that have at most as many classes and parts.
        evaluated: data sets that have as many.

    Raises:
        UserError: a data set has more, or an evaluated one another number.
    """
    node = cfg.MODEL.PART_CLASSIFIER
    for name in dict.fromkeys((*trained, *evaluated)):
        metadata = part_metadata(name)
        for key, names in (("NUM_CLASSES", metadata.object_classes), ("NUM_PARTS", metadata.thing_classes)):
            number = node[key]
            if number == 0 or number == len(names) or (number > len(names) and name not in evaluated):
                continue
            raise UserError(
                f"MODEL.PART_CLASSIFIER.{key} must be {len(names)} as in dataset {name!r}, got {number}. Set it to "
                "0 to read it from the first training set"
            )
