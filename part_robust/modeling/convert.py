"""Public DINO and Mask DINO checkpoints -> our parameter names, with an account of every key.

Three layouts: of DINO the authors' ("official": heads shared by all layers, torchvision backbone) and detrex's (a head
for each layer, detectron2 backbone); of Mask DINO the authors' ("mask_dino", detectron2 backbone).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# Pattern -> replacement, the first that matches the whole key counts; None drops it, for the reason given there.
Rules = tuple[tuple[str, str | None, str], ...]


def torchvision_rules(prefix: str) -> Rules:
    """Rules of a torchvision ResNet below `prefix`, a pattern, for detectron2's ResNet as our backbone."""
    block = prefix + r"layer(\d)\.(\d+)\."
    return (
        (prefix + r"conv1\.(.+)", r"backbone.stem.conv1.\1", ""),
        (prefix + r"bn1\.(.+)", r"backbone.stem.conv1.norm.\1", ""),
        (block + r"downsample\.0\.(.+)", r"backbone.res<\1>.\2.shortcut.\3", ""),
        (block + r"downsample\.1\.(.+)", r"backbone.res<\1>.\2.shortcut.norm.\3", ""),
        (block + r"conv(\d)\.(.+)", r"backbone.res<\1>.\2.conv\3.\4", ""),
        (block + r"bn(\d)\.(.+)", r"backbone.res<\1>.\2.conv\3.norm.\4", ""),
    )


_OFFICIAL: Rules = (
    *torchvision_rules(r"backbone\.0\.body\."),
    (r"transformer\.decoder\.(bbox_embed|class_embed)\..+", None, "a second name of the head outside of the decoder"),
    (r"transformer\.(enc_.+)", r"segmenter.query_selection.\1", ""),
    (r"transformer\.((?:encoder|decoder)\..+|tgt_embed\.weight|level_embed)", r"segmenter.\1", ""),
    (r"(input_proj|bbox_embed|class_embed|label_enc)\.(.+)", r"segmenter.\1.\2", ""),
)

_DETREX: Rules = (
    (r"backbone\.((?:stem|res\d)\..+)", r"backbone.\1", ""),
    (r"neck\.convs\.(\d)\.conv\.(.+)", r"segmenter.input_proj.\1.0.\2", ""),
    (r"neck\.convs\.(\d)\.norm\.(.+)", r"segmenter.input_proj.\1.1.\2", ""),
    (r"neck\.extra_convs\.0\.conv\.(.+)", r"segmenter.input_proj.3.0.\1", ""),
    (r"neck\.extra_convs\.0\.norm\.(.+)", r"segmenter.input_proj.3.1.\1", ""),
    (r"transformer\.level_embeds", r"segmenter.level_embed", ""),
    (r"transformer\.encoder\.layers\.(\d+)\.attentions\.0\.(.+)", r"segmenter.encoder.layers.\1.self_attn.\2", ""),
    (
        r"transformer\.decoder\.layers\.(\d+)\.attentions\.0\.attn\.(.+)",
        r"segmenter.decoder.layers.\1.self_attn.\2",
        "",
    ),
    (r"transformer\.decoder\.layers\.(\d+)\.attentions\.1\.(.+)", r"segmenter.decoder.layers.\1.cross_attn.\2", ""),
    (
        r"transformer\.(encoder|decoder)\.layers\.(\d+)\.ffns\.0\.layers\.0\.0\.(.+)",
        r"segmenter.\1.layers.\2.linear1.\3",
        "",
    ),
    (
        r"transformer\.(encoder|decoder)\.layers\.(\d+)\.ffns\.0\.layers\.1\.(.+)",
        r"segmenter.\1.layers.\2.linear2.\3",
        "",
    ),
    (r"transformer\.encoder\.layers\.(\d+)\.norms\.0\.(.+)", r"segmenter.encoder.layers.\1.norm1.\2", ""),
    (r"transformer\.encoder\.layers\.(\d+)\.norms\.1\.(.+)", r"segmenter.encoder.layers.\1.norm2.\2", ""),
    (r"transformer\.decoder\.layers\.(\d+)\.norms\.0\.(.+)", r"segmenter.decoder.layers.\1.norm2.\2", ""),
    (r"transformer\.decoder\.layers\.(\d+)\.norms\.1\.(.+)", r"segmenter.decoder.layers.\1.norm1.\2", ""),
    (r"transformer\.decoder\.layers\.(\d+)\.norms\.2\.(.+)", r"segmenter.decoder.layers.\1.norm3.\2", ""),
    (r"transformer\.decoder\.(bbox_embed|class_embed)\..+", None, "a second name of the head outside of the decoder"),
    (r"transformer\.(decoder\.(?:norm|ref_point_head)\..+|tgt_embed\.weight)", r"segmenter.\1", ""),
    (r"transformer\.(enc_output(?:_norm)?\..+)", r"segmenter.query_selection.\1", ""),
    (r"label_enc\.weight", r"segmenter.label_enc.weight", ""),
    # The last head is the encoder's; see `convert`.
    (r"(bbox_embed|class_embed)\.(.+)", r"segmenter.\1.\2", ""),
    (r"criterion\..+|pixel_(?:mean|std)", None, "no weight of the network"),
)

