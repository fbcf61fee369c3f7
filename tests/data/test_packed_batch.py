"""Batches from data-loading workers: the same values, all in one piece of shared memory."""

from __future__ import annotations

import pickle

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from part_robust.data import PartDatasetMapper
from part_robust.data.packed_batch import PackedBatch
from part_robust.data.test_loader import build_test_loader
from part_robust.engine.data_stream import build_stream_loader
from tests.toy import tiny_cfg

TYPES = (torch.uint8, torch.bool, torch.int64, torch.float32, torch.float16)
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(TYPES), shapes), max_size=8))
def test_any_tensors_survive(kinds):
    tensors = [(3 * torch.rand(shape)).to(dtype) for dtype, shape in kinds]
    batch = PackedBatch(
        [{"tensors": tensors, "name": "a"}, tensors[:1], [t.transpose(0, -1) for t in tensors if t.dim()]]
    )
    received = pickle.loads(pickle.dumps(batch))
    assert type(received) is list and received[0]["name"] == "a"
    assert received[1] == received[0]["tensors"][:1], "one tensor in two places stays one"
    for before, after in zip([*tensors, *batch[2]], [*received[0]["tensors"], *received[2]], strict=True):
        assert (after.dtype, after.shape) == (before.dtype, before.shape)
        assert torch.equal(after, before)


def test_instances_survive():
    instances = Instances((8, 9), gt_boxes=Boxes(torch.rand(2, 4)), gt_masks=BitMasks(torch.rand(2, 8, 9) > 0.5))
    (received,) = pickle.loads(pickle.dumps(PackedBatch([instances])))
    assert received.image_size == (8, 9) and len(received) == 2
    assert torch.equal(received.gt_boxes.tensor, instances.gt_boxes.tensor)
    assert torch.equal(received.gt_masks.tensor, instances.gt_masks.tensor)


@pytest.mark.parametrize("training", [True, False])
def test_batches_from_a_worker_are_those_without_one_in_one_piece(toy_data, training):
    cfg = tiny_cfg("deeplab_two_headed", "SEED", 0, "SOLVER.IMS_PER_BATCH", 4)

    def first(workers: int) -> list[dict]:
        cfg.DATALOADER.NUM_WORKERS = workers
        return next(iter(loader(cfg, training)))

    here, there = first(0), first(1)
    assert [record["image_id"] for record in here] == [record["image_id"] for record in there]
    for left, right in zip(here, there, strict=True):
        assert torch.equal(left["image"], right["image"]) and torch.equal(left["sem_seg"], right["sem_seg"])
        assert torch.equal(left["instances"].gt_masks.tensor, right["instances"].gt_masks.tensor)
    # torch's own way gives each tensor a file.
    places = {
        tensor.untyped_storage().data_ptr()
        for record in there
        for tensor in (record["image"], record["sem_seg"], record["instances"].gt_classes)
    }
    assert len(there) > 1 and len(places) == 1


def loader(cfg, training: bool) -> DataLoader:
    if not training:
        return build_test_loader(cfg, cfg.DATASETS.TRAIN[0])
    return build_stream_loader(cfg, PartDatasetMapper(cfg, is_train=True, dataset_name=cfg.DATASETS.TRAIN[0]))
