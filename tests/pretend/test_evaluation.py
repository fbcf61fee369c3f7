"""Both ways of evaluation, and the tools that read one, on the pretend device as on the CPU."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest
import torch

from part_robust.cli import evaluate_model
from tests.evaluation.record_fixture import comparable
from tests.external_models import FLAGS, network, write_callables
from tests.external_models import SHORT as SHORT_EXTERNAL
from tests.pretend.device import assert_same_as_on_cpu, pretend_device
from tests.pretend.runs import FAMILIES, KINDS, TIERS, evaluation
from tests.pretend.waits import ROOT
from tests.toy import CLASSES


def tool(name: str):
    """A script of tools/ as a module."""
    specification = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("model", FAMILIES)
def test_every_attack_on_every_image(toy_data, tmp_path, model):
    opts = ["ATTACK.EVAL", ["pgd20"]]
    assert_same_as_on_cpu(lambda device: evaluation(tmp_path / device, model, device, toy_data, *opts))


@pytest.mark.parametrize("model", KINDS)
def test_tiers(toy_data, tmp_path, model):
    """With radii, saved images and their verification."""
    kept, opts = KINDS[model]

    def case(device: str) -> str:
        text = evaluation(tmp_path / device, model, device, toy_data, *TIERS, "TEST.SAVE_ADVERSARIALS", kept, *opts)
        assert tool("verify_adversarials").main([str(tmp_path / device)]) == 0
        return text

    assert_same_as_on_cpu(case)


AUDIT = [
    *("TEST.TIER", "screen", "TEST.TIERS.screen", ["pgd20"], "TEST.AUDIT", True),
    *("TEST.NUM_IMAGES", 2, "TEST.CHECKS.IMAGES", 1),
]


def test_audit(toy_data, tmp_path):
    def case(device: str) -> str:
        opts = [*AUDIT, "TEST.THREATS", "linf:8/255 l1:2"]
        return evaluation(tmp_path / device, "deeplab_two_headed", device, toy_data, *opts)

    assert '"C21"' in assert_same_as_on_cpu(case)


def test_audit_of_a_detector(toy_data, tmp_path):
    """On the device alone: hundreds of passes."""
    with pretend_device():
        opts = [*AUDIT, "TEST.NUM_IMAGES", 1, "MODEL.DINO.DECODER_LAYERS", 1]
        assert '"C21"' in evaluation(tmp_path, "dino_sequential", "cuda", toy_data, *opts)


def test_images_of_siblings(toy_data, tmp_path):
    opts = ["TEST.TIER", "screen", "TEST.TIERS.screen", ["pgd20"], "TEST.SAVE_ADVERSARIALS", "npz"]
    opts += ["TEST.NUM_IMAGES", 0, "TEST.EPS", 0.01]  # some images must stay right

    def case(device: str) -> str:
        evaluation(tmp_path / device / "first", "resnet", device, toy_data, *opts, seed=1)
        return evaluation(tmp_path / device / "second", "resnet", device, toy_data, *opts)

    assert '"transfer"' in assert_same_as_on_cpu(case)


def test_a_callable_from_elsewhere(toy_data, tmp_path, monkeypatch):
    """Its weights, the order of its channels and of its outputs; graphs are not read on the pretend device."""
    monkeypatch.syspath_prepend(str(tmp_path))
    write_callables(tmp_path)
    monkeypatch.delitem(sys.modules, "external_callables", raising=False)
    torch.manual_seed(0)
    torch.save(network().state_dict(), tmp_path / "weights.pth")
    (tmp_path / "names.txt").write_text("\n".join(CLASSES[::-1]))
    flags = ["--callable", "external_callables:loaded", "--weights", str(tmp_path / "weights.pth"), *FLAGS]
    flags += ["--channels", "BGR", "--classes", str(tmp_path / "names.txt"), "--dataset", "toy_val"]
    flags += ["--json", str(toy_data[0]), "--image-root", str(toy_data[1])]

    def case(device: str) -> str:
        opts = ["TEST.TIER", "standard", "MODEL.DEVICE", device, "OUTPUT_DIR", str(tmp_path / device)]
        evaluate_model.main([*flags, *SHORT_EXTERNAL, *opts])
        record = comparable(tmp_path / device)
        for found in record["evaluation"].values():
            found.pop("device")
        return json.dumps(record, sort_keys=True, indent=1)

    assert '"C6"' in assert_same_as_on_cpu(case)