_SECOND_BOX_HEAD = "a second name of the box head, which all layers share"
_MASK_DINO: Rules = (
    (r"backbone\.((?:stem|res\d)\..+)", r"backbone.\1", ""),
    (r"sem_seg_head\.pixel_decoder\.transformer\.((?:encoder\.|level_embed).*)", r"segmenter.pixel_decoder.\1", ""),
    (
        r"sem_seg_head\.pixel_decoder\.((?:input_proj|adapter_1|layer_1|mask_features)\..+)",
        r"segmenter.pixel_decoder.\1",
        "",
    ),
    (r"sem_seg_head\.predictor\._bbox_embed\.(.+)", r"segmenter.bbox_embed.\1", ""),
    (r"sem_seg_head\.predictor\.(?:decoder\.)?bbox_embed\..+", None, _SECOND_BOX_HEAD),
    (r"sem_seg_head\.predictor\.decoder_norm\..+", None, "a second name of the decoder's norm"),
    (r"sem_seg_head\.predictor\.(enc_output(?:_norm)?\..+)", r"segmenter.query_selection.\1", ""),
    (
        r"sem_seg_head\.predictor\.((?:decoder|query_feat|query_embed|class_embed|mask_embed|label_enc)\..+)",
        r"segmenter.\1",
        "",
    ),
    (r"criterion\..+|pixel_(?:mean|std)", None, "no weight of the network"),
)
LAYOUTS = {"official": _OFFICIAL, "detrex": _DETREX, "mask_dino": _MASK_DINO}

# Depend on the number of parts, and on whether there is a class "no object"; of another number they start anew.
_PART_COUNT_KEYS = re.compile(
    r"segmenter\.(class_embed(\.\d+)?|query_selection\.enc_out_class_embed)\.(weight|bias)|segmenter\.label_enc\.weight"
)
# One row for each query.
_QUERY_KEYS = tuple(f"segmenter.{name}.weight" for name in ("tgt_embed", "query_feat", "query_embed"))


@dataclass
class KeyReport:
    """Report of what became of a key.

    Attributes:
        action: "used" (its name is ours), "renamed", "dropped", "re-initialised" or "missing" (in the model,
            not in the file).
        key: in the file, or in the model for the last two actions.
        ours: our name, where there is one.
        reason: why, where there is a reason.
    """

    action: str
    key: str
    ours: str = ""
    reason: str = ""


def detect_layout(state: Mapping[str, Tensor]) -> str:
    """Return the layout of a checkpoint by its keys.

    Raises:
        ValueError: the keys are of no known layout.
    """
    if any(key.startswith("sem_seg_head.predictor.") for key in state):
        return "mask_dino"
    if any(key.startswith("backbone.0.body.") for key in state):
        return "official"
    if any(key.startswith("neck.convs.") for key in state):
        return "detrex"
    raise ValueError(
        "neither the authors' DINO layout (keys backbone.0.body.*), nor detrex's (keys neck.convs.*), nor Mask DINO's "
        "(keys sem_seg_head.predictor.*), nor a published part model's or detector's (--layout smp, mpm, mmdet); "
        f"the first keys are {', '.join(list(state)[:3])}"
    )


def map_key(key: str, layout: str) -> tuple[str | None, str]:
    """Our name of a key of the file, or None and the reason why it is dropped."""
    return apply_rules(key, LAYOUTS[layout])


