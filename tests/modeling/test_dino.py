"""DINO as a part segmenter, and its part models: sizes, company, padding, missing labels, the whole gradient."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from part_robust.attacks import attack_batch, attack_mode, build_attack
from part_robust.config import get_part_robust_cfg
from part_robust.data import PartDatasetMapper
from part_robust.modeling.gradients import full_gradient
from part_robust.modeling.preprocess import part_targets
from part_robust.modeling.registry import PartOutput
from part_robust.modeling.segmenters.tokens import Tokens
from part_robust.modeling.segmenters.transformer import QuerySelection
from tests.toy import RESNET_50, SIZE, tiny_cfg

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "part_imagenet"


@pytest.fixture
def batch(toy_data):
    mapper = PartDatasetMapper(tiny_cfg(), is_train=False, dataset_name="toy_val")
    return [mapper(record) for record in DatasetCatalog.get("toy_val")[:6]]


def build(name: str = "dino_detector", *opts):
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
    ("layers", "queries", "trainable", "total"),
    [(6, 900, 46.645, 46.867), (6, 100, 46.440, 46.662), (1, 900, 32.504, 32.727), (1, 100, 32.300, 32.522)],
)
def test_parameter_counts_are_the_published_ones(layers, queries, trainable, total):
    opts = [
        *("MODEL.DEVICE", "meta"),
        *("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"]),
        *("MODEL.RESNETS.NORM", "FrozenBN"),
        *("MODEL.BACKBONE.FREEZE_AT", 2),
        *("MODEL.PART_CLASSIFIER.SEGMENTER", "DinoSegmenter"),
        *("MODEL.PART_CLASSIFIER.HEAD", ""),
        *("MODEL.PART_CLASSIFIER.NUM_PARTS", 40),
        *("MODEL.PART_CLASSIFIER.NUM_CLASSES", 11),
        *("MODEL.DINO.ENCODER_LAYERS", layers),
        *("MODEL.DINO.DECODER_LAYERS", layers),
        *("MODEL.DINO.NUM_QUERIES", queries),
    ]
    with torch.device("meta"):
        model = build_model(get_part_robust_cfg(None, opts))
    counts = [(p.numel() / 1e6, p.requires_grad) for p in model.parameters()]
    assert sum(n for n, _ in counts) == pytest.approx(total, rel=1e-3)
    assert sum(n for n, train in counts if train) == pytest.approx(trainable, rel=1e-3)


@pytest.mark.parametrize(
    ("model", "millions"),
    [
        ("dino_sequential", 49.5),
        ("dino_sequential_100q", 47.0),
        ("dino_sequential_1layer", 35.4),
        ("dino_sequential_1layer_100q", 32.8),
        ("dino_two_headed", 46.9),
        ("dino_two_headed_100q", 46.7),
    ],
)
def test_parameter_counts_of_table_2_3(model, millions):
    cfg = get_part_robust_cfg(CONFIGS / f"{model}.yaml", ["MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        model = build_model(cfg)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_company_does_not_matter(batch):
    model = build("dino_sequential").eval()
    with torch.no_grad():
        together = model(batch)
        for item, output in zip(batch, together, strict=True):
            (alone,) = model([item])
            torch.testing.assert_close(alone["class_logits"], output["class_logits"], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(alone["instances"].scores, output["instances"].scores, atol=1e-5, rtol=1e-5)


def test_instances(batch):
    model = build().eval()
    with torch.no_grad():
        for output in model(batch):
            found = output["instances"]
            assert len(found) == 20 * 3, "every query and part, fewer than MAX_DETECTIONS"
            assert found.image_size == (SIZE, SIZE)
            assert (found.scores.diff() <= 0).all() and 0 <= found.scores.min() and found.scores.max() <= 1
            assert 0 <= found.pred_classes.min() and found.pred_classes.max() < 3
    query = torch.full((1, 2, 3), -5.0)
    query[0, 1, 2] = 3.0
    boxes = torch.tensor([[[0.5, 0.5, 0.1, 0.1], [0.25, 0.5, 0.5, 0.25]]])
    parts = PartOutput(query_logits=query, query_boxes=boxes, content_size=torch.tensor([[8.0, 16.0]]))
    found = model.segmenter.inference(parts, (16, 16))[0]["instances"]
    assert found.pred_classes[0] == 2
    assert found.pred_boxes.tensor[0].tolist() == [0.0, 3.0, 8.0, 5.0], "pixels of the image inside its padding"


def test_padding_pixels_are_not_seen_by_the_transformer(batch):
    """The backbone sees the padding's colour; what lies under the mask must not reach other tokens."""
    model = build().eval()
    images, _ = model.preprocess(batch[:2])
    padding = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    padding[:, :, 16:] = True
    with torch.no_grad():
        # The group norms of the projections see whole maps, so the tokens after them are changed.
        tokens = model.segmenter.tokens(model.backbone(model.normalize(images)), padding)
        others = copy.copy(tokens)
        others.features = tokens.features + tokens.padding[..., None] * 10.0
        first, second = (model.segmenter.encoder(t)[~tokens.padding] for t in (tokens, others))
    torch.testing.assert_close(first, second)
    assert tokens.padding.any() and not tokens.padding.all()


