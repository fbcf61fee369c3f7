"""The number and order of collectives in a training step do not depend on what a process's images hold."""

from __future__ import annotations

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from part_robust.data import PartDatasetMapper
from part_robust.engine import PartTrainer
from part_robust.engine.step import TrainingStep
from part_robust.modeling.counts import with_counts
from part_robust.modeling.part_classifier import training_objective
from tests.processes import start_two
from tests.toy import MODELS, STEADY, tiny_cfg

WORLD = 2
# Every way in which the part losses of a step are computed.
OBJECTIVES = {
    "clean": [],
    "mix": ["METHOD", "mix", "PART_LOSS_ON", "both"],
    "matched once": ["PART_LOSS_ON", "both", "MATCH_ON", "clean", "DENOISING", False],
}
CASES = [
    (model, objective)
    for model in MODELS
    for objective in OBJECTIVES
    if not (objective == "mix" and model.endswith(("segmenter", "detector")))  # compares classes
    and not (objective == "matched once" and "dino" not in model)  # has no queries
]


def cfg_of(model: str, *options):
    return with_counts(tiny_cfg(model, *options))


def batch_of(cfg) -> tuple[list[dict], list[dict]]:
    """Four images without any true part, one of them not labelled at all, and four others."""
    mapper = PartDatasetMapper(cfg, is_train=False, dataset_name="toy_val")
    items = [mapper(record) for record in DatasetCatalog.get("toy_val")]
    without = [item for item in items if not len(item["instances"])]
    assert any(item["part_supervision"] == "none" for item in without)
    return without[:4], [item for item in items if len(item["instances"])][:4]


class Recorder:
    """Collectives of one process, as (name, number of elements, type)."""

    def __init__(self, monkeypatch):
        self.calls: list[tuple] = []
        monkeypatch.setattr(comm, "get_world_size", lambda: WORLD)
        for name in ("all_reduce", "broadcast"):
            monkeypatch.setattr(torch.distributed, name, self.recorded(name))

    def recorded(self, name: str):
        return lambda tensor, *args, **kwargs: self.calls.append((name, tensor.numel(), tensor.dtype))


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize(("model", "objective"), CASES)
def test_with_and_without_parts(toy_data, monkeypatch, model, objective, pieces):
    options = OBJECTIVES[objective]
    options = [f"ATTACK.TRAIN.{word}" if number % 2 == 0 else word for number, word in enumerate(options)]
    if options:
        options += ["ATTACK.TRAIN.ENABLED", True]
    cfg = cfg_of(model, *options)
    trained = PartTrainer.build_model(cfg).train()
    without, some = batch_of(cfg)
    found = []
    for batch in (without, some, [*without[:2], *some[:2]], [*some[:2], *without[:2]]):
        if training_objective(cfg).needs_clean(trained.segmenter is not None, trained.head is not None):
            batch = [{**item, "image_clean": item["image"]} for item in batch]
        with monkeypatch.context() as patch:
            recorder = Recorder(patch)
            losses = TrainingStep(trained, pieces=pieces)(batch)
        found.append((recorder.calls, list(losses)))
    assert found.count(found[0]) == len(found)
    assert bool(found[0][0]) == (trained.segmenter is not None), "the recorder saw nothing"


def _gradients(model: torch.nn.Module, batch: list[dict]) -> list[torch.Tensor]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.grad = None
    sum(model(batch).values()).backward()
    assert all(p.grad is not None for p in parameters), "DistributedDataParallel waits for every gradient"
    return [p.grad.clone() for p in parameters]


def _train_with_a_rank_without_parts() -> None:
    for model in ("dino_sequential", "mask_dino_simple", "deeplab_two_headed"):
        shares = batch_of(cfg_of(model))
        own = shares[comm.get_rank()]
        torch.manual_seed(0)
        plain = PartTrainer.build_model(cfg_of(model, *STEADY)).train()
        wrapped = DistributedDataParallel(plain)
        of_two = _gradients(wrapped, own)
        world, comm.get_world_size = comm.get_world_size, lambda: 1
        of_one = _gradients(plain, [*shares[0], *shares[1]])
        comm.get_world_size = world
        for one, two in zip(of_one, of_two, strict=True):
            torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-5)
        # With denoising queries, whose random numbers belong to a process.
        denoised = DistributedDataParallel(PartTrainer.build_model(cfg_of(model)).train())
        names = comm.all_gather(sorted(denoised(own)))
        assert names[0] == names[1]
        assert all(torch.isfinite(gradient).all() for gradient in _gradients(denoised, own))


def test_two_processes_of_which_one_has_no_part_learn_like_one(toy_data):
    start_two(_train_with_a_rank_without_parts, ())
