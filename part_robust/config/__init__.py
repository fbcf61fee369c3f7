"""Every config key of part_robust, with its unit, its choices and where it comes from.

Pixel quantities (eps, step sizes) are in the 0..255 unit of the images: 8/255 of the literature is 8.0 here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config

from part_robust.config.attacks import (
    SPECS,
    add_attack,
    add_attack_key,
    add_test,
    allow_own_keys,
    attack_spec,
    spec_defaults,
)
from part_robust.config.check import check_config, check_value
from part_robust.config.files import LOADER, find_config, read_config_file, zoo_configs, zoo_folder
from part_robust.config.models import add_model
from part_robust.config.rule_table import ATTACK_RULES, RULES
from part_robust.config.rules import fitting
from part_robust.utils.errors import UserError

__all__ = [
    "add_part_robust_config",
    "attack_spec",
    "check_config",
    "check_value",
    "config_text",
    "config_values",
    "default_cfg",
    "find_config",
    "get_part_robust_cfg",
    "zoo_configs",
    "zoo_folder",
]


def add_part_robust_config(cfg: CfgNode) -> None:
    """Adds our keys, with defaults, to a detectron2 config in place."""
    add_deeplab_config(cfg)
    _change_detectron2_defaults(cfg)
    # Python modules of the user's own heads, segmenters and attacks, imported before the model is built
    # (docs/extending.md).
    cfg.IMPORTS = []
    _add_input(cfg)
    add_model(cfg)
    add_attack(cfg)
    add_test(cfg)
    # Schedule in epochs of the training set, whatever the batch size: sets SOLVER.MAX_ITER, and SOLVER.STEPS from
    # STEP_EPOCHS, SOLVER.CHECKPOINT_PERIOD and TEST.EVAL_PERIOD from EVAL_EPOCHS. 0 keeps the iteration counts.
    cfg.SOLVER.EPOCHS = 0.0
    cfg.SOLVER.STEP_EPOCHS = ()
    cfg.SOLVER.EVAL_EPOCHS = 1.0
    # Early stopping (Rice et al., 2020, for robust overfitting): the training ends after this many evaluations in a row
    # without a better TEST.BEST_METRIC; 0: never.
    cfg.SOLVER.PATIENCE = 0
    # "SGD" (the thesis) or "AdamW"; BASE_LR is that of everything but the backbone, which learns at
    # BASE_LR * BACKBONE_MULTIPLIER (DINO: 0.1). SOLVER.CLIP_GRADIENTS.CLIP_TYPE may also be "full_model": the norm of
    # all gradients together is at most CLIP_VALUE (DINO: 0.1).
    cfg.SOLVER.OPTIMIZER = "SGD"
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    # Heads learn alone at first, on attacked images if ATTACK.TRAIN.ENABLED: the backbone keeps its weights and its
    # statistics for so many epochs, 0 or more, then learns as everything else. For backbones that are robust already
    # (docs/backbones.md). Sets BACKBONE_FREEZE_ITERS, as EPOCHS sets MAX_ITER.
    cfg.SOLVER.BACKBONE_FREEZE_EPOCHS = 0.0
    cfg.SOLVER.BACKBONE_FREEZE_ITERS = 0
    _add_training(cfg)
    # Held-out split that chooses the best checkpoint during training; DATASETS.TEST is only touched by --eval-only.
    cfg.DATASETS.VAL = ()
    # Users' part data: a list of [name, part json, image root], paths relative to the working directory
    # (docs/data_format.md). The names can then be used in TRAIN, VAL and TEST.
    cfg.DATASETS.REGISTER = ()
    # Share of the training images of each class that keep their part labels, 0..1; the others have none.
    cfg.DATASETS.PART_LABEL_SHARE = 1.0


def _add_training(cfg: CfgNode) -> None:
    # Each process computes its share of SOLVER.IMS_PER_BATCH in this many pieces, one after the other, and then makes
    # one step: the same batch in less memory. The attack is computed piece by piece, too.
    cfg.SOLVER.ACCUMULATE = 1
    # With SOLVER.AMP.ENABLED the training step computes in "bfloat16" (any device) or "float16" (CUDA, with a loss
    # scale). The attack has its own key, ATTACK.TRAIN.PRECISION.
    cfg.SOLVER.AMP.DTYPE = "bfloat16"
    # Float32 matrix products and convolutions of training steps use TF32 on CUDA (10 bits of mantissa, from Ampere on):
    # faster, fewer digits. Evaluations, and attacks unless ATTACK.TRAIN.PRECISION is set, always compute in float32.
    cfg.SOLVER.TF32 = False
    # Weights and feature maps of convolutions are kept with the channels last ("channels_last"), which suits the tensor
    # cores of NVIDIA GPUs, mostly with bfloat16 or TF32. Results change by rounding alone.
    cfg.SOLVER.CHANNELS_LAST = False
    # What batch norm normalises with in training steps: statistics of the "batch", which go into the running ones; or
    # the "running" ones of the weights that the training began with, which stay. Attacks and evaluations always take
    # the running ones, so with "running" a step learns from the network that was attacked (docs/training.md).
    cfg.SOLVER.BATCH_NORM = "batch"
    # Average of the weights over the training, w_avg = d w_avg + (1 - d) w after every step, with d growing to DECAY as
    # (1 + steps) / (10 + steps). It is what is evaluated, and what model_best.pth holds. 0 turns it off; 0.999 for
    # thousands of steps, 0.9998 for tens of thousands.
    cfg.SOLVER.EMA = CfgNode({"DECAY": 0.0})
    # A loss or gradient that is not finite: "stop" the training, or "skip" the step, but never more than
    # NON_FINITE_LIMIT of them in a row.
    cfg.SOLVER.NON_FINITE = "stop"
    cfg.SOLVER.NON_FINITE_LIMIT = 10
    # Parts of the model that keep no activations for the backward pass and compute them again, a third more time for
    # much less memory, in training and under attack: any of "backbone" (its blocks), "encoder" and "decoder" (the
    # transformer layers of DINO and Mask DINO).
    cfg.MODEL.ACTIVATION_CHECKPOINTING = ()


def _change_detectron2_defaults(cfg: CfgNode) -> None:
    cfg.MODEL.META_ARCHITECTURE = "PartClassifier"
    # torchvision's ImageNet statistics, RGB, 0..255.
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
    # torchvision's ResNet: stride in the 3x3 convolution, one ordinary stem, no multi-grid.
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.STEM_TYPE = "basic"
    cfg.MODEL.RESNETS.RES5_MULTI_GRID = [1, 1, 1]
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    # Images without any part annotation are data too: never drop them.
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    # All images become one size anyway; batches grouped by aspect ratio would be less mixed.
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    cfg.SEED = 0
    # cuDNN times its kernels in the first steps of a training and takes the fastest: all batches have one size.
    # Evaluations never do, so that they take the same kernels each time.
    cfg.CUDNN_BENCHMARK = True


def _add_input(cfg: CfgNode) -> None:
    # Side in pixels of the square that every model family sees, in training and in evaluation.
    cfg.INPUT.SIZE = 224
    # Training crop (torchvision's RandomResizedCrop): area relative to the image, and aspect ratio w / h.
    # The thesis uses scale (0.5, 1) for PACO and (0.08, 1) for PartImageNet.
    cfg.INPUT.CROP_SCALE = (0.5, 1.0)
    cfg.INPUT.CROP_RATIO = (0.75, 1.3333)
    # Probability of a horizontal flip in training.
    cfg.INPUT.FLIP_PROB = 0.5
    # Further changes of training images, all off by default; parts move along (docs/training.md).
    # Largest rotation in degrees, 0..180, before the crop; corners are of the mean colour and count nowhere.
    cfg.INPUT.ROTATION = 0.0
    # Largest relative change of brightness, contrast and saturation, 0 or more, and shift of the hue, 0..0.5
    # (torchvision's ColorJitter, in floats). MODEL.DEVICE changes whole batches, after everything below.
    cfg.INPUT.COLOR_JITTER = (0.0, 0.0, 0.0, 0.0)
    # Operations on each image, and their magnitude, 0..30, of RandAugment's that move no pixels (Cubuk et al., 2020).
    cfg.INPUT.RAND_AUGMENT = (0, 9)
    # Probability of covering a rectangle of 2 to 33 % of the image; its pixels count nowhere (Zhong et al., 2017).
    cfg.INPUT.ERASING_PROB = 0.0
    # Probability that a training image gets a rectangle of another one, with its parts (CutMix, Yun et al., 2019), or
    # is blended with it and teaches no parts (MixUp, Zhang et al., 2018); together at most 1. The class loss is
    # weighted by the share. ALPHA: of the Beta distribution of the share, above 0. Not for ATTACK.TRAIN.METHOD mart.
    cfg.INPUT.CUTMIX_PROB = 0.0
    cfg.INPUT.CUTMIX_ALPHA = 1.0
    cfg.INPUT.MIXUP_PROB = 0.0
    cfg.INPUT.MIXUP_ALPHA = 0.2
    # Evaluation: "center_crop" (resize the short side to TEST_RESIZE, cut the middle SIZE x SIZE), "letterbox" (resize
    # the long side to SIZE and pad to a square; the padding is never attacked or scored), or "stretch" (resize to
    # SIZE x SIZE whatever the shape, for models whose training images were made square that way).
    cfg.INPUT.TEST_TRANSFORM = "center_crop"
    # Short side in pixels before the centre crop; 0 means SIZE (nothing but the ends of long images is cut).
    cfg.INPUT.TEST_RESIZE = 0
    # How evaluation resizes images: "bilinear" or "bicubic", both with Pillow's smoothing.
    cfg.INPUT.TEST_INTERPOLATION = "bilinear"
    # Part targets, in training and in scores: "masks", or "boxes" (each part's box painted as its mask, small parts
    # on top of large ones), the box supervision of thesis section 2.2; data with boxes only need "boxes".
    cfg.INPUT.PART_MASKS = "masks"
    # Labels of the parts, for control experiments (docs/training.md): "parts"; "object", all parts of an image as one
    # with its class; "foreground", the same with one label for all classes; "shuffled", in training images the parts
    # of a class exchange their labels at random.
    cfg.INPUT.PART_LABELS = "parts"
    # Images per process in evaluation. Results do not depend on it.
    cfg.DATALOADER.TEST_BATCH_SIZE = 32


def get_part_robust_cfg(config_file: str | Path | None = None, opts: Sequence = ()) -> CfgNode:
    """Return the full config: defaults, then a YAML file (`_BASE_` may be a list), then `KEY VALUE` pairs.

    In the pairs, radii and step lengths may be written as the literature does, TEST.EPS 8/255, and whole numbers
    without a point: SOLVER.EPOCHS 1. Imports nothing and registers nothing: `part_robust.load_config` does.

    Args:
        config_file: a path, or a name among the package's configs, "paco/mask_dino_simple.yaml" (`find_config`).
        opts: KEY VALUE pairs.

    Raises:
        FileNotFoundError: the file or one of its bases does not exist.
        KeyError: an unknown key, named in the message.
        UserError: a value of the wrong type; the file is not a config.
    """
    cfg = default_cfg()
    if config_file:
        path = find_config(config_file)
        content = read_config_file(path)
        try:
            allow_own_keys(cfg, content)
            cfg.merge_from_other_cfg(CfgNode(_fitted(content, cfg)))
        except AssertionError as error:  # what yacs raises for values such as dates
            raise UserError(f"config file {path}: {error}") from error
    try:
        cfg.merge_from_list(_pairs(cfg, opts))
    except AssertionError as error:  # what yacs raises for an unknown key or an odd number of items
        raise KeyError(f"{error} (flags such as --eval-only must come before the KEY VALUE pairs)") from error
    return cfg


def default_cfg() -> CfgNode:
    """Returns a config of defaults, detectron2's keys and ours."""
    cfg = get_cfg()
    add_part_robust_config(cfg)
    return cfg


