"""Any feature pyramid of timm as a detectron2 backbone.

timm is optional: `pip install part_robust[timm]`. Letters: N images, H W pixels, C channels, s stride of a feature.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn
from torch.nn import functional as F

NORMS = ("BN", "SyncBN", "FrozenBN")


if TYPE_CHECKING:
    from timm.models import FeatureListNet

    class FeatureNet(FeatureListNet):
        """Network of `timm.create_model(..., features_only=True)`."""

        pretrained_cfg: dict


class TimmBackbone(Backbone):
    """Images (N, 3, H, W) -> {"res2": (N, C, ceil(H / s), ceil(W / s)), ...}, as detectron2's ResNets give them.

    Images whose sides are not multiples of `size_divisibility` are padded at the right and the bottom with zeros, the
    mean colour, and features are cut to the image, so that they lie over it for odd sizes too.
    """

    def __init__(self, net: FeatureNet, out_features: Sequence[str], res5_stride: int = 32) -> None:
        """Wrap a network of timm.

        Args:
            net: of `timm.create_model(..., features_only=True)`, with all its features.
            out_features: the names that are given out, "res2" (stride 4) to "res5".
            res5_stride: stride that the last feature must have, 32, or 16 if dilated.

        Raises:
            ValueError: the features are not a pyramid of these strides, or a name is not one of them.
        """
        super().__init__()
        channels, strides = net.feature_info.channels(), net.feature_info.reduction()
        if strides[-4:] != [4, 8, 16, res5_stride]:
            raise ValueError(
                f"MODEL.TIMM.NAME: its features have strides {strides}, a part model needs 4, 8, 16 and {res5_stride} "
                "(res2 to res5): choose a model with a feature pyramid, such as convnext_tiny"
            )
        self.net = net
        self.channels_last = str(getattr(net, "output_fmt", "NCHW")).endswith("NHWC")
        last = len(strides) - 1
        self._position = {f"res{5 - last + i}": i for i in range(last - 3, last + 1)}
        for name in out_features:
            if name not in self._position:
                raise ValueError(f"MODEL.RESNETS.OUT_FEATURES may name {', '.join(self._position)}, not {name}")
        self._out_features = list(out_features)
        self._out_feature_channels = {name: channels[i] for name, i in self._position.items()}
        self._out_feature_strides = {name: strides[i] for name, i in self._position.items()}

    @property
    def size_divisibility(self) -> int:
        """Sides that are multiples of it are not padded."""
        return 32

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        height, width = images.shape[-2:]
        multiple = self.size_divisibility
        padded = F.pad(images, (0, -width % multiple, 0, -height % multiple))
        features = self.net(padded)
        result = {}
        for name in self._out_features:
            feature, stride = features[self._position[name]], self._out_feature_strides[name]
            if self.channels_last:
                feature = feature.permute(0, 3, 1, 2)
            result[name] = feature[..., : -(-height // stride), : -(-width // stride)].contiguous()
        return result

    def freeze(self, freeze_at: int) -> TimmBackbone:
        """Freeze as MODEL.BACKBONE.FREEZE_AT of detectron2: 1 keeps the stem as it is, 2 also res2, and so on to 5.

        Raises:
            ValueError: this network's modules do not tell which stage they belong to.
        """
        if freeze_at < 1:
            return self
        stages = {name: self.net.feature_info.module_name()[i].replace(".", "_") for name, i in self._position.items()}
        children = list(self.net.named_children())
        names = [name for name, _ in children]
        if not set(stages.values()) <= set(names):
            raise ValueError(f"MODEL.BACKBONE.FREEZE_AT {freeze_at}: not for this network of MODEL.TIMM.NAME, use 0")
        end = names.index(stages["res2"]) if freeze_at == 1 else names.index(stages[f"res{min(freeze_at, 5)}"]) + 1
        for name, child in children[:end]:
            for parameter in child.parameters():
                parameter.requires_grad = False
            setattr(self.net, name, import_timm().layers.freeze_batch_norm_2d(child))
        return self


class ConvStem(nn.Sequential):
    """Two strided 3x3 convolutions instead of ConvNeXt's patches (Singh, Croce and Hein, 2023): "ConvNeXt-T-CvSt"."""

    def __init__(self, channels: int) -> None:
        norm = import_timm().layers.LayerNorm2d
        super().__init__(
            nn.Conv2d(3, channels // 2, kernel_size=3, stride=2, padding=1),
            norm(channels // 2, eps=1e-6),
            nn.GELU(),
            nn.Conv2d(channels // 2, channels, kernel_size=3, stride=2, padding=1),
            norm(channels, eps=1e-6),
            nn.GELU(),
        )


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """MODEL.TIMM; names and dilation of the features, norms and freezing as MODEL.RESNETS and MODEL.BACKBONE say.

    Raises:
        ImportError: timm is not installed.
        ValueError: an unknown model or option; a norm that does not exist; weights of another normalisation of images.
    """
    timm, node, resnets = import_timm(), cfg.MODEL.TIMM, cfg.MODEL.RESNETS
    if resnets.NORM not in NORMS:
        raise ValueError(f"MODEL.RESNETS.NORM must be one of {', '.join(NORMS)} for timm, is {resnets.NORM!r}")
    options = dict(node.OPTIONS)
    res5_stride = 32
    if resnets.RES5_DILATION > 1:
        res5_stride = options["output_stride"] = 16
    net = _create(timm, node.NAME, node.PRETRAINED, options)
    if node.PRETRAINED:
        check_normalisation(net.pretrained_cfg, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    if node.CONV_STEM:
        if "stem_1" not in dict(net.named_children()):
            raise ValueError(f"MODEL.TIMM.CONV_STEM is for ConvNeXt, MODEL.TIMM.NAME is {node.NAME}")
        net.stem_0, net.stem_1 = ConvStem(net.feature_info.channels()[0]), nn.Identity()
    if resnets.NORM == "SyncBN":
        net = timm.layers.convert_sync_batchnorm(net)
    elif resnets.NORM == "FrozenBN":
        net = timm.layers.freeze_batch_norm_2d(net)
    backbone = TimmBackbone(net, resnets.OUT_FEATURES, res5_stride)
    return backbone.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)


def _create(timm: Any, name: str, pretrained: bool, options: dict) -> FeatureNet:
    # Swin refuses other image sizes without this option; most models do not have it.
    for attempt in ({"strict_img_size": False, **options}, options):
        try:
            return timm.create_model(name, pretrained=pretrained, features_only=True, **attempt)
        except TypeError as error:
            if "strict_img_size" in str(error):
                continue
            if "output_stride" in str(error):
                raise ValueError(
                    f"MODEL.TIMM.NAME {name} cannot be dilated, set MODEL.RESNETS.RES5_DILATION 1 (res5 at stride 32)"
                ) from error
            raise ValueError(f"MODEL.TIMM.OPTIONS of {name}: {error}") from error
        except RuntimeError as error:
            raise ValueError(f"MODEL.TIMM.NAME {name}: {error}") from error
    raise AssertionError


def check_normalisation(pretrained_cfg: dict, mean: Sequence[float], std: Sequence[float]) -> None:
    """Check that the config normalises images as the weights were trained.

    Raises:
        ValueError: the weights were trained with another mean or deviation of images than MODEL.PIXEL_MEAN, PIXEL_STD.
    """
    for key, ours, own in (("MEAN", mean, pretrained_cfg["mean"]), ("STD", std, pretrained_cfg["std"])):
        wanted = [255.0 * value for value in own]
        if not all(math.isclose(a, b, abs_tol=0.01) for a, b in zip(ours, wanted, strict=True)):
            raise ValueError(
                f"the weights of MODEL.TIMM were trained with MODEL.PIXEL_{key} {[round(v, 3) for v in wanted]} (RGB, "
                f"0..255), the config has {list(ours)}"
            )


def import_timm() -> Any:
    """Return the package timm.

    Raises:
        ImportError: timm is not installed; the message has the command.
    """
    try:
        import timm
        import timm.layers
    except ImportError as error:
        raise ImportError(
            "MODEL.BACKBONE.NAME build_timm_backbone needs timm: pip install part_robust[timm]"
        ) from error
    return timm
