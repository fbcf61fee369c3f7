"""Keys of attacks, in training and in evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from detectron2.config import CfgNode

from part_robust.attacks import ATTACK_REGISTRY, attack_defaults
from part_robust.config.rules import fitting

SPECS = "ATTACK.SPECS."


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
    # DINO and Mask DINO: the image on which queries are assigned to true parts. "clean": parts keep the queries
    # assigned to them before the attack (as far as these are still chosen), for one forward pass more; on the attacked
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

    # Named attacks. A spec states what differs from the attack's defaults (`default_config` of its class); users add
    # their own under a new name and set any key from the command line (ATTACK.SPECS.pgd20.RESTARTS 5). `attack_spec`
    # gives all keys.
    cfg.ATTACK.SPECS = CfgNode(_named_attacks(), new_allowed=True)
    cfg.ATTACK.SPECS.set_new_allowed(True)


def _named_attacks() -> dict[str, dict]:
    pgd20 = {"STEPS": 20, "STEP_SIZE": 2.0, "KEEP": "best"}
    return {
        # Thesis, evaluation: 100 steps of 0.255 (0.001 of the 0..1 range), 5 restarts, last iterate.
        "pgd100x5": {"STEPS": 100, "STEP_SIZE": 0.255, "RESTARTS": 5},
        # Thesis, model selection: 50 steps of 0.51 (0.002 of the 0..1 range).
        "pgd50": {"STEPS": 50, "STEP_SIZE": 0.51},
        # Common in the literature, cheap enough to watch a training run.
        "pgd20": pgd20,
        # The same as the published detectors' evaluation would run it, to show what the cut gradient hides.
        "pgd20_cut": {**pgd20, "FULL_GRADIENT": False},
        # One step from the image itself (Goodfellow et al., 2015).
        "fgsm": {"STEPS": 1, "STEP_SIZE": 8.0, "RANDOM_START": False},
        **_standard_attacks(),
        **_part_attacks(),
    }


def _standard_attacks() -> dict[str, dict]:
    """AutoAttack's numbers: 100 steps, one restart, 9 targets, 5000 queries. Nothing here depends on the radius."""
    apgd = {"NAME": "APGD", "STEPS": 100, "EARLY_STOP": True}
    return {
        "apgd_ce": {**apgd, "OBJECTIVE": "cross_entropy"},
        "apgd_margin": {**apgd, "OBJECTIVE": "margin"},
        # Below four classes these two fall back to the margin.
        "apgd_dlr": {**apgd, "OBJECTIVE": "dlr"},
        "apgd_t": {**apgd, "OBJECTIVE": "targeted_dlr"},
        # Past a detector's choice of object queries (check C21).
        "apgd_open": {**apgd, "OBJECTIVE": "margin", "QUERY_FACTOR": 4},
        "fab_t": {"NAME": "FAB", "STEPS": 100, "OBJECTIVE": "targeted_margin", "EARLY_STOP": True},
        "square": {"NAME": "Square", "STEPS": 5000, "OBJECTIVE": "margin", "EARLY_STOP": True},
        # Its beginning, for tier local.
        "square1000": {"NAME": "Square", "STEPS": 1000, "OBJECTIVE": "margin", "EARLY_STOP": True},
        # The control: the worst of ten uniform draws.
        "noise": {"NAME": "RandomNoise", "STEPS": 10, "OBJECTIVE": "margin"},
    }