@pytest.mark.parametrize(("count", "published"), [(5, False), (5, True), (20, False)])
def test_padding_is_chosen_last_however_confident_it_is(count, published):
    """Padding has the same confidence everywhere; here it is the highest, as after a training without padding."""
    torch.manual_seed(0)
    shapes, dim = ((6, 6), (3, 3)), 8
    padding = torch.zeros(2, 45, dtype=torch.bool)
    padding[0] = torch.cat([(torch.arange(h * w) % w >= w // 3) for h, w in shapes])  # 12 + 3 pixels are the image's
    ratio = torch.tensor([[[1 / 3, 1.0], [1 / 3, 1.0]], [[1.0, 1.0], [1.0, 1.0]]])
    tokens = Tokens(torch.zeros(2, 45, dim), torch.zeros(1, 45, dim), shapes, padding, ratio)
    selection = QuerySelection(dim=dim, num_queries=count, num_classes=2)
    if published:
        selection.padding_last = False
    nothing = selection.enc_output_norm(selection.enc_output(torch.zeros(dim)))

    def confident_of_nothing(x):
        return torch.where(torch.isclose(x, nothing).all(dim=-1, keepdim=True), 10.0, x[..., :2])

    memory = torch.randn(2, 45, dim)
    chosen = selection(memory, tokens, class_head=confident_of_nothing)
    own = (~padding[0]).sum()
    is_padding = padding[0][chosen.pixels[0]]
    assert is_padding.tolist() == [published] * count if count <= own else [False] * own + [True] * (count - own)
    assert chosen.logits.isfinite().all() and chosen.boxes.isfinite().all()
    # The image without padding beside it is read as it is alone.
    alone = Tokens(tokens.features[1:], tokens.position, shapes, None, ratio[1:])
    assert torch.equal(chosen.pixels[1:], selection(memory[1:], alone, class_head=confident_of_nothing).pixels)


def test_targets_under_padding_are_relative_to_the_image(batch):
    model = build().eval()
    images, _ = model.preprocess(batch[:1])
    padding = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    padding[:, 24:] = True
    targets = part_targets(batch[:1], model.device)
    output = model.segmenter(model.backbone(model.normalize(images)), (SIZE, SIZE), padding, targets)
    box = targets.instances[0].gt_boxes.tensor[0]
    x, y, w, h = output.sets.true_parts.boxes[0, 0].tolist()
    assert (x - w / 2) * SIZE == pytest.approx(float(box[0])) and (y + h / 2) * 24 == pytest.approx(float(box[3]))


def test_too_few_pixels_are_named():
    model = build("dino_detector", "MODEL.DINO.NUM_QUERIES", 200).eval()
    with pytest.raises(ValueError, match=r"NUM_QUERIES.*INPUT\.SIZE"):
        model([{"image": torch.zeros(3, SIZE, SIZE)}])


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.DINO.LEVELS", 3], "LEVELS"),
        (["MODEL.DINO.DECODER_LAYERS", 0], "DECODER_LAYERS"),
        (["MODEL.SEQUENTIAL_HEAD.ORDER", "random"], "ORDER"),
        (["MODEL.SEQUENTIAL_HEAD.PROBABILITIES", "none"], "PROBABILITIES"),
    ],
)
def test_impossible_configs(opts, message, toy_data):
    with pytest.raises(ValueError, match=message):
        build("dino_sequential", *opts)


def test_more_parts_than_the_label_book_has_room_for(toy_data):
    model = build("dino_detector", "MODEL.DINO.LABEL_BOOK_SIZE", 1)
    assert len(model.segmenter.label_enc.weight) == 4


def test_c_seg_weighs_class_and_detection(batch):
    losses = {}
    for weight in (0.5, 0.2):
        model = build("dino_sequential", "MODEL.PART_CLASSIFIER.SEG_LOSS_WEIGHT", weight).train()
        torch.manual_seed(1)  # of the denoising queries
        losses[weight] = model(batch)
    for name, loss in losses[0.5].items():
        factor = 1.6 if name == "loss_cls" else 0.4
        torch.testing.assert_close(losses[0.2][name], factor * loss)
    assert {"loss_part_class", "loss_part_encoder_box", "loss_part_denoising_giou"} <= set(losses[0.5])


def test_number_of_layers_does_not_change_the_weight_of_detection(batch):
    """The published sum over layers makes a 6-layer detector weigh three times a 1-layer one against the class."""
    totals = []
    for layers in (1, 6):
        model = build("dino_sequential", "MODEL.DINO.DECODER_LAYERS", layers, "MODEL.DINO.DENOISING_NUMBER", 0).train()
        losses = model(batch)
        totals.append(float(sum(loss for name, loss in losses.items() if name != "loss_cls").detach()))
    assert totals[1] == pytest.approx(totals[0], rel=0.2)


def test_unlabelled_batch_has_zero_loss_and_reaches_every_parameter(batch):
    model = build().train()
    unlabelled = [item for item in batch if item["part_supervision"] == "none"]
    assert unlabelled
    losses = model([*unlabelled, *unlabelled])
    assert all(float(loss.detach()) == 0.0 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_confidence_order_makes_the_head_blind_to_the_order_of_queries(batch):
    for order, equal in (("confidence", True), ("decoded", False)):
        head = build("dino_sequential", "MODEL.SEQUENTIAL_HEAD.ORDER", order).eval().head
        torch.manual_seed(0)
        logits, boxes = torch.randn(2, 20, 3), torch.rand(2, 20, 4)
        shuffle = torch.randperm(20)
        first = head({}, PartOutput(query_logits=logits, query_boxes=boxes))
        second = head({}, PartOutput(query_logits=logits[:, shuffle], query_boxes=boxes[:, shuffle]))
        assert torch.allclose(first, second) == equal


def test_head_on_dense_parts_says_what_it_needs():
    head = build("dino_sequential").head
    with pytest.raises(ValueError, match="detector"):
        head({}, PartOutput(sem_seg_logits=torch.zeros(1, 4, 2, 2)))


def test_two_headed_runs_the_backbone_once_and_can_drop_the_detector(batch):
    model = build("dino_two_headed").eval()
    calls = []
    model.backbone.register_forward_hook(lambda *_: calls.append("backbone"))
    model.segmenter.register_forward_hook(lambda *_: calls.append("segmenter"))
    with torch.no_grad():
        full = model(batch)
        assert sorted(calls) == ["backbone", "segmenter"]
        calls.clear()
        images, _ = model.preprocess(batch)
        model.class_logits(images)
        assert calls == ["backbone"]
        dropped = build("dino_two_headed", "MODEL.PART_CLASSIFIER.SEGMENTER", "").eval()
        state = {key: value for key, value in model.state_dict().items() if not key.startswith("segmenter.")}
        dropped.load_state_dict(state)
        for one, other in zip(dropped(batch), full, strict=True):
            assert torch.equal(one["class_logits"], other["class_logits"])
            assert set(one) == {"class_logits"}


def analytic_and_finite_difference(model, images, whole: bool) -> tuple[float, float]:
    """Derivative of the class loss along the sign of its gradient, and its central difference; the queries are chosen
    from the same pixels at both ends.
    """
    labels = torch.arange(len(images)) % 3
    selected = []
    selection = model.segmenter.query_selection
    original = selection.select
    selection.select = lambda scores: selected.append(original(scores)) or selected[-1]

    def loss(x):
        return torch.nn.functional.cross_entropy(model.class_logits(x), labels, reduction="sum")

    images = images.clone().requires_grad_(True)
    if whole:
        with full_gradient(model):
            (gradient,) = torch.autograd.grad(loss(images), images)
    else:
        (gradient,) = torch.autograd.grad(loss(images), images)
    direction = gradient.sign()
    step = 1e-6
    with torch.no_grad():
        difference = float(loss(images + step * direction) - loss(images - step * direction)) / (2 * step)
    assert all(torch.equal(selected[0], own) for own in selected[1:])
    return float((gradient * direction).sum()), difference


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_finite_differences_audit_the_gradient(batch, seed):
    """Relative error under 2 % with the whole gradient on the sequential model, far more with the published cut."""
    torch.manual_seed(seed)
    model = shaken("dino_sequential", "MODEL.DINO.DECODER_LAYERS", 3)
    images = model.preprocess(batch[seed : seed + 2])[0].double()
    analytic, difference = analytic_and_finite_difference(model, images, whole=True)
    assert analytic == pytest.approx(difference, rel=0.02)
    analytic, difference = analytic_and_finite_difference(model, images, whole=False)
    assert abs(analytic - difference) > 0.05 * abs(difference)


@pytest.mark.parametrize("on", [True, False])
def test_attacks_take_the_gradient_the_config_says_and_leave_no_trace(batch, on):
    model = build("dino_sequential", "ATTACK.FULL_GRADIENT", on).train()
    decoder = model.segmenter.decoder
    seen = []
    decoder.register_forward_hook(lambda *_: seen.append(decoder.detach_references))
    with attack_mode(model) as inner:
        attack_batch(build_attack({"STEPS": 2}), inner, batch, torch.arange(len(batch)))
    assert seen and set(seen) == {not on}
    assert decoder.detach_references and model.training


@pytest.mark.parametrize("objective", ["part_loss", "part_loss_fixed", "joint", "joint_fixed"])
def test_attacks_on_the_detection_loss(batch, objective):
    model = build("dino_sequential").eval()
    labelled = [item for item in batch if item["part_supervision"] != "none"]
    attack = build_attack({"OBJECTIVE": objective, "STEPS": 4, "RANDOM_START": False, "KEEP": "best"})
    calls = []
    matcher = model.segmenter.criterion.matcher
    model.segmenter.criterion.matcher = lambda *a: calls.append(1) or matcher(*a)
    with attack_mode(model) as inner:
        result, _ = attack_batch(attack, inner, labelled, torch.arange(len(labelled)))
    assert len(calls) == (1 if objective.endswith("fixed") else 4 + 1)
    model.segmenter.criterion.matcher = matcher
    images, _ = model.preprocess(labelled)
    options = {"joint": objective.startswith("joint"), "fixed": objective.endswith("fixed")}
    view = model.part_loss_view(labelled, images, None, **options)
    with torch.no_grad():
        (logits, before), (_, after) = view(images), view(result.images)
    assert (logits is not None) == options["joint"]
    if not options["joint"]:  # else a misclassified image counts more than any loss
        assert (after >= before - 1e-5).all()
    assert after.sum() > before.sum()


def test_part_loss_of_an_image_without_labels_is_zero(batch):
    unlabelled = [item for item in batch if item["part_supervision"] == "none"]
    model = build("dino_detector").eval()
    images, _ = model.preprocess(unlabelled)
    with torch.no_grad():
        assert not model.part_loss_view(unlabelled, images, None, joint=False, fixed=False)(images)[1].any()


def test_part_loss_needs_parts_and_joint_a_head(batch):
    images = torch.zeros(len(batch), 3, SIZE, SIZE)
    with pytest.raises(ValueError, match="cross_entropy"):
        build("resnet").part_loss_view(batch, images, None, joint=False, fixed=False)
    with pytest.raises(ValueError, match="part_loss"):
        build("dino_detector").eval().part_logits(images)
    with pytest.raises(ValueError, match="class head"):
        build("dino_detector").part_loss_view(batch, images, None, joint=True, fixed=False)


def test_mixed_precision_is_finite(batch):
    model = build("dino_sequential").train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(batch)
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
