"""The rule of every config key whose type alone does not say what it may be: choices and ranges.

The meaning, unit and source of a key are documented at its default: __init__.py, models.py and attacks.py. A key
without a rule takes any value of its default's type. Names in registries are added by `part_robust.run_config`.
"""

from __future__ import annotations

import re

from part_robust.config.rules import NAME, NAMES, TEXT, Rule, ascending, in_order, list_of, number, one_of, whole

SHARE = number(0, 1)
COUNT = whole(1)
# Beyond these a machine runs out of memory or processes; they catch a digit too many.
SIDE, BATCH, WORKERS = whole(1, 2**14), whole(1, 2**16), whole(0, 2**10)
WEIGHT = number(0)
SEED = whole()
DEVICES = ("cpu", "cuda", "mps", "meta")


def _is_device(value: object) -> bool:
    if not isinstance(value, str):
        return False
    name, _, index = value.partition(":")
    return name in DEVICES and (not index or index.isdigit()) and not value.endswith(":")


_IS_SCHEDULE = list_of(list_of(number(0, above=True), "numbers", length=2), "pairs").holds

# Of every attack, by the last part of the key.
ATTACK_RULES: dict[str, Rule] = {
    "NORM": one_of("linf", "l2", "l1"),
    "EPS": WEIGHT,
    "STEPS": COUNT,
    "STEP_SIZE": number(0, above=True),
    "RESTARTS": COUNT,
    "KEEP": one_of("last", "best"),
    "SEED": SEED,
    "NOISE": WEIGHT,
    "QUERY_FACTOR": COUNT,
    "COMPACT_EVERY": COUNT,
    "NUM_TARGETS": COUNT,
    "TARGET_RANKING": one_of("logits", "malt"),
    "TARGET_CANDIDATES": COUNT,
    "APGD_MOMENTUM": SHARE,
    "APGD_SUCCESS_SHARE": SHARE,
    "RADIUS_SCHEDULE": Rule("a list of pairs (factor on EPS, share of STEPS), both above 0", _IS_SCHEDULE),
    "FAB_ALPHA_MAX": SHARE,
    "FAB_OVERSHOOT": number(0, above=True),
    "FAB_BACKWARD": SHARE,
    "FAB_FINAL_SEARCH": whole(0),
    "SQUARE_AREA": number(0, 1, above=True),
}

_TRAINING_ATTACK: dict[str, Rule] = {
    "ATTACK.TRAIN.FRACTION": number(0, 1, above=True),
    "ATTACK.TRAIN.EPS_WARMUP_ITERS": whole(0),
    "ATTACK.TRAIN.PRECISION": one_of("float32", "tf32", "bfloat16"),
    "ATTACK.TRAIN.METHOD": one_of("adversarial", "mix", "trades", "mart"),
    "ATTACK.TRAIN.MIX_WEIGHT": SHARE,
    "ATTACK.TRAIN.TRADES_BETA": WEIGHT,
    "ATTACK.TRAIN.MART_BETA": WEIGHT,
    "ATTACK.TRAIN.PART_LOSS_ON": one_of("attacked", "clean", "both"),
    "ATTACK.TRAIN.MATCH_ON": one_of("attacked", "clean"),
    "ATTACK.TRAIN.AWP.GAMMA": WEIGHT,
    "ATTACK.TRAIN.AWP.WARMUP_ITERS": whole(0),
    "ATTACK.TRAIN.GUARD.PERIOD": whole(0),
    "ATTACK.TRAIN.GUARD.IMAGES": COUNT,
    "ATTACK.TRAIN.GUARD.STEPS": COUNT,
    "ATTACK.TRAIN.GUARD.DROP": number(0, 1, above=True),
    "ATTACK.TRAIN.GUARD.ACTION": one_of("warn", "stop"),
    "ATTACK.EVAL": NAMES,
    "ATTACK.EVAL_DURING_TRAINING": NAMES,
}


