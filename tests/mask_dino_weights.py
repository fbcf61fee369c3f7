"""Small Mask DINOs for parity: their configs, the authors' names of their weights, images and true parts.

The reference numbers were computed by the authors' implementation (IDEA-Research/MaskDINO, commit 3831d85) with weights
of tests/dino_weights.py, see tests/fixtures/make_mask_dino_small.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from detectron2.modeling import build_model
from torch import Tensor, nn

from part_robust.config import get_part_robust_cfg
from tests.dino_weights import make_weight

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "models"
SIZE, PARTS, QUERIES, POINTS = 96, 12, 20, 200
DENOISING = 12

# Name -> our model and KEY VALUE pairs, and the authors' config with theirs.
VARIANTS: dict[str, tuple[str, list, str, list]] = {
    "semantic": (
        "mask_dino_segmenter",
        ["MODEL.MASK_DINO.DECODER_LAYERS", 2],
        "SEMANTIC",
        ["MODEL.RESNETS.NORM", "BN", "DEC_LAYERS", 2],
    ),
    "instance": ("mask_dino_instance", ["MODEL.MASK_DINO.DECODER_LAYERS", 2], "INSTANCE", ["DEC_LAYERS", 2]),
    # Like the published instance model with 3 levels: coarse first, other boxes around masks; and one decoder layer.
    "bitmask": (
        "mask_dino_instance",
        [
            *("MODEL.MASK_DINO.LEVELS", 3),
            *("MODEL.MASK_DINO.LEVEL_ORDER", "coarse_first"),
            *("MODEL.MASK_DINO.BOX_INIT", "bitmask"),
            *("MODEL.MASK_DINO.DECODER_LAYERS", 1),
        ],
        "INSTANCE",
        [
            *("MODEL.SEM_SEG_HEAD.TOTAL_NUM_FEATURE_LEVELS", 3),
            *("MODEL.SEM_SEG_HEAD.FEATURE_ORDER", "high2low"),
            *("INITIALIZE_BOX_TYPE", "bitmask"),
            *("DEC_LAYERS", 1),
        ],
    ),
}


def official_opts(variant: str) -> list:
    """KEY VALUE pairs for the authors' config."""
    own = VARIANTS[variant][3]
    keys = [key if key.startswith("MODEL") else f"MODEL.MaskDINO.{key}" for key in own[::2]]
    return [
        *(item for pair in zip(keys, own[1::2], strict=True) for item in pair),
        *("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 1),
        *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", PARTS),
        *("MODEL.MaskDINO.NUM_OBJECT_QUERIES", QUERIES),
        *("MODEL.MaskDINO.TRAIN_NUM_POINTS", POINTS),
        *("MODEL.MaskDINO.DN_NUM", DENOISING),
    ]


def small(variant: str) -> nn.Module:
    """Our model, in eval mode, with the weights of `make_weight`."""
    return build(
        VARIANTS[variant][0],
        PARTS,
        *VARIANTS[variant][1],
        *("MODEL.MASK_DINO.ENCODER_LAYERS", 1),
        *("MODEL.MASK_DINO.NUM_QUERIES", QUERIES),
        *("MODEL.MASK_DINO.DENOISING_NUMBER", DENOISING),
        *("MODEL.MASK_DINO.MASK_LOSS", "points"),
        *("MODEL.MASK_DINO.NUM_POINTS", POINTS),
    )


def build(model: str, parts: int, *opts) -> nn.Module:
    counts = ["MODEL.PART_CLASSIFIER.NUM_PARTS", parts, "MODEL.PART_CLASSIFIER.NUM_CLASSES", 3]
    cfg = get_part_robust_cfg(CONFIGS / f"{model}.yaml", ["MODEL.DEVICE", "cpu", *counts, *opts])
    built = build_model(cfg).eval()
    with torch.no_grad():
        for name, value in built.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                key = official_name(name)
                value.copy_(make_weight(key, tuple(value.shape), levels=cfg.MODEL.MASK_DINO.LEVELS))
    return built


def official_name(name: str) -> str:
    """The authors' name of a parameter or buffer; of several the alphabetically first."""
    if name.startswith("backbone."):
        return name
    name = name.removeprefix("segmenter.").replace("query_selection.", "").replace("bbox_embed.", "_bbox_embed.")
    if not name.startswith("pixel_decoder."):
        return f"sem_seg_head.predictor.{name}"
    name = name.removeprefix("pixel_decoder.")
    if name.startswith(("encoder.", "level_embed")):
        name = f"transformer.{name}"
    return f"sem_seg_head.pixel_decoder.{name}"


def parity_image() -> Tensor:
    """Normalised images (2, 3, 96, 96)."""
    return torch.from_numpy(np.random.RandomState(0).standard_normal((2, 3, SIZE, SIZE)).astype(np.float32))


def parity_parts() -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Labels (3,), masks bool (3, 96, 96), boxes (3, 4) XYXY pixels around them, of both images; some overlap."""
    labels = [torch.tensor([3, 3, 7]), torch.tensor([11, 0, 5])]
    ellipses = [
        [(30, 40, 12, 17), (60, 50, 30, 9), (80, 20, 6, 6)],
        [(48, 48, 40, 35), (20, 70, 15, 20), (40, 40, 10, 10)],
    ]
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    masks = [
        torch.stack([((x - u) / a) ** 2 + ((y - v) / b) ** 2 <= 1.0 for u, v, a, b in image]) for image in ellipses
    ]
    boxes = []
    for image in masks:
        corners = []
        for mask in image:
            rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
            corners.append([int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1])
        boxes.append(torch.tensor(corners, dtype=torch.float32))
    return labels, masks, boxes


def random_weights(shape) -> Tensor:
    return torch.from_numpy(np.random.RandomState(1).standard_normal(tuple(shape)).astype(np.float32))


def functional(logits: Tensor, boxes: Tensor, masks: Tensor) -> Tensor:
    """A scalar of the last layer's predictions, for gradients."""
    weighted = [(value * random_weights(value.shape)).sum() for value in (logits, boxes, masks)]
    return weighted[0] + 10 * weighted[1] + 0.1 * weighted[2]
