"""Backbones of timm under every segmenter: shapes, odd sizes, training, freezing, what is refused."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from detectron2.modeling.backbone import Backbone

from part_robust.attacks import attack_batch, attack_mode, build_attack
from part_robust.data import PartDatasetMapper
from part_robust.engine import train
from part_robust.modeling.activation_checkpointing import checkpoint_activations
from part_robust.modeling.timm_backbone import TimmBackbone, check_normalisation
from tests.toy import ADVERSARIAL, run_cfg, tiny_cfg

CONVNEXT = ["convnext_tiny", [["dims", [8, 16, 24, 32]], ["depths", [1, 1, 1, 1]]]]
SWIN = [
    "swin_tiny_patch4_window7_224",
    [["embed_dim", 8], ["depths", [1, 2, 1, 1]], ["num_heads", [1, 2, 2, 2]]],
]
RESNET = ["resnet10t", []]
SEGMENTERS = ["deeplab_two_headed", "dino_sequential", "mask_dino_simple"]


def opts(kind, *more) -> list:
    name, options = kind
    return [
        *("MODEL.BACKBONE.NAME", "build_timm_backbone"),
        *("MODEL.TIMM.NAME", name),
        *("MODEL.TIMM.OPTIONS", options),
        *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
        *("MODEL.RESNETS.RES5_DILATION", 1),
        *more,
    ]


def build(kind, *more) -> TimmBackbone:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    return build_backbone(tiny_cfg("resnet", *opts(kind, *more))).eval()


@pytest.mark.parametrize("kind", [CONVNEXT, SWIN, RESNET], ids=lambda kind: kind[0])
@pytest.mark.parametrize("size", [(64, 64), (50, 71), (224, 224), (33, 20)])
def test_features_are_what_is_announced(kind, size):
    backbone = build(kind)
    assert isinstance(backbone, Backbone)
    shapes = backbone.output_shape()
    assert {name: shape.stride for name, shape in shapes.items()} == {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
    with torch.no_grad():
        features = backbone(torch.randn(2, 3, *size))
    assert features.keys() == shapes.keys()
    for name, feature in features.items():
        shape = shapes[name]
        assert feature.shape == (2, shape.channels, *(-(-side // shape.stride) for side in size)), name
        assert torch.isfinite(feature).all() and feature.std() > 0


@pytest.mark.parametrize("kind", [CONVNEXT, SWIN], ids=lambda kind: kind[0])
def test_features_lie_over_the_image(kind):
    """A spot in the lower right corner shows in the lower right corner, channels first, for odd sizes too."""
    backbone = build(kind)
    image = torch.zeros(1, 3, 68, 100)
    spot = image.clone()
    spot[..., 60:, 92:] = 3.0
    with torch.no_grad():
        change = (backbone(spot)["res2"] - backbone(image)["res2"]).abs().sum(dim=1)[0]
    row, column = divmod(int(change.argmax()), change.shape[1])
    assert row >= 14 and column >= 22


def test_multiples_of_32_are_not_padded_and_odd_sizes_only_at_the_end():
    backbone = build(CONVNEXT)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for feature, wanted in zip(backbone(images).values(), backbone.net(images), strict=True):
            assert torch.equal(feature, wanted)


def test_only_what_is_asked_for_and_dilated():
    backbone = build(CONVNEXT, "MODEL.RESNETS.OUT_FEATURES", ["res2", "res5"], "MODEL.RESNETS.RES5_DILATION", 2)
    assert backbone.output_shape() == {
        "res2": ShapeSpec(channels=8, stride=4),
        "res5": ShapeSpec(channels=32, stride=16),
    }
    features = backbone(torch.zeros(1, 3, 50, 70))
    assert {name: tuple(f.shape) for name, f in features.items()} == {"res2": (1, 8, 13, 18), "res5": (1, 32, 4, 5)}


@pytest.mark.parametrize("kind", [CONVNEXT, SWIN], ids=lambda kind: kind[0])
@pytest.mark.parametrize("segmenter", SEGMENTERS)
def test_every_segmenter(toy_data, kind, segmenter):
    """Losses reach the backbone, and attacks find a gradient."""
    pytest.importorskip("timm")
    torch.manual_seed(0)
    cfg = tiny_cfg(segmenter, *opts(kind))
    model = build_model(cfg)
    mapper = PartDatasetMapper(cfg, is_train=False, dataset_name="toy_val")
    batch = [mapper(record) for record in DatasetCatalog.get("toy_val")[:4]]
    sum(model(batch).values()).backward()
    reached = [name for name, p in model.backbone.named_parameters() if p.grad is not None and p.grad.any()]
    assert len(reached) > 0.8 * len(list(model.backbone.parameters()))
    with attack_mode(model.eval()) as inner:
        result, _ = attack_batch(build_attack({"STEPS": 1}), inner, batch, torch.arange(4))
    assert not result.zero_gradient.any()
    assert "class_logits" in model(batch)[0]


def test_company_does_not_matter(toy_data):
    backbone = build(SWIN)
    images = torch.randn(3, 3, 40, 56)
    with torch.no_grad():
        together, alone = backbone(images), backbone(images[:1])
    for name, feature in alone.items():
        torch.testing.assert_close(together[name][:1], feature, rtol=1e-4, atol=1e-5)


def test_adversarial_training(toy_data, tmp_path):
    pytest.importorskip("timm")
    cfg = run_cfg(tmp_path, *ADVERSARIAL, *opts(SWIN), "SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 2)
    assert "classification_pgd20" in train(cfg)


@pytest.mark.parametrize("kind", [CONVNEXT, SWIN, RESNET], ids=lambda kind: kind[0])
def test_freezing(kind):
    assert all(p.requires_grad for p in build(kind).parameters())
    stem, res2 = (build(kind, "MODEL.BACKBONE.FREEZE_AT", stage) for stage in (1, 2))
    frozen = [{name for name, p in b.named_parameters() if not p.requires_grad} for b in (stem, res2)]
    assert frozen[0] and frozen[0] < frozen[1]
    assert any(p.requires_grad for p in res2.parameters())
    assert all(not name.startswith(("net.layers_2", "net.stages_2", "net.layer3")) for name in frozen[1])
    # Frozen batch norms keep their statistics in training.
    before = {key: value.clone() for key, value in res2.net.state_dict().items() if "running" in key}
    res2.train()(torch.randn(2, 3, 64, 64))
    changed = {key for key, value in before.items() if not torch.equal(value, res2.net.state_dict()[key])}
    assert all(key.startswith(("layer2", "layer3", "layer4")) for key in changed)
    assert bool(changed) == (kind is RESNET)


@pytest.mark.parametrize("kind", [CONVNEXT, SWIN, RESNET], ids=lambda kind: kind[0])
def test_activations_computed_again_change_nothing(kind):
    """Gradients, statistics of batch norms and random depth are the same, from less that is kept."""
    name, options = kind
    plain = build([name, [*options, *([["drop_path_rate", 0.5]] if kind is not RESNET else [])]]).train()
    again = copy.deepcopy(plain)
    assert checkpoint_activations(again, ["backbone"]) == (5 if kind is SWIN else 4), "one for each block"
    images = torch.randn(2, 3, 64, 64)
    found, kept = [], []
    for backbone in (plain, again):
        size = [0]
        torch.manual_seed(1)

        def pack(tensor, size=size):
            size[0] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = sum(feature.square().mean() for feature in backbone(images).values())
        loss.backward()
        found.append({name: p.grad for name, p in backbone.named_parameters() if p.grad is not None})
        kept.append(size[0])
    assert found[0].keys() == found[1].keys() and len(found[0]) > 10
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value)
    assert kept[1] < 0.6 * kept[0]


def test_norms():
    for norm, word in (("FrozenBN", "Frozen"), ("SyncBN", "Sync")):
        kinds = {type(module).__name__ for module in build(RESNET, "MODEL.RESNETS.NORM", norm).modules()}
        assert any(word in kind for kind in kinds) and not kinds & {"BatchNorm2d", "BatchNormAct2d"}
    with pytest.raises(ValueError, match=r"MODEL\.RESNETS\.NORM must be one of"):
        build(RESNET, "MODEL.RESNETS.NORM", "GN")


def test_conv_stem():
    """48 and 96 channels in ConvNeXt-T; what it sees is a quarter of the image's sides."""
    backbone = build(["convnext_tiny", []], "MODEL.TIMM.CONV_STEM", True, "MODEL.DEVICE", "cpu")
    stem = backbone.net.stem_0
    assert [tuple(stem[i].weight.shape) for i in (0, 3)] == [(48, 3, 3, 3), (96, 48, 3, 3)]
    assert stem(torch.zeros(1, 3, 64, 64)).shape == (1, 96, 16, 16)
    classifier = 768 * 1000 + 1000 + 2 * 768
    total = sum(p.numel() for p in backbone.parameters()) + classifier
    assert round(total / 1e6, 1) == 28.6, "the published number of parameters"
    with pytest.raises(ValueError, match=r"CONV_STEM is for ConvNeXt"):
        build(SWIN, "MODEL.TIMM.CONV_STEM", True)


