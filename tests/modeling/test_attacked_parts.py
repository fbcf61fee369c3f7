"""What queries learn from attacked images: with or without denoising, assigned there or on the clean image."""

from __future__ import annotations

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from part_robust.data import PartDatasetMapper
from part_robust.engine import train
from part_robust.losses.matcher import HungarianMatcher, Matching, pad_part_boxes
from part_robust.modeling.segmenters.query_segmenter import Assignment
from tests.toy import ADVERSARIAL, metric_lines, run_cfg, tiny_cfg

QUERY_MODELS = ["dino_sequential", "mask_dino_simple", "mask_dino_instance_segmenter"]
CLEAN = ["ATTACK.TRAIN.ENABLED", True, "ATTACK.TRAIN.MATCH_ON", "clean", "ATTACK.TRAIN.DENOISING", False]
STILL = ["MODEL.RESNETS.NORM", "FrozenBN"]


@pytest.fixture
def batch(toy_data):
    """Six images, and under `image` the same ones with noise that only an attack's size should have."""
    mapper = PartDatasetMapper(tiny_cfg(), is_train=False, dataset_name="toy_val")
    torch.manual_seed(1)
    items = [mapper(record) for record in DatasetCatalog.get("toy_val")[:6]]
    return [{**x, "image_clean": x["image"], "image": x["image"] + 40.0 * torch.randn(x["image"].shape)} for x in items]


def build(name: str, *opts):
    torch.manual_seed(0)
    return build_model(tiny_cfg(name, *opts)).train()


def assignments(model, batch) -> list[Assignment]:
    """All that are made in one training pass, in order."""
    made, assign = [], model.segmenter.assign
    model.segmenter.assign = lambda *args: made.append(assign(*args)) or made[-1]
    try:
        model(batch)
    finally:
        model.segmenter.assign = assign
    return made


def pairs(assignment: Assignment) -> set[tuple[int, ...]]:
    """(set, image, part, where the query starts)."""
    found = set()
    for t, n, g in assignment.matching.matched.nonzero().tolist():
        query = int(assignment.matching.query[t, n, g])
        found.add((t, n, g, query if assignment.pixels is None else int(assignment.pixels[n, query])))
    return found


def test_pairs_follow_the_pixels():
    """Queries 0, 1, 2 started at pixels 5, 6, 7; now they start at 7, 9, 5."""
    matching = Matching(torch.tensor([[[0, 1, 2, 0]]]), torch.tensor([[[True, True, True, False]]]))
    kept = Assignment(matching, torch.tensor([[5, 6, 7]])).kept(torch.tensor([[7, 9, 5]]), 3)
    assert kept.nonzero().tolist() == [[0, 0, 0, 2], [0, 0, 2, 0]], "the part at pixel 6 has lost its query"
    kept = Assignment(matching, None).kept(None, 3)
    assert kept.nonzero().tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 2, 2]]


def test_kept_pairs_win_at_any_cost_and_the_rest_is_matched():
    boxes = torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1], [0.5, 0.5, 0.1, 0.1]])
    targets = pad_part_boxes([torch.tensor([0, 1])], [boxes[:2]], torch.tensor([True]))
    kept = torch.zeros(1, 1, 3, 2, dtype=torch.bool)
    kept[0, 0, 1, 0] = True  # the first part keeps the query at the other end of the image
    found = HungarianMatcher()(torch.zeros(1, 1, 3, 2), boxes[None, None], targets, kept=kept)
    assert found.query.tolist() == [[[1, 2]]] and found.matched.all()


@pytest.mark.parametrize("name", QUERY_MODELS)
def test_parts_keep_the_queries_of_the_clean_image(batch, name):
    model = build(name, *CLEAN, *STILL)
    clean_weight, adversarial_weight = assignments(model, batch)
    assert pairs(clean_weight), "the toy has parts"
    if clean_weight.pixels is None:
        assert pairs(adversarial_weight) == pairs(clean_weight)
        return
    here = [set(own.tolist()) for own in adversarial_weight.pixels]
    still_there = {pair for pair in pairs(clean_weight) if pair[3] in here[pair[1]]}
    assert still_there and still_there <= pairs(adversarial_weight)
    assert len(pairs(adversarial_weight)) == len(pairs(clean_weight)), "who lost its query has found another"


