"""Every config key of part_robust, with its unit, its choices and where it comes from.

Pixel quantities (eps, step sizes) are in the 0..255 unit of the images: 8/255 of the literature is 8.0 here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config


def add_part_robust_config(cfg: CfgNode) -> None:
    """Adds our keys, with defaults, to a detectron2 config in place."""
    add_deeplab_config(cfg)
    _change_detectron2_defaults(cfg)
    # Python modules of the user's own heads, segmenters and attacks, imported before the model is built
    # (docs/extending.md).
    cfg.IMPORTS = []
    _add_input(cfg)
    _add_model(cfg)
    _add_attack(cfg)
    _add_test(cfg)
    # Schedule in epochs of the training set, whatever the batch size: sets SOLVER.MAX_ITER, and SOLVER.STEPS from
    # STEP_EPOCHS, SOLVER.CHECKPOINT_PERIOD and TEST.EVAL_PERIOD from EVAL_EPOCHS. 0 keeps the iteration counts.
    cfg.SOLVER.EPOCHS = 0.0
    cfg.SOLVER.STEP_EPOCHS = ()
    cfg.SOLVER.EVAL_EPOCHS = 1.0
    # "SGD" (the thesis) or "AdamW"; BASE_LR is that of everything but the backbone, which learns at
    # BASE_LR * BACKBONE_MULTIPLIER (DINO: 0.1). SOLVER.CLIP_GRADIENTS.CLIP_TYPE may also be "full_model": the norm of
    # all gradients together is at most CLIP_VALUE (DINO: 0.1).
    cfg.SOLVER.OPTIMIZER = "SGD"
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    _add_training(cfg)
    # Held-out split that chooses the best checkpoint during training; DATASETS.TEST is only touched by --eval-only.
    cfg.DATASETS.VAL = ()
    # Users' part data: a list of [name, part json, image root], paths relative to the working directory
    # (docs/data_format.md). The names can then stand in TRAIN, VAL and TEST.
    cfg.DATASETS.REGISTER = ()


def _add_training(cfg: CfgNode) -> None:
    # Each process computes its share of SOLVER.IMS_PER_BATCH in this many pieces, one after the other, and then makes
    # one step: the same batch in less memory. The attack is computed piece by piece, too.
    cfg.SOLVER.ACCUMULATE = 1
    # With SOLVER.AMP.ENABLED the training step computes in "bfloat16" (any device) or "float16" (CUDA, with a loss
    # scale). The attack has its own key, ATTACK.TRAIN.PRECISION.
    cfg.SOLVER.AMP.DTYPE = "bfloat16"
    # Average of the weights over the training, w_avg = d w_avg + (1 - d) w after every step, with d growing to DECAY as
    # (1 + steps) / (10 + steps). It is what is evaluated, and what model_best.pth holds. 0 turns it off; 0.999 for
    # thousands of steps, 0.9998 for tens of thousands.
    cfg.SOLVER.EMA = CfgNode({"DECAY": 0.0})
    # A loss or gradient that is not finite: "stop" the training, or "skip" the step, but never more than
    # NON_FINITE_LIMIT of them in a row.
    cfg.SOLVER.NON_FINITE = "stop"
    cfg.SOLVER.NON_FINITE_LIMIT = 10
    # Parts of the model that keep no activations for the backward pass and compute them again, a third more time for
    # much less memory, in training and under attack: any of "backbone" (residual blocks), "encoder" and "decoder" (the
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


def _add_input(cfg: CfgNode) -> None:
    # Side in pixels of the square that every model family sees, in training and in evaluation.
    cfg.INPUT.SIZE = 224
    # Training crop (torchvision's RandomResizedCrop): area relative to the image, and aspect ratio w / h.
    # The thesis uses scale (0.5, 1) for PACO and (0.08, 1) for PartImageNet.
    cfg.INPUT.CROP_SCALE = (0.5, 1.0)
    cfg.INPUT.CROP_RATIO = (0.75, 1.3333)
    # Probability of a horizontal flip in training.
    cfg.INPUT.FLIP_PROB = 0.5
    # Evaluation: "center_crop" (resize the short side to TEST_RESIZE, cut the middle SIZE x SIZE) or
    # "letterbox" (resize the long side to SIZE and pad to a square; the padding is never attacked or scored).
    cfg.INPUT.TEST_TRANSFORM = "center_crop"
    # Short side in pixels before the centre crop; 0 means SIZE (nothing but the ends of long images is cut).
    cfg.INPUT.TEST_RESIZE = 0
    # Part targets, in training and in scores: "masks", or "boxes" (each part's box painted as its mask, small parts
    # on top of large ones), the box supervision of thesis section 2.2; data with boxes only need "boxes".
    cfg.INPUT.PART_MASKS = "masks"
    # Images per process in evaluation. Results do not depend on it.
    cfg.DATALOADER.TEST_BATCH_SIZE = 32


def _add_model(cfg: CfgNode) -> None:
    node = cfg.MODEL.PART_CLASSIFIER = CfgNode()
    # Object classes C and parts P (without background). 0 reads them from the first training set.
    node.NUM_CLASSES = 0
    node.NUM_PARTS = 0
    # Name in PART_SEGMENTER_REGISTRY; "" for a plain classifier.
    node.SEGMENTER = ""
    # Name in CLASS_HEAD_REGISTRY; "" for segmentation only.
    node.HEAD = "LinearHead"
    # Normalisation inside class heads, a name of detectron2's get_norm (BN, SyncBN, GN, ...); "SyncBN" on many GPUs.
    node.HEAD_NORM = "BN"
    # c_seg of (1 - c_seg) loss_cls + c_seg loss_parts, 0..1. Without a head or a segmenter the one loss has weight 1.
    node.SEG_LOSS_WEIGHT = 0.5
    # Label smoothing of the class cross-entropy, 0..1.
    node.LABEL_SMOOTHING = 0.0

    node = cfg.MODEL.LINEAR_HEAD = CfgNode()
    # Backbone feature whose spatial mean is classified.
    node.IN_FEATURE = "res5"

    node = cfg.MODEL.TWO_HEADED_HEAD = CfgNode()
    node.IN_FEATURE = "res5"
    # Side of the adaptive average pooling, in cells.
    node.POOL_SIZE = 4
    # Channels of the hidden convolution.
    node.HIDDEN_DIM = 64

    node = cfg.MODEL.DOWNSAMPLED_HEAD = CfgNode()
    node.POOL_SIZE = 4
    # Channels of the convolution, per part map.
    node.CHANNELS_PER_PART = 5
    node.HIDDEN_DIM = 50
    # Leave the background map out of the head's input (the published scripts meant to, and kept it).
    node.DROP_BACKGROUND = False

    node = cfg.MODEL.BOUNDING_BOX_HEAD = CfgNode()
    # Units of the hidden layer.
    node.HIDDEN_DIM = 50
    # Where centroids and spreads are measured: "image" (-1..1 from edge to edge) or "object" (from the foreground's
    # centroid, in units of its spread). Sitawarin et al. compare both and publish "image".
    node.NORMALIZE = "image"
    # Tell the head how sure each part is (its foreground-weighted mean logit), not only where it is.
    node.USE_SCORE = True
    # Leave the background map's box out of the head's input.
    node.DROP_BACKGROUND = True

    node = cfg.MODEL.SEQUENTIAL_HEAD = CfgNode()
    # Units of the hidden layer. The thesis's parameter counts fit 64, the predecessor's code; its release has 50.
    node.HIDDEN_DIM = 64
    # What is read of a query's part logits: "softmax" over the parts, or "sigmoid" of each.
    node.PROBABILITIES = "softmax"
    # Order of the queries: "decoded", or "confidence" (most probable part first).
    node.ORDER = "decoded"

    node = cfg.MODEL.PIXEL_HEAD = CfgNode()
    # Weigh each pixel's part logits by its probability to be foreground instead of equally.
    node.FOREGROUND_WEIGHTS = False

    node = cfg.MODEL.QUERY_HEAD = CfgNode()
    # How the queries' class logits become the image's: "mean" (the thesis), "max", "topk" (mean of the TOP_K largest of
    # each class), or "confidence" (mean weighed by each query's probability to see a part).
    node.AGGREGATION = "mean"
    node.TOP_K = 10

    # The part-to-class matrix of the first training set, for heads that read the class through it.
    node = cfg.MODEL.PART_TO_CLASS = CfgNode()
    # Train the matrix, from the data set's on, instead of keeping it.
    node.LEARNED = False
    # Divide each column by its number of parts (1 to 25 in PACO): a class of many parts has no head start then.
    node.NORMALIZE = False
    # Under a fixed matrix, classes without parts (PACO's ball, napkin) would have the logit 0 on every image. "column"
    # learns their columns; "bias" learns one number for each, and can only ever predict the largest one's class.
    node.EMPTY_CLASSES = "column"

    _add_dino(cfg)
    _add_mask_dino(cfg)

    # DeepLabv3+ as in the thesis: output stride 16, depthwise separable, ASPP rates for stride 16.
    head = cfg.MODEL.SEM_SEG_HEAD
    head.IN_FEATURES = ["res2", "res5"]
    head.PROJECT_FEATURES = ["res2"]
    head.PROJECT_CHANNELS = [48]
    head.ASPP_CHANNELS = 256
    head.ASPP_DILATIONS = [12, 24, 36]
    head.ASPP_DROPOUT = 0.1
    head.CONVS_DIM = 256
    head.COMMON_STRIDE = 4
    head.NORM = "BN"
    head.USE_DEPTHWISE_SEPARABLE_CONV = True


def _add_dino(cfg: CfgNode) -> None:
    # DINO, 4-scale (Zhang et al., 2023); numbers without another source are the published ones.
    node = cfg.MODEL.DINO = CfgNode()
    # Backbone features, fine to coarse, and the number of levels the transformer sees: the missing ones are made from
    # the last feature by strided convolutions.
    node.IN_FEATURES = ["res3", "res4", "res5"]
    node.LEVELS = 4
    # Thesis: 6 and 6, or 1 and 1.
    node.ENCODER_LAYERS = 6
    node.DECODER_LAYERS = 6
    # Thesis: 900 or 100. At most the number of pixels of all levels together: 1045 at 224 px, 895 at 208.
    node.NUM_QUERIES = 900
    node.DIM = 256
    node.HEADS = 8
    # Sampling points per head and level.
    node.POINTS = 4
    node.FEEDFORWARD_DIM = 2048
    # One class and one box head for all decoder layers (the authors), or one each (detrex).
    node.SHARE_HEADS = True
    # Sine position embedding: 20 and 0.0 (the authors), 10000 and -0.5 (detrex).
    node.POSITION_TEMPERATURE = 20.0
    node.POSITION_OFFSET = 0.0
    # Rows of the denoising embedding less one; never fewer than there are parts. The published 91 keeps parameter
    # counts comparable.
    node.LABEL_BOOK_SIZE = 91
    # Contrastive denoising: parts asked for in all groups together (0: off), twice the share of flipped labels, and how
    # far corners move (1.0 in the published runs; their config file says 0.4).
    node.DENOISING_NUMBER = 100
    node.LABEL_NOISE = 0.5
    node.BOX_NOISE = 1.0
    # Training passes boxes between decoder layers as constants. Attacks do not, unless ATTACK.FULL_GRADIENT is False.
    node.DETACH_REFERENCES = True
    # Weights of the costs that assign queries to true parts, and of the losses: focal, L1, generalised IoU.
    node.MATCH_CLASS_COST = 2.0
    node.MATCH_BOX_COST = 5.0
    node.MATCH_GIOU_COST = 2.0
    node.CLASS_WEIGHT = 1.0
    node.BOX_WEIGHT = 5.0
    node.GIOU_WEIGHT = 2.0
    # Boxes per image in evaluation.
    node.MAX_DETECTIONS = 300
    # Multi-scale deformable attention: "auto", "sparse" (CPU), "embedding_bag", "gather" (twice differentiable), or
    # "triton" (CUDA, once, optional).
    node.MS_DEFORM_ATTN = "auto"


def _add_mask_dino(cfg: CfgNode) -> None:
    # Mask DINO (Li et al., 2022), as in the published semantic models and the thesis; what the published instance
    # models have instead stands in brackets.
    node = cfg.MODEL.MASK_DINO = CfgNode()
    # Backbone features that the encoder sees, fine to coarse, and the number of levels [4]: the missing ones are made
    # from the last feature by strided convolutions.
    node.IN_FEATURES = ["res3", "res4", "res5"]
    node.LEVELS = 3
    # "coarse_first" (published as high2low), or "fine_first" [low2high]: the order of the encoder's levels and of their
    # weights. Boxes that start from pixels have sides of 0.05 on the decoder's first level, its coarsest [fine_first].
    node.LEVEL_ORDER = "coarse_first"
    # Backbone feature that has the resolution of masks, a quarter of the image's sides.
    node.MASK_FEATURE = "res2"
    node.ENCODER_LAYERS = 6
    # [2048, or 1024 with 3 levels]
    node.ENCODER_FEEDFORWARD_DIM = 1024
    # Thesis: 9, or 1.
    node.DECODER_LAYERS = 9
    node.FEEDFORWARD_DIM = 2048
    # [300]
    node.NUM_QUERIES = 100
    node.DIM = 256
    # Channels of the mask features.
    node.MASK_DIM = 256
    node.HEADS = 8
    # Sampling points per head and level.
    node.POINTS = 4
    # Queries start from the encoder's most confident pixels [True], or from learned content and boxes; with
    # LEARNED_CONTENT they take only the boxes from the pixels.
    node.TWO_STAGE = False
    node.LEARNED_CONTENT = False
    # Box such a query starts from: "no" (its pixel's), or the one around the mask predicted for it, "bitmask" or
    # "mask2box" [with 3 or with 4 levels].
    node.BOX_INIT = "no"
    # Predict, and learn, parts from the queries before the first layer too.
    node.INITIAL_PREDICTION = True
    # Class loss of a query: "cross_entropy" of a softmax with a further class "no object" that counts
    # NO_OBJECT_WEIGHT, or "focal" of sigmoids [focal].
    node.CLASS_LOSS = "cross_entropy"
    node.NO_OBJECT_WEIGHT = 0.1
    # Unified denoising: parts asked for in all groups together (0: off), twice the share of flipped labels, and how far
    # boxes move, as a share of half a side (centre) and of a side (sides).
    node.DENOISING_NUMBER = 100
    node.LABEL_NOISE = 0.4
    node.BOX_NOISE = 0.4
    # Training passes boxes between decoder layers as constants. Attacks do not, unless ATTACK.FULL_GRADIENT is False.
    node.DETACH_REFERENCES = True
    # Weights of the costs that assign queries to true parts, and of the losses.
    node.MATCH_CLASS_COST = 4.0
    node.MATCH_MASK_COST = 5.0
    node.MATCH_DICE_COST = 5.0
    node.MATCH_BOX_COST = 5.0
    node.MATCH_GIOU_COST = 2.0
    node.CLASS_WEIGHT = 4.0
    node.MASK_WEIGHT = 5.0
    node.DICE_WEIGHT = 5.0
    node.BOX_WEIGHT = 5.0
    node.GIOU_WEIGHT = 2.0
    # Where masks are compared: "dense", on every pixel at a quarter of the resolution, or "points", on NUM_POINTS
    # random ones, the published way. At 224 px a mask has 3136 pixels: "dense" costs less there and is not random.
    # From about 450 px on the points are fewer. Attacks on the part loss always use "dense".
    node.MASK_LOSS = "dense"
    node.NUM_POINTS = 12544
    # Candidates per point, and the share of points chosen among them because the mask is unsure there.
    node.POINT_OVERSAMPLE = 3.0
    node.POINT_IMPORTANCE = 0.75
    node.POINT_SEED = 0
    # "mean" over decoder layers, so that c_seg weighs parts against the class alike for any number of layers; or
    # "thesis": the sum over all sets of predictions, the weights in all 399 with 9 layers and 63 with 1.
    node.LOSS_SCALE = "mean"
    # What evaluation predicts: "semantic" label maps, "instance" masks with boxes, or both.
    node.OUTPUTS = ["semantic", "instance"]
    # Instances per image in evaluation.
    node.MAX_DETECTIONS = 100
    # As MODEL.DINO.MS_DEFORM_ATTN.
    node.MS_DEFORM_ATTN = "auto"


def _attack_defaults() -> CfgNode:
    node = CfgNode()
    # Name in ATTACK_REGISTRY: "PGD", "APGD", "FAB", "Square", "RandomNoise", or "NFGSM" for training.
    node.NAME = "PGD"
    # What the attack maximises, a name of attacks/objective.py. Class logits: "cross_entropy", "margin", "dlr", and for
    # APGD "targeted_margin" and "targeted_dlr". Dense parts: "pixel_cross_entropy", "masked_cross_entropy",
    # "balanced_cross_entropy", "jensen_shannon", "segpgd", "cospgd". Detectors: "part_loss" (matched anew at every
    # step), "part_loss_fixed" (matched on the image before the attack), or "joint" and "joint_fixed": class and part
    # loss as in training. FAB has a loss of its own and ignores this.
    node.OBJECTIVE = "cross_entropy"
    # Threat model: "linf" or "l2", radius in 0..255 units (an L2 radius of 3.0 in 0..1 units is 765.0).
    node.NORM = "linf"
    node.EPS = 8.0
    # Steps of a run: gradient steps, queries of Square, samples of RandomNoise.
    node.STEPS = 10
    # PGD: step length in the norm, 0..255 units.
    node.STEP_SIZE = 1.0
    # PGD and APGD: start uniformly in the ball instead of at the image.
    node.RANDOM_START = True
    # Independent runs; the worst result of each image is kept.
    node.RESTARTS = 1
    # PGD: which iterate of a run counts, "last" (the thesis) or "best" (the worst for the model along the path, the
    # image itself included, so that attacked accuracy is never above clean accuracy). All others keep the best.
    node.KEEP = "last"
    # Random numbers depend on this seed, the image id, the restart and the target only.
    node.SEED = 0
    # NFGSM only: largest change of a pixel by the noise before the step, in units of EPS. Its step is EPS long; STEPS,
    # STEP_SIZE and RANDOM_START are those of PGD.
    node.NOISE = 2.0
    # Follow the whole gradient, also where a model cuts it in training (boxes between DINO's decoder layers). False
    # repeats the published evaluation, which overestimates robustness.
    node.FULL_GRADIENT = True
    # Images for which nothing worse can happen leave the batch: those whose class is wrong (of part objectives, those
    # without a right pixel). Flags are the same as without. PGD needs KEEP best for it. COMPACT_EVERY: steps between
    # two looks at the batch.
    node.EARLY_STOP = False
    node.COMPACT_EVERY = 10
    # Keep the loss of every step, for convergence plots and checks.
    node.RECORD_HISTORY = False
    # Classes that targeted objectives and FAB aim at, one run each; never more than there are wrong ones.
    node.NUM_TARGETS = 9
    # Their order: "logits" (largest first), or "malt" (Melamed et al., 2024): smallest logit gap per length of the
    # gradient difference, among the TARGET_CANDIDATES largest wrong logits, for one backward pass each.
    node.TARGET_RANKING = "logits"
    node.TARGET_CANDIDATES = 100
    # APGD: weight of the gradient step against the last move; share of the steps between two checkpoints that must
    # raise the loss, lest the step size halve (alpha and rho of the paper, 0..1).
    node.APGD_MOMENTUM = 0.75
    node.APGD_SUCCESS_SHARE = 0.75
    # APGD: pairs (factor on EPS, share of STEPS), the last factor 1; () for one radius throughout. SEA:
    # ((2.0, 0.3), (1.5, 0.3), (1.0, 0.4)).
    node.RADIUS_SCHEDULE = ()
    # FAB: largest weight of the step from the original, length of steps relative to the way to the boundary, share of
    # the perturbation kept after a success (alpha_max, eta and beta of the paper), and forward passes of the search
    # for a nearer image in the end.
    node.FAB_ALPHA_MAX = 0.1
    node.FAB_OVERSHOOT = 1.05
    node.FAB_BACKWARD = 0.9
    node.FAB_FINAL_SEARCH = 3
    # Square: share of the image that the first squares cover, 0..1 (p of the paper).
    node.SQUARE_AREA = 0.8
    return node


def _add_attack(cfg: CfgNode) -> None:
    cfg.ATTACK = CfgNode()
    # False cuts the gradient of every attack, whatever its own FULL_GRADIENT says.
    cfg.ATTACK.FULL_GRADIENT = True

    # Adversarial training: every training batch is attacked (thesis: PGD-10, eps 8, step 1, from a random start,
    # the model in eval mode during the attack and training on the attacked batch alone).
    train = cfg.ATTACK.TRAIN = _attack_defaults()
    train.ENABLED = False
    # Fraction of each batch that is attacked, 0..1; the rest stays clean.
    train.FRACTION = 1.0
    # Grow eps and step size linearly from 0 over this many iterations.
    train.EPS_WARMUP_ITERS = 0
    # Precision of the model under attack: "float32", or "bfloat16", which is faster and finds weaker attacks.
    train.PRECISION = "float32"
    # What is minimised (losses/adversarial.py): "adversarial", "mix", "trades" or "mart". The last three see the clean
    # images too. TRADES's attack leads away from the clean prediction unless OBJECTIVE names another loss than
    # cross_entropy.
    train.METHOD = "adversarial"
    # Share of the attacked images' class loss in "mix", 0..1 (Goodfellow et al., 2015: 0.5).
    train.MIX_WEIGHT = 0.5
    # Weight of the divergence between clean and attacked prediction in "trades" (Zhang et al., 2019: 6) and in "mart"
    # (Wang et al., 2020: 5).
    train.TRADES_BETA = 6.0
    train.MART_BETA = 5.0
    # Images whose parts are learned: "attacked", "clean" or "both" (half each; under "mix" in its proportion).
    train.PART_LOSS_ON = "attacked"
    # Adversarial weight perturbation (Wu et al., 2020): every step's gradient is taken where the loss is worst within
    # GAMMA times each weight tensor's norm; costs one more pass. 0 turns it off; the paper has 0.01 for "adversarial",
    # 0.005 for "trades". Begins after WARMUP_ITERS iterations.
    train.AWP = CfgNode({"GAMMA": 0.0, "WARMUP_ITERS": 0})
    # Watch for catastrophic overfitting (Wong et al., 2020), in which a single-step training becomes perfect against
    # its own attack and loses to any other: every PERIOD iterations (0: never) the accuracy on IMAGES held-out images
    # under the training's attack is compared with that under PGD of STEPS steps. It has collapsed when the latter falls
    # by DROP of its best value, 0..1, while the former rises. ACTION: "warn" or "stop".
    train.GUARD = CfgNode({"PERIOD": 0, "IMAGES": 256, "STEPS": 10, "DROP": 0.5, "ACTION": "warn"})

    # Names in ATTACK.SPECS that an evaluation runs, each on every image.
    cfg.ATTACK.EVAL = ["pgd100x5"]
    # The same during an adversarial training, where time matters; a clean one is watched on clean images alone.
    cfg.ATTACK.EVAL_DURING_TRAINING = ["pgd20"]

    # Named attacks. A spec states what differs from `_attack_defaults`; users add their own under a new name and
    # change any value from the command line (ATTACK.SPECS.pgd20.STEPS 50).
    specs = cfg.ATTACK.SPECS = CfgNode(new_allowed=True)
    # Thesis, evaluation: 100 steps of 0.255 (0.001 of the 0..1 range), 5 restarts, last iterate.
    specs.pgd100x5 = _attack_defaults()
    specs.pgd100x5.merge_from_list(["STEPS", 100, "STEP_SIZE", 0.255, "RESTARTS", 5])
    # Thesis, model selection: 50 steps of 0.51 (0.002 of the 0..1 range).
    specs.pgd50 = _attack_defaults()
    specs.pgd50.merge_from_list(["STEPS", 50, "STEP_SIZE", 0.51])
    # Common in the literature, cheap enough to watch a training run.
    specs.pgd20 = _attack_defaults()
    specs.pgd20.merge_from_list(["STEPS", 20, "STEP_SIZE", 2.0, "KEEP", "best"])
    # The same as the published detectors' evaluation would run it, to show what the cut gradient hides.
    specs.pgd20_cut = specs.pgd20.clone()
    specs.pgd20_cut.FULL_GRADIENT = False
    # One step from the image itself (Goodfellow et al., 2015).
    specs.fgsm = _attack_defaults()
    specs.fgsm.merge_from_list(["STEPS", 1, "STEP_SIZE", 8.0, "RANDOM_START", False])
    _add_standard_attacks(specs)
    _add_part_attacks(specs)


def _add_standard_attacks(specs: CfgNode) -> None:
    """AutoAttack's numbers: 100 steps, one restart, 9 targets, 5000 queries. Nothing here depends on the radius."""
    shared = ["NAME", "APGD", "STEPS", 100, "EARLY_STOP", True]
    for name, objective in (
        ("apgd_ce", "cross_entropy"),
        ("apgd_margin", "margin"),
        # Below four classes these two fall back to the margin.
        ("apgd_dlr", "dlr"),
        ("apgd_t", "targeted_dlr"),
    ):
        specs[name] = _attack_defaults()
        specs[name].merge_from_list([*shared, "OBJECTIVE", objective])
    specs.fab_t = _attack_defaults()
    specs.fab_t.merge_from_list(["NAME", "FAB", "STEPS", 100, "OBJECTIVE", "targeted_margin", "EARLY_STOP", True])
    specs.square = _attack_defaults()
    specs.square.merge_from_list(["NAME", "Square", "STEPS", 5000, "OBJECTIVE", "margin", "EARLY_STOP", True])
    # The control: the worst of ten uniform draws.
    specs.noise = _attack_defaults()
    specs.noise.merge_from_list(["NAME", "RandomNoise", "STEPS", 10, "OBJECTIVE", "margin"])


