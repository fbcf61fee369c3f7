"""Catastrophic overfitting: a training that really collapses, and the guard that notices it."""

from __future__ import annotations

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn import functional as F

from part_robust.attacks import Attack, build_attack
from part_robust.engine import AdversarialLoader, PartTrainer
from part_robust.engine.hooks import AttackSchedule
from part_robust.engine.overfitting_guard import CatastrophicOverfitting, OverfittingGuard
from tests.toy import QUIET, run_cfg

# Images of 3 x 4 x 4: pixel row 0 differs by 40 between the two classes and is right 70 % of the time, which no attack
# of eps 8 can change; all other pixels differ by 8, are always right, and can be turned around. One step along the sign
# of the gradient takes these pixels from two places to at most four, all known in advance, so that a network with room
# for it learns which of the four belongs to which class: it is right on every image that its own attack can make, and
# wrong in between. Enough noise before the step leaves no such places.


def batch_of(seed: int, count: int = 64) -> list[dict]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=generator)
    sign = (2 * labels - 1).float()
    right = torch.where(torch.rand(count, generator=generator) < 0.7, 1.0, -1.0)
    images = torch.full((count, 3, 4, 4), 128.0)
    images[:, :, 0] += (20.0 * sign * right)[:, None, None]
    images[:, :, 1:] += (4.0 * sign)[:, None, None, None]
    return [{"image": image, "class_id": int(label)} for image, label in zip(images, labels, strict=True)]


class DeepNet(nn.Module):
    """48 pixels, twice 128 hidden units, 2 classes: far more weights than the problem needs."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Linear(48, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2)]
        self.layers = nn.Sequential(nn.Flatten(), *layers)

    def preprocess(self, batch):
        return torch.stack([item["image"] for item in batch]), None

    def class_logits(self, images, padding=None):
        return self.layers((images - 128.0) / 2.0)

    def forward(self, batch):
        labels = torch.tensor([item["class_id"] for item in batch])
        return {"loss_cls": F.cross_entropy(self.class_logits(self.preprocess(batch)[0]), labels)}


def attack(name: str) -> Attack:
    one_step = {"STEPS": 1, "STEP_SIZE": 8.0, "RANDOM_START": False}
    return build_attack({"NAME": "NFGSM"} if name == "NFGSM" else {"NAME": "PGD", **one_step})


def prepare(name: str, action: str = "warn", iterations: int = 200) -> SimpleTrainer:
    """detectron2's trainer with the hooks of a real training and new images in every iteration."""
    torch.manual_seed(0)
    model = DeepNet()
    loader = AdversarialLoader((batch_of(seed) for seed in range(iterations)), model, attack(name))
    trainer = SimpleTrainer(model, loader, torch.optim.Adam(model.parameters(), lr=0.005))
    held_out = [batch_of(10_000, 256)]
    watch = OverfittingGuard(model, loader.attack, held_out, period=20, action=action)
    trainer.register_hooks([AttackSchedule(loader, 0), watch])
    return trainer


def looks(trainer: SimpleTrainer, name: str) -> list[float]:
    return [value for value, _ in trainer.storage.history(f"guard/{name}").values()]


def test_one_step_without_noise_collapses_and_the_guard_says_so(caplog):
    trainer = prepare("FGSM")
    trainer.train(0, 200)
    own, short, collapsed = (looks(trainer, name) for name in ("accuracy_training_attack", "accuracy_pgd", "collapsed"))
    assert len(own) == 10
    assert max(short) > 55, "it was robust before"
    assert own[-1] > 95 and short[-1] < 5, "more than the robust row allows, and nothing"
    first = collapsed.index(1.0)
    assert first > short.index(max(short)) and collapsed[-1] == 1.0
    assert f"catastrophic overfitting at iteration {20 * first + 19}: accuracy under PGD fell from" in caplog.text


