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

from part_robust.modeling.convert import KeyReport, apply_rules
from part_robust.modeling.convert_imagenet import check_backbone, check_normalisation
from part_robust.modeling.part_model_rules import DECODER, HEADS, RULES
from part_robust.utils.errors import UserError

LAYOUTS = tuple(RULES)
SMP_SEGMENTER = "SmpDeepLabSegmenter"

# Names that a file's network has inside of its wrappers.
_SMP_PREFIX = re.compile(r"(?:_?model\.|1\.)?(?:_?segmenter\.)?(?:1\.)?")
_STATISTICS = ("running_mean", "running_var")
_FILE_HEAD = re.compile(r"(?:core_model|classification_head|classifer)\..+")
# Depend on the numbers of parts and classes; of other numbers they start anew.
_COUNTED = re.compile(r"segmenter\.head\.predictor\..+|head\..+")
# What no weight of the predecessor's decoder tells.
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
    rules = RULES[layout]
    if layout != "smp" or _same_head(state, cfg):
        rules = (*HEADS[layout].get(head, ()), *rules)
        state = _without_first_norm(state) if head == "BoundingBoxHead" else state
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
        if name is None or name not in model_state or (name.startswith(DECODER) and not decodes):
            reports.append(KeyReport("dropped", key, reason=_reason(short, name, reason, head)))
            continue
        if layout == "smp":
            value = _as_ours(value, name, part_order, cfg)
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
    reports += _missing(model_state, result, layout)
    check_normalisation(normaliser, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, trust)
    return result, reports


def _missing(model_state: Mapping[str, Tensor], found: Mapping[str, Tensor], layout: str) -> list[KeyReport]:
    names = [name for name in model_state if name not in found and not name.endswith("num_batches_tracked")]
    fatal = [name for name in names if name.startswith("backbone.")]
    if fatal:
        raise ValueError(
            f"{len(fatal)} weights of the backbone are not in the file, first {fatal[0]}: the config's backbone is "
            f"another architecture, or the layout is not {layout}"
        )
    return [KeyReport("missing", name, reason="not in the file, keeps its initial value") for name in names]


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
    for key, norm in (
        ("SEM_SEG_HEAD.NORM", cfg.MODEL.SEM_SEG_HEAD.NORM),
        ("PART_CLASSIFIER.HEAD_NORM", cfg.MODEL.PART_CLASSIFIER.HEAD_NORM),
    ):
        if not norm.endswith("BN"):
            raise UserError(f"MODEL.{key} must be a batch norm for layout smp, got {norm!r}: set it to BN")
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


def _same_head(state: Mapping[str, Tensor], cfg: CfgNode) -> bool:
    """Whether the predecessor's head is the config's: those of maps and of boxes have keys of the same names."""
    core = {short: value for key, value in state.items() if (short := _short(key, "smp")).startswith("core_model.")}
    head = cfg.MODEL.PART_CLASSIFIER.HEAD
    if head == "DownsampledHead":
        return "core_model.1.weight" in core and core["core_model.1.weight"].ndim == 4
    if head == "BoundingBoxHead":
        published = cfg.MODEL.BOUNDING_BOX_HEAD.NORMALIZE == "published"
        return published and "core_model.0.weight" not in core and "core_model.3.running_mean" not in core
    return not core


def _without_first_norm(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Multiply the batch norm in front of the predecessor's Bounding-Box head into the linear layer behind it."""
    names = {_short(key, "smp"): key for key in state}
    if not {"core_model.2.running_var", "core_model.3.weight", "core_model.3.bias"} <= names.keys():
        return state
    norm = {kind: state[names[f"core_model.2.{kind}"]].double() for kind in ("weight", "bias", *_STATISTICS)}
    weight, bias = (state[names[f"core_model.3.{kind}"]] for kind in ("weight", "bias"))
    if weight.shape[1:] != norm["weight"].shape:
        return state
    scale = norm["weight"] * (norm["running_var"] + 1e-5).rsqrt()
    shift = norm["bias"] - scale * norm["running_mean"]
    folded = {"weight": (weight * scale).to(weight), "bias": (bias + weight.double() @ shift).to(bias)}
    return {**state, **{names[f"core_model.3.{kind}"]: value for kind, value in folded.items()}}


def _as_ours(value: Tensor, name: str, part_order: Sequence[int] | None, cfg: CfgNode) -> Tensor:
    """Background comes first in the file and last here, and linear layers that norms follow are convolutions here."""
    if name.startswith(f"{DECODER}.predictor."):
        return value[_places(len(value), part_order, True)]
    head = cfg.MODEL.PART_CLASSIFIER.HEAD
    if head == "BoundingBoxHead" and name == "head.layers.0.weight":
        numbers = 5 if cfg.MODEL.BOUNDING_BOX_HEAD.USE_SCORE else 4
        if value.shape[1] % numbers == 0:
            by_part = value.unflatten(1, (-1, numbers))
            value = by_part[:, _places(by_part.shape[1], part_order, False)].flatten(1)
        return value[..., None, None]
    if head == "DownsampledHead" and name == "head.layers.1.weight":
        return value[:, _places(value.shape[1], part_order, not cfg.MODEL.DOWNSAMPLED_HEAD.DROP_BACKGROUND)]
    return value[..., None, None] if head == "DownsampledHead" and name == "head.layers.4.weight" else value


def _places(maps: int, part_order: Sequence[int] | None, background: bool) -> list[int]:
    """Where the file has the part maps of the model; the order is for files with as many parts."""
    parts = maps - int(background)
    order = part_order if part_order is not None and len(part_order) == parts else range(parts)
    return [*(place + 1 for place in order), 0] if background else list(order)


def _reason(key: str, name: str | None, reason: str, head: str) -> str:
    if key.endswith(".num_batches_tracked"):
        return "a counter that this model's norms do not have"
    if name is not None and name.startswith(f"{DECODER}."):
        return "of a decoder that the model lacks: MODEL.PART_CLASSIFIER.SEGMENTER SmpDeepLabSegmenter has it"
    if name is not None:
        return f"the model has no {name}"
    if _FILE_HEAD.fullmatch(key):
        wanted = f"{head} with NORMALIZE published" if head == "BoundingBoxHead" else head
        return f"of another class head than MODEL.PART_CLASSIFIER.HEAD, {wanted or 'none'}"
    return reason