def _is_expected(value: object) -> bool:
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        return False
    return all(map(NAME.holds, value[:2])) and all(map(number().holds, value[2:]))


_EVALUATION: dict[str, Rule] = {
    "TEST.BEST_METRIC": NAME,
    "TEST.EVAL_PERIOD": whole(0),
    "TEST.EXPECTED_RESULTS": list_of(
        Rule("[task, metric, value, tolerance]", _is_expected), "entries [task, metric, value, tolerance]"
    ),
    "TEST.NUM_IMAGES": whole(0),
    "TEST.FULL_TIERS": NAMES,
    "TEST.NORM": one_of("", "linf", "l2", "l1"),
    "TEST.EPS": Rule(
        "-1 (what each attack says) or a number of at least 0", lambda value: value == -1 or WEIGHT.holds(value)
    ),
    "TEST.BACKEND": one_of("own", "autoattack"),
    "TEST.SAMPLED_ATTACKS": NAMES,
    "TEST.BOUND": number(0, 100),
    "TEST.RESTART_GAIN": number(0, 100),
    "TEST.RESTART_ATTACKS": NAMES,
    "TEST.LOCAL.REGIONS": list_of(
        one_of("parts", "object", "background", "patch"), "of parts, object, background and patch", least=1
    ),
    "TEST.LOCAL.NORM": one_of("linf", "l2", "l1"),
    "TEST.LOCAL.EPS": WEIGHT,
    "TEST.LOCAL.PATCH_SIDES": list_of(number(0, 1, above=True), "shares of the image's side, above 0 and at most 1"),
    "TEST.LOCAL.PATCH_POSITIONS": COUNT,
    "TEST.EPS_CURVE": list_of(WEIGHT, "numbers of at least 0"),
    "TEST.SAVE_ADVERSARIALS": one_of("", "npz", "png"),
    "TEST.SMOOTHING.SIGMA": WEIGHT,
    "TEST.SMOOTHING.SAMPLES": COUNT,
    "TEST.SMOOTHING.SELECTION": COUNT,
    "TEST.SMOOTHING.ALPHA": Rule(
        "a number above 0 and below 0.5", lambda value: SHARE.holds(value) and 0 < value < 0.5
    ),
    "TEST.SMOOTHING.IMAGES": whole(0),
    "TEST.CHECKS.IMAGES": COUNT,
    "TEST.CHECKS.DIRECTIONS": COUNT,
    "TEST.CHECKS.STEPS": COUNT,
    "TEST.CHECKS.LONG_STEPS": COUNT,
    "TEST.CHECKS.RESTARTS": COUNT,
    "TEST.CHECKS.NOISE_DRAWS": COUNT,
    "TEST.CHECKS.EOT_DRAWS": COUNT,
    "TEST.CHECKS.SEED": SEED,
}


def _is_module(value: object) -> bool:
    return isinstance(value, str) and all(part.isidentifier() for part in value.split("."))