def _part_attacks() -> dict[str, dict]:
    """Attacks on dense parts, and on the parts of detectors."""
    pgd = {"STEPS": 100, "STEP_SIZE": 0.8, "KEEP": "best"}
    # SEA (Croce, Singh and Hein, 2023): the worst of these three per image, 300 steps each, from twice the radius down.
    sea = {"NAME": "APGD", "STEPS": 300, "RADIUS_SCHEDULE": ((2.0, 0.3), (1.5, 0.3), (1.0, 0.4))}
    detector = {"NAME": "APGD", "STEPS": 100}
    return {
        "segpgd": {**pgd, "OBJECTIVE": "segpgd"},
        "cospgd": {**pgd, "OBJECTIVE": "cospgd"},
        "sea_masked": {**sea, "OBJECTIVE": "masked_cross_entropy"},
        "sea_balanced": {**sea, "OBJECTIVE": "balanced_cross_entropy"},
        "sea_js": {**sea, "OBJECTIVE": "jensen_shannon"},
        # Two more losses in the same schedule; docs/attacks.md has what each takes that the others leave.
        "apgd_segpgd": {**sea, "OBJECTIVE": "segpgd"},
        "apgd_soft_pixels": {**sea, "OBJECTIVE": "soft_wrong_pixels"},
        # The loss of detectors, matched anew at every step, and matched on the image before the attack.
        "apgd_part_loss": {**detector, "OBJECTIVE": "part_loss"},
        "apgd_part_loss_fixed": {**detector, "OBJECTIVE": "part_loss_fixed"},
        # Its class term alone, the rest alone, and all scores below the threshold at which a part counts as found.
        "apgd_part_class": {**detector, "OBJECTIVE": "part_class_loss"},
        "apgd_part_box": {**detector, "OBJECTIVE": "part_box_loss_fixed"},
        "apgd_hide_parts": {**detector, "OBJECTIVE": "hide_parts"},
    }


