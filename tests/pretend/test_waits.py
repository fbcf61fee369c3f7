"""How often the host waits for the device: in a step of an attack, in the rest of a training step, in an evaluation.

Bounds are what is needed, so a wait in each of the few layers that the models have breaks them.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase
from torchvision.transforms import ColorJitter

from part_robust.configured_attacks import build_model_attack
from part_robust.data.colour_jitter import draw_colours, jittered
from part_robust.engine import PartTrainer
from part_robust.evaluation.journal import Journal
from part_robust.evaluation.plan import build_plan, plan_attacks
from part_robust.evaluation.protocol import run_plan
from part_robust.evaluation.run import evaluate_in_training
from part_robust.modeling.counts import with_counts
from tests.pretend.device import pretend_device
from tests.pretend.runs import SMALL
from tests.pretend.waits import count_waits
from tests.toy import MODELS, run_cfg, tiny_cfg

# By family: waits in a step of the attack, in the rest of a training step (its hooks and the rest of the attack
# included), in a clean batch of an evaluation, and in a batch under an attack, besides its steps. The losses of a
# training step are read to find out that they are finite, and to be logged; boxes are matched to parts on the host, in
# a training step and, by the attack on a detector without a class, in each of its steps.
BOUNDS = {
    **dict.fromkeys(["resnet", "deeplab_segmenter", "deeplab_two_headed", "deeplab_downsampled"], (0, 3, 1, 2)),
    **dict.fromkeys(["deeplab_bounding_box", "deeplab_pixel"], (0, 3, 1, 2)),
    **dict.fromkeys(["dino_sequential", "dino_two_headed"], (0, 4, 1, 2)),
    "dino_detector": (1, 4, 1, 2),
    **dict.fromkeys(["mask_dino_simple", "mask_dino_segmenter"], (0, 4, 1, 2)),
    "mask_dino_instance_segmenter": (0, 4, 1, 2),
}


class Snapshots(HookBase):
    """What has been counted before and after each iteration."""

    def __init__(self, waits: Counter) -> None:
        self.waits, self.before, self.after = waits, [], []

    def before_step(self) -> None:
        self.before.append(Counter(self.waits))

    def after_step(self) -> None:
        self.after.append(Counter(self.waits))


def of_training(folder: Path, model: str) -> tuple[Counter, Counter]:
    """Waits in a step of the attack, and in the rest of a training step.

    Of four iterations the second and the third have one and two steps; the first fills caches, the last logs.
    """
    opts = ["ATTACK.TRAIN.ENABLED", True, "SOLVER.MAX_ITER", 4, "DATASETS.VAL", (), "DATASETS.TEST", ()]
    with pretend_device(), count_waits() as waits:
        trainer = PartTrainer(run_cfg(folder, "MODEL.DEVICE", "cuda", *SMALL, *opts, model=model))
        snapshots, loader = Snapshots(waits), trainer.data_loader
        attack_batch = loader.attack_batch

        def attack_longer(batch: list[dict]) -> list[dict]:
            loader.attack.steps = 1 + len(snapshots.before) // 3
            return attack_batch(batch)

        loader.attack_batch = attack_longer
        trainer._hooks.insert(0, snapshots)
        trainer.train()
    one, two = (snapshots.after[i] - snapshots.before[i] for i in (1, 2))
    return two - one, one - (two - one)


def of_evaluation(model: str, step: Counter) -> tuple[Counter, Counter]:
    """Waits in a clean batch, and in one under an attack of one step, besides those of the `step`."""
    opts = ["MODEL.DEVICE", "cuda", "DATASETS.VAL", ("toy_val",), "DATALOADER.TEST_BATCH_SIZE", 4]
    with pretend_device():
        cfg = with_counts(tiny_cfg(model, *SMALL, *opts, "ATTACK.TRAIN.STEPS", 1, "TEST.PART_BOX_AP", False))
        built, evaluator = PartTrainer.build_model(cfg), PartTrainer.build_evaluator(cfg, "toy_val")
        batches = list(PartTrainer.build_test_loader(cfg, "toy_val"))[:2]
        found = {}
        for name, attacks in {"clean": {}, "both": {"pgd": build_model_attack(cfg, cfg.ATTACK.TRAIN)}}.items():
            counted = []
            for number in (1, 2):
                with count_waits() as waits:
                    evaluate_in_training(built, "toy_val", attacks, batches[:number], evaluator)
                counted.append(waits)
            found[name] = counted[1] - counted[0]
    return found["clean"], found["both"] - found["clean"] - step


def of_tiers(folder: Path, *opts) -> Counter:
    """Waits in a batch of an evaluation with tiers."""
    counted = []
    with pretend_device():
        own = ["MODEL.DEVICE", "cuda", "DATALOADER.TEST_BATCH_SIZE", 4, "TEST.PART_BOX_AP", False]
        cfg = with_counts(tiny_cfg("deeplab_two_headed", *SMALL, *own, *opts))
        model, evaluator = PartTrainer.build_model(cfg).eval(), PartTrainer.build_evaluator(cfg, "toy_val")
        batches = list(PartTrainer.build_test_loader(cfg, "toy_val"))[:2]
        plan = build_plan(cfg, "toy_val", [item for batch in batches for item in batch], plan_attacks(cfg))
        for number in (1, 2):
            journal = Journal.open(folder / f"journal_{number}", {}, resume=False)
            with count_waits() as waits:
                run_plan(
                    plan, model, lambda done, n=number: batches[:n], 4 * number, evaluator, journal, folder / "images"
                )
            counted.append(waits)
    return counted[1] - counted[0]


@pytest.mark.parametrize("attacks", [1, 2])
def test_waits_of_tiers(toy_data, tmp_path, attacks):
    """Two for each attack, two for each tier, and two for the batch."""
    opts = ["TEST.TIER", "thesis,parts", "TEST.EPS", 4.0, "TEST.SAVE_ADVERSARIALS", "npz"]
    opts += ["ATTACK.SPECS.pgd20.STEPS", 2, "ATTACK.SPECS.sea_js.STEPS", 3, "ATTACK.SPECS.sea_masked.STEPS", 3]
    opts += ["TEST.TIERS.thesis", ["pgd20", "fgsm"][:attacks], "TEST.TIERS.parts", ["sea_js", "sea_masked"][:attacks]]
    waits = of_tiers(tmp_path, *opts)
    assert 0 < waits.total() <= 2 * 2 * attacks + 2 * 2 + 2, places(waits)


def places(waits: Counter) -> str:
    return "\n".join(f"{number:4} {kind}, {place}" for (kind, place), number in waits.most_common())


@pytest.mark.parametrize("model", BOUNDS)
def test_waits(toy_data, tmp_path, model):
    step, rest = of_training(tmp_path, model)
    clean, attacked = of_evaluation(model, step)
    found = {"step of the attack": step, "rest of the step": rest, "clean batch": clean, "attacked batch": attacked}
    for (name, waits), bound in zip(found.items(), BOUNDS[model], strict=True):
        assert waits.total() <= bound, f"{name}:\n{places(waits)}"
    assert rest and clean and attacked, "nothing was counted"


def test_all_families_are_bounded():
    assert set(BOUNDS) == set(MODELS)


def test_colours_of_a_batch_change_without_a_wait():
    jitter = ColorJitter(0.4, 0.4, 0.4, 0.1)
    batch = [
        {"image": torch.full((3, 8, 8), 9 * i, dtype=torch.uint8), "colours": draw_colours(jitter)} for i in range(5)
    ]
    with pretend_device(), count_waits() as waits:
        found = jittered(batch, torch.device("cuda"))
        assert not waits and all(item["image"].is_cuda for item in found)
