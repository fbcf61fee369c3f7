"""Attacks through torch.compile: the same numbers, and the usual path where compiling fails."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
from detectron2.modeling import build_model
from torch._dynamo.backends.common import aot_autograd

from part_robust.attacks import attack_batch, attack_mode, build_attack
from part_robust.engine import PartTrainer
from part_robust.modeling.compiled import CompiledPath
from tests.toy import tiny_cfg

COMPILE = torch.compile


def models_of(name: str) -> tuple[torch.nn.Module, torch.nn.Module, list[dict]]:
    """The same model without and with ATTACK.COMPILE, and a batch."""
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        found.append(build_model(tiny_cfg(name, "ATTACK.COMPILE", compiled)).train())
    batch = next(iter(PartTrainer.build_test_loader(tiny_cfg(name, "DATALOADER.TEST_BATCH_SIZE", 4), "toy_val")))
    return *found, batch


def attacked(model: torch.nn.Module, batch: list[dict]) -> torch.Tensor:
    attack = build_attack({"NAME": "PGD", "STEPS": 3, "STEP_SIZE": 2.0, "EPS": 8.0})
    with attack_mode(model) as inner:
        return attack_batch(attack, inner, batch, torch.arange(len(batch)))[0].images


@pytest.mark.parametrize("name", ["deeplab_two_headed", "dino_sequential"])
def test_attacked_images_are_the_same(toy_data, monkeypatch, caplog, name):
    monkeypatch.setattr(torch, "compile", functools.partial(COMPILE, backend="aot_eager"))
    plain, compiled, batch = models_of(name)
    found = attacked(compiled, batch)
    assert (found - attacked(plain, batch)).abs().max() < 1e-3
    assert compiled._compiled.compiled is not None and "uncompiled" not in caplog.text
    twin = copy.deepcopy(compiled)
    assert twin._compiled is None and pickle.loads(pickle.dumps(compiled._compiled)) is None


def test_a_backward_pass_that_does_not_compile_is_said_and_left_out(monkeypatch, caplog):
    def broken(graph, inputs):
        raise OSError("no C++ compiler here")

    backend = aot_autograd(fw_compiler=lambda graph, inputs: graph, bw_compiler=broken)
    monkeypatch.setattr(torch, "compile", functools.partial(COMPILE, backend=backend))
    path, images = CompiledPath(torch.square), torch.full((3,), 2.0, requires_grad=True)
    assert torch.equal(torch.autograd.grad(path(images).sum(), images)[0], torch.full((3,), 4.0))
    assert path.compiled is None and "no C++ compiler here" in caplog.text


def test_what_fails_uncompiled_too_is_not_the_compilers_fault(monkeypatch, caplog):
    def not_finite(images):
        raise FloatingPointError

    monkeypatch.setattr(torch, "compile", lambda function: function)
    path = CompiledPath(not_finite)
    with pytest.raises(FloatingPointError):
        path(torch.ones(3))
    assert path.compiled is not None and not caplog.records


def test_a_failing_compiler_is_said_and_left_out(toy_data, monkeypatch, caplog):
    def broken(graph, inputs):
        raise OSError("no C++ compiler here")

    monkeypatch.setattr(torch, "compile", functools.partial(COMPILE, backend=broken))
    plain, compiled, batch = models_of("resnet")
    assert torch.equal(attacked(compiled, batch), attacked(plain, batch))
    assert caplog.text.count("ATTACK.COMPILE: attacks run uncompiled") == 1 and "no C++ compiler here" in caplog.text
