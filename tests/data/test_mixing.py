"""CutMix and MixUp: a pasted mask is the pasted pixels, and the class loss has the shares."""

from __future__ import annotations

import itertools

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from part_robust.data import PartDatasetMapper
from part_robust.data.mixing import MixingMapper, blended, cut_mixed
from part_robust.engine import PartTrainer
from part_robust.engine.data_stream import set_start_iteration
from part_robust.engine.setup import check_training
from part_robust.losses.adversarial import TrainingObjective
from part_robust.modeling.counts import with_counts
from part_robust.utils.errors import UserError
from tests.toy import ADVERSARIAL, STEADY, run_cfg, tiny_cfg


@pytest.fixture(scope="module")
def items(toy_data) -> list[dict]:
    mapper = PartDatasetMapper(tiny_cfg(), is_train=False, dataset_name="toy_train")
    return [mapper(record) for record in DatasetCatalog.get("toy_train")]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 11), st.integers(0, 11), st.floats(0, 1))
def test_a_pasted_mask_is_the_pasted_pixels(items, first, second, share):
    # Even and odd values, so that each pixel tells whose it is.
    a, b = ({**items[i], "image": items[i]["image"] // 2 * 2 + odd} for i, odd in ((first, 0), (second, 1)))
    mixed = cut_mixed(a, b, share)
    pasted = (mixed["image"] != a["image"]).any(dim=0)
    assert torch.equal(mixed["image"][:, pasted], b["image"][:, pasted])
    assert torch.equal(mixed["sem_seg"], torch.where(pasted, b["sem_seg"], a["sem_seg"]))
    wanted = [
        (int(part), mask & region)
        for item, region in ((a, ~pasted), (b, pasted))
        for part, mask in zip(item["instances"].gt_classes, item["instances"].gt_masks.tensor, strict=True)
        if (mask & region).any()
    ]
    found = mixed["instances"]
    assert [int(part) for part in found.gt_classes] == [part for part, _ in wanted]
    assert all(torch.equal(x, y) for x, (_, y) in zip(found.gt_masks.tensor, wanted, strict=True))
    torch.testing.assert_close(found.gt_boxes.tensor, found.gt_masks.get_bounding_boxes().tensor)
    area = float(pasted.float().mean())
    other, weight = mixed["mixed_class"]
    assert weight == pytest.approx(min(area, 1 - area)) and weight <= 0.5
    classes = (a["class_id"], b["class_id"])
    assert (mixed["class_id"], other) == (classes if area <= 0.5 else classes[::-1])
    kinds = {a["part_supervision"], b["part_supervision"]}
    assert mixed["part_supervision"] == (kinds.pop() if len(kinds) == 1 else "partial")


def test_blended_images_teach_no_parts(items):
    mixed = blended(items[0], items[1], 0.25, 255)
    wanted = (0.75 * items[0]["image"].float() + 0.25 * items[1]["image"].float()).round().to(torch.uint8)
    assert torch.equal(mixed["image"], wanted)
    assert mixed["part_supervision"] == "none" and (mixed["sem_seg"] == 255).all() and len(mixed["instances"]) == 0
    assert (mixed["class_id"], mixed["mixed_class"]) == (items[0]["class_id"], (items[1]["class_id"], 0.25))


@pytest.mark.parametrize("method", ["adversarial", "mix", "trades"])
def test_the_class_loss_is_weighted_by_the_shares(method):
    torch.manual_seed(0)
    attacked, clean = torch.randn(4, 3), torch.randn(4, 3)
    first, second, share = torch.tensor([0, 1, 2, 0]), torch.tensor([2, 1, 0, 1]), torch.tensor([0.5, 0.3, 0.0, 0.1])
    mixed = torch.stack(
        [(1 - w) * torch.eye(3)[a] + w * torch.eye(3)[b] for a, b, w in zip(first, second, share, strict=True)]
    )
    objective = TrainingObjective(method=method)
    losses = objective.class_losses(attacked, clean, mixed, label_smoothing=0.1)
    for name in {"loss_cls", "loss_cls_clean"} & losses.keys():
        each = [
            objective.class_losses(attacked[i : i + 1], clean[i : i + 1], labels[i : i + 1], label_smoothing=0.1)[name]
            for labels in (first, second)
            for i in range(4)
        ]
        wanted = sum((1 - w) * x + w * y for w, x, y in zip(share, each[:4], each[4:], strict=True)) / 4
        torch.testing.assert_close(losses[name], wanted)


def test_a_model_learns_mixed_images(items):
    """The loss of a mixed batch is that of its images, whichever of them are mixed."""
    torch.manual_seed(0)
    model = build_model(with_counts(tiny_cfg("resnet", *STEADY))).train()
    mixed = cut_mixed(items[0], items[1], 0.3)
    batch = [mixed, items[2]]
    images = torch.stack([item["image"] for item in batch]).float()
    logits = model.class_logits(images)
    other, share = mixed["mixed_class"]
    losses = [functional.cross_entropy(logits[:1], torch.tensor([label])) for label in (mixed["class_id"], other)]
    plain = functional.cross_entropy(logits[1:], torch.tensor([items[2]["class_id"]]))
    wanted = ((1 - share) * losses[0] + share * losses[1] + plain) / 2
    torch.testing.assert_close(model(batch)["loss_cls"], wanted)


def test_training_attacks_mixed_images_and_resumes_alike(toy_data, tmp_path):
    cfg = run_cfg(tmp_path, *ADVERSARIAL, "INPUT.CUTMIX_PROB", 0.5, "INPUT.MIXUP_PROB", 0.3, "TEST.EVAL_PERIOD", 0)

    def batches(start: int) -> list[dict]:
        loader = PartTrainer.build_train_loader(cfg)
        set_start_iteration(loader, start, cfg)
        return [item for batch in itertools.islice(loader, 4 - start) for item in batch]

    whole, later = batches(0), batches(2)
    assert sum("mixed_class" in item for item in whole) > len(whole) // 3
    for old, new in zip(whole[-len(later) :], later, strict=True):
        assert torch.equal(old["image"], new["image"]) and old.get("mixed_class") == new.get("mixed_class")
    trainer = PartTrainer(cfg)
    trainer.train()
    assert all(torch.isfinite(weight).all() for weight in trainer.model.parameters())


def test_what_cannot_be_mixed_is_refused(toy_data, tmp_path):
    with pytest.raises(UserError, match=r"INPUT\.CUTMIX_PROB and MIXUP_PROB must sum to at most 1, got 0.7 and 0.4"):
        MixingMapper(dict, [], ignore_label=255, cutmix=(0.7, 1.0), mixup=(0.4, 0.2))
    opts = [*ADVERSARIAL, "ATTACK.TRAIN.METHOD", "mart", "INPUT.MIXUP_PROB", 0.3]
    with pytest.raises(UserError, match=r"ATTACK\.TRAIN\.METHOD must be adversarial, mix or trades.*got mart"):
        check_training(run_cfg(tmp_path, *opts))
