"""ImageNet classifiers, mostly adversarially trained ones, -> weights of our backbone, with a report of every key.

Three layouts: torchvision's ResNets into detectron2's; timm's models, and the EfficientNet-Lites of the package index
(engine/packaged_weights.py), into `build_timm_backbone`. Wrappers are taken off: DistributedDataParallel, the
`robustness` library (Engstrom et al., 2019), a normalisation in front of the network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from detectron2.config import CfgNode
from torch import Tensor

from part_robust.modeling.convert import KeyReport

LAYOUTS = ("torchvision", "timm", "efficientnet_lite")
# Mean and standard deviation that images were normalised with where a file does not say; RGB, 0..1.
USUAL = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALVES = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

_NORMALISER = re.compile(r"(?:(?:normalizer|normalize)\.(?:new_)?)?(mean|std)")
_TORCHVISION = (
    (r"conv1\.(.+)", r"stem.conv1.\1"),
    (r"bn1\.(.+)", r"stem.conv1.norm.\1"),
    (r"layer(\d)\.(\d+)\.downsample\.0\.(.+)", r"res<\1>.\2.shortcut.\3"),
    (r"layer(\d)\.(\d+)\.downsample\.1\.(.+)", r"res<\1>.\2.shortcut.norm.\3"),
    (r"layer(\d)\.(\d+)\.conv(\d)\.(.+)", r"res<\1>.\2.conv\3.\4"),
    (r"layer(\d)\.(\d+)\.bn(\d)\.(.+)", r"res<\1>.\2.conv\3.norm.\4"),
)
# Inside a block: without an expansion, which a stage's first block may lack, and with one.
_LITE_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LITE_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_DROPPED = (
    (
        r"(?:fc|classifier|head)\..+|norm\.(?:weight|bias)|(?:_conv_head|_bn1|_fc)\..+",
        "behind the features: the classifier of ImageNet",
    ),
    (r".+\.num_batches_tracked", "a counter that this model's norms do not have"),
    (r".+\.(?:attn_mask|relative_position_index)", "computed from the size of the image"),
)


def unwrapped(key: str) -> str:
    """The key as the network itself names it."""
    return re.sub(r"^(?:module\.|_orig_mod\.|base_model\.|_?model\.)+", "", key)


def detect_imagenet_layout(state: Mapping[str, Tensor], model_state: Mapping[str, Tensor]) -> str | None:
    """A name of LAYOUTS, or None if the keys are of neither. A ResNet's are of both; then the model decides."""
    keys = [unwrapped(key) for key in state]
    into_timm = any(key.startswith("backbone.net.") for key in model_state)
    if "conv1.weight" in keys and any(key.startswith("layer1.") for key in keys):
        return "timm" if into_timm else "torchvision"
    if into_timm and "_conv_stem.weight" in keys and not any("._se_reduce." in key for key in keys):
        return "efficientnet_lite"
    return "timm" if into_timm and any(re.match(r"(stages|layers)\.0\.", key) for key in keys) else None


def convert_imagenet(
    state: Mapping[str, Tensor], model_state: Mapping[str, Tensor], layout: str, cfg: CfgNode, *, trust: bool = False
) -> tuple[dict[str, Tensor], list[KeyReport]]:
    """Renames a classifier's weights for the backbone of a model of ours.

    Args:
        state: the file's weights.
        model_state: of the model, whose names and shapes decide.
        layout: a name of LAYOUTS.
        cfg: of the model.
        trust: the config's normalisation is right although the file does not say so and it is not ImageNet's usual one.

    Returns:
        The backbone's weights, all of them, and one `KeyReport` per key of the file and per key of the model that the
        file lacks.

    Raises:
        ValueError: the backbone would see other images, or compute something else, than the one that was trained;
            weights of it are missing or of another shape.
    """
    check_backbone(cfg, layout)
    return rename(state, model_state, layout, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, trust)


def rename(
    state: Mapping[str, Tensor],
    model_state: Mapping[str, Tensor],
    layout: str,
    mean: Sequence[float],
    std: Sequence[float],
    trust: bool = False,
) -> tuple[dict[str, Tensor], list[KeyReport]]:
    """Same as `convert_imagenet`, for a model whose backbone is known to be of the layout.

    Args:
        state: see `convert_imagenet`.
        model_state: see `convert_imagenet`.
        layout: see `convert_imagenet`.
        mean: of the model's normalisation, RGB, 0..255.
        std: of the model's normalisation, RGB, 0..255.
        trust: see `convert_imagenet`.

    Raises:
        ValueError: same as `convert_imagenet`.
    """
    normaliser: dict[str, Tensor] = {}
    result: dict[str, Tensor] = {}
    reports = []
    for key, value in state.items():
        short = unwrapped(key)
        match = _NORMALISER.fullmatch(short)
        if match:
            normaliser[match[1]] = value.flatten()
            reports.append(KeyReport("dropped", key, reason=f"in the config it is MODEL.PIXEL_{match[1].upper()}"))
            continue
        if short.startswith("attacker."):
            reports.append(KeyReport("dropped", key, reason="a second name, for the library's attacks"))
            continue
        name = _name(short, layout, model_state)
        if name is None:
            reports.append(KeyReport("dropped", key, reason=_reason(short)))
            continue
        if value.shape != model_state[name].shape:
            raise ValueError(
                f"{key} has shape {tuple(value.shape)}, the model's {name} {tuple(model_state[name].shape)}: the "
                "config's backbone is another architecture than the file's"
            )
        result[name] = value
        reports.append(KeyReport("renamed", key, name))
    check_normalisation(normaliser, mean, std, trust, HALVES if layout == "efficientnet_lite" else USUAL)
    lacking = [name for name in model_state if name not in result and not name.endswith("num_batches_tracked")]
    fatal = [name for name in lacking if name.startswith("backbone.")]
    if fatal:
        raise ValueError(
            f"{len(fatal)} weights of the backbone are not in the file, first {fatal[0]}: the config's backbone is "
            f"another architecture, or the layout is not {layout}{_hint(state, model_state)}"
        )
    reports += [KeyReport("missing", name, reason="no part of a backbone, keeps its initial value") for name in lacking]
    return result, reports


