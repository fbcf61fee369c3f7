"""Mask DINO as a part segmenter: sizes, the class's own path, company, padding, missing labels, the whole gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from part_robust.attacks import attack_batch, attack_mode, build_attack
from part_robust.config import get_part_robust_cfg
from part_robust.data import PartDatasetMapper
from part_robust.layers.mask_box import mask_bounds
from part_robust.modeling.gradients import full_gradient
from part_robust.modeling.preprocess import part_targets
from part_robust.modeling.segmenters.mask_inference import dense_log_scores, find_instances
from tests.toy import RESNET_50, SIZE, tiny_cfg

MODELS = Path(__file__).resolve().parents[2] / "configs" / "models"
BOTH = ("mask_dino_segmenter", "mask_dino_instance_segmenter")


@pytest.fixture
def batch(toy_data):
    mapper = PartDatasetMapper(tiny_cfg(), is_train=False, dataset_name="toy_val")
    return [mapper(record) for record in DatasetCatalog.get("toy_val")[:6]]


def build(name: str = "mask_dino_segmenter", *opts):
    torch.manual_seed(0)
    return build_model(tiny_cfg(name, *opts))


def shaken(name: str, *opts):
    """With random weights also where training starts from zero: boxes then depend on the image. In float64."""
    model = build(name, *RESNET_50, *opts).double().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.normal_(module.weight, std=1.5 / module.in_features**0.5)
    return model


@pytest.mark.parametrize(
    ("model", "parts", "opts", "millions"),
    [
        ("mask_dino_segmenter", 19, [], 43.798),
        ("mask_dino_segmenter", 19, ["MODEL.MASK_DINO.DECODER_LAYERS", 1], 31.629),
        ("mask_dino_segmenter", 40, [], 43.809),
        ("mask_dino_segmenter", 456, [], 44.022),
        ("mask_dino_segmenter", 456, ["MODEL.MASK_DINO.DECODER_LAYERS", 1], 31.853),
        ("mask_dino_segmenter", 150, ["MODEL.RESNETS.NORM", "FrozenBN"], 43.812),
        ("mask_dino_instance", 80, [], 52.058),
        ("mask_dino_instance", 133, [], 52.085),
        (
            "mask_dino_instance",
            80,
            [
                *("MODEL.MASK_DINO.LEVELS", 3),
                *("MODEL.MASK_DINO.LEVEL_ORDER", "coarse_first"),
                *("MODEL.MASK_DINO.ENCODER_FEEDFORWARD_DIM", 1024),
            ],
            43.816,
        ),
    ],
)
def test_parameter_counts_are_the_published_ones(model, parts, opts, millions):
    counts = ["MODEL.PART_CLASSIFIER.NUM_PARTS", parts, "MODEL.PART_CLASSIFIER.NUM_CLASSES", 3]
    cfg = get_part_robust_cfg(MODELS / f"{model}.yaml", ["MODEL.DEVICE", "meta", *counts, *opts])
    with torch.device("meta"):
        built = build_model(cfg)
    assert sum(p.numel() for p in built.parameters()) / 1e6 == pytest.approx(millions, abs=6e-4)
    assert all(p.requires_grad for p in built.parameters())


@pytest.mark.parametrize(
    ("name", "opts", "pixels"),
    [
        ("mask_dino_segmenter", [], 0),
        ("mask_dino_instance_segmenter", [], 1),
        ("mask_dino_instance_segmenter", ["MODEL.MASK_DINO.BOX_INIT", "bitmask"], 1),
        (
            "mask_dino_instance_segmenter",
            ["MODEL.MASK_DINO.BOX_INIT", "no", "MODEL.MASK_DINO.LEARNED_CONTENT", True],
            0,
        ),
    ],
)
def test_the_class_needs_no_masks(batch, name, opts, pixels):
    """Equal class logits, bit for bit; of the mask branch only what boxes from masks need."""
    model = build(name, *opts).eval()
    images, _ = model.preprocess(batch)
    with torch.no_grad():
        features = model.backbone(model.normalize(images))
        full = model.segmenter(features, (SIZE, SIZE))
        calls = []
        decoder = model.segmenter.pixel_decoder
        decoder.layer_1.register_forward_hook(lambda *_: calls.append("pixels"))
        model.segmenter.class_embed.register_forward_hook(lambda *_: calls.append("classes"))
        short = model.segmenter(features, (SIZE, SIZE), class_only=True)
    assert torch.equal(short.query_logits, full.query_logits) and short.query_masks is None
    assert full.query_masks.shape == (6, 10, SIZE // 4, SIZE // 4)
    # Once more to choose pixels.
    assert calls.count("pixels") == pixels and calls.count("classes") == 1 + (name == "mask_dino_instance_segmenter")
    assert short.sets is None


@pytest.mark.parametrize("name", BOTH)
def test_company_does_not_matter(batch, name):
    model = build(name).eval()
    with torch.no_grad():
        together = model(batch)
        for item, output in zip(batch, together, strict=True):
            (alone,) = model([item])
            torch.testing.assert_close(alone["sem_seg"], output["sem_seg"], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(alone["instances"].scores, output["instances"].scores, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", BOTH)
def test_padding_pixels_are_not_seen_by_the_transformer(batch, name):
    """Whatever stands under the mask; boxes around masks end with the image."""
    model = build(name).eval()
    images, _ = model.preprocess(batch[:2])
    padding = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    padding[:, :, 16:] = True
    segmenter = model.segmenter
    results = []
    for change in (0.0, 10.0):

        def disturb(module, inputs, change=change):
            (tokens,) = inputs
            tokens.features = tokens.features + tokens.padding[..., None] * change

        hook = segmenter.pixel_decoder.encoder.register_forward_pre_hook(disturb)
        with torch.no_grad():
            # The group norms see whole maps, and so does the convolution after the finest level, which feeds masks.
            results.append(
                segmenter(model.backbone(model.normalize(images)), (SIZE, SIZE), padding, class_only=True)
                if name == "mask_dino_segmenter"
                else segmenter.pixel_decoder(
                    [model.backbone(model.normalize(images))[f] for f in segmenter.in_features], padding
                )
            )
        hook.remove()
    if name == "mask_dino_segmenter":
        torch.testing.assert_close(results[0].query_logits, results[1].query_logits)
        torch.testing.assert_close(results[0].query_boxes, results[1].query_boxes)
    else:
        (first, tokens), (second, _) = results
        torch.testing.assert_close(first[~tokens.padding], second[~tokens.padding])
        assert tokens.padding.any() and not tokens.padding.all()


def test_boxes_of_masks():
    masks = torch.zeros(3, 5, 8, dtype=torch.bool)
    masks[0, 1:3, 2:7] = True
    masks[0, 4, 0] = True
    masks[1, 4, 7] = True
    boxes, found = mask_bounds(masks)
    assert boxes.tolist() == [[0, 1, 7, 5], [7, 4, 8, 5], [0, 0, 0, 0]] and found.tolist() == [True, True, False]


@pytest.mark.parametrize("name", BOTH)
def test_targets_under_padding(batch, name):
    """Boxes are relative to the image; padding enters no mask."""
    model = build(name).train()
    model.backbone.eval()  # batch norm on one pixel of one image
    images, _ = model.preprocess(batch[:1])
    padding = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    padding[:, 24:] = True
    targets = part_targets(batch[:1], model.device)
    targets.sem_seg[padding] = 255
    output = model.segmenter(model.backbone(model.normalize(images)), (SIZE, SIZE), padding, targets)
    box = targets.instances[0].gt_boxes.tensor[0]
    x, y, w, h = output.sets.true_parts.boxes[0, 0].tolist()
    assert (x - w / 2) * SIZE == pytest.approx(float(box[0])) and (y + h / 2) * 24 == pytest.approx(float(box[3]))
    masks = output.sets.true_parts.masks
    assert not masks.counted.view(SIZE // 4, SIZE // 4)[6:].any() and masks.counted.view(-1)[:40].all()
    assert all(torch.isfinite(loss) for loss in model.segmenter.losses(output, targets).values())


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("mask_loss", ["dense", "points"])
def test_losses_have_names_and_reach_every_parameter(batch, name, layers, mask_loss):
    opts = ["MODEL.MASK_DINO.DECODER_LAYERS", layers, "MODEL.MASK_DINO.MASK_LOSS", mask_loss]
    model = build(name, *opts, "MODEL.MASK_DINO.NUM_POINTS", 64).train()
    losses = model(batch)
    kinds = ["", "denoising_"] + ["encoder_"] * (name == "mask_dino_instance_segmenter")
    terms = ("class", "box", "giou", "mask", "dice")
    assert set(losses) == {f"loss_part_{kind}{term}" for kind in kinds for term in terms}
    assert all(torch.isfinite(loss) and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    missing = [key for key, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not missing


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("mask_loss", ["dense", "points"])
def test_unlabelled_batch_has_zero_loss_and_reaches_every_parameter(batch, name, mask_loss):
    model = build(name, "MODEL.MASK_DINO.MASK_LOSS", mask_loss).train()
    unlabelled = [item for item in batch if item["part_supervision"] == "none"]
    losses = model([*unlabelled, *unlabelled])
    assert all(float(loss.detach()) == 0.0 for loss in losses.values())
    assert len(losses) == (15 if name == "mask_dino_instance_segmenter" else 10)
    sum(losses.values()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_one_image_and_no_true_part(batch):
    model = build("mask_dino_segmenter", "MODEL.RESNETS.NORM", "FrozenBN").train()
    plain = next(item for item in batch if item["part_supervision"] == "full" and not len(item["instances"]))
    losses = model([plain])
    assert losses["loss_part_class"] > 0 and losses["loss_part_mask"] == 0 and losses["loss_part_denoising_class"] == 0
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_more_parts_than_queries(batch):
    model = build("mask_dino_segmenter", "MODEL.MASK_DINO.NUM_QUERIES", 1).train()
    losses = model(batch)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize(
    ("layers", "total"), [(9, 399), (1, 63)], ids=["the thesis's 9 layers", "the thesis's 1 layer"]
)
def test_weights_in_all(batch, layers, total, monkeypatch):
    """With every unweighted term 1: the reference's sums over all sets, and ours, which no number of layers changes."""
    for scale, expected in (("thesis", total), ("mean", 42)):
        opts = ["MODEL.MASK_DINO.DECODER_LAYERS", layers, "MODEL.MASK_DINO.LOSS_SCALE", scale]
        model = build("mask_dino_segmenter", *opts).train()
        criterion = model.segmenter.criterion

        def ones(predictions, targets, matching=None, counted=None, criterion=criterion):
            value = targets.present.sum(dim=1).float().expand(len(predictions.logits), -1)
            return dict.fromkeys((*criterion.weights, "class_count"), value)

        monkeypatch.setattr(criterion, "sums", ones)
        assert float(sum(model(batch).values())) == pytest.approx(expected)