def apply_rules(key: str, rules: Rules) -> tuple[str | None, str]:
    """Same as `map_key`, by other rules."""
    for pattern, replacement, reason in rules:
        match = re.fullmatch(pattern, key)
        if match is None:
            continue
        if replacement is None:
            return None, reason
        # torchvision's layer1 is detectron2's res2.
        return re.sub(r"<(\d)>", lambda m: str(int(m[1]) + 1), match.expand(replacement)), ""
    return None, "unknown key"


def convert(
    state: Mapping[str, Tensor], model_state: Mapping[str, Tensor], layout: str | None = None
) -> tuple[dict[str, Tensor], list[KeyReport]]:
    """Renames a DINO or Mask DINO checkpoint for a model of ours.

    Args:
        state: the file's weights.
        model_state: the model's `state_dict`, whose names and shapes decide; its initial values fill what depends on
            another number of parts.
        layout: a key of LAYOUTS; found out by default.

    Returns:
        Weights for the model, and one `KeyReport` per key of the file and per key of the model that the file lacks.

    Raises:
        ValueError: unknown layout; shapes that have nothing to do with the number of parts differ; layers' heads differ
            and the model shares one.
    """
    state = {key.removeprefix("module."): value for key, value in state.items()}
    layout = layout or detect_layout(state)
    result: dict[str, Tensor] = {}
    reports = []
    source: dict[str, str] = {}
    for key, value in state.items():
        name, reason = map_key(key, layout)
        if name is not None and layout == "detrex":
            name = _encoder_head(name, state)
        if name is not None and name not in model_state:
            name, reason = _shared_head(name, value, model_state, result)
        if name is None:
            reports.append(KeyReport("dropped", key, reason=reason))
            continue
        if value.shape != model_state[name].shape:
            rows = len(model_state[name]) if name in _QUERY_KEYS else len(value)
            if rows < len(value) and value.shape[1:] == model_state[name].shape[1:]:
                value = value[:rows]
                reason = f"the first {rows} of {len(state[key])} queries"
            elif _PART_COUNT_KEYS.fullmatch(name):
                had, has = tuple(value.shape), tuple(model_state[name].shape)
                reports.append(KeyReport("re-initialised", key, name, f"{had} in the file, {has} in the model"))
                result[name] = model_state[name].clone()
                continue
            else:
                raise ValueError(
                    f"{key} has shape {tuple(value.shape)}, the model's {name} {tuple(model_state[name].shape)}: "
                    f"MODEL.{'MASK_DINO' if layout == 'mask_dino' else 'DINO'} of the config is another architecture "
                    "than the checkpoint's"
                )
        result[name] = value
        source[name] = key
        reports.append(KeyReport("used" if name == key else "renamed", key, name, reason))
    for name in model_state:
        if name not in result and not name.endswith("num_batches_tracked"):
            reports.append(KeyReport("missing", name, reason="keeps its initial value"))
    return result, reports


def _encoder_head(name: str, state: Mapping[str, Tensor]) -> str:
    """Undo detrex's numbering of the encoder's head, which comes after those of the decoder's layers."""
    match = re.fullmatch(r"segmenter\.(bbox|class)_embed\.(\d+)\.(.+)", name)
    if match is None:
        return name
    last = max(int(key.split(".")[1]) for key in state if key.startswith("class_embed."))
    if int(match[2]) != last:
        return name
    return f"segmenter.query_selection.enc_out_{match[1]}_embed.{match[3]}"


def _shared_head(
    name: str, value: Tensor, model_state: Mapping[str, Tensor], result: Mapping[str, Tensor]
) -> tuple[None, str]:
    """Why a key without a place in the model may be dropped."""
    match = re.fullmatch(r"segmenter\.(bbox|class)_embed\.\d+\.(.+)", name)
    if match is None:
        return None, f"the model has no {name}"
    first = f"segmenter.{match[1]}_embed.0.{match[2]}"
    if first in result and result[first].shape == value.shape and not torch.equal(result[first], value):
        raise ValueError(
            f"{name.removeprefix('segmenter.')} differs from the first layer's: this checkpoint has a head for each "
            "layer, so the config needs MODEL.DINO.SHARE_HEADS False"
        )
    return None, "equal to the first layer's head, which all layers share"
