"""Published robust part models and detectors -> weights of our models, with a report of every key.

Three layouts:
    "smp": DeepLabv3+ part models of Sitawarin et al. (2023; chawins/adv-part-model), on segmentation-models-pytorch;
    "mpm": the ResNet-50 with GELU of Li et al. (2024; LixiaoTHU/PartImageNetPP), on timm;
    "mmdet": adversarially trained detectors of Li et al. (2025; thu-ml/oddefense), on mmdet 2: their backbones.
What has an exact counterpart here is carried over; docs/backbones.md lists what has none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from detectron2.config import CfgNode
from torch import Tensor

from part_robust.modeling.convert import KeyReport, Rules, apply_rules, torchvision_rules
from part_robust.modeling.convert_imagenet import check_backbone, check_normalisation
from part_robust.utils.errors import UserError

LAYOUTS = ("smp", "mpm", "mmdet")
SMP_SEGMENTER = "SmpDeepLabSegmenter"

_SMP_PREFIX = re.compile(r"(?:_?model\.|1\.)?(?:_?segmenter\.)?(?:1\.)?")
_DECODER = r"segmenter.head"
_SMP: Rules = (
    *torchvision_rules(r"encoder\."),
    (r"decoder\.aspp\.0\.convs\.0\.0\.(.+)", rf"{_DECODER}.branches.0.\1", ""),
    (r"decoder\.aspp\.0\.convs\.0\.1\.(.+)", rf"{_DECODER}.branches.0.norm.\1", ""),
    (r"decoder\.aspp\.0\.convs\.([123])\.0\.([01])\.(.+)", rf"{_DECODER}.branches.\1.\2.\3", ""),
    (r"decoder\.aspp\.0\.convs\.([123])\.1\.(.+)", rf"{_DECODER}.branches.\1.1.norm.\2", ""),
    (r"decoder\.aspp\.0\.convs\.4\.1\.(.+)", rf"{_DECODER}.pooled.\1", ""),
    (r"decoder\.aspp\.0\.convs\.4\.2\.(.+)", rf"{_DECODER}.pooled.norm.\1", ""),
    (r"decoder\.aspp\.0\.project\.0\.(.+)", rf"{_DECODER}.merge.\1", ""),
    (r"decoder\.aspp\.0\.project\.1\.(.+)", rf"{_DECODER}.merge.norm.\1", ""),
    (r"decoder\.aspp\.1\.([01])\.(.+)", rf"{_DECODER}.refine.\1.\2", ""),
    (r"decoder\.aspp\.2\.(.+)", rf"{_DECODER}.refine.1.norm.\1", ""),
    (r"decoder\.block1\.0\.(.+)", rf"{_DECODER}.project.\1", ""),
    (r"decoder\.block1\.1\.(.+)", rf"{_DECODER}.project.norm.\1", ""),
    (r"decoder\.block2\.0\.([01])\.(.+)", rf"{_DECODER}.fuse.\1.\2", ""),
    (r"decoder\.block2\.1\.(.+)", rf"{_DECODER}.fuse.1.norm.\1", ""),
    (r"segmentation_head\.(?:heads\.1\.)?0\.(.+)", rf"{_DECODER}.predictor.\1", ""),
    (r"segmentation_head\.heads\.0\..+", None, "a class head on the decoder's features, which no model here has"),
    (r"(?:feature_extactor\.)?grid", None, "computed from the size of the image"),
)
# Of the predecessor's heads, by the head of the config.
_SMP_HEADS: dict[str, Rules] = {
    "DownsampledHead": (
        (r"core_model\.([128])\.(.+)", r"head.layers.\1.\2", ""),
        (r"core_model\.5\.(.+)", r"head.layers.4.\1", ""),
        (r"core_model\.6\.(.+)", r"head.layers.5.\1", ""),
    ),
    "TwoHeadedHead": ((r"classification_head\.([1347])\.(.+)", r"head.layers.\1.\2", ""),),
}

_MPM_BYPASS = "supervises parts in training, beside the path of the class; no model here has it"
_MPM: Rules = (
    (r"segmenter\.((?:conv1|bn1|layer\d)\..+)", r"backbone.net.\1", ""),
    (r"(?:cp\d|up_layer\d|segmenter_head\d)\..+", None, _MPM_BYPASS),
)
_MPM_HEADS: dict[str, Rules] = {"LinearHead": ((r"classifer\.2\.(.+)", r"head.classifier.\1", ""),)}

_CONVNEXT = r"backbone\.stages\.(\d)\.(\d+)\."
_STAGE = r"backbone.net.stages_\1"
_MMDET: Rules = (
    *torchvision_rules(r"backbone\."),
    (r"backbone\.downsample_layers\.0\.(\d)\.(.+)", r"backbone.net.stem_\1.\2", ""),
    (r"backbone\.downsample_layers\.(\d)\.(\d)\.(.+)", rf"{_STAGE}.downsample.\2.\3", ""),
    (_CONVNEXT + r"depthwise_conv\.(.+)", rf"{_STAGE}.blocks.\2.conv_dw.\3", ""),
    (_CONVNEXT + r"pointwise_conv(\d)\.(.+)", rf"{_STAGE}.blocks.\2.mlp.fc\3.\4", ""),
    (_CONVNEXT + r"((?:norm\.|gamma).*)", rf"{_STAGE}.blocks.\2.\3", ""),
    (r"backbone\.norm\d\..+", None, "a norm behind the backbone's features; segmenters here have their own"),
    (
        r"bbox_head\.transformer\.encoder\..+",
        None,
        "attends to all pixels of one level; DINO's encoder samples points of several",
    ),
    (r"bbox_head\.transformer\.decoder\..+", None, "decodes by attention to all pixels; DINO's decoder samples points"),
    (
        r"bbox_head\.(?:transformer\..+|refpoint_embed\..+|label_enc\..+)",
        None,
        "DN-DETR's queries; DINO chooses its own",
    ),
    (r"bbox_head\.input_proj\..+", None, "projects one level, without a norm; DINO projects several"),
    (r"(?:bbox_head|neck|rpn_head|roi_head)\..+", None, "behind the backbone, in another kind of detector"),
)
_RULES = {"smp": _SMP, "mpm": _MPM, "mmdet": _MMDET}
_HEADS = {"smp": _SMP_HEADS, "mpm": _MPM_HEADS, "mmdet": {}}
_FILE_HEAD = re.compile(r"(?:core_model|classification_head|classifer)\..+")
# Depend on the numbers of parts and classes; of other numbers they start anew.
_COUNTED = re.compile(r"segmenter\.head\.predictor\..+|head\..+")
_FIXED = {"ASPP_DILATIONS": [12, 24, 36], "IN_FEATURES": ["res2", "res5"]}


def detect_part_model_layout(state: Mapping[str, Tensor]) -> str | None:
    """A name of LAYOUTS, or None if the keys are of neither."""
    keys = {_short(key, "") for key in state}
    if any(_short(key, "smp").startswith("decoder.aspp.0.convs.") for key in keys):
        return "smp"
    if "segmenter.conv1.weight" in keys:
        return "mpm"
    detector = any(key.startswith(("bbox_head.", "roi_head.")) for key in keys)
    return "mmdet" if detector and any(key.startswith("backbone.") for key in keys) else None


def convert_part_model(
    state: Mapping[str, Tensor],
    model_state: Mapping[str, Tensor],
    layout: str,
    cfg: CfgNode,
    *,
    trust: bool = False,
    part_order: Sequence[int] | None = None,
) -> tuple[dict[str, Tensor], list[KeyReport]]:
    """Renames a published model's weights for a model of ours.

    Args:
        state: the file's weights.
        model_state: of the model, whose names and shapes decide.
        layout: a name of LAYOUTS.
        cfg: of the model.
        trust: see `convert_imagenet`.
        part_order: of layout "smp": for each part of the model its place among the file's parts, which come after the
            background there; None: the same order.

    Returns:
        The weights, among them all of the backbone, and one `KeyReport` per key of the file and per key of the model
        that the file lacks.

    Raises:
        ValueError: the config's backbone would see other images, or compute something else, than the one that was
            trained; weights of it are missing or of another shape; nothing fits.
    """
    check_architecture(state, layout, cfg)
    head = cfg.MODEL.PART_CLASSIFIER.HEAD
    own_head = _HEADS[layout].get(head, ())
    if head == "DownsampledHead" and not _has_downsampled_head(state):
        own_head = ()
    rules = (*own_head, *_RULES[layout])
    # Detectron2's decoder has a layer of the same name and shape.
    decodes = cfg.MODEL.PART_CLASSIFIER.SEGMENTER == SMP_SEGMENTER
    normaliser: dict[str, Tensor] = {}
    result: dict[str, Tensor] = {}
    reports = []
    for key, value in state.items():
        short = _short(key, layout)
        if layout == "smp" and (match := re.fullmatch(r"(?:0\.)?(mean|std)", short)):
            normaliser[match[1]] = value.flatten()
            reports.append(KeyReport("dropped", key, reason=f"in the config it is MODEL.PIXEL_{match[1].upper()}"))
            continue
        name, reason = apply_rules(short, rules)
        if name is None or name not in model_state or (name.startswith(_DECODER) and not decodes):
            reports.append(KeyReport("dropped", key, reason=_reason(short, name, reason, head)))
            continue
        if layout == "smp":
            value = _as_ours(value, name, part_order, not cfg.MODEL.DOWNSAMPLED_HEAD.DROP_BACKGROUND)
        if value.shape != model_state[name].shape:
            shapes = f"{tuple(value.shape)} in the file, {tuple(model_state[name].shape)} in the model"
            if not _COUNTED.fullmatch(name):
                raise ValueError(
                    f"{key} has another shape than {name} ({shapes}): the config's {name.split('.')[0]} "
                    "is another architecture than the file's"
                )
            reports.append(KeyReport("re-initialised", key, name, shapes))
            result[name] = model_state[name].clone()
            continue
        result[name] = value
        reports.append(KeyReport("renamed", key, name))
    lacking = [name for name in model_state if name not in result and not name.endswith("num_batches_tracked")]
    fatal = [name for name in lacking if name.startswith("backbone.")]
    if fatal:
        raise ValueError(
            f"{len(fatal)} weights of the backbone are not in the file, first {fatal[0]}: the config's backbone is "
            f"another architecture, or the layout is not {layout}"
        )
    check_normalisation(normaliser, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, trust)
    reports += [KeyReport("missing", name, reason="not in the file, keeps its initial value") for name in lacking]
    return result, reports


def check_architecture(state: Mapping[str, Tensor], layout: str, cfg: CfgNode) -> None:
    """Check what no weight tells: activations, strides and dilations.

    Raises:
        ValueError: weights of this layout would load into the config's model and compute something else there.
    """
    convnext = any("backbone.downsample_layers." in key for key in state)
    check_backbone(cfg, layout, resnet=layout != "mpm" and not convnext)
    if layout == "mpm" and dict(cfg.MODEL.TIMM.OPTIONS).get("act_layer") != "gelu":
        raise UserError(
            'MODEL.TIMM.OPTIONS must be [["act_layer", "gelu"]] for layout mpm, whose ResNet-50 has GELU, got '
            f"{list(cfg.MODEL.TIMM.OPTIONS)}: add configs/models/resnet50_gelu.yaml to the config"
        )
    if layout != "smp" or cfg.MODEL.PART_CLASSIFIER.SEGMENTER != SMP_SEGMENTER:
        return
    if cfg.MODEL.RESNETS.RES5_DILATION != 2:
        raise UserError(
            f"MODEL.RESNETS.RES5_DILATION must be 2 for layout smp, got {cfg.MODEL.RESNETS.RES5_DILATION}: the "
            "decoder was trained on features at stride 16"
        )
    for key, value in _FIXED.items():
        if list(cfg.MODEL.SEM_SEG_HEAD[key]) != value:
            raise UserError(
                f"MODEL.SEM_SEG_HEAD.{key} must be {value} for layout smp, got {list(cfg.MODEL.SEM_SEG_HEAD[key])}: "
                "the same weights would compute something else"
            )


def parts_by_class(matrix: npt.ArrayLike) -> list[int]:
    """Return each part's place where parts are sorted by class, as the predecessor prepares PartImageNet.

    Args:
        matrix: (P, C), the part-to-class matrix of the data set.

    Raises:
        UserError: a part belongs to several classes, or to none.
    """
    owners = np.asarray(matrix) > 0
    if not (owners.sum(axis=1) == 1).all():
        raise UserError(
            "--part-order must be same where a part belongs to several classes or to none, got by-class: such parts "
            "cannot be sorted by class"
        )
    return owners.argmax(axis=1).argsort(stable=True).argsort().tolist()


def _short(key: str, layout: str) -> str:
    """The key as the network itself names it."""
    key = re.sub(r"^(?:module\.|_orig_mod\.)+", "", key)
    return _SMP_PREFIX.sub("", key, count=1) if layout == "smp" else key


def _has_downsampled_head(state: Mapping[str, Tensor]) -> bool:
    """Whether the head begins with a convolution over part maps; that of boxes has keys of the same names."""
    return any(_short(key, "smp") == "core_model.1.weight" and value.ndim == 4 for key, value in state.items())


def _as_ours(value: Tensor, name: str, part_order: Sequence[int] | None, background: bool) -> Tensor:
    """Background comes first in the file and last here, and a linear layer is a convolution here.

    Args:
        value: of the file.
        name: our name.
        part_order: of `convert_part_model`.
        background: the class head reads the background's map, too.
    """
    if name == "head.layers.4.weight" and value.ndim == 2:
        return value[..., None, None]
    if name.startswith(f"{_DECODER}.predictor."):
        return value[_places(len(value), part_order, True)]
    if name == "head.layers.1.weight" and value.ndim == 4:
        return value[:, _places(value.shape[1], part_order, background)]
    return value


def _places(maps: int, part_order: Sequence[int] | None, background: bool) -> list[int]:
    """Where the file has the part maps of the model; the order is for files with as many parts."""
    parts = maps - int(background)
    order = part_order if part_order is not None and len(part_order) == parts else range(parts)
    return [*(place + 1 for place in order), 0] if background else list(order)


def _reason(key: str, name: str | None, reason: str, head: str) -> str:
    if key.endswith(".num_batches_tracked"):
        return "a counter that this model's norms do not have"
    if name is not None and name.startswith(f"{_DECODER}."):
        return "of a decoder that the model lacks: MODEL.PART_CLASSIFIER.SEGMENTER SmpDeepLabSegmenter has it"
    if name is not None:
        return f"the model has no {name}"
    if _FILE_HEAD.fullmatch(key):
        return f"of a class head that MODEL.PART_CLASSIFIER.HEAD {head!r} has no counterpart of"
    return reason
