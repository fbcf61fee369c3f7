"""Public DINO checkpoints: both layouts into our model, every key accounted for."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from part_robust.config import get_part_robust_cfg
from part_robust.modeling.convert import LAYOUTS, convert, detect_layout, map_key
from tests.dino_weights import official_names
from tests.mask_dino_weights import official_name
from tests.toy import tiny_cfg

ROOT = Path(__file__).resolve().parents[2]
MASK_KEY_LIST = ROOT.parent / "shared" / "reference" / "mask-dino-checkpoint-keys.txt"
KEY_LIST = ROOT.parent / "shared" / "reference" / "dino-checkpoint-keys.txt"
# A whole ResNet-50, as the checkpoints have, of little width.
OPTS = [
    *("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"]),
    *("MODEL.DINO.IN_FEATURES", ["res3", "res4", "res5"]),
    *("MODEL.RESNETS.NORM", "FrozenBN"),
    *("MODEL.PART_CLASSIFIER.NUM_CLASSES", 3),
    *("MODEL.PART_CLASSIFIER.NUM_PARTS", 3),
]


def build(*opts):
    torch.manual_seed(0)
    return build_model(tiny_cfg("dino_detector", *OPTS, *opts)).eval()


def weights(model) -> dict[str, torch.Tensor]:
    return {key: torch.randn_like(value) for key, value in model.state_dict().items()}


def to_official(ours: dict[str, torch.Tensor], layers: int = 2) -> dict[str, torch.Tensor]:
    """With a copy of the shared heads for each layer, and their second names."""
    names = official_names(list(ours))
    state = {names[key]: value for key, value in ours.items()}
    for key in [k for k in state if k.startswith(("bbox_embed.0.", "class_embed.0."))]:
        kind, _, rest = key.split(".", 2)
        for layer in range(layers):
            state[f"{kind}.{layer}.{rest}"] = state[f"transformer.decoder.{kind}.{layer}.{rest}"] = state[key]
    return {f"module.{key}": value for key, value in state.items()}


def to_detrex(ours: dict[str, torch.Tensor], layers: int = 2) -> dict[str, torch.Tensor]:
    state = {}
    for key, value in ours.items():
        name = key.removeprefix("segmenter.")
        name = re.sub(r"input_proj\.3\.0", "neck.extra_convs.0.conv", name)
        name = re.sub(r"input_proj\.3\.1", "neck.extra_convs.0.norm", name)
        name = re.sub(r"input_proj\.(\d)\.0", r"neck.convs.\1.conv", name)
        name = re.sub(r"input_proj\.(\d)\.1", r"neck.convs.\1.norm", name)
        name = re.sub(r"query_selection\.enc_out_(class|bbox)_embed", rf"\1_embed.{layers}", name)
        name = re.sub(r"query_selection\.", "transformer.", name)
        name = name.replace("level_embed", "transformer.level_embeds")
        name = re.sub(r"^(encoder|decoder|tgt_embed)", r"transformer.\1", name)
        name = re.sub(r"decoder\.layers\.(\d+)\.self_attn", r"decoder.layers.\1.attentions.0.attn", name)
        name = re.sub(r"decoder\.layers\.(\d+)\.cross_attn", r"decoder.layers.\1.attentions.1", name)
        name = re.sub(r"encoder\.layers\.(\d+)\.self_attn", r"encoder.layers.\1.attentions.0", name)
        name = name.replace("linear1", "ffns.0.layers.0.0").replace("linear2", "ffns.0.layers.1")
        order = {"encoder": {"norm1": 0, "norm2": 1}, "decoder": {"norm2": 0, "norm1": 1, "norm3": 2}}
        for kind, numbers in order.items():
            for norm, number in numbers.items():
                name = re.sub(rf"({kind}\.layers\.\d+)\.{norm}\.", rf"\1.norms.{number}.", name)
        state[name] = value
        if name.startswith(("class_embed", "bbox_embed")):
            state[f"transformer.decoder.{name}"] = value
    return state


def test_official_layout():
    model = build()
    ours = weights(model)
    state = to_official(ours)
    assert detect_layout({k.removeprefix("module."): v for k, v in state.items()}) == "official"
    result, reports = convert(state, model.state_dict())
    assert result.keys() == ours.keys()
    assert all(torch.equal(result[key], ours[key]) for key in ours)
    assert sorted(a.key for a in reports) == sorted(key.removeprefix("module.") for key in state), "each key, once"
    assert {a.action for a in reports} == {"renamed", "dropped"}
    assert all(a.reason for a in reports if a.action == "dropped")
    model.load_state_dict(result)


def test_detrex_layout():
    model = build("MODEL.DINO.SHARE_HEADS", False)
    ours = weights(model)
    state = to_detrex(ours)
    assert "neck.convs.0.conv.weight" in state and "class_embed.2.weight" in state
    result, reports = convert(state, model.state_dict())
    assert result.keys() == ours.keys()
    assert all(torch.equal(result[key], ours[key]) for key in ours)
    assert sorted(a.key for a in reports) == sorted(state)
    assert {a.action for a in reports} == {"used", "renamed", "dropped"}, "backbone keys are detectron2's own"


def test_heads_of_their_own_do_not_fit_a_model_that_shares_one():
    state = to_detrex(weights(build("MODEL.DINO.SHARE_HEADS", False)))
    with pytest.raises(ValueError, match="SHARE_HEADS False"):
        convert(state, build().state_dict())


def test_other_number_of_parts_starts_anew_and_says_so():
    file = to_official(weights(build("MODEL.PART_CLASSIFIER.NUM_PARTS", 5, "MODEL.DINO.LABEL_BOOK_SIZE", 5)))
    model = build("MODEL.DINO.LABEL_BOOK_SIZE", 3)
    result, reports = convert(file, model.state_dict())
    anew = {a.ours: a.reason for a in reports if a.action == "re-initialised"}
    assert set(anew) == {
        "segmenter.class_embed.0.weight",
        "segmenter.class_embed.0.bias",
        "segmenter.query_selection.enc_out_class_embed.weight",
        "segmenter.query_selection.enc_out_class_embed.bias",
        "segmenter.label_enc.weight",
    }
    assert "(5, 32) in the file, (3, 32) in the model" in anew["segmenter.class_embed.0.weight"]
    torch.testing.assert_close(result["segmenter.class_embed.0.bias"], torch.full((3,), -4.59512))


def test_fewer_queries_take_the_first_ones():
    file = to_official(weights(build("MODEL.DINO.NUM_QUERIES", 20)))
    result, reports = convert(file, build("MODEL.DINO.NUM_QUERIES", 8).state_dict())
    assert torch.equal(result["segmenter.tgt_embed.weight"], file["module.transformer.tgt_embed.weight"][:8])
    assert "first 8 of 20" in next(a.reason for a in reports if a.ours == "segmenter.tgt_embed.weight")


def test_unknown_missing_and_wrong():
    model = build()
    state = to_official(weights(model))
    state["optimizer.step"] = torch.zeros(1)
    del state["module.label_enc.weight"]
    result, reports = convert(state, model.state_dict())
    found = {a.key: a for a in reports}
    assert (found["optimizer.step"].action, found["optimizer.step"].reason) == ("dropped", "unknown key")
    assert found["segmenter.label_enc.weight"].action == "missing"
    with pytest.raises(ValueError, match=r"linear1.*another architecture"):
        convert(state, build("MODEL.DINO.FEEDFORWARD_DIM", 128).state_dict())
    with pytest.raises(ValueError, match="neither"):
        detect_layout({"model.weight": torch.zeros(1)})


@pytest.mark.skipif(not KEY_LIST.exists(), reason="the list of public keys is not part of the repository")
def test_every_public_key_is_known():
    keys = [line.split()[0] for line in KEY_LIST.read_text().splitlines() if line and not line.startswith("#")]
    keys = [re.sub(r"\{i\}", "0", key) for key in keys if not key.startswith("sem_seg_head.")]
    assert len(keys) > 100
    for key in keys:
        name, reason = map_key(key, "official")
        assert name is not None or reason.startswith("a second name"), key


def test_tool(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("convert_checkpoint", ROOT / "tools" / "convert_checkpoint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = build()
    ours = weights(model)
    torch.save({"model": to_official(ours), "epoch": 11}, tmp_path / "in.pth")
    config = tmp_path / "config.yaml"
    config.write_text(tiny_cfg("dino_detector", *OPTS).dump())
    module.main([str(tmp_path / "in.pth"), str(tmp_path / "out.pth"), "--config-file", str(config)])
    saved = torch.load(tmp_path / "out.pth")
    assert all(torch.equal(saved["model"][key], ours[key]) for key in ours)
    text = capsys.readouterr().out
    assert "layout: official" in text and "renamed" in text and "dropped" in text and "epoch" in text
    with pytest.raises(SystemExit):
        module.main([str(tmp_path / "nowhere.pth"), str(tmp_path / "out.pth"), "--config-file", str(config)])
    assert set(LAYOUTS) == {"official", "detrex", "mask_dino"}


def mask_dino(model: str = "mask_dino_segmenter", parts: int = 19, *opts):
    """On the meta device, but for the weights asked for: whole architectures, without memory."""
    counts = ["MODEL.PART_CLASSIFIER.NUM_PARTS", parts, "MODEL.PART_CLASSIFIER.NUM_CLASSES", 3]
    cfg = get_part_robust_cfg(ROOT / "configs" / "models" / f"{model}.yaml", ["MODEL.DEVICE", "meta", *counts, *opts])
    with torch.device("meta"):
        return build_model(cfg)


def to_mask_dino(ours: dict[str, torch.Tensor], layers: int = 9) -> dict[str, torch.Tensor]:
    """With the second names of the box head and the norm, and the criterion's buffer."""
    state = {official_name(key): value for key, value in ours.items()}
    for key in [k for k in state if "._bbox_embed." in k]:
        for layer in range(layers):
            for name in ("bbox_embed", "decoder.bbox_embed"):
                state[key.replace("_bbox_embed", f"{name}.{layer}")] = state[key]
    for kind in ("weight", "bias"):
        norm = f"sem_seg_head.predictor.decoder.norm.{kind}"
        state[norm.replace("decoder.norm", "decoder_norm")] = state[norm]
    return state | {"criterion.empty_weight": torch.ones(len(ours["segmenter.label_enc.weight"]) + 1)}