def _add_part_attacks(specs: CfgNode) -> None:
    """Attacks on dense parts."""
    for name in ("segpgd", "cospgd"):
        specs[name] = _attack_defaults()
        specs[name].merge_from_list(["OBJECTIVE", name, "STEPS", 100, "STEP_SIZE", 0.8, "KEEP", "best"])
    # SEA (Croce, Singh and Hein, 2023): the worst of these three per image, 300 steps each, from twice the radius down.
    for name, objective in (
        ("sea_masked", "masked_cross_entropy"),
        ("sea_balanced", "balanced_cross_entropy"),
        ("sea_js", "jensen_shannon"),
    ):
        specs[name] = _attack_defaults()
        specs[name].merge_from_list(["NAME", "APGD", "OBJECTIVE", objective, "STEPS", 300])
        specs[name].RADIUS_SCHEDULE = ((2.0, 0.3), (1.5, 0.3), (1.0, 0.4))
    # The loss of detectors, matched anew at every step, and matched on the image before the attack.
    for name in ("part_loss", "part_loss_fixed"):
        specs["apgd_" + name] = _attack_defaults()
        specs["apgd_" + name].merge_from_list(["NAME", "APGD", "OBJECTIVE", name, "STEPS", 100])


def _add_test(cfg: CfgNode) -> None:
    # Metric whose best value keeps a checkpoint (model_best.pth): "auto" is accuracy under the first attack of
    # ATTACK.EVAL_DURING_TRAINING when training adversarially, clean accuracy otherwise, and the pixel accuracy
    # instead of the class accuracy for segmentation-only models.
    cfg.TEST.BEST_METRIC = "auto"
    # Evaluate COCO's AP of part boxes too (of DeepLab's through connected components); takes time on the CPU.
    cfg.TEST.PART_BOX_AP = True
    # How --eval-only attacks (docs/evaluation.md): names in TEST.TIERS separated by commas, such as "standard,parts".
    # "" runs ATTACK.EVAL, each attack on every image, and keeps no journal.
    cfg.TEST.TIER = ""
    # Tiers by name: attacks of ATTACK.SPECS, cheap ones first. "thesis" runs each on every image. Any other tier is the
    # worst case per image: of attacks on the class for the class, where only images that are still right are attacked
    # further; of attacks on the parts for pixel accuracy. Attacks on parts of another kind than the model's (dense or
    # boxes) are left out.
    tiers = cfg.TEST.TIERS = CfgNode(new_allowed=True)
    tiers.thesis = ["pgd100x5"]
    tiers.screen = ["apgd_ce", "apgd_t"]
    tiers.standard = ["apgd_ce", "apgd_t", "fab_t", "square"]
    tiers.parts = ["sea_masked", "sea_balanced", "sea_js", "apgd_part_loss", "apgd_part_loss_fixed"]
    # Threat model of all tiers and of the curve: "linf" or "l2", and radius in 0..255 units. "" and -1 keep what each
    # attack's spec says. Step lengths of PGD stay as they are.
    cfg.TEST.NORM = ""
    cfg.TEST.EPS = -1.0
    # Radii, 0..255 units, at which class accuracy is measured by TEST.EPS_CURVE_ATTACK, such as (0, 1, 2, 4, 8, 16);
    # () for none. Needs TEST.TIER.
    cfg.TEST.EPS_CURVE = ()
    cfg.TEST.EPS_CURVE_ATTACK = "apgd_ce"
    # Keep the attacked images of every tier in OUTPUT_DIR: "npz" (float32), "png" (rounded to 8 bits inside the ball,
    # then scored again), or "". tools/verify_adversarials.py scores them in a fresh process.
    cfg.TEST.SAVE_ADVERSARIALS = ""
    # Run the dear checks of the evaluation, too (docs/checks.md): several hundred passes for each checked image.
    cfg.TEST.AUDIT = False
    # What checks may cost: images of each data set, random directions for each in the audit of the gradient, steps of
    # the short attacks, steps of the one that is doubled to see whether it has converged, random perturbations that
    # compete with the attack, and forward passes averaged where a model turns out to be random.
    checks = cfg.TEST.CHECKS = CfgNode()
    checks.IMAGES = 32
    checks.DIRECTIONS = 8
    checks.STEPS = 20
    checks.LONG_STEPS = 100
    checks.NOISE_DRAWS = 100
    checks.EOT_DRAWS = 10
    checks.SEED = 0


