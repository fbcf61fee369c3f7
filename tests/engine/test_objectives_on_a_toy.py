"""Objectives and attacks of adversarial training on a toy where each shows what it is for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from part_robust.attacks import KL_DIVERGENCE, PGD, ThreatModel, build_attack, get_objective
from part_robust.engine import AdversarialLoader
from part_robust.losses.adversarial import METHODS, TrainingObjective

# A problem with a robust and a fragile feature (Tsipras et al., 2019): pixel row 0 differs by 40 between the classes
# and is right 90 % of the time; all other pixels differ by 4, are always right, and can be turned around by eps 8.


class Rows(nn.Module):
    """Linear in the mean of row 0 and in the mean of the rest."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 2))

    def preprocess(self, batch):
        return torch.stack([item["image"] for item in batch]).float(), None

    def class_logits(self, images, padding=None):
        centred = (images - 128.0) / 20.0
        features = torch.stack([centred[:, :, 0].mean((1, 2)), centred[:, :, 1:].mean((1, 2, 3))], dim=1)
        score = (features * self.weight).sum(dim=1)
        return torch.stack([-score, score], dim=1)


def rows_batch(seed: int, count: int = 64) -> list[dict]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=generator)
    sign = (2 * labels - 1).float()
    right = torch.where(torch.rand(count, generator=generator) < 0.9, 1.0, -1.0)
    images = torch.full((count, 3, 4, 4), 128.0)
    images[:, :, 0] += (20.0 * sign * right)[:, None, None]
    images[:, :, 1:] += (2.0 * sign)[:, None, None, None]
    return [{"image": image, "class_id": int(label)} for image, label in zip(images, labels, strict=True)]


def train_rows(objective: TrainingObjective | None, attack=None, steps: int = 150) -> Rows:
    model = Rows()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    stream = (rows_batch(seed) for seed in range(steps))
    if objective is not None:
        stream = AdversarialLoader(stream, model, attack, keep_clean=objective.class_needs_clean)
    for batch in stream:
        labels = torch.tensor([item["class_id"] for item in batch])
        logits = model.class_logits(model.preprocess(batch)[0])
        clean = None
        if "image_clean" in batch[0]:
            clean = model.class_logits(torch.stack([item["image_clean"] for item in batch]))
        losses = (objective or TrainingObjective()).class_losses(logits, clean, labels)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    return model


def pgd(objective=None) -> PGD:
    return PGD(
        threat_model=ThreatModel(), objective=objective or get_objective("cross_entropy"), steps=3, step_size=4.0
    )


def accuracies(model: Rows) -> tuple[float, float]:
    """Clean, and under PGD, percent."""
    batch = rows_batch(10_000, 400)
    labels = torch.tensor([item["class_id"] for item in batch])
    images = model.preprocess(batch)[0]
    attacked = pgd()(model.class_logits, images, labels, keys=torch.arange(len(batch))).images
    return tuple(100 * float((model.class_logits(x).argmax(1) == labels).float().mean()) for x in (images, attacked))


def test_ordinary_training_leans_on_the_fragile_feature():
    clean, robust = accuracies(train_rows(None))
    assert clean == 100 and robust < 20


@pytest.mark.parametrize("method", METHODS)
def test_methods_make_the_toy_robust(method):
    objective = TrainingObjective(method, adversarial_weight=0.8)
    clean, robust = accuracies(train_rows(objective, pgd(KL_DIVERGENCE if method == "trades" else None)))
    assert robust > 80, "the robust feature is right 90 % of the time"
    assert clean >= robust


def test_mix_keeps_as_much_clean_accuracy_as_it_is_asked_for():
    found = [accuracies(train_rows(TrainingObjective("mix", adversarial_weight=w), pgd())) for w in (0.0, 0.5, 1.0)]
    assert [clean for clean, _ in found] == sorted((clean for clean, _ in found), reverse=True)
    assert [robust for _, robust in found] == sorted(robust for _, robust in found)
    assert found[0][0] > found[2][0] and found[0][1] < found[2][1]


def test_trades_beta_trades_accuracy_for_robustness():
    """The paper's subject: with a small weight the model stays accurate, with a large one it becomes robust."""
    found = []
    for beta in (0.0, 0.5, 6.0):
        found.append(accuracies(train_rows(TrainingObjective("trades", trades_beta=beta), pgd(KL_DIVERGENCE))))
    assert [clean for clean, _ in found] == sorted((clean for clean, _ in found), reverse=True)
    assert [robust for _, robust in found] == sorted(robust for _, robust in found)
    assert found[0][0] > found[2][0] and found[0][1] < found[2][1]


def test_mart_weighs_what_is_misclassified():
    """MART's second term leaves alone what the clean model is sure of; TRADES's does not."""
    labels = torch.tensor([0])
    clean, attacked = torch.tensor([[6.0, -6.0]]), torch.tensor([[-2.0, 2.0]])
    mart = TrainingObjective("mart", mart_beta=1.0).class_losses(attacked, clean, labels)["loss_cls_robust"]
    trades = TrainingObjective("trades", trades_beta=1.0).class_losses(attacked, clean, labels)["loss_cls_robust"]
    assert mart < 1e-3 * trades


def test_nfgsm_gives_robustness_for_one_gradient():
    attack = build_attack({"NAME": "NFGSM"})
    calls = []
    model = Rows()
    batch = rows_batch(0, 4)
    images, labels = model.preprocess(batch)[0], torch.zeros(4, dtype=torch.int64)
    attack(lambda x: calls.append(len(x)) or model.class_logits(x), images, labels, keys=torch.arange(4))
    assert calls == [4], "one pass"
    _, robust = accuracies(train_rows(TrainingObjective(), attack))
    assert robust > 80
