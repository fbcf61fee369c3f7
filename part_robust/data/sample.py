"""Part of a data set, for evaluations that would take too long on all of it."""

from __future__ import annotations

import hashlib

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog


def sample_records(records: list[dict], count: int) -> list[dict]:
    """`count` of the records, in their order; all of them if `count` is 0 or no less than their number.

    Which ones depends on image ids alone: the same for any seed, order, model and process, and a smaller sample is
    part of a larger one.

    Raises:
        ValueError: `count` is negative.
    """
    if count < 0:
        raise ValueError(f"TEST.NUM_IMAGES must be 0 (all images) or more, is {count}")
    if count == 0 or count >= len(records):
        return records
    by_hash = sorted(records, key=lambda record: hashlib.sha256(str(record["image_id"]).encode()).digest())
    chosen = {record["image_id"] for record in by_hash[:count]}
    return [record for record in records if record["image_id"] in chosen]


def evaluated_records(cfg: CfgNode, dataset: str) -> tuple[list[dict], list[str]]:
    """Return the records that --eval-only evaluates (TEST.NUM_IMAGES), and what a reader of the numbers must know.

    Raises:
        ValueError: as `sample_records`.
    """
    records = DatasetCatalog.get(dataset)
    chosen = sample_records(records, cfg.TEST.NUM_IMAGES)
    if len(chosen) == len(records):
        return records, []
    return chosen, [f"TEST.NUM_IMAGES: a sample of {len(chosen)} of the {len(records)} images of {dataset}"]
