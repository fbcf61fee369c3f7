"""Names of published part models and detectors, and ours: the tables of convert_part_models.py."""

from __future__ import annotations

from part_robust.modeling.convert import Rules, torchvision_rules

DECODER = "segmenter.head"
SMP: Rules = (
    *torchvision_rules(r"encoder\."),
    (r"decoder\.aspp\.0\.convs\.0\.0\.(.+)", rf"{DECODER}.branches.0.\1", ""),
    (r"decoder\.aspp\.0\.convs\.0\.1\.(.+)", rf"{DECODER}.branches.0.norm.\1", ""),
    (r"decoder\.aspp\.0\.convs\.([123])\.0\.([01])\.(.+)", rf"{DECODER}.branches.\1.\2.\3", ""),
    (r"decoder\.aspp\.0\.convs\.([123])\.1\.(.+)", rf"{DECODER}.branches.\1.1.norm.\2", ""),
    (r"decoder\.aspp\.0\.convs\.4\.1\.(.+)", rf"{DECODER}.pooled.\1", ""),
    (r"decoder\.aspp\.0\.convs\.4\.2\.(.+)", rf"{DECODER}.pooled.norm.\1", ""),
    (r"decoder\.aspp\.0\.project\.0\.(.+)", rf"{DECODER}.merge.\1", ""),
    (r"decoder\.aspp\.0\.project\.1\.(.+)", rf"{DECODER}.merge.norm.\1", ""),
    (r"decoder\.aspp\.1\.([01])\.(.+)", rf"{DECODER}.refine.\1.\2", ""),
    (r"decoder\.aspp\.2\.(.+)", rf"{DECODER}.refine.1.norm.\1", ""),
    (r"decoder\.block1\.0\.(.+)", rf"{DECODER}.project.\1", ""),
    (r"decoder\.block1\.1\.(.+)", rf"{DECODER}.project.norm.\1", ""),
    (r"decoder\.block2\.0\.([01])\.(.+)", rf"{DECODER}.fuse.\1.\2", ""),
    (r"decoder\.block2\.1\.(.+)", rf"{DECODER}.fuse.1.norm.\1", ""),
    (r"segmentation_head\.(?:heads\.1\.)?0\.(.+)", rf"{DECODER}.predictor.\1", ""),
    (r"segmentation_head\.heads\.0\..+", None, "a class head on the decoder's features, which no model here has"),
    (r"(?:feature_extactor\.)?grid", None, "computed from the size of the image"),
)
# Of the predecessor's heads, by the head of the config.
SMP_HEADS: dict[str, Rules] = {
    "DownsampledHead": (
        (r"core_model\.([128])\.(.+)", r"head.layers.\1.\2", ""),
        (r"core_model\.5\.(.+)", r"head.layers.4.\1", ""),
        (r"core_model\.6\.(.+)", r"head.layers.5.\1", ""),
    ),
    "BoundingBoxHead": (
        (r"core_model\.2\..+", None, "a norm before head.layers.0, whose weights have taken it in"),
        (r"core_model\.3\.(.+)", r"head.layers.0.\1", ""),
        (r"core_model\.5\.(.+)", r"head.layers.2.\1", ""),
        (r"core_model\.6\.(.+)", r"head.layers.4.\1", ""),
    ),
    "TwoHeadedHead": ((r"classification_head\.([1347])\.(.+)", r"head.layers.\1.\2", ""),),
}

_MPM_BYPASS = "supervises parts in training, beside the path of the class; no model here has it"
MPM: Rules = (
    (r"segmenter\.((?:conv1|bn1|layer\d)\..+)", r"backbone.net.\1", ""),
    (r"(?:cp\d|up_layer\d|segmenter_head\d)\..+", None, _MPM_BYPASS),
)
MPM_HEADS: dict[str, Rules] = {"LinearHead": ((r"classifer\.2\.(.+)", r"head.classifier.\1", ""),)}

_CONVNEXT = r"backbone\.stages\.(\d)\.(\d+)\."
_STAGE = r"backbone.net.stages_\1"
MMDET: Rules = (
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
RULES = {"smp": SMP, "mpm": MPM, "mmdet": MMDET}
HEADS = {"smp": SMP_HEADS, "mpm": MPM_HEADS, "mmdet": {}}