def test_noise_before_the_step_prevents_it(caplog):
    """The same network, images, radius and number of steps."""
    trainer = prepare("NFGSM")
    trainer.train(0, 200)
    right = [(float(item["image"][0, 0, 0]) > 128) == item["class_id"] for item in batch_of(10_000, 256)]
    assert looks(trainer, "accuracy_pgd")[-1] > 100 * sum(right) / len(right) - 3, "what the robust row allows"
    assert not any(looks(trainer, "collapsed"))
    assert "catastrophic" not in caplog.text


def test_the_guard_stops_a_training_that_collapses():
    trainer = prepare("FGSM", action="stop")
    with pytest.raises(CatastrophicOverfitting, match=r"raise ATTACK\.TRAIN\.NOISE"):
        trainer.train(0, 200)
    assert 60 < trainer.iter < 199 and looks(trainer, "collapsed")[-1] == 1.0


class StandIn:
    iter = 9


def guard(action: str = "warn", own: list | None = None, short: list | None = None) -> OverfittingGuard:
    """A guard whose measurements are given."""
    made = OverfittingGuard(DeepNet(), build_attack({"NAME": "NFGSM"}), [], period=10, action=action)
    values = iter(zip(own or [], short or [], strict=True))
    made._accuracies = lambda: next(values)
    made.trainer = StandIn()
    return made


def test_guard_notices_the_collapse_and_nothing_else(caplog):
    with EventStorage(9) as storage:
        made = guard(own=[30, 45, 50, 44, 95], short=[25, 40, 36, 15, 3])
        made.trainer.storage = storage
        verdicts = [made.look() for _ in range(5)]
        # Rising together, a wobble, falling together, and one falls while the other rises.
        assert verdicts == [False, False, False, False, True]
        assert storage.latest()["guard/collapsed"][0] == 1.0
        assert storage.latest()["guard/accuracy_pgd"][0] == 3.0
    assert "catastrophic overfitting at iteration 9: accuracy under PGD fell from 40.0 to 3.0 %" in caplog.text


def test_guard_stops_and_remembers_over_a_restart():
    with EventStorage(9) as storage:
        first = guard(own=[45], short=[40])
        first.trainer.storage = storage
        first.look()
        second = guard("stop", own=[95], short=[3])
        second.trainer.storage = storage
        second.load_state_dict(first.state_dict())
        with pytest.raises(CatastrophicOverfitting, match=r"rose from 45\.0 to 95\.0"):
            second.look()


def test_guard_measures_what_it_says(toy_data, tmp_path):
    opts = ["ATTACK.TRAIN.NAME", "NFGSM", "ATTACK.TRAIN.GUARD.PERIOD", 2, "ATTACK.TRAIN.GUARD.IMAGES", 5]
    cfg = run_cfg(tmp_path, *QUIET, *opts, "SOLVER.MAX_ITER", 2, "DATALOADER.TEST_BATCH_SIZE", 3, model="resnet")
    trainer = PartTrainer(cfg)
    (made,) = [hook for hook in trainer._hooks if isinstance(hook, OverfittingGuard)]
    assert [len(batch) for batch in made.batches] == [3, 2]
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    own, short = made._accuracies()
    assert {own, short} <= {0.0, 20.0, 40.0, 60.0, 80.0, 100.0}
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    trainer.train()
    assert "guard/accuracy_pgd" in trainer.storage.latest()
    assert trainer.storage.latest()["adv/eps"][0] == 8.0, "the radius that is trained for"


@pytest.mark.parametrize("held_out", [True, False])
def test_without_held_out_images_it_says_what_it_watches(toy_data, tmp_path, caplog, held_out):
    opts = ["ATTACK.TRAIN.GUARD.PERIOD", 2, "ATTACK.TRAIN.GUARD.IMAGES", 5, "DATASETS.VAL", ("toy_val",) * held_out]
    trainer = PartTrainer(run_cfg(tmp_path, *QUIET, *opts, model="resnet"))
    (made,) = [hook for hook in trainer._hooks if isinstance(hook, OverfittingGuard)]
    assert sum(len(batch) for batch in made.batches) == 5
    sentence = "DATASETS.VAL is empty: ATTACK.TRAIN.GUARD watches images of DATASETS.TRAIN toy_train"
    assert (sentence in caplog.text) == (not held_out)