@pytest.mark.parametrize("mask_loss", ["dense", "points"])
def test_a_training_step_repeats(batch, mask_loss):
    losses = []
    for _ in range(2):
        model = build("mask_dino_instance_segmenter", "MODEL.MASK_DINO.MASK_LOSS", mask_loss).train()
        torch.manual_seed(1)  # of the denoising queries
        losses.append(torch.stack(list(model(batch).values())).detach())
    assert torch.equal(losses[0], losses[1])


def test_it_learns_a_batch_by_heart(batch):
    torch.manual_seed(0)
    labelled = [item for item in batch if item["part_supervision"] == "full"]
    model = build("mask_dino_simple", "MODEL.MASK_DINO.DECODER_LAYERS", 1).train()
    optimizer = torch.optim.AdamW(model.parameters(), 0.003)
    for _ in range(80):
        losses = model(labelled)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        outputs = model(labelled)
    right = known = 0
    for item, output in zip(labelled, outputs, strict=True):
        counts = item["sem_seg"] <= 3
        right += int((output["sem_seg"].argmax(dim=0) == item["sem_seg"])[counts].sum())
        known += int(counts.sum())
        if len(item["instances"]):
            best = output["instances"][0]
            overlap = item["instances"].gt_masks.tensor & best.pred_masks
            assert overlap.any() and best.scores > 0.5
    assert right / known > 0.93
    assert all(o["class_logits"].argmax() == i["class_id"] for i, o in zip(labelled, outputs, strict=True))


