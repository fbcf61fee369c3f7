"""Numbers of classes and parts: from the config, or from the data where it leaves them open."""

from __future__ import annotations

from detectron2.config import CfgNode

from part_robust.modeling.part_to_class import part_metadata


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
