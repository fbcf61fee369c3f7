"""The comparison of attacks on dense parts with those of other implementations, of which a made-up one stands in."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from part_robust.utils.errors import UserError
from tests.evaluation.tier_fixture import EPS, PARTS, SmallPartModel, attack, make_items

TOOL = Path(__file__).resolve().parents[2] / "tools" / "crosscheck_parts.py"
PEER = """
ATTACKS = ("no-attack", "far", "nothing")

def build_attacks(names, num_classes, eps):
    attacks = {"far": lambda model, x, y: x + 3 * eps + 0 * model(x).sum(), "nothing": lambda model, x, y: x}
    return [attacks[name] for name in names]
"""


@pytest.fixture
def tool(monkeypatch):
    spec = importlib.util.spec_from_file_location("crosscheck_parts", TOOL)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "crosscheck_parts", module)  # dataclasses look themselves up
    spec.loader.exec_module(module)
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # the tool sets it where it is not set, and other tests compile
    return module


@pytest.fixture
def peers(tool, tmp_path, monkeypatch):
    (tmp_path / "rse").mkdir()
    (tmp_path / "rse" / "attacks.py").touch()
    (tmp_path / "rse" / "__init__.py").write_text(PEER)
    (tmp_path / "adv_lib").mkdir()
    (tmp_path / "adv_lib" / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("rse", "adv_lib", "visdom", "autoattack", "autoattack.other_utils"):
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, name)
    return tool.load_peers([str(tmp_path)], len(PARTS) + 1, EPS)


@pytest.mark.parametrize("padded", [False, True])
def test_unions_and_what_each_attack_takes_alone(tool, peers, padded):
    model = SmallPartModel()
    items = [item for item in make_items(model, 9, padded) if item["part_supervision"] != "none"]
    comparison = tool.Comparison(model, items, len(PARTS), batch=3)
    assert list(peers) == ["rse far", "rse nothing"]
    for name, peer in peers.items():
        comparison.run_peer(name, peer, EPS)
    comparison.run_ours("js", attack("jensen_shannon"))
    clean, far, js = (comparison.accuracy(names) for names in ([], ["rse far"], ["js"]))
    assert comparison.accuracy(["rse nothing"]) == clean > far > js
    # Beyond the ball, outside 0..255 and on the padding nothing is changed.
    images, padding = model.preprocess(items)
    brighter = (images + EPS).clamp(0, 255)
    if padding is not None:
        brighter = brighter.where(~padding[:, None], images)
    labels = torch.stack([item["sem_seg"] for item in items])
    with torch.no_grad():
        wrong = (model.part_logits(brighter).argmax(dim=1) != labels) & (labels < len(PARTS) + 1)
    assert torch.equal(comparison.outcomes["rse far"].wrong, wrong.flatten(1).sum(dim=1).double())
    assert comparison.outcomes["rse far"].forwards == len(items) and comparison.outcomes["js"].forwards > len(items)
    both = comparison.accuracy(["js", "rse far"])
    text = comparison.table(["js"], ["rse far", "rse nothing"])
    assert f"taken by theirs alone: {js - both:.2f} points" in text
    assert comparison.miou(["js", "rse far"]) <= min(comparison.miou(["js"]), comparison.miou(["rse far"]))
    rows = {line.split("|")[1].strip(): line.split("|") for line in text.splitlines() if line.startswith("|")}
    assert float(rows["rse nothing"][3]) == 0 and float(rows["rse far"][3]) == pytest.approx(clean - far, abs=0.006)


def test_a_folder_without_a_known_implementation_is_named(tool, tmp_path):
    with pytest.raises(UserError, match="must be checkouts with one of rse/attacks.py, semseg/attacker.py"):
        tool.load_peers([str(tmp_path)], 3, 8.0)
