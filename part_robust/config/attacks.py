"""Keys of attacks, in training and in evaluation."""

from __future__ import annotations

from detectron2.config import CfgNode


def attack_defaults() -> CfgNode:
    """What an attack is unless its node says otherwise."""
    node = CfgNode()
    # Name in ATTACK_REGISTRY: "PGD", "APGD", "FAB", "Square", "RandomNoise", or "NFGSM" for training.
    node.NAME = "PGD"
    # What the attack maximises, a name of attacks/objective.py. Class logits: "cross_entropy", "margin", "dlr", and for
    # APGD "targeted_margin" and "targeted_dlr". Dense parts: "pixel_cross_entropy", "masked_cross_entropy",
    # "balanced_cross_entropy", "jensen_shannon", "segpgd", "cospgd". Detectors: "part_loss" (matched anew at every
    # step), "part_loss_fixed" (matched on the image before the attack), or "joint" and "joint_fixed": class and part
    # loss as in training. These four take dense parts too, with their pixel loss. FAB has a loss of its own and ignores
    # this.
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
    # Detectors that read the class from object queries, which are chosen among the image's pixels: take the gradient of
    # so many times the queries, or of all pixels, while outputs stay the model's own. Otherwise pixels that are not
    # chosen get no gradient. 1: the model's own; 4 as in check C21, at one forward pass more for each step.
    node.QUERY_FACTOR = 1
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


def add_attack(cfg: CfgNode) -> None:
    """ATTACK: the one of training, the named ones, and which of these an evaluation runs."""
    cfg.ATTACK = CfgNode()
    # False cuts the gradient of every attack, whatever its own FULL_GRADIENT says.
    cfg.ATTACK.FULL_GRADIENT = True
    # Attacks on the class go through torch.compile, which takes minutes at the start; `tools/benchmark.py gpu` measures
    # what it brings. Where compiling fails the log says why, and attacks run as usual.
    cfg.ATTACK.COMPILE = False

    # Adversarial training: every training batch is attacked (thesis: PGD-10, eps 8, step 1, from a random start,
    # the model in eval mode during the attack and training on the attacked batch alone).
    train = cfg.ATTACK.TRAIN = attack_defaults()
    train.ENABLED = False
    # Fraction of each batch that is attacked, 0..1; the rest stays clean.
    train.FRACTION = 1.0
    # Grow eps and step size linearly from 0 over this many iterations.
    train.EPS_WARMUP_ITERS = 0
    # Precision of the model under attack: "float32", or "tf32" (see SOLVER.TF32) or "bfloat16", which are faster and
    # find weaker attacks.
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
    # DINO and Mask DINO. False: no denoising queries on a batch of attacked images. They are made of the true parts, so
    # their loss is learned whatever the attack has done to the image, and it is a third of all loss terms.
    train.DENOISING = True
    # DINO and Mask DINO: the image on which queries are assigned to true parts. "clean": parts keep the queries that
    # answer for them before the attack (as far as these are still chosen), for one forward pass more; on the attacked
    # image the assignment moves with the attack, and with it what each query should learn.
    train.MATCH_ON = "attacked"
    # Adversarial weight perturbation (Wu et al., 2020): every step's gradient is taken where the loss is worst within
    # GAMMA times each weight tensor's norm; costs one more pass. 0 turns it off; the paper has 0.01 for "adversarial",
    # 0.005 for "trades". Begins after WARMUP_ITERS iterations.
    train.AWP = CfgNode({"GAMMA": 0.0, "WARMUP_ITERS": 0})
    # Watch for catastrophic overfitting (Wong et al., 2020), in which a single-step training becomes perfect against
    # its own attack and loses to any other: every PERIOD iterations (0: never) the accuracy on the first IMAGES images
    # of DATASETS.VAL (of DATASETS.TRAIN, with a warning, where VAL is empty) under the training's attack is compared
    # with that under PGD of STEPS steps. It has collapsed when the latter falls by DROP of its best value, 0..1, while
    # the former rises. ACTION: "warn" or "stop".
    train.GUARD = CfgNode({"PERIOD": 0, "IMAGES": 256, "STEPS": 10, "DROP": 0.5, "ACTION": "warn"})

    # Names in ATTACK.SPECS that an evaluation runs, each on every image.
    cfg.ATTACK.EVAL = ["pgd100x5"]
    # The same during an adversarial training, where time matters; a clean one is watched on clean images alone.
    cfg.ATTACK.EVAL_DURING_TRAINING = ["pgd20"]

    # Named attacks. A spec states what differs from `attack_defaults`; users add their own under a new name and
    # change any value from the command line (ATTACK.SPECS.pgd20.STEPS 50).
    specs = cfg.ATTACK.SPECS = CfgNode(new_allowed=True)
    # Thesis, evaluation: 100 steps of 0.255 (0.001 of the 0..1 range), 5 restarts, last iterate.
    specs.pgd100x5 = attack_defaults()
    specs.pgd100x5.merge_from_list(["STEPS", 100, "STEP_SIZE", 0.255, "RESTARTS", 5])
    # Thesis, model selection: 50 steps of 0.51 (0.002 of the 0..1 range).
    specs.pgd50 = attack_defaults()
    specs.pgd50.merge_from_list(["STEPS", 50, "STEP_SIZE", 0.51])
    # Common in the literature, cheap enough to watch a training run.
    specs.pgd20 = attack_defaults()
    specs.pgd20.merge_from_list(["STEPS", 20, "STEP_SIZE", 2.0, "KEEP", "best"])
    # The same as the published detectors' evaluation would run it, to show what the cut gradient hides.
    specs.pgd20_cut = specs.pgd20.clone()
    specs.pgd20_cut.FULL_GRADIENT = False
    # One step from the image itself (Goodfellow et al., 2015).
    specs.fgsm = attack_defaults()
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
        specs[name] = attack_defaults()
        specs[name].merge_from_list([*shared, "OBJECTIVE", objective])
    # Past a detector's choice of object queries (check C21).
    specs.apgd_open = specs.apgd_margin.clone()
    specs.apgd_open.QUERY_FACTOR = 4
    specs.fab_t = attack_defaults()
    specs.fab_t.merge_from_list(["NAME", "FAB", "STEPS", 100, "OBJECTIVE", "targeted_margin", "EARLY_STOP", True])
    specs.square = attack_defaults()
    specs.square.merge_from_list(["NAME", "Square", "STEPS", 5000, "OBJECTIVE", "margin", "EARLY_STOP", True])
    # The control: the worst of ten uniform draws.
    specs.noise = attack_defaults()
    specs.noise.merge_from_list(["NAME", "RandomNoise", "STEPS", 10, "OBJECTIVE", "margin"])