def add_test(cfg: CfgNode) -> None:
    """TEST: tiers of attacks, checks, what is saved."""
    # Metric whose best value keeps a checkpoint (model_best.pth): "auto" is accuracy under the first attack of
    # ATTACK.EVAL_DURING_TRAINING when training adversarially, clean accuracy otherwise, and the pixel accuracy
    # instead of the class accuracy for segmentation-only models. "classification_apgd_dlr/accuracy" is that under
    # another one of them. SOLVER.PATIENCE ends a training in which it no longer rises.
    cfg.TEST.BEST_METRIC = "auto"
    # Evaluate COCO's AP of part boxes too (of DeepLab's through connected components); takes time on the CPU.
    cfg.TEST.PART_BOX_AP = True
    # --eval-only evaluates this many images of each data set, the same ones for every model; 0: all. The record has it.
    cfg.TEST.NUM_IMAGES = 0
    # How --eval-only attacks (docs/evaluation.md): names in TEST.TIERS separated by commas, such as "standard,parts".
    # "" runs ATTACK.EVAL, each attack on every image.
    cfg.TEST.TIER = ""
    # Tiers by name: attacks of ATTACK.SPECS, cheap ones first. A tier is the worst case per image: of attacks on the
    # class for the class, where only images that are still right are attacked further; of attacks on the parts for
    # pixel accuracy. Attacks on parts of another kind than the model's (dense or boxes) are left out.
    tiers = cfg.TEST.TIERS = CfgNode(new_allowed=True)
    tiers.thesis = ["pgd100x5"]
    tiers.screen = ["apgd_ce", "apgd_t"]
    tiers.standard = ["apgd_ce", "apgd_t", "fab_t", "square"]
    tiers.bounded = ["apgd_ce", "apgd_t", "fab_t", "square"]
    # For models without a gradient; far weaker than the others, so the number is a loose bound.
    tiers.black_box = ["square"]
    tiers.parts = [
        *("sea_masked", "sea_balanced", "sea_js", "apgd_soft_pixels"),
        *("apgd_part_loss", "apgd_part_loss_fixed", "apgd_part_class", "apgd_part_box"),
    ]
    # Attacks that tier "bounded" runs on a random sample of the images that its other attacks left. The sample grows
    # until, with 95 % confidence, they would break at most BOUND points more of all images if they ran on the rest
    # (evaluation/sequential_bound.py); 0..100.
    cfg.TEST.SAMPLED_ATTACKS = ["fab_t", "square"]
    cfg.TEST.BOUND = 1.0
    # Tiers on the class, except "thesis", start their gradient attacks again from other random points until a further
    # restart breaks less than this many points of all images, 0..100: 0.2 for models that choose, such as detectors
    # that read the class from chosen queries. 0: no restarts, so that "standard" stays AutoAttack's set. In tier
    # "local" an image counts when a further region of it is broken.
    cfg.TEST.RESTART_GAIN = 0.0
    # Names in ATTACK.SPECS: cheap attacks that restart first. Those of the tier restart only where these broke as much
    # as RESTART_GAIN; with () at once. On a DINO sequential one run of the margin breaks what four runs of apgd_t on
    # nine targets each do not (docs/attacks.md).
    cfg.TEST.RESTART_ATTACKS = ["apgd_margin"]
    # TEST.TIER local: attackers of the class who may change one region of the image alone (docs/local.md). They run on
    # each region of each image, so these are few and short.
    tiers.local = ["apgd_ce", "apgd_t", "square1000"]
    local = cfg.TEST.LOCAL = CfgNode()
    # Which regions, each by itself: "parts" (every labelled part of the image), "object" (all its parts), "background"
    # (all but the object), "patch" (a square wherever it does most harm). Images without the part, or without labels,
    # are counted apart.
    local.REGIONS = ["parts", "object", "background", "patch"]
    # Threat model inside the region, which TEST.NORM and TEST.EPS leave as it is: "linf", "l2" or "l1", and radius in
    # 0..255 units. 255 under linf is an attacker who paints the region as he likes.
    local.NORM = "linf"
    local.EPS = 255.0
    # Sides of the patches as a share of INPUT.SIZE, 0..1, such as 0.15, which covers 2.2 % of the image (PatchCleanser,
    # Xiang et al., 2022: 1 to 3 %). () for none.
    local.PATCH_SIDES = (0.15,)
    # Places tried for each patch: half of them where the gradient is largest, half at random. The first attack of the
    # tier runs at all of them, the others at the one where it got farthest.
    local.PATCH_POSITIONS = 4
    # Tiers on the class that run each attack on every image instead, as the thesis does.
    cfg.TEST.FULL_TIERS = ["thesis"]
    # Threat model of all other attacks of --eval-only and of the curve: "linf", "l2" or "l1", and radius in 0..255
    # units. "" and -1 keep what each attack's spec says. Step lengths of PGD stay as they are. The command line also
    # takes 8/255 for 8.0, here and for every EPS and STEP_SIZE.
    cfg.TEST.NORM = ""
    cfg.TEST.EPS = -1.0
    # Threat models under each of which every tier on the class runs (but those of TEST.FULL_TIERS), such as
    # "linf:8/255 l2:2 l1:75": norm and radius of images in 0..1, as papers have them. Their tiers are standard_linf,
    # standard_l2 and so on, and standard_union counts the images that are right under all of them. "" for the one of
    # TEST.NORM and TEST.EPS, which hold for all other attacks in any case. Steps of PGD keep their length in radii.
    cfg.TEST.THREATS = ""
    # Whose code attacks the class in --eval-only: "own", or "autoattack" for pyautoattack's (pip install
    # part_robust[aa]), with the same radius, steps, restarts, targets and seed; its results depend on the batch.
    # Attacks on the class that it does not have are refused; those on the parts stay ours. --backend is the same.
    cfg.TEST.BACKEND = "own"
    # Radii, 0..255 units, at which class accuracy is measured by TEST.EPS_CURVE_ATTACK, such as (0, 1, 2, 4, 8, 16);
    # () for none.
    cfg.TEST.EPS_CURVE = ()
    cfg.TEST.EPS_CURVE_ATTACK = "apgd_ce"
    # Keep the attacked images of every tier in OUTPUT_DIR: "npz" (float32), "png" (rounded to 8 bits inside the ball,
    # then scored again), or "". tools/verify_adversarials.py scores them in a fresh process.
    cfg.TEST.SAVE_ADVERSARIALS = ""
    # Write predictions for other tools, clean and attacked (docs/predictions.md): COCO json, label maps and classes, in
    # the pixels that the network sees. Boxes need TEST.PART_BOX_AP.
    cfg.TEST.SAVE_PREDICTIONS = False
    # Randomised smoothing (Cohen et al., 2019) beside the attacks: L2 radii in which the class of the smoothed model,
    # not of the model itself, is proven to stay (docs/evaluation.md). Needs a class head.
    smoothing = cfg.TEST.SMOOTHING = CfgNode()
    # Standard deviation of the noise in 0..255 units; 0: off. The paper's 0.25, where pixels are 0..1, is 63.75.
    smoothing.SIGMA = 0.0
    # Noisy images that estimate how often the class is predicted: one forward pass each. The paper takes 100000. All
    # votes for one class certify 3.2 SIGMA with 10000, 2.5 with 1000 (at ALPHA 0.001).
    smoothing.SAMPLES = 10000
    # Noisy images before these, which choose the class.
    smoothing.SELECTION = 100
    # Probability that the radius of an image is wrong, at most.
    smoothing.ALPHA = 0.001
    # Images of each data set, the same for every model; 0: all.
    smoothing.IMAGES = 500
    # Run the expensive checks of the evaluation, too (docs/checks.md): several hundred passes for each checked image.
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
    # Evaluations of other models whose saved images (TEST.SAVE_ADVERSARIALS) this one is evaluated on, too, for one
    # forward pass for each: OUTPUT_DIRs separated by commas, "auto" for the folders beside OUTPUT_DIR, "" for none.
    # Only those of the same data set, image size and norm, at no larger eps, count.
    checks.SIBLINGS = "auto"
    checks.SEED = 0