@pytest.mark.parametrize("name", QUERY_MODELS)
def test_without_a_change_of_the_image_the_image_of_the_matching_changes_nothing(batch, name):
    same = [{**item, "image": item["image_clean"]} for item in batch]
    options = [*STILL, "ATTACK.TRAIN.ENABLED", True, "ATTACK.TRAIN.DENOISING", False]
    wanted = build(name, *options)(same)
    found = build(name, *options, "ATTACK.TRAIN.MATCH_ON", "clean")(same)
    assert wanted.keys() == found.keys()
    for key, loss in wanted.items():
        torch.testing.assert_close(found[key], loss, msg=key)


def test_the_look_at_clean_images_leaves_the_model_as_it_was(batch):
    """Batch norm ends with the statistics of the attacked images, as without the look."""
    looked, plain = build("dino_sequential", *CLEAN), build("dino_sequential")
    looked.backbone.stem.eval()
    plain.backbone.stem.eval()
    looked(batch)
    plain([{key: value for key, value in item.items() if key != "image_clean"} for item in batch])
    assert looked.training and not looked.backbone.stem.training
    for (key, own), other in zip(looked.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(own, other), key


@pytest.mark.parametrize("name", QUERY_MODELS)
def test_denoising_stays_off_attacked_images(batch, name):
    attacked = [{key: value for key, value in item.items() if key != "image_clean"} for item in batch]
    with_it, without = build(name), build(name, "ATTACK.TRAIN.ENABLED", True, "ATTACK.TRAIN.DENOISING", False)
    losses, fewer = with_it(attacked), without(attacked)
    assert losses.keys() == fewer.keys(), "the same names in all processes"
    for key, loss in fewer.items():
        assert (float(loss.detach()) == 0) == key.startswith("loss_part_denoising"), key
        if key.startswith("loss_part_denoising"):
            assert losses[key] > 0
    sum(fewer.values()).backward()
    assert all(parameter.grad is not None for parameter in without.segmenter.parameters())
    assert not without.segmenter.label_enc.weight.grad.any()


def test_clean_images_beside_attacked_ones_are_denoised_and_matched_once(batch):
    options = [*CLEAN, "ATTACK.TRAIN.PART_LOSS_ON", "both"]
    model = build("dino_sequential", *options)
    calls = []
    forward = model.segmenter.forward
    model.segmenter.forward = lambda *args, **kwargs: calls.append(kwargs) or forward(*args, **kwargs)
    losses = model(batch)
    assert calls == [{}, {"denoise": False}], "no third pass for the assignment"
    assert losses["loss_part_denoising_box"] > 0


def test_a_training_without_attack_is_denoised(batch):
    clean = [{key: value for key, value in item.items() if key != "image_clean"} for item in batch]
    assert build("dino_sequential", "ATTACK.TRAIN.DENOISING", False)(clean)["loss_part_denoising_box"] > 0


def test_sum_over_layers_is_the_published_balance(batch):
    clean = [{key: value for key, value in item.items() if key != "image_clean"} for item in batch]
    layers = tiny_cfg("dino_sequential").MODEL.DINO.DECODER_LAYERS
    mean, total = (
        build("dino_sequential", *STILL, "MODEL.DINO.LOSS_SCALE", scale)(clean) for scale in ("mean", "thesis")
    )
    for key, loss in mean.items():
        factor = layers if key.startswith("loss_part") and "encoder" not in key else 1
        if "denoising" not in key:  # random
            torch.testing.assert_close(total[key], factor * loss, msg=key)


def test_impossible_choices_are_named():
    with pytest.raises(ValueError, match=r"MODEL\.DINO\.LOSS_SCALE must be one of mean, thesis, is 'sum'"):
        build("dino_sequential", "MODEL.DINO.LOSS_SCALE", "sum")
    with pytest.raises(ValueError, match=r"ATTACK\.TRAIN\.MATCH_ON must be one of"):
        build("dino_sequential", *CLEAN, "ATTACK.TRAIN.MATCH_ON", "both")
    with pytest.raises(ValueError, match="DeepLabSegmenter assigns no queries"):
        build("deeplab_two_headed", *CLEAN)


@pytest.mark.parametrize("name", ["dino_sequential", "mask_dino_simple"])
def test_real_training(toy_data, tmp_path, name):
    options = [*CLEAN, "SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 2]
    results = train(run_cfg(tmp_path, *ADVERSARIAL, *options, model=name))
    assert "classification_pgd20" in results
    written = {key: value for line in metric_lines(tmp_path) for key, value in line.items()}
    assert written["loss_part_box"] > 0 and written["loss_part_denoising_box"] == 0
