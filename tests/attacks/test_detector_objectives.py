"""Objectives of a detector's parts: the class term, the box term, and hidden parts."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model

from part_robust.attacks import attack_batch, attack_mode, build_attack
from part_robust.attacks.part_losses import all_hidden, hidden_scores
from part_robust.configured_attacks import build_attacks
from part_robust.layers.mask_box import FOUND_SCORE
from part_robust.modeling.segmenters.query_segmenter import QuerySegmenter
from part_robust.structures import PartOutput
from part_robust.utils.errors import UserError
from tests.toy import tiny_cfg
from tests.toy_detector import SIDE, build_toy_detector, detector_items

TERMS = ("part_class_loss", "part_class_loss_fixed", "part_box_loss", "part_box_loss_fixed", "hide_parts")


def attacked(objective, items, **changes):
    """Images before and after an attack of eight steps, the model, and its result."""
    model = build_toy_detector()
    node = {"NAME": "APGD", "OBJECTIVE": objective, "EPS": 12.0, "STEPS": 8, "RANDOM_START": False, **changes}
    with attack_mode(model) as inner:
        result, padding = attack_batch(build_attack(node), inner, items, torch.tensor([i["image_id"] for i in items]))
        images, _ = inner.preprocess(items)
    return model, images, result, padding


def found_parts(model, images):
    with torch.no_grad():
        return [int((output["instances"].scores >= FOUND_SCORE).sum()) for output in model.inference(images, None)]


@pytest.mark.parametrize("objective", ["part_loss", "part_loss_fixed", *TERMS])
def test_only_the_objective_that_hides_parts_makes_them_vanish(objective):
    items = [item for item in detector_items() if item["part_supervision"] != "none"]
    model, images, result, _ = attacked(objective, items)
    assert all(count >= 2 for count in found_parts(model, images))
    hidden = [count == 0 for count in found_parts(model, result.images)]
    assert all(hidden) if objective == "hide_parts" else not any(hidden)
    assert result.success.tolist() == hidden


@pytest.mark.parametrize(
    ("objective", "channels"),
    [("part_class_loss", [0]), ("part_box_loss", [1]), ("part_loss", [0, 1]), ("hide_parts", [0])],
)
def test_a_term_follows_its_own_gradient_alone(objective, channels):
    items = [item for item in detector_items() if item["part_supervision"] != "none"]
    _, images, result, _ = attacked(objective, items)
    moved = (result.images != images).flatten(2).any(dim=2)
    assert moved[:, channels].all() and not moved[:, [c for c in range(3) if c not in channels]].any()
    assert not result.zero_gradient.any()


@pytest.mark.parametrize("objective", TERMS)
def test_a_term_of_an_image_is_its_own_and_padding_stays(objective):
    items = detector_items()
    for item in items:
        item["content_size"] = (SIDE - 2, SIDE)
    _, images, together, padding = attacked(objective, items)
    assert padding is not None and padding.any()
    assert torch.equal(together.images.transpose(0, 1)[:, padding], images.transpose(0, 1)[:, padding])
    for order in ([0], [4, 1], [3, 2]):
        _, _, part, _ = attacked(objective, [items[index] for index in order])
        torch.testing.assert_close(part.images, together.images[order], atol=1e-3, rtol=0)
    # Without part labels there is nothing to attack, and nothing to warn of.
    assert not together.zero_gradient.any() and together.num_zero_gradient == 0


def test_an_image_without_labels_keeps_its_parts_out_of_the_terms():
    unlabelled = [item for item in detector_items() if item["part_supervision"] == "none"]
    for objective in TERMS[:4]:
        _, images, result, _ = attacked(objective, unlabelled)
        assert torch.equal(result.images, images), objective


def test_images_leave_once_their_parts_are_hidden():
    items = [item for item in detector_items() if item["part_supervision"] != "none"]
    _, _, full, _ = attacked("hide_parts", items)
    _, _, short, _ = attacked("hide_parts", items, EARLY_STOP=True, COMPACT_EVERY=1)
    assert torch.equal(short.success, full.success) and short.success.all() and short.forwards < full.forwards


@pytest.mark.parametrize("softmax", [False, True])
def test_score_margins_are_log_odds_beyond_the_threshold(softmax):
    segmenter = build_toy_detector().segmenter
    segmenter.criterion.no_object_weight = 0.1 if softmax else None
    logits = 4 * torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    margins = QuerySegmenter.score_margins(segmenter, PartOutput(query_logits=logits))
    scores = logits.softmax(dim=-1)[..., :-1] if softmax else logits.sigmoid()
    expected = (scores.double().amax(dim=-1).logit() - torch.tensor(FOUND_SCORE).double().logit()).float()
    torch.testing.assert_close(margins, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(margins >= 0, scores.amax(dim=-1) >= FOUND_SCORE)
    assert torch.equal(all_hidden(margins), (scores.flatten(1).amax(dim=1) < FOUND_SCORE))
    sure = torch.tensor([[100.0, -100.0]], requires_grad=True)
    (grad,) = torch.autograd.grad(hidden_scores(sure).sum(), sure)
    assert grad[0].tolist() == pytest.approx([-0.5, 0.0], abs=1e-30), "a sure part has a gradient, a hidden one none"


def test_dense_parts_have_no_such_terms(toy_data):
    for name in ("apgd_part_class", "apgd_part_box", "apgd_hide_parts"):
        assert build_attacks(tiny_cfg("dino_detector"), [name])[name].objective.needs_parts
        assert build_attacks(tiny_cfg("mask_dino_segmenter"), [name])[name].objective.needs_parts
        with pytest.raises(
            UserError, match="must be pixel_cross_entropy: DeepLabSegmenter predicts no parts by queries"
        ):
            build_attacks(tiny_cfg("deeplab_segmenter"), [name])
    with pytest.raises(UserError, match="hide_parts must be left to segmenters whose parts are queries"):
        build_model(tiny_cfg("deeplab_segmenter")).eval().part_score_margins(torch.zeros(1, 3, 64, 64))