def attack_spec(cfg: CfgNode, name: str) -> CfgNode:
    """Return the complete attack named `name` in ATTACK.SPECS: what the spec leaves out takes the attack's default.

    Raises:
        KeyError: no such spec.
        UserError: a value has another type than the attack's default.
    """
    if name not in cfg.ATTACK.SPECS:
        known = ", ".join(sorted(cfg.ATTACK.SPECS))
        raise KeyError(f"no attack {name!r} in ATTACK.SPECS, there are: {known}")
    spec = cfg.ATTACK.SPECS[name]
    node = spec_defaults(spec)
    node.set_new_allowed(True)  # an attack of the user's may have keys without a default
    fitted = {key: fitting(f"{SPECS}{name}.{key}", value, node.get(key), {}) for key, value in spec.items()}
    node.merge_from_other_cfg(CfgNode(fitted))
    return node


def spec_defaults(*specs: Mapping | None) -> CfgNode:
    """Return the defaults of all keys of an attack, by the first NAME that a spec gives."""
    names = [spec["NAME"] for spec in specs if spec and "NAME" in spec]
    return attack_defaults(str(names[0])) if names else attack_defaults()


def allow_own_keys(cfg: CfgNode, content: Mapping) -> None:
    """Let ATTACK.TRAIN of `cfg` take the keys of the attack that a config file names there.

    An attack of the user's may not be registered yet; then any key is allowed until the check of the whole config.
    """
    node = content.get("ATTACK")
    train = node.get("TRAIN") if isinstance(node, Mapping) else None
    name = train.get("NAME") if isinstance(train, Mapping) else None
    if not isinstance(name, str):
        return
    if name not in ATTACK_REGISTRY or ATTACK_REGISTRY.get(name).own_keys:
        cfg.ATTACK.TRAIN.set_new_allowed(True)
    for key, value in attack_defaults(name).items():
        cfg.ATTACK.TRAIN.setdefault(key, value)


def add_attack_key(cfg: CfgNode, key: Sequence[str], value: object) -> None:
    """Add a key that the node of an attack leaves out, with the attack's default, so that the key can be set.

    Args:
        cfg: changed in place.
        key: a dotted key in parts; those of other nodes are ignored.
        value: what an attack that is not registered yet takes for its default.
    """
    if key[0] != "ATTACK" or len(key) != (4 if key[1] == "SPECS" else 3):
        return
    node = cfg.ATTACK.SPECS.get(key[2]) if key[1] == "SPECS" else cfg.ATTACK.get(key[1])
    if not isinstance(node, CfgNode) or key[-1] in node or not isinstance(node.get("NAME", ""), str):
        return
    defaults = spec_defaults(node)
    if key[-1] in defaults:
        node[key[-1]] = defaults[key[-1]]
    elif defaults.NAME not in ATTACK_REGISTRY or key[-1] in ATTACK_REGISTRY.get(defaults.NAME).own_keys:
        node[key[-1]] = CfgNode._decode_cfg_value(value)
