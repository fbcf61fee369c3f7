"""Trainings and evaluations on the pretend device: their options, small enough for every family."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from part_robust.engine import PartTrainer, evaluate
from part_robust.modeling.counts import with_counts
from tests.evaluation.record_fixture import comparable
from tests.toy import MODELS, tiny_cfg

# A second Mask DINO has the settings of its authors' instance segmentation, no code of its own.
FAMILIES = [name for name in MODELS if name != "mask_dino_instance_segmenter"]
# On the CPU the implementation of deformable attention that a device takes.
SMALL = [
    *("MODEL.DINO.MS_DEFORM_ATTN", "embedding_bag", "MODEL.MASK_DINO.MS_DEFORM_ATTN", "embedding_bag"),
    *("SOLVER.MAX_ITER", 2, "SOLVER.BASE_LR", 1e-4, "SEED", 5, "SOLVER.AMP.DTYPE", "bfloat16"),
    *("DATASETS.VAL", (), "DATASETS.TEST", ()),
]
ATTACKED = ["ATTACK.TRAIN.ENABLED", True, "ATTACK.TRAIN.STEPS", 1, "ATTACK.TRAIN.PART_LOSS_ON", "both"]
GUARD = [*("ATTACK.TRAIN.GUARD.PERIOD", 2), *("ATTACK.TRAIN.GUARD.IMAGES", 2), *("ATTACK.TRAIN.GUARD.STEPS", 1)]
SHORT = [
    *("ATTACK.SPECS.apgd_ce.STEPS", 2, "ATTACK.SPECS.apgd_t.STEPS", 2, "ATTACK.SPECS.fab_t.STEPS", 2),
    *("ATTACK.SPECS.square.STEPS", 2, "ATTACK.SPECS.pgd20.STEPS", 1),
    *("ATTACK.SPECS.sea_masked.STEPS", 3, "ATTACK.SPECS.sea_js.STEPS", 3),
    *("ATTACK.SPECS.apgd_part_loss.STEPS", 2, "ATTACK.SPECS.apgd_part_loss_fixed.STEPS", 2),
    *("TEST.TIERS.parts", ["sea_masked", "sea_js", "apgd_part_loss", "apgd_part_loss_fixed"]),
    *("TEST.CHECKS.IMAGES", 2, "TEST.CHECKS.STEPS", 2, "TEST.CHECKS.LONG_STEPS", 2, "TEST.CHECKS.NOISE_DRAWS", 2),
    *("TEST.CHECKS.DIRECTIONS", 1, "TEST.CHECKS.EOT_DRAWS", 2, "TEST.CHECKS.RESTARTS", 2),
    *("DATALOADER.TEST_BATCH_SIZE", 2, "TEST.NUM_IMAGES", 2),
]
TIERS = [
    *("TEST.TIER", "standard,thesis,parts", "TEST.TIERS.thesis", ["pgd20"], "TEST.EPS", 8.0, "TEST.EPS_CURVE", (4,)),
    *("TEST.CHECKS.SIBLINGS", ""),
]
# A model of each kind, the way its attacked images are kept, and what it cannot do.
KINDS = {
    "resnet": ("png", ["TEST.TIER", "standard,thesis", "TEST.THREATS", "linf:8/255 l2:1 l1:9"]),
    "deeplab_segmenter": ("npz", ["TEST.TIER", "parts", "TEST.EPS_CURVE", ()]),
    "deeplab_two_headed": (
        "png",
        [
            *("TEST.SMOOTHING.SIGMA", 20.0, "TEST.SMOOTHING.SAMPLES", 20),
            *("TEST.TIER", "standard,thesis,parts,local", "ATTACK.SPECS.square1000.STEPS", 2),
            *("TEST.LOCAL.REGIONS", ["parts", "patch"], "TEST.LOCAL.PATCH_POSITIONS", 2, "TEST.LOCAL.EPS", 1.0),
            *("TEST.RESTART_GAIN", 100.0, "TEST.RESTART_ATTACKS", ()),
        ],
    ),
    "dino_detector": ("png", ["TEST.TIER", "parts", "TEST.EPS_CURVE", ()]),
    "dino_sequential": ("npz", ["TEST.TIERS.standard", ["apgd_t", "square"]]),
    "mask_dino_simple": ("npz", ["TEST.TIERS.standard", ["apgd_ce", "fab_t"], "TEST.SAVE_PREDICTIONS", True]),
}


def evaluation(folder: Path, model: str, device: str, data: tuple[Path, Path], *opts, seed: int = 0) -> str:
    """The record of an evaluation as text, without times and paths."""
    folder.mkdir(parents=True, exist_ok=True)
    own = ["MODEL.DEVICE", device, "OUTPUT_DIR", str(folder), "MODEL.WEIGHTS", str(folder / "model.pth")]
    register = ["DATASETS.REGISTER", [["toy_val", *map(str, data)]]]
    cfg = with_counts(tiny_cfg(model, *SMALL, *SHORT, *own, *register, "DATASETS.TEST", ("toy_val",), *opts))
    cfg.freeze()
    torch.manual_seed(seed)
    torch.save({"model": PartTrainer.build_model(cfg).state_dict()}, folder / "model.pth")
    evaluate(cfg)
    record = comparable(folder)
    for found in record["evaluation"].values():
        found.pop("device")
    return json.dumps({"results": record["results"], "evaluation": record["evaluation"]}, sort_keys=True, indent=1)
