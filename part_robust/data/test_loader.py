"""Batches of a data set in evaluation: every image once, each process its share."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_test_loader
from torch.utils.data import DataLoader

from part_robust.data.mapper import PartDatasetMapper
from part_robust.data.packed_batch import PackedBatch


def build_test_loader(cfg: CfgNode, dataset_name: str, records: list[dict] | None = None) -> DataLoader:
    """Builds the loader of a data set's images in evaluation, in batches of DATALOADER.TEST_BATCH_SIZE.

    Args:
        cfg: complete.
        dataset_name: registered.
        records: restricts the loader to these records of the data set; None: all of them.
    """
    mapper = PartDatasetMapper(cfg, is_train=False, dataset_name=dataset_name)
    batch_size = cfg.DATALOADER.TEST_BATCH_SIZE
    if records is None and not mapper.num_parts:
        # detectron2 prints a table of the parts of a name's data set, and divides by their number.
        records = DatasetCatalog.get(dataset_name)
    shared = {"mapper": mapper, "batch_size": batch_size, "collate_fn": PackedBatch}
    if records is None:
        return build_detection_test_loader(cfg, dataset_name, **shared)
    return build_detection_test_loader(records, num_workers=cfg.DATALOADER.NUM_WORKERS, **shared)
