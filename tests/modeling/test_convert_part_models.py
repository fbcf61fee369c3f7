"""Published part models and detectors into ours: the public code's numbers, every key accounted for, traps refused.

The public numbers are in tests/fixtures/published_small.npz (tests/fixtures/make_published_small.py).
"""

from __future__ import annotations

import argparse
from collections import Counter

import pytest
import torch
from detectron2.modeling import build_model

from part_robust.cli.convert_checkpoint import main
from part_robust.config import get_part_robust_cfg
from part_robust.data.preparation.part_imagenet_names import PARTS as PART_IMAGENET
from part_robust.modeling import convert_part_models
from part_robust.modeling.convert_part_models import convert_part_model, detect_part_model_layout, parts_by_class
from part_robust.utils.errors import UserError
from tests.published_weights import CLASSES, PARTS, images, published, sample
from tests.toy import RESNET_50, tiny_cfg

STAGES = ["res2", "res3", "res4", "res5"]
OPTS = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.OUT_FEATURES", STAGES),
    *("MODEL.PART_CLASSIFIER.NUM_CLASSES", CLASSES, "MODEL.PART_CLASSIFIER.NUM_PARTS", PARTS),
]
SMP = [
    *("MODEL.RESNETS.RES5_DILATION", 2),
    *("MODEL.PART_CLASSIFIER.SEGMENTER", "SmpDeepLabSegmenter", "MODEL.PART_CLASSIFIER.HEAD"),
]
GELU = [
    *("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "resnet50"),
    *("MODEL.TIMM.OPTIONS", [["act_layer", "gelu"]]),
]
CONVNEXT = [
    *("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "convnext_tiny"),
    *("MODEL.TIMM.OPTIONS", [["dims", [8, 16, 24, 32]], ["depths", [1, 1, 2, 1]]]),
]
PREDICTOR = "module._model._segmenter.segmentation_head.0.bias"


def build(*opts):
    cfg = get_part_robust_cfg(None, [*OPTS, *opts])
    torch.manual_seed(0)
    return build_model(cfg).eval(), cfg


def convert(state, model, cfg, **options):
    layout = detect_part_model_layout(state)
    assert layout is not None
    return convert_part_model(state, model.state_dict(), layout, cfg, **options)


def accounted(state, model, reports) -> dict[str, list[str]]:
    """Keys by what became of them; each key of both sides once."""
    assert sorted(a.key for a in reports if a.action != "missing") == sorted(state)
    used = [a.ours for a in reports if a.ours]
    missing = [a.key for a in reports if a.action == "missing"]
    wanted = [key for key in model.state_dict() if key in used or not key.endswith("num_batches_tracked")]
    assert sorted(used + missing) == sorted(wanted)
    assert all(a.reason and a.reason != "unknown key" for a in reports if a.action != "renamed"), reports
    return {action: [a.key for a in reports if a.action == action] for action in {a.action for a in reports}}


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Equal to 1e-5 of the largest public number."""
    scale = float(wanted.abs().max())
    assert scale > 0.01 and found.shape == wanted.shape
    torch.testing.assert_close(found / scale, wanted / scale, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def downsampled():
    return published("downsampled")


def test_predecessor_s_downsampled_model_gives_the_same_numbers(downsampled):
    state, wanted = downsampled
    order = [2, 0, 1, 5, 3, 4]
    model, cfg = build(*SMP, "DownsampledHead")
    weights, reports = convert(state, model, cfg, part_order=order)
    keys = accounted(state, model, reports)
    assert keys["dropped"] == ["module.mean", "module.std"] and "missing" not in keys
    model.load_state_dict(weights)
    with torch.no_grad():
        features = model.features(images())
        part_logits = model.part_logits(images())
        close(model.class_logits(images()), wanted["class_logits"])
    # Background is the public code's first label and our last one.
    public = [*(1 + place for place in order), 0]
    close(part_logits[:, :, ::9, ::9], wanted["part_logits"][:, public])
    close(sample(features["res2"]), wanted["res2"])
    close(sample(features["res5"]), wanted["res5"])


@pytest.mark.parametrize("name", ["two_headed", "bounding_box"])
def test_predecessor_s_other_models_give_the_same_class_logits(name):
    state, wanted = published(name)
    head = {"two_headed": "TwoHeadedHead", "bounding_box": "BoundingBoxHead"}[name]
    model, cfg = build(*SMP, head, "MODEL.BOUNDING_BOX_HEAD.NORMALIZE", "published")
    weights, reports = convert(state, model, cfg, part_order=[2, 0, 1, 5, 3, 4])
    keys = accounted(state, model, reports)
    folded = [key for key in keys["dropped"] if ".core_model.2." in key]
    assert len(folded) == (5 if name == "bounding_box" else 0)
    assert set(keys["dropped"]) - set(folded) == {"module.mean", "module.std"} and "missing" not in keys
    model.load_state_dict(weights)
    with torch.no_grad():
        close(model.class_logits(images()[..., :224] if folded else images()), wanted["class_logits"])


def test_mpm_gives_the_same_numbers():
    state, wanted = published("mpm")
    model, cfg = build(*GELU, "MODEL.PART_CLASSIFIER.HEAD", "LinearHead")
    weights, reports = convert(state, model, cfg)
    keys = accounted(state, model, reports)
    assert {key.split(".")[0] for key in keys["dropped"]} == {
        *("cp1", "cp2", "cp3", "up_layer1", "up_layer2", "segmenter_head1", "segmenter_head2", "segmenter_head3")
    }
    assert "missing" not in keys
    model.load_state_dict(weights)
    with torch.no_grad():
        close(model.class_logits(images()), wanted["class_logits"])
        close(sample(model.features(images())["res5"]), wanted["res5"])


def test_dn_detr_s_resnet_gives_the_same_features():
    """Into a classifier here; of a DINO it is the same backbone, and nothing behind it fits."""
    state, wanted = published("dn_detr")
    model, cfg = build("MODEL.PART_CLASSIFIER.HEAD", "LinearHead", "MODEL.RESNETS.NORM", "FrozenBN")
    weights, reports = convert(state, model, cfg)
    keys = accounted(state, model, reports)
    assert [key for key in keys["dropped"] if "num_batches" not in key] == [k for k in state if "bbox_head" in k]
    assert all(key.startswith("head.") for key in keys["missing"])
    model.load_state_dict(weights, strict=False)
    with torch.no_grad():
        features = model.features(images())
    for name in STAGES:
        close(sample(features[name]), wanted[name])


def test_dn_detr_s_convnext_gives_the_same_features():
    """Before the norm that the public backbone ends with."""
    state, wanted = published("convnext")
    model, cfg = build(*CONVNEXT, "MODEL.PART_CLASSIFIER.HEAD", "LinearHead")
    weights, reports = convert_part_model(state, model.state_dict(), "mmdet", cfg)
    assert accounted(state, model, reports)["dropped"] == ["backbone.norm3.weight", "backbone.norm3.bias"]
    model.load_state_dict(weights, strict=False)
    with torch.no_grad():
        close(sample(model.features(images())["res5"]), wanted["res5"])


def test_detector_s_backbone_is_that_of_a_dino(toy_data):
    state, _ = published("dn_detr")
    dino = tiny_cfg("dino_detector", *RESNET_50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256)
    dino.merge_from_list(["MODEL.RESNETS.STEM_OUT_CHANNELS", 64, "MODEL.RESNETS.WIDTH_PER_GROUP", 64])
    model = build_model(dino)
    weights, reports = convert(state, model, dino)
    keys = accounted(state, model, reports)
    assert all(key.startswith("segmenter.") for key in keys["missing"])
    assert all(key.startswith("bbox_head.") for key in keys["dropped"])
    assert weights.keys() == {key for key in model.state_dict() if key.startswith("backbone.")}


def old_names(state):
    """Before the predecessor wrapped its models: a sequence of normalisation and model, or of the segmenter alone."""
    return {
        key.replace("module._model._segmenter.", "module.1.").replace("module.m", "module.0.m"): value
        for key, value in state.items()
        if "core_model" not in key
    }


def test_other_numbers_start_anew_and_older_names_are_known(downsampled):
    state, _ = downsampled
    model, cfg = on_meta(*SMP, "DownsampledHead", "MODEL.PART_CLASSIFIER.NUM_PARTS", 4)
    _, reports = convert(state, model, cfg, part_order=list(range(4)))
    anew = {a.ours for a in reports if a.action == "re-initialised"}
    assert {"segmenter.head.predictor.weight", "head.layers.1.weight", "head.layers.4.weight"} <= anew
    assert all(name.startswith(("segmenter.head.predictor", "head.")) for name in anew)
    # As of a Bounding-Box model with scores, into a head without.
    boxes = {key: value for key, value in state.items() if "core_model" not in key}
    boxes["module._model.core_model.3.weight"] = torch.zeros(50, 5 * PARTS)
    published_boxes = ["MODEL.BOUNDING_BOX_HEAD.NORMALIZE", "published", "MODEL.BOUNDING_BOX_HEAD.USE_SCORE", False]
    model, cfg = on_meta(*SMP, "BoundingBoxHead", *published_boxes)
    _, reports = convert(boxes, model, cfg)
    assert [a.ours for a in reports if a.action == "re-initialised"] == ["head.layers.0.weight"]
    model, cfg = on_meta(*SMP, "", "MODEL.RESNETS.NORM", "FrozenBN")
    weights, reports = convert(old_names(state), model, cfg)
    assert "missing" not in accounted(old_names(state), model, reports)
    assert torch.equal(weights["segmenter.head.predictor.bias"], state[PREDICTOR].roll(-1))


def on_meta(*opts):
    """A model without memory, whose names and shapes are all that is read."""
    cfg = get_part_robust_cfg(None, [*OPTS, *opts, "MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        return build_model(cfg), cfg


def test_what_has_no_counterpart_is_dropped_and_says_why(downsampled):
    state, _ = downsampled
    model, cfg = on_meta("MODEL.PART_CLASSIFIER.SEGMENTER", "DeepLabSegmenter", "MODEL.PART_CLASSIFIER.HEAD", "")
    weights, reports = convert(state, model, cfg)
    assert all(key.startswith("backbone.") for key in weights)
    why = {a.key: a.reason for a in reports if a.action == "dropped"}
    assert "SmpDeepLabSegmenter has it" in why[PREDICTOR]
    assert "another class head than MODEL.PART_CLASSIFIER.HEAD, none" in why["module._model.core_model.1.weight"]
    # A Bounding-Box head, whose keys have the same names.
    boxes = {key: value for key, value in state.items() if "core_model" not in key}
    boxes |= {f"module._model.core_model.{i}.weight": torch.zeros(30) for i in (2, 5)}
    model, cfg = on_meta(*SMP, "DownsampledHead")
    _, reports = convert(boxes, model, cfg)
    assert Counter(a.action for a in reports)["re-initialised"] == 0
    other, cfg_of_boxes = on_meta(*SMP, "BoundingBoxHead")
    _, reported = convert(boxes, other, cfg_of_boxes)
    reasons = {a.reason for a in reported if "core_model" in a.key}
    assert reasons == {
        "of another class head than MODEL.PART_CLASSIFIER.HEAD, BoundingBoxHead with NORMALIZE published"
    }
    assert {a.key for a in reports if a.action == "missing"} == {
        key for key in model.state_dict() if key.startswith("head.") and "num_batches" not in key
    }


@pytest.mark.parametrize(
    ("message", "opts"),
    [
        (r"RES5_DILATION must be 2 for layout smp, got 1", [*SMP, "", "MODEL.RESNETS.RES5_DILATION", 1]),
        (r"ASPP_DILATIONS must be \[12, 24, 36\]", [*SMP, "", "MODEL.SEM_SEG_HEAD.ASPP_DILATIONS", [6, 12, 18]]),
        (
            r"MODEL\.PART_CLASSIFIER\.HEAD_NORM must be a batch norm",
            [*SMP, "", "MODEL.PART_CLASSIFIER.HEAD_NORM", "GN"],
        ),
        (r"stride in the 3x3 convolution", [*SMP, "", "MODEL.RESNETS.STRIDE_IN_1X1", True]),
        (r"PIXEL_STD \[58\.395", [*SMP, "", "MODEL.PIXEL_STD", [1.0, 1.0, 1.0]]),
        (
            r"another shape than segmenter\.head\.(?:project|fuse).*the config's segmenter",
            [*SMP, "", "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS", [32]],
        ),
        (r"weights of the backbone are not in the file.*layout is not smp", [*SMP, "", "MODEL.RESNETS.DEPTH", 101]),
        (r"layout smp needs MODEL\.BACKBONE\.NAME build_resnet_backbone", [*GELU]),
    ],
)
def test_a_model_that_would_compute_something_else_is_refused(downsampled, message, opts):
    model, cfg = on_meta(*opts)
    with pytest.raises(ValueError, match=message):
        convert(downsampled[0], model, cfg)


def test_mpm_needs_gelu_and_wrong_layouts_are_named(downsampled):
    model, cfg = on_meta(*GELU[:-2], "MODEL.PART_CLASSIFIER.HEAD", "LinearHead")
    with pytest.raises(UserError, match="whose ResNet-50 has GELU"):
        convert_part_model({}, model.state_dict(), "mpm", cfg)
    model, cfg = on_meta(*SMP, "")
    with pytest.raises(ValueError, match="the layout is not mmdet"):
        convert_part_model(downsampled[0], model.state_dict(), "mmdet", cfg)
    assert detect_part_model_layout({"neck.convs.0.conv.weight": torch.zeros(1)}) is None


def test_parts_sorted_by_class():
    """PartImageNet's json begins with Quadruped and Biped; the predecessor begins with Aeroplane, then Bicycle."""
    classes = sorted(PART_IMAGENET)
    owners = [classes.index(name) for name, parts in PART_IMAGENET.items() for _ in parts]
    places = parts_by_class(torch.eye(len(classes))[owners])
    names = [(name, part) for name, parts in PART_IMAGENET.items() for part in parts]
    by_place = [names[places.index(place)] for place in range(len(names))]
    assert by_place == [(name, part) for name in classes for part in PART_IMAGENET[name]]
    with pytest.raises(UserError, match="--part-order must be same"):
        parts_by_class([[1, 1], [0, 1]])


def test_tool_takes_mpm_s_averaged_weights(tmp_path, capsys):
    timm = pytest.importorskip("timm")
    network = timm.create_model("test_resnet", act_layer="gelu", num_classes=CLASSES)
    inner = {f"segmenter.{key}": value for key, value in network.state_dict().items() if not key.startswith("fc.")}
    averaged = {key: torch.full_like(value, 3) for key, value in inner.items()} | {"cp1.0.weight": torch.zeros(1)}
    # As timm saves it, with the arguments of the training.
    saved = {"state_dict": inner, "state_dict_ema": averaged, "args": argparse.Namespace(lr=0.2, device="cuda")}
    torch.save(saved, tmp_path / "in.pth")
    opts = [*GELU, "MODEL.TIMM.NAME", "test_resnet", "MODEL.PART_CLASSIFIER.HEAD", "LinearHead"]
    config = tmp_path / "config.yaml"
    config.write_text(get_part_robust_cfg(None, [*OPTS, *opts]).dump())
    words = [str(tmp_path / "in.pth"), str(tmp_path / "out.pth"), "--config-file", str(config)]
    main([*words, "--layout", "mpm"])
    saved = torch.load(tmp_path / "out.pth")["model"]
    assert saved and all(bool((value == 3).all()) for value in saved.values())
    text = capsys.readouterr().out
    assert "layout: mpm" in text and "left out of the file: state_dict, args" in text and "the backbone sees" in text


def test_tool_orders_parts_by_class(tmp_path, toy_data, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        convert_part_models, "convert_part_model", lambda *a, part_order, **o: seen.update(order=part_order) or ({}, [])
    )
    torch.save({"state_dict": {"encoder.conv1.weight": torch.zeros(1)}}, tmp_path / "in.pth")
    path, root = map(str, toy_data)
    data = [
        "DATASETS.REGISTER",
        [["toy_train", path, root], ["toy_val", path, root]],
        "MODEL.PART_CLASSIFIER.SEGMENTER",
        "SmpDeepLabSegmenter",
    ]
    config = tmp_path / "config.yaml"
    config.write_text(tiny_cfg("deeplab_segmenter", *data).dump())
    words = [str(tmp_path / "in.pth"), str(tmp_path / "out.pth"), "--config-file", str(config), "--layout", "smp"]
    main(words)
    assert seen["order"] == [0, 1, 2]
    main([*words, "--part-order", "same"])
    assert seen["order"] is None
    with pytest.raises(SystemExit, match="--part-order must be same where the config's training set is not there"):
        main([*words, "DATASETS.TRAIN", "('part_robust_paco_train',)", *map(str, OPTS[-4:])])


@pytest.mark.parametrize("size", [(32, 32), (33, 47)])
def test_decoder_learns_and_gives_logits_of_every_pixel(size, toy_data):
    model = build_model(tiny_cfg("deeplab_downsampled", "MODEL.PART_CLASSIFIER.SEGMENTER", "SmpDeepLabSegmenter"))
    pixels = torch.rand(2, 3, *size) * 255
    output = model.segmenter(model.features(pixels), size)
    assert output.sem_seg_logits.shape == (2, 4, *size)
    logits = model.head(model.features(pixels), output)
    (logits.sum() + output.sem_seg_logits.square().sum()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.segmenter.parameters())
    with pytest.raises(UserError, match="IN_FEATURES must be two features"):
        build_model(
            tiny_cfg(
                "deeplab_segmenter",
                *("MODEL.PART_CLASSIFIER.SEGMENTER", "SmpDeepLabSegmenter", "MODEL.RESNETS.OUT_FEATURES", STAGES),
                *("MODEL.SEM_SEG_HEAD.IN_FEATURES", STAGES[1:], "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS", [4, 4]),
            )
        )