_DATA: dict[str, Rule] = {
    "INPUT.FORMAT": one_of("RGB"),
    "INPUT.SIZE": SIDE,
    "INPUT.CROP_SCALE": ascending(0, 1),
    "INPUT.CROP_RATIO": ascending(0),
    "INPUT.FLIP_PROB": SHARE,
    "INPUT.ROTATION": number(0, 180),
    "INPUT.COLOR_JITTER": Rule(
        "a list of 4 numbers of at least 0, the last one at most 0.5",
        lambda value: list_of(WEIGHT, "numbers", length=4).holds(value) and value[3] <= 0.5,
    ),
    "INPUT.RAND_AUGMENT": Rule(
        "a list of the number of operations, at least 0, and their magnitude, 0..30",
        lambda value: list_of(whole(0), "numbers", length=2).holds(value) and value[1] <= 30,
    ),
    "INPUT.ERASING_PROB": SHARE,
    "INPUT.CUTMIX_PROB": SHARE,
    "INPUT.CUTMIX_ALPHA": number(0, above=True),
    "INPUT.MIXUP_PROB": SHARE,
    "INPUT.MIXUP_ALPHA": number(0, above=True),
    "INPUT.TEST_TRANSFORM": one_of("center_crop", "letterbox", "stretch"),
    "INPUT.TEST_RESIZE": whole(0, 2**14),
    "INPUT.TEST_INTERPOLATION": one_of("bilinear", "bicubic"),
    "INPUT.PART_MASKS": one_of("masks", "boxes"),
    "INPUT.PART_LABELS": one_of("parts", "object", "foreground", "shuffled"),
    "DATASETS.TRAIN": NAMES,
    "DATASETS.VAL": NAMES,
    "DATASETS.TEST": NAMES,
    "DATASETS.PART_LABEL_SHARE": SHARE,
    "DATASETS.REGISTER": list_of(list_of(TEXT, "texts", length=3), "entries [name, part json, image root]"),
    "DATALOADER.TEST_BATCH_SIZE": BATCH,
    "DATALOADER.NUM_WORKERS": WORKERS,
    "DATALOADER.SAMPLER_TRAIN": one_of("TrainingSampler", "RepeatFactorTrainingSampler"),
    "DATALOADER.REPEAT_THRESHOLD": WEIGHT,
    "IMPORTS": list_of(Rule("a module", _is_module), "names of modules"),
    "OUTPUT_DIR": NAME,
    # NumPy seeds its generators with 32 bits.
    "SEED": whole(high=2**32 - 1),
}

