"""Which classes are aimed at."""

from __future__ import annotations

import pytest
import torch

from part_robust.attacks import AttackError
from part_robust.attacks.problem import PlainForward, Problem
from part_robust.attacks.targets import TargetChoice
from part_robust.attacks.threat_model import ThreatModel
from tests.attacks.nets import DUAL, Linear, pictures, run


def problem(model, images, labels, norm="linf") -> Problem:
    count = len(images)
    rows = torch.arange(count)
    return Problem(PlainForward(model), images, labels, rows, None, ThreatModel(norm), 1.0, rows)


def test_logits_rank_wrong_classes_alone():
    model, images = Linear(6), pictures(8)
    labels = torch.arange(8) % 6
    logits = model(images).detach()
    chosen = TargetChoice(number=9).choose(problem(model, images, labels), logits)
    for row in range(8):
        order = [c for c in logits[row].argsort(descending=True).tolist() if c != int(labels[row])]
        assert chosen[row].tolist() == order, "never more than there are, never the right one"
    few = TargetChoice(number=2).choose(problem(model, images, labels), logits)
    assert torch.equal(few, chosen[:, :2])


@pytest.mark.parametrize("norm", DUAL)
def test_malt_ranks_a_linear_model_by_distance(norm):
    model, images = Linear(6), pictures(8)
    # One class far away in logits but with a steep slope: near all the same.
    with torch.no_grad():
        model.weight[3] *= 8.0
    labels = model(images).argmax(dim=1)
    logits = model(images).detach()
    chosen = TargetChoice(number=2, ranking="malt").choose(problem(model, images, labels, norm), logits)
    slopes = (model.weight[labels][:, None] - model.weight[None]).flatten(2)
    lengths = slopes.norm(DUAL[norm], dim=2)
    distance = (logits.gather(1, labels[:, None]) - logits) / lengths
    distance = distance.scatter(1, labels[:, None], float("inf"))
    assert torch.equal(chosen, distance.topk(2, dim=1, largest=False).indices)
    by_logits = TargetChoice(number=2).choose(problem(model, images, labels), logits)
    assert not torch.equal(by_logits, chosen), "the toy must tell them apart"
    # Among the two largest logits there is nothing else to choose.
    few = TargetChoice(number=2, ranking="malt", candidates=1).choose(problem(model, images, labels), logits)
    assert torch.equal(few.sort(dim=1).values, by_logits.sort(dim=1).values)


def test_malt_is_paid_for():
    model, images = Linear(6), pictures(4)
    labels = model(images).argmax(dim=1)
    node = {"NAME": "APGD", "OBJECTIVE": "targeted_margin", "STEPS": 2, "NUM_TARGETS": 3, "EPS": 1.0}
    plain, malt = (run(model, {**node, "TARGET_RANKING": ranking}, images, labels) for ranking in ("logits", "malt"))
    assert plain.forwards == 4 * (1 + 3 * 3) and plain.backwards == 4 * 3 * 2
    assert malt.forwards == plain.forwards + 4 and malt.backwards == plain.backwards + 4 * 5


def test_one_class_is_no_choice():
    with pytest.raises(AttackError, match="two classes"):
        run(Linear(1), {"NAME": "FAB", "STEPS": 1}, pictures(2), torch.zeros(2, dtype=torch.long))