def _fitted(content: dict, cfg: Mapping, prefix: str = "") -> dict:
    """Return the content of a config file with values of the types of the config's."""
    fitted = {}
    rules = {prefix + name: rule for name, rule in ATTACK_RULES.items()} if prefix.startswith(SPECS) else RULES
    for name, value in content.items():
        key, default = f"{prefix}{name}", cfg.get(name)
        if prefix == SPECS and isinstance(value, dict):
            default = spec_defaults(value, default)
        if isinstance(value, dict) and isinstance(default, dict):
            fitted[name] = _fitted(value, default, f"{key}.")
        else:
            fitted[name] = fitting(key, CfgNode._decode_cfg_value(value), default, rules)
    return fitted


def _pairs(cfg: CfgNode, opts: Sequence) -> list:
    """Return `KEY VALUE` pairs with values of the types of the config's; "8/255", as an EPS or STEP_SIZE, becomes 8.0.

    Keys that the node of an attack in `cfg` leaves out are added to it.
    """
    opts = list(opts)
    for index in range(1, len(opts), 2):
        name, value = str(opts[index - 1]), opts[index]
        key = name.split(".")
        add_attack_key(cfg, key, value)
        fraction = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*/\s*255\s*", str(value))
        if fraction and key[-1] in ("EPS", "STEP_SIZE"):
            value = float(fraction[1])
        opts[index] = fitting(name, CfgNode._decode_cfg_value(value), _value(cfg, key), RULES)
    return opts


def _value(cfg: CfgNode, key: Sequence[str]) -> object:
    """None where there is no such key."""
    node: object = cfg
    for name in key:
        node = node.get(name) if isinstance(node, dict) else None
    return node


def config_text(cfg: CfgNode) -> str:
    """Return the complete config as YAML, a line for each key."""
    return cfg.dump(default_flow_style=None, width=10_000)


def config_values(text: str) -> dict[str, object]:
    """Values by dotted key ("SOLVER.BASE_LR") of a config as `dump` writes it.

    Raises:
        UserError: the text is not a config.
    """

    def walk(node: object, prefix: str) -> dict[str, object]:
        if not isinstance(node, dict):
            return {prefix: node}
        return {k: v for key, value in node.items() for k, v in walk(value, f"{prefix}.{key}".strip(".")).items()}

    try:
        content = yaml.load(text, LOADER)
    except yaml.YAMLError as error:
        raise UserError(f"a config that a run has noted must be yaml, got {text[:40]!r}") from error
    return walk(content or {}, "")