def attack_spec(cfg: CfgNode, name: str) -> CfgNode:
    """The complete attack named `name` in ATTACK.SPECS: what the spec leaves out takes the default.

    Raises:
        KeyError: no such spec, or a key in it that attacks do not have.
    """
    if name not in cfg.ATTACK.SPECS:
        known = ", ".join(sorted(cfg.ATTACK.SPECS))
        raise KeyError(f"no attack {name!r} in ATTACK.SPECS, there are: {known}")
    node = _attack_defaults()
    node.merge_from_other_cfg(cfg.ATTACK.SPECS[name])
    return node


def get_part_robust_cfg(config_file: str | Path | None = None, opts: Sequence = ()) -> CfgNode:
    """The full config: defaults, then a YAML file (`_BASE_` may be a list), then `KEY VALUE` pairs.

    Raises:
        FileNotFoundError: the file does not exist.
        KeyError: an unknown key, named in the message.
    """
    cfg = get_cfg()
    add_part_robust_config(cfg)
    if config_file:
        if not Path(config_file).is_file():
            raise FileNotFoundError(f"config file {config_file} does not exist")
        cfg.merge_from_file(str(config_file))
    try:
        cfg.merge_from_list(list(opts))
    except AssertionError as error:  # what yacs raises for an unknown key or an odd number of items
        raise KeyError(f"{error} (flags such as --eval-only must stand before the KEY VALUE pairs)") from error
    return cfg
