"""Two iterations of every model family under every feature of training, on the pretend device as on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.utils.env import seed_all_rng

from part_robust.engine import PartTrainer, optimizer
from tests.pretend.device import assert_same_as_on_cpu, pretend_device
from tests.pretend.runs import ATTACKED, FAMILIES, GUARD, SMALL
from tests.toy import run_cfg

# Features are combined so that few trainings meet all of them.
FEATURES = {
    "PGD, TRADES, AWP, guard": [
        *(*ATTACKED, *GUARD, "ATTACK.TRAIN.METHOD", "trades"),
        *("ATTACK.TRAIN.AWP.GAMMA", 0.01, "ATTACK.TRAIN.AWP.WARMUP_ITERS", 1),
    ],
    "N-FGSM, MART, EMA, pieces, colours": [
        *(*ATTACKED, "ATTACK.TRAIN.NAME", "NFGSM", "ATTACK.TRAIN.METHOD", "mart", "ATTACK.TRAIN.MATCH_ON", "clean"),
        *("SOLVER.EMA.DECAY", 0.9, "SOLVER.ACCUMULATE", 2, "INPUT.COLOR_JITTER", (0.4, 0.4, 0.4, 0.1)),
    ],
    "clean, bfloat16": ["SOLVER.AMP.ENABLED", True],
}


def options(model: str, features: str) -> list:
    """What the family can do of them: without a class no divergence of classes, without queries no matching."""
    values = FEATURES[features]
    chosen = dict(zip(values[::2], values[1::2], strict=True))
    if "segmenter" in model or "detector" in model:
        chosen.pop("ATTACK.TRAIN.METHOD", None)
    if "dino" not in model:
        chosen.pop("ATTACK.TRAIN.MATCH_ON", None)
    return [*SMALL, *(item for pair in chosen.items() for item in pair)]


def two_iterations(folder: Path, model: str, device: str, opts: list) -> dict[str, torch.Tensor]:
    """The state of the model after them."""
    seed_all_rng(0)
    trainer = PartTrainer(run_cfg(folder / device, "MODEL.DEVICE", device, *opts, model=model))
    trainer.train()
    assert trainer.iter == 2
    return dict(trainer.model.state_dict())


# The way of a batch through the step does not depend on which head of its kind it ends in; the losses do.
CASES = [
    *((model, features) for model in FAMILIES for features in ("PGD, TRADES, AWP, guard", "clean, bfloat16")),
    *((model, "N-FGSM, MART, EMA, pieces, colours") for model in ("resnet", "deeplab_two_headed", "dino_sequential")),
    ("mask_dino_simple", "N-FGSM, MART, EMA, pieces, colours"),
]


@pytest.mark.parametrize(("model", "features"), CASES)
def test_training(toy_data, tmp_path, monkeypatch, model, features):
    monkeypatch.setattr(optimizer, "FUSED_ON", ("cuda", "cpu"))  # the fused kernels round in another order
    opts = options(model, features)
    if "bfloat16" not in features:
        assert_same_as_on_cpu(lambda device: two_iterations(tmp_path, model, device, opts))
        return
    with pretend_device():  # CPU and CUDA compute other operators in it
        state = two_iterations(tmp_path, model, "cuda", opts)
        assert all(bool(value.isfinite().all()) for value in state.values())


@pytest.mark.parametrize("model", ["deeplab_two_headed", "dino_sequential", "mask_dino_simple"])
def test_float16_and_recomputed_activations(toy_data, tmp_path, model):
    """What runs on a CUDA device alone, with the optimizer of detectors, padded images and an evaluation."""
    parts = ["backbone", "encoder", "decoder"] if "dino" in model else ["backbone"]
    opts = [
        *(*SMALL, *ATTACKED, "SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "float16", "SOLVER.NON_FINITE", "skip"),
        *("ATTACK.TRAIN.PRECISION", "bfloat16"),
        *("SOLVER.OPTIMIZER", "AdamW", "SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.1),
        *("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model", "MODEL.ACTIVATION_CHECKPOINTING", parts),
        *("INPUT.TEST_TRANSFORM", "letterbox", "DATASETS.VAL", ("toy_val",)),
        *("ATTACK.EVAL_DURING_TRAINING", ["fgsm"]),
    ]
    with pretend_device():
        state = two_iterations(tmp_path, model, "cuda", opts)
        assert all(bool(value.isfinite().all()) for value in state.values())
