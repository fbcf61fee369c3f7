"""How a classifier from elsewhere wants its images, as far as its library or its file says it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from part_robust.modeling.external.read import import_timm, input_shape, load_exported
from part_robust.utils.errors import UserError
from part_robust.utils.files import read_json

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Models of torchvision whose own weights are used with transform_input=True: they turn an input of ImageNet's mean and
# deviation into one of 0.5 and 0.5 (torchvision/models/inception.py), which is what they get here at once.
TRANSFORM_INPUT = ("googlenet", "inception_v3")


@dataclass(frozen=True)
class Preprocessing:
    """From an image file to the network's input.

    Attributes:
        source: who says so, for people.
        size: side of the square input in pixels.
        transform: INPUT.TEST_TRANSFORM.
        resize: short side before the middle is cut out, in pixels; 0 for `size`.
        interpolation: "bilinear" or "bicubic".
        largest: the value of white before the mean is taken out, 1 or 255.
        mean: three values, RGB, in the unit of `largest`.
        std: three values, RGB, in the unit of `largest`.
        classes: names of the outputs, in their order; empty where they are unknown.
    """

    source: str = "defaults: ImageNet's mean and deviation"
    size: int = 224
    transform: str = "center_crop"
    resize: int = 0
    interpolation: str = "bilinear"
    largest: float = 1.0
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    classes: Sequence[str] = ()

    @property
    def pixel_mean(self) -> list[float]:
        """MODEL.PIXEL_MEAN: RGB, 0..255."""
        return [255.0 / self.largest * value for value in self.mean]

    @property
    def pixel_std(self) -> list[float]:
        """MODEL.PIXEL_STD: RGB, 0..255."""
        return [255.0 / self.largest * value for value in self.std]


def known_preprocessing(kind: str, name: str, path: str) -> Preprocessing:
    """Return what is known of a model.

    Args:
        kind: MODEL.EXTERNAL.KIND.
        name: of the model in timm or torchvision.
        path: of its file.

    Raises:
        ImportError: timm is not installed.
        UserError: there is no such model or file, or its input is not square.
    """
    if kind == "timm":
        return _of_timm(name)
    if kind == "torchvision":
        return _of_torchvision(name)
    description = Path(f"{path}.json")
    if kind in ("torchscript", "exported"):
        if not Path(path).exists():
            raise UserError(f"--{kind} must be the file of a model, got {path}, which does not exist")
        if description.is_file():
            return _of_export(description)
    if kind == "exported":
        height, width = input_shape(load_exported(path))[-2:]
        if isinstance(height, int) and isinstance(width, int):
            return Preprocessing(size=_square(height, width, path))
    return Preprocessing()


def _of_timm(name: str) -> Preprocessing:
    config = import_timm().get_pretrained_cfg(name)
    if config is None:
        raise UserError(f"--timm must be a model of timm {import_timm().__version__}, got {name!r}")
    _, height, width = config.input_size
    size = _square(height, width, name)
    stretched = config.crop_mode == "squash" and config.crop_pct == 1.0
    known = stretched or config.crop_mode == "center"
    crop = "" if known else f", whose crop_mode {config.crop_mode} is taken as center"
    return Preprocessing(
        source=f"timm's pretrained_cfg of {name}{crop}",
        size=size,
        transform="stretch" if stretched else "center_crop",
        resize=math.floor(size / config.crop_pct),
        interpolation="bilinear" if config.interpolation == "bilinear" else "bicubic",
        mean=config.mean,
        std=config.std,
    )


def _of_torchvision(name: str) -> Preprocessing:
    from torchvision import models

    try:
        weights = models.get_model_weights(name).DEFAULT
        transforms: Any = weights.transforms()
        size, resize = transforms.crop_size[0], transforms.resize_size[0]
    except (ValueError, AttributeError) as error:
        raise UserError(f"--torchvision must be a classifier of torchvision, got {name!r}") from error
    transformed = name in TRANSFORM_INPUT
    return Preprocessing(
        source=f"torchvision's {type(weights).__name__}.{weights.name}{' with transform_input' * transformed}",
        size=size,
        resize=resize,
        interpolation="bicubic" if transforms.interpolation.value == "bicubic" else "bilinear",
        mean=(0.5,) * 3 if transformed else transforms.mean,
        std=(0.5,) * 3 if transformed else transforms.std,
    )


def _of_export(path: Path) -> Preprocessing:
    """Return what `part-robust export` wrote beside its file: images are RGB, 0..255, normalised inside."""
    content = read_json(path, "export again, or move it away and give --size, --mean and --std", ("input", "classes"))
    words = str(content.get("resize", "")).split()
    if words == ["letterbox"]:
        raise UserError(
            f"{path} must be of a model without padding, got letterbox, whose padding has the mean colour: export "
            "with INPUT.TEST_TRANSFORM center_crop"
        )
    try:
        height, width = content["input"]["shape"][-2:]
        resize = int(words[words.index("to") + 1].rstrip(",")) if "to" in words else 0
        classes = [str(entry) for entry in content["classes"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} must be what part-robust export wrote, got no shape of the input in it") from error
    return Preprocessing(
        source=str(path),
        size=_square(height, width, path),
        transform="stretch" if words[:1] == ["both"] else "center_crop",
        resize=resize,
        interpolation="bicubic" if "bicubic," in words else "bilinear",
        largest=255.0,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        classes=classes,
    )


def _square(height: int, width: int, what: object) -> int:
    if height != width:
        raise UserError(
            f"{what} must take square images, got a model of {height} x {width} pixels: give --callable a function "
            "that cuts them out of a square"
        )
    return int(height)