@pytest.mark.parametrize(
    ("model", "parts", "norm", "keys"),
    [
        ("mask_dino_segmenter", 19, "BN", 767),
        ("mask_dino_segmenter", 150, "FrozenBN", 714),
        ("mask_dino_instance", 80, "FrozenBN", 720),
    ],
)
def test_mask_dino_layout(model, parts, norm, keys):
    ours = mask_dino(model, parts, "MODEL.RESNETS.NORM", norm).state_dict()
    state = to_mask_dino(ours)
    assert len(state) == keys, "as many as the public files have"
    assert detect_layout(state) == "mask_dino"
    result, reports = convert(state, ours)
    assert result.keys() == ours.keys()
    assert all(result[key] is ours[key] for key in ours)
    assert sorted(a.key for a in reports) == sorted(state), "each key, once"
    assert Counter(a.action for a in reports)["dropped"] == 2 * 9 * 6 + 2 + 1
    assert all(a.reason for a in reports if a.action == "dropped")


def test_mask_dino_with_other_parts_fewer_layers_and_queries():
    state = to_mask_dino(mask_dino().state_dict())
    model = mask_dino("mask_dino_segmenter", 40, "MODEL.MASK_DINO.DECODER_LAYERS", 1, "MODEL.MASK_DINO.NUM_QUERIES", 30)
    result, reports = convert(state, model.state_dict())
    anew = {a.ours: a.reason for a in reports if a.action == "re-initialised"}
    assert set(anew) == {f"segmenter.{name}" for name in ("class_embed.weight", "class_embed.bias", "label_enc.weight")}
    assert "(20, 256) in the file, (41, 256) in the model" in anew["segmenter.class_embed.weight"]
    assert result["segmenter.query_feat.weight"].shape == (30, 256) and result.keys() == model.state_dict().keys()
    dropped = {a.key for a in reports if a.action == "dropped"}
    assert "sem_seg_head.predictor.decoder.layers.1.norm1.weight" in dropped
    # As many parts, but sigmoids instead of a softmax with "no object".
    model = mask_dino("mask_dino_segmenter", 19, "MODEL.MASK_DINO.CLASS_LOSS", "focal")
    _, reports = convert(state, model.state_dict())
    anew = {a.ours for a in reports if a.action == "re-initialised"}
    assert anew == {"segmenter.class_embed.weight", "segmenter.class_embed.bias"}


def test_mask_dino_of_another_architecture_is_named():
    state = to_mask_dino(mask_dino().state_dict())
    with pytest.raises(ValueError, match=r"pixel_decoder.*MODEL\.MASK_DINO of the config is another architecture"):
        convert(state, mask_dino("mask_dino_instance", 19).state_dict())


@pytest.mark.skipif(not MASK_KEY_LIST.exists(), reason="the list of public keys is not part of the repository")
def test_every_public_mask_dino_key_is_known():
    lines = [line.split()[0] for line in MASK_KEY_LIST.read_text().splitlines() if line[:1] not in ("", "#")]
    keys = {re.sub(r"\{i\}", "0", key) for key in lines if key.startswith(("backbone.", "sem_seg_head.", "criterion."))}
    assert len(keys) > 150
    for key in keys:
        name, reason = map_key(key, "mask_dino")
        assert name is not None or reason.startswith(("a second name", "no weight")), key
