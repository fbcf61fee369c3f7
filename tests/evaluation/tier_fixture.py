"""A model of a few hundred weights that finds classes and parts, and images for it: whole evaluations in a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluators
from detectron2.utils import comm
from torch import nn

from part_robust.attacks import build_attack
from part_robust.evaluation import ClassificationEvaluator, PartSegmentationEvaluator
from part_robust.evaluation.journal import Journal
from part_robust.evaluation.pictures import picture_sample
from part_robust.evaluation.plan import Plan
from part_robust.evaluation.protocol import run_plan
from part_robust.evaluation.record import flags_of
from part_robust.evaluation.tiers import Tier

CLASSES, PARTS, SIZE = ("a", "b", "c", "d"), ("x", "y"), 10
EPS = 6.0


class SmallPartModel(nn.Module):
    """What the evaluation asks of a part classifier."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.features = nn.Conv2d(3, 6, 3, padding=1)
        self.parts = nn.Conv2d(6, len(PARTS) + 1, 1)
        self.classes = nn.Linear(6 * 4, len(CLASSES))
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 3
        self.passes = 0

    def preprocess(self, items):
        padding = None
        if any("content_size" in item for item in items):
            padding = torch.zeros(len(items), SIZE, SIZE, dtype=torch.bool)
            for row, item in enumerate(items):
                padding[row, item["content_size"][0] :] = True
        return torch.stack([item["image"] for item in items]).float(), padding

    def _features(self, images):
        self.passes += len(images)
        return torch.tanh(self.features(images / 64 - 2))

    def class_logits(self, images, padding=None):
        pooled = nn.functional.adaptive_avg_pool2d(self._features(images), 2)
        return 4 * self.classes(pooled.flatten(1))

    def part_logits(self, images, padding=None):
        return self.parts(self._features(images))

    def inference(self, images, padding):
        parts, classes = self.part_logits(images), self.class_logits(images)
        return [{"sem_seg": p, "class_logits": c} for p, c in zip(parts, classes, strict=True)]

    def forward(self, items):
        return self.inference(*self.preprocess(items))


def make_items(model: SmallPartModel, count: int = 14, padded: bool = False) -> list[dict]:
    """Images most of which the model gets right: their truth is what it says, but for every fifth class and pixel."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    items = []
    with torch.no_grad():
        outputs = model.inference(images.float(), None)
    for row, output in enumerate(outputs):
        labels = output["sem_seg"].argmax(dim=0)
        labels.view(-1)[::5] = 0
        labels[0, 0] = 255
        if row == 3:
            labels[:] = 255
        items.append(
            {
                "image": images[row],
                "image_id": 1000 - 7 * row,
                "class_id": (int(output["class_logits"].argmax()) + (row % 5 == 4)) % len(CLASSES),
                "sem_seg": labels,
                "part_supervision": "none" if row == 3 else "full",
            }
        )
        if padded:
            items[-1]["content_size"] = (SIZE - 2, SIZE)
    return items


def attack(objective: str = "cross_entropy", name: str = "APGD", eps: float = EPS, **values):
    values = {"STEPS": 6, "EARLY_STOP": objective in ("cross_entropy", "margin"), **values}
    return build_attack({"NAME": name, "OBJECTIVE": objective, "EPS": eps, **values})


def make_plan(**values) -> Plan:
    tiers = [
        Tier(
            "strong",
            "class",
            {
                "fgsm": attack(name="PGD", STEPS=1, STEP_SIZE=EPS / 4, KEEP="best"),
                "ce": attack(),
                "square": attack("margin", "Square", STEPS=15),
            },
        ),
        Tier("weak", "class", {"fgsm": attack(name="PGD", STEPS=1, STEP_SIZE=EPS / 4, KEEP="best"), "ce": attack()}),
        Tier("thesis", "full", {"pgd": attack(name="PGD", STEP_SIZE=1.0, RESTARTS=2, EARLY_STOP=False)}),
        Tier("parts", "parts", {"js": attack("jensen_shannon"), "pixels": attack("pixel_cross_entropy")}),
    ]
    curve = {eps: attack(eps=eps, RECORD_HISTORY=True) for eps in (0.0, 1.0, 3.0, 6.0, 12.0)}
    defaults = {"tiers": tiers, "class_names": CLASSES, "part_names": PARTS, "curve": curve}
    return Plan(**{**defaults, **values})


def evaluators() -> DatasetEvaluators:
    return DatasetEvaluators([ClassificationEvaluator(CLASSES), PartSegmentationEvaluator(PARTS)])


def run(
    folder: Path,
    items: list[dict],
    batch_size: int = 5,
    plan: Plan | None = None,
    rank: int = 0,
    world: int = 1,
    model: nn.Module | None = None,
    scored_by: DatasetEvaluators | None = None,
):
    """An evaluation of the items, in the order they have; goes on where `folder` has been before."""
    model = model or SmallPartModel()
    scored_by = scored_by or evaluators()
    plan = plan or make_plan(sample=picture_sample([item["image_id"] for item in items]))

    def loader(done):
        left = [item for item in items if item["image_id"] not in done][rank::world]
        return [left[i : i + batch_size] for i in range(0, len(left), batch_size)]

    if rank == 0:
        Journal.open(folder / "journal", {"of": "a test"}, resume=True)
    comm.synchronize()
    journal = Journal(folder / "journal")
    return run_plan(plan, model, loader, len(items), scored_by, journal, folder / "adversarials"), plan


def same_flags(first, second) -> None:
    """Checks that two runs, each (merged, plan), have the same flags."""
    one, two = (flags_of(plan, merged) for merged, plan in (first, second))
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-4, err_msg=name)
