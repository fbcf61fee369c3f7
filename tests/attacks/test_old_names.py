"""An attack of a user that is written with the names of an earlier version."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from part_robust.attacks import PGD, attack_mode, attack_view, build_attack
from part_robust.attacks.base import ATTACK_REGISTRY
from part_robust.attacks.problem import gradient
from part_robust.attacks.state import State
from tests.attacks.nets import Curved, pictures


@dataclass
class OldState(State):
    mean: torch.Tensor


class OldPGD(PGD):
    def start(self, problem, restart):
        x = problem.random_start()
        return OldState(**State.unseen(x, self.steps > 0), mean=torch.zeros_like(x))

    def step(self, problem, state, step, scored):
        slope, found = gradient(problem, self.objective, state.x, step / self.steps, judged=self.keeps_best)
        if self.keeps_best:
            state.see(state.x, found)
        state.loss = found.loss
        state.notice(slope, found)
        # Read alone: all names are fields of the same state.
        assert torch.equal(state.blind, state.zero_gradient) and state.best_harm is state.best_score
        assert state.best_fooled is state.best_success and found.harm is found.margin_score
        assert found.fooled is found.success and found.idle is found.nothing_to_attack
        assert problem.movable is problem.perturbable and problem.aims is problem.target_classes
        problem.ask(state.x)
        state.x = problem.project(state.x + self.step_size * problem.threat_model.ascent_direction(slope))

    def finish(self, problem, state):
        super().finish(problem, state)
        state.best_fooled = state.best_fooled.clone()


def test_old_names_give_the_same_result(monkeypatch):
    monkeypatch.setitem(ATTACK_REGISTRY._obj_map, "OldPGD", OldPGD)
    model, images = Curved(), pictures()
    with attack_mode(model) as inner:
        labels = inner(images).argmax(dim=1)
        old, new = (
            build_attack({"NAME": name, "STEPS": 4, "KEEP": "best"})(inner, images, labels, keys=torch.arange(6))
            for name in ("OldPGD", "PGD")
        )
    assert torch.equal(old.images, new.images) and torch.equal(old.fooled, new.success)
    assert old.forwards == new.forwards + 4 * 6, "`problem.ask` counts, too"


def test_the_old_name_of_the_context_of_attacks():
    assert attack_view is attack_mode
