"""Keys of the model: timm backbones, heads, models from elsewhere, DINO, Mask DINO."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_model(cfg: CfgNode) -> None:
    """MODEL.PRETRAINING, TIMM, PART_CLASSIFIER, the heads' nodes, EXTERNAL, DINO and MASK_DINO."""
    # Training data of MODEL.WEIGHTS before this training, a short text for records and leaderboards, such as
    # "ImageNet-1k" or "none". Nothing checks it: change it together with the weights.
    cfg.MODEL.PRETRAINING = ""
    # Backbones of timm (docs/backbones.md), with MODEL.BACKBONE.NAME "build_timm_backbone". MODEL.RESNETS.OUT_FEATURES,
    # RES5_DILATION (2: res5 at stride 16, where the model can) and NORM (of its batch norms, if it has any) hold for
    # them too, as does MODEL.BACKBONE.FREEZE_AT.
    node = cfg.MODEL.TIMM = CfgNode()
    node.NAME = "convnext_tiny"
    # Start from timm's own weights, which it downloads; MODEL.WEIGHTS replaces them.
    node.PRETRAINED = False
    # ConvNeXt-T and -S: two strided convolutions before the first stage, as in the "CvSt" models.
    node.CONV_STEM = False
    # Further options of timm.create_model: a list of [name, value].
    node.OPTIONS = []

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
    # centroid, in units of its spread). Sitawarin et al. compare both and publish "image". "published" also computes
    # scores, centroids and spreads as their code does, for their checkpoints (docs/backbones.md).
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

    _add_external(cfg)
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


def _add_external(cfg: CfgNode) -> None:
    # A classifier from elsewhere that is evaluated as it is (docs/evaluate_model.md), with MODEL.BACKBONE.NAME
    # "build_pixel_backbone" and the head "ExternalHead"; MODEL.WEIGHTS is its file. tools/evaluate_model.py sets these.
    node = cfg.MODEL.EXTERNAL = CfgNode()
    # "torchscript", "exported" (torch.export), "timm", "torchvision" or "callable"; "" for models of this package.
    node.KIND = ""
    # Model of timm or torchvision, or "package.module:function" of a callable.
    node.NAME = ""
    # Order of the channels that it takes, "RGB" or "BGR". MODEL.PIXEL_MEAN and PIXEL_STD are RGB all the same.
    node.CHANNELS = "RGB"
    # Which of several outputs are the logits: key of a dict or index of a tuple; "" for a model with one output.
    node.OUTPUT = ""
    # The model returns probabilities: their logarithm is evaluated.
    node.PROBABILITIES = False
    # Images of a batch, for a graph that takes no other number; smaller batches are filled up. 0: any number.
    node.BATCH = 0
    # For each class of the data set, the output of the model that means it, or a list of those that mean it together:
    # its logit is then the logarithm of the sum of their exponentials. (): output i is class i.
    node.CLASS_INDICES = ()


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
    # Contrastive denoising: queries of parts in all groups together (0: off), twice the share of flipped labels, and
    # how far corners move (1.0 in the published runs; their config file says 0.4).
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
    # "mean" over decoder layers, so that c_seg weighs parts against the class alike for any number of layers; or
    # "thesis": the published sum. With 6 layers the weights are 24 in all, or 104 (decoder, denoising, encoder).
    node.LOSS_SCALE = "mean"
    # Boxes per image in evaluation.
    node.MAX_DETECTIONS = 300
    # Multi-scale deformable attention: "sparse" (CPU), "embedding_bag", "gather" (twice differentiable), "grid_sample",
    # "triton" (CUDA), or "auto": "sparse" on a CPU, "triton" on CUDA where the kernel runs and is right, else
    # "grid_sample".
    node.MS_DEFORM_ATTN = "auto"


def _add_mask_dino(cfg: CfgNode) -> None:
    # Mask DINO (Li et al., 2022), as in the published semantic models and the thesis; what the published instance
    # models have instead is in brackets.
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
    # Unified denoising: queries of parts in all groups together (0: off), twice the share of flipped labels, and how
    # far boxes move, as a share of half a side (centre) and of a side (sides).
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
