"""A toy data set with every case the real ones have, and tiny models for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from part_robust.config import get_part_robust_cfg
from part_robust.engine import PartCheckpointer, PartTrainer
from part_robust.modeling.counts import with_counts

CLASSES = ("lamp", "plain", "sign")
PARTS = ("lamp:base", "lamp:shade", "sign:board")
SIZE = 32


def encode(mask: np.ndarray) -> dict:
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode()}


def toy_json(count: int = 12) -> tuple[dict, list[np.ndarray]]:
    """A valid part json and its images, uint8 (SIZE, SIZE, 3).

    Class k is a square of its own place and brightness, so it can be learned. Image 2, 5, 8... are of the class without
    parts; image 4 is `none`, image 7 `partial`, image 1 has an ignored corner.
    """
    generator = np.random.default_rng(0)
    images, annotations, pixels = [], [], []
    for index in range(count):
        class_index = index % 3
        picture = generator.integers(90, 130, (SIZE, SIZE, 3)).astype(np.uint8)
        left = 4 + 8 * class_index
        boxes = {0: [(left, 4, 8, 8, 2), (left, 12, 8, 12, 1)], 1: [], 2: [(left, 8, 8, 12, 3)]}[class_index]
        picture[4:24, left : left + 8] = (220, 20, 240)[class_index]
        supervision = {4: "none", 7: "partial"}.get(index + 1, "full")
        image = {
            "id": index + 1,
            "file_name": f"{index + 1}.png",
            "width": SIZE,
            "height": SIZE,
            "class_id": class_index + 1,
            "part_supervision": supervision,
        }
        if index == 0:
            corner = np.zeros((SIZE, SIZE))
            corner[24:, 24:] = 1
            image["ignore_segmentation"] = encode(corner)
        images.append(image)
        pixels.append(picture)
        for x, y, w, h, category in boxes if supervision != "none" else ():
            mask = np.zeros((SIZE, SIZE))
            mask[y : y + h, x : x + w] = 1
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": category,
                    "bbox": [float(x), float(y), float(w), float(h)],
                    "area": float(w * h),
                    "iscrowd": 0,
                    "segmentation": encode(mask),
                }
            )
    data = {
        "info": {"version": "1.0"},
        "licenses": [],
        "classes": [
            {"id": 1, "name": "lamp", "part_category_ids": [1, 2]},
            {"id": 2, "name": "plain", "part_category_ids": []},
            {"id": 3, "name": "sign", "part_category_ids": [3]},
        ],
        "categories": [
            {"id": i + 1, "name": name, "supercategory": name.split(":")[0]} for i, name in enumerate(PARTS)
        ],
        "images": images,
        "annotations": annotations,
    }
    return data, pixels


def write_toy(folder: Path, count: int = 12) -> tuple[Path, Path]:
    """Writes the toy data set; returns the json and the image root."""
    data, pixels = toy_json(count)
    root = folder / "images"
    root.mkdir(parents=True, exist_ok=True)
    for image, picture in zip(data["images"], pixels, strict=True):
        Image.fromarray(picture).save(root / image["file_name"])
    path = folder / "toy.json"
    path.write_text(json.dumps(data))
    return path, root


TINY = [
    *("MODEL.DEVICE", "cpu"),
    *("MODEL.WEIGHTS", ""),
    *("MODEL.BACKBONE.NAME", "build_basic_resnet_backbone"),
    *("MODEL.RESNETS.DEPTH", 10),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 16),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", 4),
    *("MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS", [4]),
    *("MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", 8),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", 8),
    *("MODEL.SEM_SEG_HEAD.ASPP_DILATIONS", [1, 2, 3]),
    *("INPUT.SIZE", SIZE),
    *("DATALOADER.NUM_WORKERS", 0),
    *("SOLVER.IMS_PER_BATCH", 4),
    *("SOLVER.WARMUP_ITERS", 0),
]
# The backbone that the configs have, narrow as it is here: a step of it takes twice as long.
RESNET_50 = ["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", 50]

MODELS = {
    "resnet": ["MODEL.PART_CLASSIFIER.HEAD", "LinearHead"],
    "deeplab_segmenter": [
        *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res5"]),
        *("MODEL.RESNETS.RES5_DILATION", 2),
        *("MODEL.PART_CLASSIFIER.SEGMENTER", "DeepLabSegmenter"),
        *("MODEL.PART_CLASSIFIER.HEAD", ""),
    ],
}
for _name, _head in (
    ("deeplab_two_headed", "TwoHeadedHead"),
    ("deeplab_downsampled", "DownsampledHead"),
    ("deeplab_bounding_box", "BoundingBoxHead"),
    ("deeplab_pixel", "PixelHead"),
):
    MODELS[_name] = [*MODELS["deeplab_segmenter"], "MODEL.PART_CLASSIFIER.HEAD", _head]

MODELS["dino_detector"] = [
    *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
    *("MODEL.PART_CLASSIFIER.SEGMENTER", "DinoSegmenter"),
    *("MODEL.PART_CLASSIFIER.HEAD", ""),
    *("MODEL.DINO.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
    *("MODEL.DINO.ENCODER_LAYERS", 1),
    *("MODEL.DINO.DECODER_LAYERS", 2),
    *("MODEL.DINO.NUM_QUERIES", 20),
    *("MODEL.DINO.DIM", 32),
    *("MODEL.DINO.HEADS", 4),
    *("MODEL.DINO.POINTS", 2),
    *("MODEL.DINO.FEEDFORWARD_DIM", 64),
    *("MODEL.DINO.DENOISING_NUMBER", 8),
]
MODELS["dino_sequential"] = [*MODELS["dino_detector"], "MODEL.PART_CLASSIFIER.HEAD", "SequentialHead"]
MODELS["dino_two_headed"] = [*MODELS["dino_detector"], "MODEL.PART_CLASSIFIER.HEAD", "LinearHead"]

MODELS["mask_dino_segmenter"] = [
    *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
    *("MODEL.PART_CLASSIFIER.SEGMENTER", "MaskDinoSegmenter"),
    *("MODEL.PART_CLASSIFIER.HEAD", ""),
    *("MODEL.MASK_DINO.ENCODER_LAYERS", 1),
    *("MODEL.MASK_DINO.ENCODER_FEEDFORWARD_DIM", 64),
    *("MODEL.MASK_DINO.DECODER_LAYERS", 2),
    *("MODEL.MASK_DINO.FEEDFORWARD_DIM", 64),
    *("MODEL.MASK_DINO.NUM_QUERIES", 10),
    *("MODEL.MASK_DINO.DIM", 32),
    *("MODEL.MASK_DINO.MASK_DIM", 32),
    *("MODEL.MASK_DINO.HEADS", 4),
    *("MODEL.MASK_DINO.POINTS", 2),
    *("MODEL.MASK_DINO.DENOISING_NUMBER", 8),
]
MODELS["mask_dino_instance_segmenter"] = [
    *MODELS["mask_dino_segmenter"],
    *("MODEL.MASK_DINO.LEVELS", 4),
    *("MODEL.MASK_DINO.LEVEL_ORDER", "fine_first"),
    *("MODEL.MASK_DINO.TWO_STAGE", True),
    *("MODEL.MASK_DINO.BOX_INIT", "mask2box"),
    *("MODEL.MASK_DINO.CLASS_LOSS", "focal"),
]
MODELS["mask_dino_simple"] = [*MODELS["mask_dino_segmenter"], "MODEL.PART_CLASSIFIER.HEAD", "QueryHead"]


def tiny_cfg(model: str = "deeplab_two_headed", *opts):
    """Config of a tiny model on the toy data (datasets `toy_train`, `toy_val`)."""
    datasets = ["DATASETS.TRAIN", ("toy_train",), "DATASETS.VAL", ("toy_val",), "DATASETS.TEST", ("toy_val",)]
    return get_part_robust_cfg(opts=[*TINY, *datasets, *MODELS[model], *opts])


# Training runs: adversarial, without evaluation, without chance, and with the optimizer of detectors.
ADVERSARIAL = [
    *("ATTACK.TRAIN.ENABLED", True),
    *("ATTACK.TRAIN.STEPS", 1),
    *("ATTACK.TRAIN.EPS_WARMUP_ITERS", 4),
    *("ATTACK.SPECS.pgd20.STEPS", 1),
]
QUIET = [*ADVERSARIAL, "ATTACK.TRAIN.EPS_WARMUP_ITERS", 0, "TEST.EVAL_PERIOD", 0]
# Nothing in the model depends on batch-mates or on chance.
STEADY = [
    *("MODEL.RESNETS.NORM", "FrozenBN", "MODEL.SEM_SEG_HEAD.NORM", "", "MODEL.PART_CLASSIFIER.HEAD_NORM", ""),
    *("MODEL.SEM_SEG_HEAD.ASPP_DROPOUT", 0.0, "MODEL.DINO.DENOISING_NUMBER", 0, "TEST.EVAL_PERIOD", 0),
    *("MODEL.MASK_DINO.DENOISING_NUMBER", 0),
]
ADAMW = [
    *("SOLVER.OPTIMIZER", "AdamW"),
    *("SOLVER.BASE_LR", 0.001),
    *("SOLVER.BACKBONE_MULTIPLIER", 0.1),
    *("SOLVER.CLIP_GRADIENTS.ENABLED", True),
    *("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model"),
    *("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.1),
]


def run_cfg(folder: Path, *opts, model: str = "deeplab_two_headed"):
    """Config of a training of six iterations into a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    cfg = tiny_cfg(model, "OUTPUT_DIR", str(folder), "SOLVER.STEPS", (), "SOLVER.MAX_ITER", 6, *opts)
    cfg = with_counts(cfg)
    cfg.freeze()
    return cfg


def metric_lines(folder: Path) -> list[dict]:
    """Reads the metrics that a training has written."""
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def save_run(folder: Path, model: str, *opts, move_statistics: bool = False):
    """Makes the folder of a "finished" run: config.yaml and model_best.pth of random weights, with an optimizer.

    Args:
        move_statistics: of the batch norms, away from what they begin with.

    Returns:
        Its config, and the model in eval mode.
    """
    torch.manual_seed(0)
    cfg = run_cfg(folder, "MODEL.WEIGHTS", str(folder / "model_best.pth"), *opts, model=model)
    built = PartTrainer.build_model(cfg)
    for name, buffer in built.named_buffers():
        if move_statistics and "running" in name:
            buffer.uniform_(0.5, 1.5)
    PartCheckpointer(built, str(folder)).write("model_best", optimizer={"state": torch.zeros(9)})
    (folder / "config.yaml").write_text(cfg.dump())
    return cfg, built.eval()