def check_backbone(cfg: CfgNode, layout: str, resnet: bool | None = None) -> None:
    """Check that weights mean the same in the config's backbone.

    Args:
        cfg: of the model.
        layout: its name, for messages.
        resnet: they are of torchvision's ResNet, for detectron2's, and not for timm's models; None: by the layout.

    Raises:
        ValueError: weights of this layout would load into the config's backbone and mean something else there.
    """
    resnet = layout == "torchvision" if resnet is None else resnet
    wanted = "build_resnet_backbone" if resnet else "build_timm_backbone"
    if cfg.MODEL.BACKBONE.NAME != wanted:
        raise ValueError(f"layout {layout} needs MODEL.BACKBONE.NAME {wanted}, is {cfg.MODEL.BACKBONE.NAME}")
    if cfg.INPUT.FORMAT != "RGB":
        raise ValueError(f"layout {layout} was trained on RGB, INPUT.FORMAT is {cfg.INPUT.FORMAT}")
    if resnet and cfg.MODEL.RESNETS.STRIDE_IN_1X1:
        raise ValueError(
            "torchvision's ResNets stride in the 3x3 convolution: with MODEL.RESNETS.STRIDE_IN_1X1 True the same "
            "weights would load and compute something else, set it False"
        )


def check_normalisation(
    normaliser: Mapping[str, Tensor],
    mean: Sequence[float],
    std: Sequence[float],
    trust: bool = False,
    usual: Mapping[str, Sequence[float]] = USUAL,
) -> None:
    """Check that the config normalises images as the classifier was trained.

    Args:
        normaliser: "mean" and "std" of the file, 0..1, where it has them.
        mean: MODEL.PIXEL_MEAN, 0..255.
        std: MODEL.PIXEL_STD.
        trust: of `convert_imagenet`.
        usual: of such files, 0..1, RGB.

    Raises:
        ValueError: the backbone would see other numbers than it was trained on.
    """
    for name, ours in (("mean", mean), ("std", std)):
        if name not in normaliser and trust:
            continue
        own = normaliser.get(name, torch.tensor(usual[name])).double() * 255.0
        if not torch.allclose(own, torch.tensor(ours, dtype=torch.float64), atol=0.05):
            who = (
                "the file's normalisation is"
                if name in normaliser
                else f"the file does not say, {'ImageNet' if usual is USUAL else 'EfficientNet-Lite'}'s usual one is"
            )
            raise ValueError(
                f"{who} MODEL.PIXEL_{name.upper()} {[round(v, 3) for v in own.tolist()]} (RGB, 0..255), the config has "
                f"{list(ours)}"
            )


def _name(key: str, layout: str, model_state: Mapping[str, Tensor]) -> str | None:
    if layout == "efficientnet_lite":
        name = f"backbone.net.{_lite_name(key, model_state)}"
        return name if name in model_state else None
    if layout == "torchvision":
        for pattern, replacement in _TORCHVISION:
            match = re.fullmatch(pattern, key)
            if match:  # torchvision's layer1 is detectron2's res2
                key = re.sub(r"<(\d)>", lambda m: str(int(m[1]) + 1), match.expand(replacement))
                break
        names = [f"backbone.{key}"]
    else:
        # timm joins the first two components of modules that give features; the stem of the "CvSt" files is one module.
        key = re.sub(r"^stem\.stem\.", "stem.0.", key)
        names = [f"backbone.net.{key}", f"backbone.net.{key.replace('.', '_', 1)}"]
    return next((name for name in names if name in model_state), None)


def _lite_name(key: str, model_state: Mapping[str, Tensor]) -> str | None:
    """Return timm's name of a weight of an EfficientNet-Lite, whose blocks are numbered through all stages."""
    if stem := re.fullmatch(r"_(conv_stem|bn0)\.(.+)", key):
        return f"{stem[1].replace('bn0', 'bn1')}.{stem[2]}"
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(.+)", key)
    if match is None:
        return None
    found = (re.match(r"backbone\.net\.blocks\.(\d+)\.(\d+)\.", name) for name in model_state)
    blocks = sorted({(int(place[1]), int(place[2])) for place in found if place})
    if int(match[1]) >= len(blocks):
        return None
    block = "blocks.{}.{}".format(*blocks[int(match[1])])
    expanded = f"backbone.net.{block}.conv_pwl.weight" in model_state
    layer = (_LITE_EXPANDED if expanded else _LITE_PLAIN).get(match[2])
    return layer and f"{block}.{layer}.{match[3]}"


def _reason(key: str) -> str:
    return next((reason for pattern, reason in _DROPPED if re.fullmatch(pattern, key)), "unknown key")


def _hint(state: Mapping[str, Tensor], model_state: Mapping[str, Tensor]) -> str:
    """Return a hint from the stems."""
    convolutions = any(unwrapped(key).startswith("stem.stem.") for key in state)
    if convolutions != ("backbone.net.stem_0.3.weight" in model_state):
        return f"; its stem wants MODEL.TIMM.CONV_STEM {convolutions}"
    return ""
