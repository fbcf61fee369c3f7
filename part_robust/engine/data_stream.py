"""The endless stream of training images: every place in it has its own random numbers, and it can begin anywhere.

A resumed training continues with the batch that the interrupted one would have seen next, augmented alike, and several
processes see together what one would have seen.
"""

from __future__ import annotations

import gc
import itertools
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data.build import worker_init_reset_seed
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from part_robust.attacks.noise import make_keys
from part_robust.data import get_taxonomy
from part_robust.data.controls import with_label_share
from part_robust.data.mixing import MixingMapper
from part_robust.data.packed_batch import PackedBatch
from part_robust.engine.failures import SIGNALS

# A forked data-loading worker inherits the parent's objects. Garbage among them, such as the iterator of an earlier
# loader, must not be collected there: its end would join workers that are not children of the worker.
os.register_at_fork(after_in_child=gc.freeze)

logger = logging.getLogger(__name__)


class StreamSampler(Sampler):
    """Another sampler's stream from a later place on, with the place: yields `place * size + index`.

    Attributes:
        start: images of this process to leave out at the beginning.
    """

    def __init__(self, sampler: Sampler, size: int) -> None:
        """Wrap an endless sampler.

        Args:
            sampler: endless; yields every world-size-th index of a stream that all processes share.
            size: of the data set.
        """
        self.sampler = sampler
        self.size = size
        self.start = 0
        # Read here: the iteration may run in a data loader's worker, which is not a process of the job.
        self.rank, self.world = comm.get_rank(), comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        places = itertools.count(self.rank + self.start * self.world, self.world)
        indices = itertools.islice(self.sampler, self.start, None)
        for place, index in zip(places, indices, strict=False):
            yield place * self.size + int(index)


class IndexedDataset(Dataset):
    """Records by what `StreamSampler` yields; each gets its `position` in the stream."""

    def __init__(self, records: list[dict]) -> None:
        self.records = DatasetFromList(records, copy=False)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, code: int) -> dict:
        return self.records[code % len(self)] | {"position": code // len(self)}


class SeededMapper:
    """A mapper whose random numbers, torch's and NumPy's, depend on the seed and the record's position alone."""

    def __init__(self, mapper: Callable[[dict], dict], seed: int) -> None:
        self.mapper = mapper
        self.seed = seed

    def __call__(self, record: dict) -> dict:
        seed = int(make_keys(self.seed, record["position"])) & 0xFFFFFFFF
        state = np.random.get_state()  # noqa: NPY002 (what detectron2's augmentations draw from)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002 (what detectron2's augmentations draw from)
            try:
                return self.mapper(record) | {"position": record["position"]}
            finally:
                np.random.set_state(state)  # noqa: NPY002 (what detectron2's augmentations draw from)


def build_stream_loader(cfg: CfgNode, mapper: Callable[[dict], dict]) -> DataLoader:
    """The train loader; its place is set by `set_start_iteration`.

    Raises:
        ValueError: DATALOADER.SAMPLER_TRAIN is none that can begin anywhere.
    """
    records = get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        # detectron2 prints a table of the parts, and divides by their number.
        check_consistency=bool(get_taxonomy(cfg.DATASETS.TRAIN[0]).num_parts),
    )
    share = cfg.DATASETS.PART_LABEL_SHARE
    if share < 1:
        records = with_label_share(records, share)
        labelled = sum(record["part_supervision"] != "none" for record in records)
        logger.info("DATASETS.PART_LABEL_SHARE %g: %d of %d images have part labels", share, labelled, len(records))
    name = cfg.DATALOADER.SAMPLER_TRAIN
    # Without a seed the processes still have to share one order.
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    if name == "TrainingSampler":
        sampler = TrainingSampler(len(records), seed=seed)
    elif name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            records, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
        )
        sampler = RepeatFactorTrainingSampler(factors, seed=seed)
    else:
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN must be TrainingSampler or RepeatFactorTrainingSampler, is {name!r}"
        )
    dataset = IndexedDataset(records)
    ignore_label = get_taxonomy(cfg.DATASETS.TRAIN[0]).ignore_label
    loader = build_detection_train_loader(
        dataset,
        mapper=SeededMapper(MixingMapper.from_config(cfg, mapper, dataset.records, ignore_label), seed),
        sampler=StreamSampler(sampler, len(records)),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        # detectron2 groups by aspect ratio in this process, and collates there.
        collate_fn=None if cfg.DATALOADER.ASPECT_RATIO_GROUPING else PackedBatch,
        seed=seed,  # of a separate generator: a new iterator must not draw from the model's random numbers
    )
    if isinstance(loader, DataLoader):
        loader.worker_init_fn = _init_worker
    return loader


def set_start_iteration(loader: Any, iteration: int, cfg: CfgNode) -> None:
    """Makes the next iterator over `loader` begin with the batch of `iteration`."""
    sampler = getattr(getattr(loader, "dataset", None), "sampler", None)
    if isinstance(sampler, StreamSampler):
        sampler.start = iteration * (cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size())


def _init_worker(worker_id: int) -> None:
    worker_init_reset_seed(worker_id)
    # Cluster managers signal every process of a job. The main one saves and ends; a worker that died on the spot would
    # take it down before. Only the main process's own SIGTERM, by which it ends its workers, counts, and who sent a
    # signal goes to a thread that waits for it, not to a handler.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_end_when_told, args=(os.getppid(),), daemon=True).start()


def _end_when_told(parent: int) -> None:
    while True:
        received = signal.sigwaitinfo(SIGNALS)
        if received.si_signo == signal.SIGTERM and received.si_pid == parent:
            os._exit(0)
