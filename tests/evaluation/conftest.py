"""A model that has learned the toy data, so that an attack has something to break; a small evaluation with tiers."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng

from part_robust.engine import PartTrainer
from part_robust.evaluation.record import describe_evaluation, metrics_of
from tests.evaluation.tier_fixture import SmallPartModel, evaluators, make_items, run
from tests.toy import RESNET_50, tiny_cfg


@pytest.fixture(scope="session")
def trained_model(toy_data):
    seed_all_rng(0)
    opts = ["INPUT.FLIP_PROB", 0.0, "INPUT.CROP_SCALE", (0.9, 1.0), "SOLVER.IMS_PER_BATCH", 6]
    cfg = tiny_cfg("deeplab_two_headed", *RESNET_50, *opts)
    model = build_model(cfg)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = iter(PartTrainer.build_train_loader(cfg))
    for _ in range(240):
        optimizer.zero_grad()
        sum(model(next(loader)).values()).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="session")
def trained_weights(trained_model, tmp_path_factory):
    """File of the trained model's weights."""
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": trained_model.state_dict()}, path)
    return path


@pytest.fixture(scope="session")
def items():
    return make_items(SmallPartModel())


@pytest.fixture(scope="session")
def whole(items, tmp_path_factory):
    """(merged, plan, metrics, record) of all items in batches of 5."""
    merged, plan = run(tmp_path_factory.mktemp("whole"), items)
    metrics = metrics_of(plan, merged, evaluators())
    return merged, plan, metrics, describe_evaluation(plan, merged, metrics, "CPU")
