"""Settings for speed: in force where the config wants them, and without any effect on results but rounding."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.utils.env import seed_all_rng

from part_robust.engine import PartTrainer, optimizer
from part_robust.engine.optimizer import build_optimizer
from tests.toy import run_cfg

FAMILIES = ["resnet", "deeplab_two_headed", "deeplab_downsampled", "dino_sequential", "mask_dino_simple"]


def batch_of(cfg):
    return next(iter(PartTrainer.build_train_loader(cfg)))


@pytest.mark.parametrize("model", FAMILIES)
def test_channels_last_changes_nothing_but_rounding(toy_data, tmp_path, model):
    found = {}
    for last in (False, True):
        # A dropout mask has the order of the memory.
        cfg = run_cfg(tmp_path, "SOLVER.CHANNELS_LAST", last, "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT", 0.0, model=model)
        seed_all_rng(0)
        # In double precision there is next to no rounding, which batch norm over four images would enlarge.
        net, formats = PartTrainer.build_model(cfg).double(), set()

        def look(module, inputs, output, formats=formats):
            formats.add(output.is_contiguous(memory_format=torch.channels_last))

        net.backbone.stem.register_forward_hook(look)
        batch = batch_of(cfg)
        seed_all_rng(0)
        losses = net(batch)
        sum(losses.values()).backward()
        net.eval()
        gradients = [p.grad for p in net.parameters() if p.grad is not None]
        found[last] = [*losses.values(), *gradients, *(x["class_logits"] for x in net(batch))]
        assert formats == {last}
    for one, other in zip(found[False], found[True], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


KINDS = [["SOLVER.OPTIMIZER", "SGD"], ["SOLVER.OPTIMIZER", "AdamW", "SOLVER.WEIGHT_DECAY", 0.05]]
CLIPPING = [[], ["SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model"]]


def steps(cfg, model, count, state=None, scaler=None):
    """Steps with gradients that are the same for every caller; returns the optimizer."""
    found = build_optimizer(cfg, model)
    if state is not None:
        found.load_state_dict(copy.deepcopy(state))
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        if scaler is None:
            found.step()
            continue
        scale = scaler.scale(torch.ones(()))
        for parameter in model.parameters():
            parameter.grad *= scale
        scaler.step(found)
        scaler.update()
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clipping", CLIPPING)
def test_fused_optimizers_step_as_the_others(toy_data, tmp_path, monkeypatch, kind, clipping):
    """Also after a resume in either direction, and behind a scaler, which must unscale before gradients are clipped."""
    cfg = run_cfg(tmp_path, *kind, *clipping, model="resnet")
    start = PartTrainer.build_model(cfg)
    plain, fused, scaled = (copy.deepcopy(start) for _ in range(3))
    old = steps(cfg, plain, 2)
    assert not old.defaults["fused"]
    monkeypatch.setattr(optimizer, "FUSED_ON", ("cpu",))
    new = steps(cfg, fused, 2)
    assert new.defaults["fused"]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    steps(cfg, scaled, 2, scaler=scaler)
    same(plain, fused)
    same(plain, scaled)
    resumed = copy.deepcopy(plain)
    assert all(group["fused"] for group in steps(cfg, resumed, 2, old.state_dict()).param_groups)
    monkeypatch.setattr(optimizer, "FUSED_ON", ("cuda",))
    assert not any(group["fused"] for group in steps(cfg, plain, 2, new.state_dict()).param_groups)
    same(plain, resumed)


def same(one, other):
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
