"""What a training survives: numbers that are not finite, signals, foreign files."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
from collections import OrderedDict

import numpy as np
import pytest
import torch
from detectron2.engine import HookBase
from torch import nn

from part_robust.attacks import AttackError
from part_robust.engine import PartCheckpointer, PartTrainer, failures
from part_robust.engine.checkpoint import check_finite
from part_robust.engine.failures import NonFiniteStep, Preempted
from part_robust.engine.step import ScaledStepTrainer, StepScaler, build_step_trainer
from part_robust.utils.errors import UserError
from part_robust.utils.safe_loading import NoCheckpoint, UnsafeCheckpoint, check_pickle
from tests.toy import ADVERSARIAL, run_cfg

QUIET = ["TEST.EVAL_PERIOD", 0, "DATASETS.VAL", (), "DATASETS.TEST", ()]


def weights(trainer: PartTrainer) -> torch.Tensor:
    return torch.cat([value.detach().flatten().float() for value in trainer.model.state_dict().values()])


class Poison(HookBase):
    """Makes the pixel statistics, and so the loss, useless in some iterations."""

    def __init__(self, iterations):
        self.iterations = iterations

    def before_step(self):
        bad = self.trainer.iter in self.iterations
        self.trainer.model.pixel_mean.fill_(float("nan") if bad else 120.0)


def poisoned(folder, iterations, *opts, model: str = "resnet") -> PartTrainer:
    trainer = PartTrainer(run_cfg(folder, *QUIET, "SOLVER.CHECKPOINT_PERIOD", 2, *opts, model=model))
    trainer.register_hooks([Poison(iterations)])
    return trainer


def test_a_non_finite_step_stops_and_keeps_the_last_checkpoint(toy_data, tmp_path):
    trainer = poisoned(tmp_path, {3})
    with pytest.raises(NonFiniteStep, match=r"iteration 3: .*\d+\.png, .*SOLVER\.NON_FINITE skip"):
        trainer.train()
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    assert torch.isfinite(weights_of(tmp_path / "model_0000001.pth")).all()
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters()), "no step was made"


def weights_of(path) -> torch.Tensor:
    state = torch.load(path, weights_only=True)["model"]
    return torch.cat([value.flatten().float() for value in state.values()])


def test_a_non_finite_step_is_skipped(toy_data, tmp_path, caplog):
    trainer = poisoned(tmp_path, {2, 3}, "SOLVER.NON_FINITE", "skip")
    seen = []
    trainer.register_hooks([Remember(seen)])
    trainer.train()
    assert trainer.iter == 6
    assert "iteration 2: the loss or a gradient is not a finite number" in caplog.text
    assert torch.equal(seen[1], seen[2]) and torch.equal(seen[1], seen[3]), "statistics of batch norm too"
    assert not torch.equal(seen[3], seen[4]) and torch.isfinite(seen[5]).all()


class Remember(HookBase):
    def __init__(self, seen):
        self.seen = seen

    def after_step(self):
        self.seen.append(weights(self.trainer))


@pytest.mark.parametrize("training", ["clean", "adversarial", "perturbed", "accumulated", "bfloat16"])
@pytest.mark.parametrize("model", ["resnet", "deeplab_two_headed", "dino_sequential", "mask_dino_simple"])
def test_every_family_obeys(toy_data, tmp_path, caplog, model, training):
    options = {
        "adversarial": ADVERSARIAL,
        "perturbed": [*ADVERSARIAL, "ATTACK.TRAIN.AWP.GAMMA", 0.01, "ATTACK.TRAIN.AWP.WARMUP_ITERS", 0],
        "accumulated": ["SOLVER.ACCUMULATE", 2],
        "bfloat16": ["SOLVER.AMP.ENABLED", True],
    }.get(training, [])
    trainer = poisoned(tmp_path / "skip", {1}, "SOLVER.NON_FINITE", "skip", "SOLVER.MAX_ITER", 3, *options, model=model)
    seen = []
    trainer.register_hooks([Remember(seen)])
    trainer.train()
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2]) and torch.isfinite(seen[2]).all()
    assert "iteration 1: the loss or a gradient is not a finite number. Images of the batch: " in caplog.text
    trainer = poisoned(tmp_path / "stop", {1}, "SOLVER.MAX_ITER", 3, *options, model=model)
    with pytest.raises((NonFiniteStep, AttackError), match=r"iteration 1: .*\d+\.png"):
        trainer.train()


@pytest.fixture
def float16(monkeypatch):
    """Trainings with a GradScaler, which `poisoned` builds: the real one of float16 asks for a CUDA device."""

    def build(cfg, model, loader, optimizer):
        plain = build_step_trainer(cfg, model, loader, optimizer)
        scaler = plain.model.scaler = StepScaler("cpu", init_scale=1024.0)
        return ScaledStepTrainer(plain.model, loader, optimizer, zero_grad_before_forward=True, grad_scaler=scaler)

    monkeypatch.setattr("part_robust.engine.trainer.build_step_trainer", build)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # of detectron2's AMPTrainer


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_grad_scaler_leaves_the_step_out_and_keeps_its_scale(toy_data, tmp_path, float16, pieces):
    options = ["SOLVER.NON_FINITE", "skip", "SOLVER.MAX_ITER", 3, "SOLVER.ACCUMULATE", pieces]
    trainer = poisoned(tmp_path / "skip", {1}, *options)
    seen = []
    trainer.register_hooks([Remember(seen)])
    trainer.train()
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2]) and torch.isfinite(seen[2]).all()
    assert trainer._trainer.grad_scaler.get_scale() == 1024.0
    with pytest.raises(NonFiniteStep, match=r"iteration 1: .*\d+\.png"):
        poisoned(tmp_path / "stop", {1}, "SOLVER.ACCUMULATE", pieces).train()


def test_gradients_that_overflow_at_every_scale_end_the_training(toy_data, tmp_path, float16, monkeypatch):
    monkeypatch.setattr(failures, "SCALE_PERIOD", 1)
    trainer = poisoned(tmp_path, {}, "SOLVER.MAX_ITER", 100)
    trainer._trainer.grad_scaler.load_state_dict(trainer._trainer.grad_scaler.state_dict() | {"scale": 2.0**-9})
    next(trainer.model.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteStep, match=r"iteration 2: .*not finite numbers at any loss scale.*bfloat16"):
        trainer.train()


def test_skipping_has_an_end(toy_data, tmp_path):
    trainer = poisoned(tmp_path, range(1, 6), "SOLVER.NON_FINITE", "skip", "SOLVER.NON_FINITE_LIMIT", 2)
    with pytest.raises(NonFiniteStep, match=r"iteration 3: .*3 steps in a row"):
        trainer.train()


def test_a_gradient_alone_is_enough(toy_data, tmp_path):
    trainer = PartTrainer(run_cfg(tmp_path, *QUIET, model="resnet"))
    parameter = next(trainer.model.parameters())
    parameter.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteStep, match="iteration 0"):
        trainer.train()


def test_wrong_action_names_its_key(toy_data, tmp_path):
    with pytest.raises(ValueError, match=r"SOLVER\.NON_FINITE must be stop or skip"):
        PartTrainer(run_cfg(tmp_path, "SOLVER.NON_FINITE", "ignore", model="resnet"))


class Signal(HookBase):
    """The cluster takes the machine back in the middle of an iteration: it tells every process of the job, by a process
    of its own.
    """

    def before_step(self):
        if self.trainer.iter == 2:
            loaders = [str(child.pid) for child in multiprocessing.active_children()]
            subprocess.run(["kill", "-TERM", str(os.getpid()), *loaders], check=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_saves_and_resuming_is_exact(toy_data, tmp_path, workers):
    """Dropout, augmentation, random starts, averages, learning rate: all as if nothing had happened."""
    opts = [*ADVERSARIAL, *QUIET, "SOLVER.EMA.DECAY", 0.9, "DATALOADER.NUM_WORKERS", workers]
    opts += ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.MAX_ITER", 5]

    def make(folder):
        torch.manual_seed(0)
        return PartTrainer(run_cfg(folder, *opts))

    whole = make(tmp_path / "whole")
    whole.train()
    before = signal.getsignal(signal.SIGTERM)
    stopped = make(tmp_path / "stopped")
    stopped.register_hooks([Signal()])
    with pytest.raises(Preempted) as end:
        stopped.train()
    assert end.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    assert (tmp_path / "stopped" / "last_checkpoint").read_text() == "model_0000002.pth"
    torch.manual_seed(123)  # another process has other random numbers
    resumed = PartTrainer(run_cfg(tmp_path / "stopped", *opts))
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 3
    resumed.train()
    assert torch.equal(weights(whole), weights(resumed))
    assert all(torch.equal(value, resumed.average.values[name]) for name, value in whole.average.values.items())


class Payload:
    """Leaves a mark in the folder in which it is read."""

    def __reduce__(self):
        return (os.system, ("touch part_robust_was_here",))


@pytest.mark.parametrize(
    "ending, container", [("pth", "model"), ("pth", "state_dict"), ("pth", ""), ("pkl", "model"), ("pkl", "")]
)
def test_files_that_run_code_are_not_opened(tmp_path, monkeypatch, ending, container):
    """And the command in the message keeps the weights of those whose author one trusts."""
    monkeypatch.chdir(tmp_path)
    model = nn.Linear(2, 2)
    state = dict(model.state_dict())
    if ending == "pkl":
        state = {name: value.numpy() for name, value in state.items()}
    content = {container: state, "extra": Payload()} if container else {**state, "extra": Payload()}
    path = tmp_path / f"bad.{ending}"
    if ending == "pth":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(UnsafeCheckpoint, match=f"bad.{ending} holds objects that run code") as error:
        PartCheckpointer(model, str(tmp_path)).load(str(path))
    assert not (tmp_path / "part_robust_was_here").exists()
    if not container:
        return  # what runs code is among the weights
    wanted = {name: value.clone() for name, value in model.state_dict().items()}
    nn.init.zeros_(model.weight)
    exec(str(error.value).partition('python -c "')[2].removesuffix('"'), {})
    PartCheckpointer(model, str(tmp_path)).load(str(tmp_path / f"weights.{ending}"))
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())


def test_the_model_zoo_s_pickles_are_read(tmp_path):
    """Arrays as detectron2's converters write them, also by the protocol of Python 2."""
    model = nn.Linear(2, 2)
    arrays = OrderedDict(
        (name, np.full(tuple(value.shape), 3.0, "float32")) for name, value in model.named_parameters()
    )
    for protocol in (2, pickle.HIGHEST_PROTOCOL):
        path = tmp_path / f"R-50-{protocol}.pkl"
        content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True, "step": np.float64(1.0)}
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        check_pickle(path)
        nn.init.zeros_(model.weight)
        PartCheckpointer(model, strict=True).load(str(path))
        assert (model.weight == 3).all()


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".pyth"])
def test_files_that_are_no_checkpoint_are_described(suffix, tmp_path):
    model = nn.Linear(2, 2)
    torch.save({"model": model.state_dict()}, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    for content, words in (
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html>", "21 bytes that begin with b'<!DOCTYPE html><html>' .*download went wrong"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull"),
        (b"SOLVER:\n  BASE_LR: 0.1\n", r"23 bytes that begin with b'SOLVER:"),
        (whole[: len(whole) // 2], rf"{len(whole) // 2} bytes that begin with b'PK.*cut off"),
        (pickle.dumps({"model": [1.0] * 100})[:50], "cut off"),
    ):
        path = tmp_path / f"file{suffix}"
        path.write_bytes(content)
        with pytest.raises(NoCheckpoint, match=words) as error:
            PartCheckpointer(model, str(tmp_path)).load(str(path))
        assert str(path) in str(error.value) and "weights_only" not in str(error.value)
        assert len(str(error.value).splitlines()) == 1


def test_checkpoints_of_pycls_are_read_safely(tmp_path):
    model = nn.Linear(2, 2)
    path = tmp_path / "model.pyth"
    torch.save({"model_state": {name: torch.ones_like(value) for name, value in model.state_dict().items()}}, path)
    PartCheckpointer(model, strict=True).load(str(path))
    assert (model.weight == 1).all()
    torch.save({"model_state": {}, "optimizer": Trap()}, path)
    with pytest.raises(UnsafeCheckpoint, match="run code"):
        PartCheckpointer(model).load(str(path))
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(NoCheckpoint, match="weights by name, got a list"):
        PartCheckpointer(model).load(str(tmp_path / "list.pth"))


class Trap:
    def __reduce__(self):
        return print, ("code of the file has run",)


def test_weights_that_are_not_finite_are_not_evaluated():
    model = nn.Linear(2, 2)
    check_finite(model, "a.pth")
    model.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"MODEL.WEIGHTS a\.pth must hold finite numbers, .* 1 of 2 .*first weight"):
        check_finite(model, "a.pth")
