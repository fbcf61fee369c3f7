"""Colour jitter of a batch: torchvision's, image by image, and the same in any batch."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import ColorJitter
from torchvision.transforms import functional as vision

from part_robust.data.colour_jitter import OPERATIONS, JitteredLoader, draw_colours, jittered
from part_robust.engine import PartTrainer
from part_robust.engine.data_stream import set_start_iteration
from tests.toy import ADVERSARIAL, run_cfg

CPU = torch.device("cpu")
THEIRS = (vision.adjust_brightness, vision.adjust_contrast, vision.adjust_saturation, vision.adjust_hue)
factors = st.tuples(st.floats(0, 2), st.floats(0, 2), st.floats(0, 2), st.floats(-0.5, 0.5))
colours = st.tuples(st.permutations(range(4)), factors)


def pictures(seed: int, count: int, grey: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1 if grey else 3, 7, 9), generator=generator, dtype=torch.uint8)
    return images.expand(-1, 3, -1, -1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.lists(colours, min_size=1, max_size=6), st.booleans())
def test_a_batch_is_torchvision_s_jitter_of_each_image(seed, drawn, grey):
    images = pictures(seed, len(drawn), grey)
    batch = [{"image": images[i], "colours": own, "class_id": i} for i, own in enumerate(drawn)]
    found = jittered(batch, CPU)
    for item, image, (order, own) in zip(found, images, drawn, strict=True):
        wanted = image / 255
        for index in order:
            wanted = THEIRS[index](wanted, own[index])
        # Float rounding; it may turn a half up or down.
        assert (item["image"].float() - 255 * wanted).abs().max() <= 0.5 + 1e-2
        assert item["image"].dtype == torch.uint8 and "colours" not in item
    assert [item["class_id"] for item in found] == list(range(len(drawn)))
    for item, alone in zip(found, (jittered([item], CPU)[0] for item in batch), strict=True):
        assert torch.equal(item["image"], alone["image"])


@pytest.mark.parametrize("index", range(4))
def test_each_operation_in_floats(index):
    images = pictures(index, 5).float()
    strength = torch.linspace(-0.5, 0.5, 5) if index == 3 else torch.linspace(0.2, 1.9, 5)
    wanted = torch.stack([255 * THEIRS[index](x / 255, float(f)) for x, f in zip(images, strength, strict=True)])
    torch.testing.assert_close(OPERATIONS[index](images, strength.view(-1, 1, 1, 1)), wanted, rtol=1e-4, atol=2e-3)


def test_the_image_s_own_numbers_decide(toy_data, tmp_path):
    """The same images for two batch sizes, and from a later place on; mixed ones have one jitter."""
    opts = ["INPUT.COLOR_JITTER", (0.4, 0.4, 0.4, 0.2), "INPUT.CUTMIX_PROB", 0.5, "TEST.EVAL_PERIOD", 0]

    def images(size: int, start: int, count: int) -> list[dict]:
        cfg = run_cfg(tmp_path, *ADVERSARIAL, *opts, "SOLVER.IMS_PER_BATCH", size)
        loader = PartTrainer.build_train_loader(cfg)
        assert isinstance(loader, JitteredLoader)
        set_start_iteration(loader, start, cfg)
        return [item for batch in itertools.islice(loader, count) for item in batch]

    whole, halves, later = images(4, 0, 3), images(2, 0, 6), images(4, 1, 2)
    plain = run_cfg(tmp_path, *ADVERSARIAL, *opts[2:], "SOLVER.IMS_PER_BATCH", 4)
    without = [x for batch in itertools.islice(PartTrainer.build_train_loader(plain), 3) for x in batch]
    assert any(not torch.equal(a["image"], b["image"]) for a, b in zip(whole, without, strict=True))
    for one, two in ((whole, halves), (whole[4:], later)):
        assert all(torch.equal(a["image"], b["image"]) for a, b in zip(one, two, strict=True))
    trainer = PartTrainer(run_cfg(tmp_path, *ADVERSARIAL, *opts))
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert all(torch.isfinite(weight).all() for weight in trainer.model.parameters())


def test_what_is_not_set_stays():
    torch.manual_seed(0)
    drawn = [draw_colours(ColorJitter(0.0, 0.3, 0.0, 0.0)) for _ in range(4)]
    assert all(own[0] == own[2] == 1.0 and own[3] == 0.0 and 0.7 <= own[1] <= 1.3 for _, own in drawn)
    assert len({tuple(order) for order, _ in drawn}) > 1 and len({own[1] for _, own in drawn}) == 4
    image = pictures(1, 1)[0]
    assert torch.equal(jittered([{"image": image, "colours": ([3, 0, 2, 1], (1, 1, 1, 0))}], CPU)[0]["image"], image)