def test_what_cannot_be_is_said_in_a_sentence():
    for message, kind, more in (
        (r"RES5_DILATION 1", SWIN, ["MODEL.RESNETS.RES5_DILATION", 2]),
        (r"convnext_tinyy", ["convnext_tinyy", []], []),
        (r"MODEL\.TIMM\.OPTIONS of convnext_tiny: .*widht", ["convnext_tiny", [["widht", 3]]], []),
        (r"strides \[16, 16, 16\]", ["vit_tiny_patch16_224", []], []),
        (r"may name res2, res3, res4, res5, not p5", RESNET, ["MODEL.RESNETS.OUT_FEATURES", ["p5"]]),
    ):
        with pytest.raises(ValueError, match=message):
            build(kind, *more)


def test_weights_of_another_normalisation_are_refused():
    cfg = tiny_cfg()
    usual = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    check_normalisation(usual, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    with pytest.raises(ValueError, match=r"MODEL\.PIXEL_MEAN \[127\.5, 127\.5, 127\.5\]"):
        check_normalisation({**usual, "mean": (0.5, 0.5, 0.5)}, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    with pytest.raises(ValueError, match=r"MODEL\.PIXEL_STD"):
        check_normalisation(usual, cfg.MODEL.PIXEL_MEAN, [1.0, 1.0, 1.0])


def test_without_timm_the_mend_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"pip install part_robust\[timm\]"):
        build_backbone(tiny_cfg("resnet", *opts(CONVNEXT)))
