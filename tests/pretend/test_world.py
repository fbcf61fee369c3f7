"""Training and evaluation of every family as one of two processes on a pretend NCCL."""

from __future__ import annotations

import signal

import pytest
import torch
from detectron2.utils import comm
from torch import distributed

from part_robust.engine import PartTrainer
from part_robust.engine.failures import Preempted
from tests.pretend.device import pretend_device
from tests.pretend.runs import ATTACKED, FAMILIES, GUARD, KINDS, SMALL, TIERS, evaluation
from tests.pretend.world import WrongCollective, pretend_world
from tests.toy import run_cfg

OPTS = [
    *(*SMALL, *ATTACKED, *GUARD, "SOLVER.EMA.DECAY", 0.9, "SOLVER.ACCUMULATE", 2, "SOLVER.IMS_PER_BATCH", 8),
    *("ATTACK.TRAIN.AWP.GAMMA", 0.01, "DATASETS.VAL", ("toy_val",), "DATASETS.TEST", ("toy_val",)),
    *("ATTACK.EVAL_DURING_TRAINING", ["fgsm"], "TEST.PART_BOX_AP", False, "SOLVER.MAX_ITER", 1),
    *("ATTACK.TRAIN.GUARD.PERIOD", 1),
]


# Of the heads on dense parts one: collectives are those of the losses of parts, and of the trainer.
@pytest.mark.parametrize("model", [name for name in FAMILIES if "deeplab" not in name or name in KINDS])
def test_training(toy_data, tmp_path, model):
    """With pieces, weight perturbation, averaged weights, guard, shared buffers and evaluation."""
    with pretend_device(), pretend_world() as seen:
        trainer = PartTrainer(run_cfg(tmp_path, "MODEL.DEVICE", "cuda", *OPTS, model=model))
        trainer.train()
        assert all(bool(value.isfinite().all()) for value in trainer.model.state_dict().values())
    assert seen["all_reduce"] >= 3 and seen["broadcast"] > 4 and seen["objects"] > 1, seen


def test_a_signal_ends_all_processes(toy_data, tmp_path):
    with pretend_device(), pretend_world():
        trainer = PartTrainer(run_cfg(tmp_path, "MODEL.DEVICE", "cuda", *SMALL, model="resnet"))
        before_step = trainer.before_step
        trainer.before_step = lambda: (signal.raise_signal(signal.SIGUSR1), before_step())
        with pytest.raises(Preempted):
            trainer.train()
    assert (tmp_path / "model_0000000.pth").is_file()


def test_evaluation_of_every_attack(toy_data, tmp_path):
    opts = ["ATTACK.EVAL", ["pgd20"]]
    with pretend_device(), pretend_world():
        several = evaluation(tmp_path / "two", "mask_dino_simple", "cuda", toy_data, *opts)
    with pretend_device():
        assert several == evaluation(tmp_path / "one", "mask_dino_simple", "cuda", toy_data, *opts)


@pytest.mark.parametrize("model", ["deeplab_two_headed", "dino_detector"])
def test_evaluation_with_tiers(toy_data, tmp_path, model):
    opts = [*TIERS, *KINDS[model][1], "TEST.TIERS.standard", ["pgd20"], "TEST.NUM_IMAGES", 3]
    with pretend_device(), pretend_world():
        several = evaluation(tmp_path / "two", model, "cuda", toy_data, *opts)
    with pretend_device():
        assert several == evaluation(tmp_path / "one", model, "cuda", toy_data, *opts)


def test_what_it_refuses():
    with pretend_device(), pretend_world():
        distributed.all_reduce(torch.ones(2, device="cuda"))
        distributed.all_reduce(torch.ones(2), group=distributed.new_group(backend="gloo"))
        for wrong in (torch.ones(2), torch.ones(2, 3, device="cuda").T):
            with pytest.raises(WrongCollective):
                distributed.all_reduce(wrong)
        with pytest.raises(WrongCollective, match="pickled"):
            comm.gather({"counts": torch.ones(2, device="cuda")})