@pytest.mark.parametrize("sigmoids", [False, True])
def test_label_maps(sigmoids):
    """Background where no query is sure, however many are unsure; log-probabilities; the published order of parts."""
    logits = torch.full((1, 40, 2 if sigmoids else 3), -4.0)
    logits[0, 0] = torch.tensor([6.0, -6.0, -6.0])[: logits.shape[-1]]
    if not sigmoids:
        logits[0, 1:, 2] = 0.0
    masks = torch.full((1, 40, 4, 6), 0.0)
    masks[0, 0] = -12.0
    masks[0, 0, :2, :3] = 12.0
    scores = dense_log_scores(logits, masks, 2)
    torch.testing.assert_close(scores.softmax(dim=1), scores.exp())
    labels = scores.argmax(dim=1)[0]
    assert torch.equal(labels, torch.where(masks[0, 0] > 0, 0, 2))
    sure = dense_log_scores(logits[:, :1].double(), 100 * masks[:, :1].double(), 2)
    assert torch.isfinite(sure).all()
    assert (sure.argmax(dim=1)[0] == torch.where(masks[0, 0] > 0, 0, 2)).all()


def test_instances():
    logits = torch.full((1, 3, 3), -9.0)
    logits[0, :, 2] = 4.0
    logits[0, 1, 0], logits[0, 2, 1] = 9.0, 5.0
    masks = torch.full((1, 3, 8, 16), -20.0)
    masks[0, 1, 2:6, 4:10] = 20.0
    masks[0, 2] = 1.0
    boxes = torch.tensor([[[0.5, 0.5, 0.1, 0.1], [0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]])
    (found,) = find_instances(logits, boxes, masks, torch.tensor([[8.0, 12.0]]), num_parts=2, most=4)
    assert len(found) == 4 and found.pred_classes[:2].tolist() == [0, 1] and (found.scores.diff() <= 0).all()
    assert found.scores[0] > 0.99 and found.scores[1] == pytest.approx(0.731 * 0.731, abs=0.01), "class times mask"
    assert torch.equal(found.pred_masks[0], masks[0, 1] > 0)
    assert found.pred_masks[1, :, :12].all() and not found.pred_masks[1, :, 12:].any(), "no pixel of the padding"
    assert found.pred_boxes.tensor[0].tolist() == [3.0, 2.0, 9.0, 6.0]


def test_outputs_of_choice(batch):
    for name in ("semantic", "instance"):
        model = build("mask_dino_segmenter", "MODEL.MASK_DINO.OUTPUTS", [name]).eval()
        with torch.no_grad():
            assert set(model(batch)[0]) == {"sem_seg" if name == "semantic" else "instances"}


def analytic_and_finite_difference(model, loss, images, whole: bool) -> tuple[float, float]:
    """Derivative of a loss along the sign of its gradient, and its central difference."""
    images = images.clone().requires_grad_(True)
    if whole:
        with full_gradient(model):
            (gradient,) = torch.autograd.grad(loss(images), images)
    else:
        (gradient,) = torch.autograd.grad(loss(images), images)
    direction, step = gradient.sign(), 1e-6
    with torch.no_grad():
        difference = float(loss(images + step * direction) - loss(images - step * direction)) / (2 * step)
    return float((gradient * direction).sum()), difference


@pytest.mark.parametrize(
    ("name", "opts"),
    [
        ("mask_dino_segmenter", []),
        ("mask_dino_instance_segmenter", ["MODEL.MASK_DINO.BOX_INIT", "no"]),
        ("mask_dino_instance_segmenter", ["MODEL.MASK_DINO.BOX_INIT", "bitmask"]),
    ],
)
def test_finite_differences_audit_the_gradient(batch, name, opts):
    """Relative error under 2 % with the whole gradient, of label maps and of class logits, and more with the cut."""
    model = shaken(name, "MODEL.MASK_DINO.DECODER_LAYERS", 3, *opts)
    images = model.preprocess(batch[:2])[0].double()
    labels = torch.stack([item["sem_seg"] for item in batch[:2]]).clamp(max=3)

    def map_loss(x):
        return torch.nn.functional.nll_loss(model.part_logits(x), labels)

    def class_loss(x):
        features = model.backbone(model.normalize(x))
        return model.segmenter(features, (SIZE, SIZE), class_only=True).query_logits.square().mean()

    for loss in (map_loss, class_loss):
        analytic, difference = analytic_and_finite_difference(model, loss, images, whole=True)
        assert analytic == pytest.approx(difference, rel=0.02)
    analytic, difference = analytic_and_finite_difference(model, class_loss, images, whole=False)
    assert abs(analytic - difference) > 0.02 * abs(difference)


@pytest.mark.parametrize("objective", ["pixel_cross_entropy", "part_loss", "part_loss_fixed"])
def test_attacks_on_parts(batch, objective):
    """They climb, follow the whole gradient, use no random points, and leave no trace."""
    model = build("mask_dino_segmenter", "MODEL.MASK_DINO.MASK_LOSS", "points").train()
    labelled = [item for item in batch if item["part_supervision"] == "full" and len(item["instances"])]
    seen = []
    model.segmenter.decoder.register_forward_hook(lambda m, *_: seen.append(m.detach_references))
    points = model.segmenter.criterion.mask_loss
    attack = build_attack({"OBJECTIVE": objective, "STEPS": 3, "RANDOM_START": False, "KEEP": "best"})
    with attack_mode(model) as inner:
        result, _ = attack_batch(attack, inner, labelled, torch.arange(len(labelled)))
    assert seen and not any(seen) and model.segmenter.decoder.detach_references and model.training
    assert points.batches == 0, "points are for training"
    model.eval()
    images, _ = model.preprocess(labelled)
    view = model.part_loss_view(labelled, images, None, joint=False, fixed=objective.endswith("fixed"))
    with torch.no_grad():
        (_, before), (_, after) = view(images), view(result.images)
        assert torch.equal(view(images)[1], before), "no noise"
    if objective != "pixel_cross_entropy":
        assert (after >= before - 1e-5).all() and after.sum() > before.sum()


def test_part_loss_of_an_image_is_its_own(batch):
    model = build("mask_dino_instance_segmenter").eval()
    labelled = [item for item in batch if item["part_supervision"] == "full"]
    images, _ = model.preprocess(labelled)
    with torch.no_grad():
        together = model.part_loss_view(labelled, images, None, joint=False, fixed=False)(images)[1]
        for index, item in enumerate(labelled):
            view = model.part_loss_view([item], images[index, None], None, joint=False, fixed=False)
            torch.testing.assert_close(view(images[index, None])[1][0], together[index], atol=1e-4, rtol=1e-4)
    unlabelled = [item for item in batch if item["part_supervision"] == "none"]
    images, _ = model.preprocess(unlabelled)
    with torch.no_grad():
        assert not model.part_loss_view(unlabelled, images, None, joint=False, fixed=False)(images)[1].any()


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["LEVELS", 2], "LEVELS"),
        (["LEVEL_ORDER", "high2low"], "LEVEL_ORDER"),
        (["DECODER_LAYERS", 0], "DECODER_LAYERS"),
        (["BOX_INIT", "mask2box"], "TWO_STAGE"),
        (["BOX_INIT", "mask"], "BOX_INIT"),
        (["CLASS_LOSS", "softmax"], "CLASS_LOSS"),
        (["MASK_LOSS", "pixels"], "MASK_LOSS"),
        (["LOSS_SCALE", "sum"], "LOSS_SCALE"),
        (["OUTPUTS", ["panoptic"]], "OUTPUTS"),
        (["OUTPUTS", []], "OUTPUTS"),
        (["MASK_FEATURE", "res1"], "OUT_FEATURES"),
    ],
)
def test_impossible_configs(opts, message, toy_data):
    with pytest.raises(ValueError, match=message):
        build("mask_dino_segmenter", f"MODEL.MASK_DINO.{opts[0]}", opts[1])


def test_too_few_pixels_are_named(toy_data):
    model = build("mask_dino_instance_segmenter", "MODEL.MASK_DINO.NUM_QUERIES", 50).eval()
    with pytest.raises(ValueError, match=r"NUM_QUERIES.*MASK_DINO.*INPUT\.SIZE"):
        model([{"image": torch.zeros(3, SIZE, SIZE)}])


@pytest.mark.parametrize("name", BOTH)
def test_mixed_precision_is_finite(batch, name):
    model = build(name).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(batch)
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