def _add_part_attacks(specs: CfgNode) -> None:
    """Attacks on dense parts."""
    for name in ("segpgd", "cospgd"):
        specs[name] = attack_defaults()
        specs[name].merge_from_list(["OBJECTIVE", name, "STEPS", 100, "STEP_SIZE", 0.8, "KEEP", "best"])
    # SEA (Croce, Singh and Hein, 2023): the worst of these three per image, 300 steps each, from twice the radius down.
    for name, objective in (
        ("sea_masked", "masked_cross_entropy"),
        ("sea_balanced", "balanced_cross_entropy"),
        ("sea_js", "jensen_shannon"),
    ):
        specs[name] = attack_defaults()
        specs[name].merge_from_list(["NAME", "APGD", "OBJECTIVE", objective, "STEPS", 300])
        specs[name].RADIUS_SCHEDULE = ((2.0, 0.3), (1.5, 0.3), (1.0, 0.4))
    # The loss of detectors, matched anew at every step, and matched on the image before the attack.
    for name in ("part_loss", "part_loss_fixed"):
        specs["apgd_" + name] = attack_defaults()
        specs["apgd_" + name].merge_from_list(["NAME", "APGD", "OBJECTIVE", name, "STEPS", 100])


def add_test(cfg: CfgNode) -> None:
    """TEST: tiers of attacks, checks, what is saved."""
    # Metric whose best value keeps a checkpoint (model_best.pth): "auto" is accuracy under the first attack of
    # ATTACK.EVAL_DURING_TRAINING when training adversarially, clean accuracy otherwise, and the pixel accuracy
    # instead of the class accuracy for segmentation-only models.
    cfg.TEST.BEST_METRIC = "auto"
    # Evaluate COCO's AP of part boxes too (of DeepLab's through connected components); takes time on the CPU.
    cfg.TEST.PART_BOX_AP = True
    # --eval-only looks at so many images of each data set, the same ones for every model; 0: all. The record says so.
    cfg.TEST.NUM_IMAGES = 0
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
    # attack's spec says. Step lengths of PGD stay as they are. The command line also takes 8/255 for 8.0, here and for
    # every EPS and STEP_SIZE.
    cfg.TEST.NORM = ""
    cfg.TEST.EPS = -1.0
    # Whose code attacks the class in tiers and curve: "own", or "autoattack" for pyautoattack's (pip install
    # part_robust[aa]), with the same radius, steps, restarts, targets and seed; its results depend on the batch.
    # Attacks on the class that it does not have are refused; those on the parts stay ours. --backend is the same.
    cfg.TEST.BACKEND = "own"
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
    # the short attacks, steps of the one that is doubled and restarted to see whether it has converged, how many
    # restarts, random perturbations that compete with the attack, and forward passes averaged where a model turns out
    # to be random.
    checks = cfg.TEST.CHECKS = CfgNode()
    checks.IMAGES = 32
    checks.DIRECTIONS = 8
    checks.STEPS = 20
    checks.LONG_STEPS = 100
    checks.RESTARTS = 5
    checks.NOISE_DRAWS = 100
    checks.EOT_DRAWS = 10
    # Evaluations of other models whose saved images (TEST.SAVE_ADVERSARIALS) this one must stand, too, at one forward
    # pass for each: OUTPUT_DIRs separated by commas, "auto" for the folders beside OUTPUT_DIR, "" for none. Only those
    # of the same data set, image size and norm, at no larger eps, count.
    checks.SIBLINGS = "auto"
    checks.SEED = 0


def attack_spec(cfg: CfgNode, name: str) -> CfgNode:
    """The complete attack named `name` in ATTACK.SPECS: what the spec leaves out takes the default.

    Raises:
        KeyError: no such spec.
    """
    if name not in cfg.ATTACK.SPECS:
        known = ", ".join(sorted(cfg.ATTACK.SPECS))
        raise KeyError(f"no attack {name!r} in ATTACK.SPECS, there are: {known}")
    node = attack_defaults()
    node.set_new_allowed(True)  # an attack of the user's may have keys of its own
    node.merge_from_other_cfg(cfg.ATTACK.SPECS[name])
    return node