_SOLVER: dict[str, Rule] = {
    "SOLVER.MAX_ITER": COUNT,
    "SOLVER.IMS_PER_BATCH": BATCH,
    "SOLVER.BASE_LR": number(0, above=True),
    "SOLVER.MOMENTUM": SHARE,
    "SOLVER.WEIGHT_DECAY": WEIGHT,
    "SOLVER.WEIGHT_DECAY_NORM": WEIGHT,
    "SOLVER.GAMMA": number(0, above=True),
    "SOLVER.STEPS": in_order(whole(0), "whole numbers of at least 0"),
    "SOLVER.WARMUP_FACTOR": SHARE,
    "SOLVER.WARMUP_ITERS": whole(0),
    "SOLVER.WARMUP_METHOD": one_of("linear", "constant"),
    "SOLVER.LR_SCHEDULER_NAME": one_of("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
    "SOLVER.CHECKPOINT_PERIOD": COUNT,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": one_of("value", "norm", "full_model"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": number(0, above=True),
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": number(0, above=True),
    "SOLVER.EPOCHS": WEIGHT,
    "SOLVER.STEP_EPOCHS": in_order(WEIGHT, "numbers of at least 0"),
    "SOLVER.EVAL_EPOCHS": number(0, above=True),
    "SOLVER.PATIENCE": whole(0),
    "SOLVER.OPTIMIZER": one_of("SGD", "AdamW"),
    "SOLVER.BACKBONE_MULTIPLIER": WEIGHT,
    "SOLVER.BACKBONE_FREEZE_EPOCHS": WEIGHT,
    "SOLVER.BACKBONE_FREEZE_ITERS": whole(0),
    "SOLVER.BATCH_NORM": one_of("batch", "running"),
    "SOLVER.ACCUMULATE": COUNT,
    "SOLVER.AMP.DTYPE": one_of("bfloat16", "float16"),
    "SOLVER.EMA.DECAY": Rule("a number from 0 to below 1", lambda value: SHARE.holds(value) and value < 1),
    "SOLVER.NON_FINITE": one_of("stop", "skip"),
    "SOLVER.NON_FINITE_LIMIT": whole(0),
}

_NORM = one_of("", "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN")
# Not a choice: backbones of one's own name their features themselves.
_FEATURE = Rule(
    "the name of a backbone feature, such as res5",
    lambda value: isinstance(value, str) and re.fullmatch(r"[A-Za-z]\w*", value) is not None,
)
_FEATURE_LIST = list_of(_FEATURE, "names of backbone features, such as res5, each once", least=1)
_FEATURES = Rule(_FEATURE_LIST.words, lambda value: _FEATURE_LIST.holds(value) and len(set(value)) == len(value))
_COUNTS = list_of(COUNT, "whole numbers of at least 1")

_MODEL: dict[str, Rule] = {
    "MODEL.DEVICE": Rule("cpu, cuda, cuda:0, cuda:1, ... or mps", _is_device),
    "MODEL.BACKBONE.FREEZE_AT": whole(0, 5),
    "MODEL.PIXEL_MEAN": list_of(number(), "numbers", length=3),
    "MODEL.PIXEL_STD": list_of(number(0, above=True), "numbers above 0", length=3),
    "MODEL.RESNETS.DEPTH": Rule(
        "10, 18, 34, 50, 101 or 152", lambda value: type(value) is int and value in (10, 18, 34, 50, 101, 152)
    ),
    "MODEL.RESNETS.NORM": _NORM,
    "MODEL.RESNETS.NUM_GROUPS": COUNT,
    "MODEL.RESNETS.WIDTH_PER_GROUP": COUNT,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": COUNT,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": COUNT,
    "MODEL.RESNETS.OUT_FEATURES": _FEATURES,
    "MODEL.RESNETS.RES5_DILATION": whole(1, 2),
    "MODEL.SEM_SEG_HEAD.NORM": _NORM,
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": _FEATURES,
    "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS": _COUNTS,
    "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": COUNT,
    "MODEL.SEM_SEG_HEAD.ASPP_DILATIONS": list_of(COUNT, "whole numbers of at least 1", length=3),
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": COUNT,
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": COUNT,
    "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT": SHARE,
    "MODEL.ACTIVATION_CHECKPOINTING": list_of(
        one_of("backbone", "encoder", "decoder"), "names among backbone, encoder, decoder"
    ),
    "MODEL.TIMM.NAME": NAME,
    "MODEL.TIMM.OPTIONS": Rule(
        "a list of pairs [name, value]",
        lambda value: (
            isinstance(value, (list, tuple))
            and all(isinstance(pair, (list, tuple)) and len(pair) == 2 and NAME.holds(pair[0]) for pair in value)
        ),
    ),
    "MODEL.EXTERNAL.KIND": one_of("", "torchscript", "exported", "timm", "torchvision", "callable"),
    "MODEL.EXTERNAL.CHANNELS": one_of("RGB", "BGR"),
    "MODEL.EXTERNAL.BATCH": whole(0, 2**16),
    "MODEL.EXTERNAL.CLASS_INDICES": list_of(
        Rule("", lambda value: whole(0).holds(value) or list_of(whole(0), "", least=1).holds(value)),
        "whole numbers of at least 0, or lists of them",
    ),
    "MODEL.PART_CLASSIFIER.NUM_CLASSES": whole(0),
    "MODEL.PART_CLASSIFIER.NUM_PARTS": whole(0),
    "MODEL.PART_CLASSIFIER.HEAD_NORM": _NORM,
    "MODEL.PART_CLASSIFIER.SEG_LOSS_WEIGHT": SHARE,
    "MODEL.PART_CLASSIFIER.LABEL_SMOOTHING": SHARE,
    "MODEL.LINEAR_HEAD.IN_FEATURE": _FEATURE,
    "MODEL.TWO_HEADED_HEAD.IN_FEATURE": _FEATURE,
    "MODEL.TWO_HEADED_HEAD.POOL_SIZE": COUNT,
    "MODEL.TWO_HEADED_HEAD.HIDDEN_DIM": COUNT,
    "MODEL.DOWNSAMPLED_HEAD.POOL_SIZE": COUNT,
    "MODEL.DOWNSAMPLED_HEAD.CHANNELS_PER_PART": COUNT,
    "MODEL.DOWNSAMPLED_HEAD.HIDDEN_DIM": COUNT,
    "MODEL.BOUNDING_BOX_HEAD.HIDDEN_DIM": COUNT,
    "MODEL.BOUNDING_BOX_HEAD.NORMALIZE": one_of("image", "object", "published"),
    "MODEL.SEQUENTIAL_HEAD.HIDDEN_DIM": COUNT,
    "MODEL.SEQUENTIAL_HEAD.PROBABILITIES": one_of("softmax", "sigmoid"),
    "MODEL.SEQUENTIAL_HEAD.ORDER": one_of("decoded", "confidence"),
    "MODEL.QUERY_HEAD.AGGREGATION": one_of("mean", "max", "topk", "confidence"),
    "MODEL.QUERY_HEAD.TOP_K": COUNT,
    "MODEL.PART_TO_CLASS.EMPTY_CLASSES": one_of("column", "bias"),
}

_DETECTORS: dict[str, Rule] = {
    "IN_FEATURES": _FEATURES,
    "LEVELS": COUNT,
    "DECODER_LAYERS": COUNT,
    "ENCODER_LAYERS": whole(0),
    "NUM_QUERIES": COUNT,
    "DIM": COUNT,
    "HEADS": COUNT,
    "POINTS": COUNT,
    "FEEDFORWARD_DIM": COUNT,
    "DENOISING_NUMBER": whole(0),
    "LABEL_NOISE": WEIGHT,
    "BOX_NOISE": WEIGHT,
    "MATCH_CLASS_COST": WEIGHT,
    "MATCH_BOX_COST": WEIGHT,
    "MATCH_GIOU_COST": WEIGHT,
    "CLASS_WEIGHT": WEIGHT,
    "BOX_WEIGHT": WEIGHT,
    "GIOU_WEIGHT": WEIGHT,
    "LOSS_SCALE": one_of("mean", "thesis"),
    "MAX_DETECTIONS": COUNT,
    "MS_DEFORM_ATTN": one_of("auto", "sparse", "embedding_bag", "gather", "grid_sample", "triton"),
}
_DINO: dict[str, Rule] = {
    "POSITION_TEMPERATURE": number(0, above=True),
    "POSITION_OFFSET": number(),
    "LABEL_BOOK_SIZE": COUNT,
}
_MASK_DINO: dict[str, Rule] = {
    "LEVEL_ORDER": one_of("coarse_first", "fine_first"),
    "MASK_FEATURE": _FEATURE,
    "ENCODER_FEEDFORWARD_DIM": COUNT,
    "MASK_DIM": COUNT,
    "BOX_INIT": one_of("no", "bitmask", "mask2box"),
    "CLASS_LOSS": one_of("cross_entropy", "focal"),
    "NO_OBJECT_WEIGHT": WEIGHT,
    "MATCH_MASK_COST": WEIGHT,
    "MATCH_DICE_COST": WEIGHT,
    "MASK_WEIGHT": WEIGHT,
    "DICE_WEIGHT": WEIGHT,
    "MASK_LOSS": one_of("dense", "points"),
    "NUM_POINTS": COUNT,
    "POINT_OVERSAMPLE": number(1),
    "POINT_IMPORTANCE": SHARE,
    "POINT_SEED": SEED,
    "OUTPUTS": list_of(one_of("semantic", "instance"), "names among semantic, instance", least=1),
}

RULES: dict[str, Rule] = {
    **_TRAINING_ATTACK,
    **{f"ATTACK.TRAIN.{key}": rule for key, rule in ATTACK_RULES.items()},
    **_EVALUATION,
    **_DATA,
    **_SOLVER,
    **_MODEL,
    **{f"MODEL.DINO.{key}": rule for key, rule in (_DETECTORS | _DINO).items()},
    **{f"MODEL.MASK_DINO.{key}": rule for key, rule in (_DETECTORS | _MASK_DINO).items()},
}
