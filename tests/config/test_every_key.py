"""Every key of ours with a wrong type and with a wrong value: one sentence, before any work."""

from __future__ import annotations

import re

import pytest
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config

from part_robust import run_config
from part_robust.attacks import ATTACK_REGISTRY
from part_robust.attacks.threat_model import NORMS
from part_robust.config import attack_spec, config_text, default_cfg, get_part_robust_cfg
from part_robust.config.rule_table import RULES
from part_robust.config.rules import leaves
from part_robust.engine.adversarial_loader import PRECISIONS
from part_robust.engine.fingerprint import same_run, same_training
from part_robust.evaluation.adversarials import MODES
from part_robust.evaluation.plan import BACKENDS as TEST_BACKENDS
from part_robust.layers.ms_deform_attn import BACKENDS
from part_robust.losses.adversarial import MATCH_ON, METHODS, PART_LOSS_ON
from part_robust.modeling.activation_checkpointing import KINDS
from part_robust.utils.errors import UserError
from tests.attacks.nets import Bold
from tests.toy import tiny_cfg

DEFAULTS = dict(leaves(default_cfg()))
# Of detectron2, those that users touch.
THEIRS = [
    *("SOLVER.MAX_ITER", "SOLVER.IMS_PER_BATCH", "SOLVER.BASE_LR", "SOLVER.MOMENTUM", "SOLVER.WEIGHT_DECAY"),
    *("SOLVER.STEPS", "SOLVER.GAMMA", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.LR_SCHEDULER_NAME", "SOLVER.WARMUP_ITERS"),
    *("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "TEST.EVAL_PERIOD", "SEED", "OUTPUT_DIR"),
    *(
        "MODEL.RESNETS.NORM",
        "MODEL.RESNETS.DEPTH",
        "MODEL.RESNETS.WIDTH_PER_GROUP",
        "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS",
        "MODEL.BACKBONE.FREEZE_AT",
        "MODEL.BACKBONE.NAME",
        "MODEL.DEVICE",
    ),
    *("MODEL.PIXEL_STD", "MODEL.META_ARCHITECTURE", "INPUT.FORMAT", "DATALOADER.SAMPLER_TRAIN", "DATASETS.TEST"),
    "DATALOADER.NUM_WORKERS",
]
WRONG_TYPES = {
    bool: ("maybe", 2),
    int: ("several", 1.5, True, [1]),
    float: ("much", True, [1.0]),
    str: (3, True, ["x"]),
    list: ("word", 7),
    tuple: ("word", 7),
}
NAN = float("nan")
WRONG_VALUES = {
    int: (-7, 2**80),
    float: (-7.0, NAN),
    str: ("", "no such thing!"),
    list: (["no such thing!"], [-1.0], [[]]),
    tuple: (["no such thing!"], [-1.0], [[]]),
}
# Text that no one can judge before it is used.
FREE = {
    "MODEL.PRETRAINING",
    "MODEL.EXTERNAL.NAME",
    "MODEL.EXTERNAL.OUTPUT",
    "TEST.CHECKS.SIBLINGS",
    "MODEL.TIMM.NAME",
    "IMPORTS",
    "TEST.BEST_METRIC",
}


def our_keys() -> list[str]:
    theirs = get_cfg()
    add_deeplab_config(theirs)
    known = dict(leaves(theirs))
    # The named attacks have the same keys: one stands for all.
    return [
        key
        for key in DEFAULTS
        if key not in known and (not key.startswith("ATTACK.SPECS.") or key.startswith("ATTACK.SPECS.pgd20."))
    ]


KEYS = [*our_keys(), *THEIRS]
GROUPS = sorted({".".join(key.split(".")[:2]) for key in KEYS})


@pytest.fixture(scope="module")
def complete():
    """Completes one and the same config with a single change."""
    cfg = tiny_cfg("resnet", "MODEL.PART_CLASSIFIER.NUM_CLASSES", 3)

    def change(key: str, value: object) -> None:
        *path, last = key.split(".")
        node = cfg
        for name in path:
            node = node[name]
        before, node[last] = node[last], value
        try:
            run_config.complete(cfg)
        finally:
            node[last] = before

    return change


def test_the_keys_are_all_there():
    assert len(our_keys()) > 180 and set(THEIRS) <= DEFAULTS.keys()
    assert not RULES.keys() - DEFAULTS.keys(), "rules of keys that do not exist"


@pytest.mark.parametrize("group", GROUPS)
def test_every_key_refuses_a_wrong_type(group, complete):
    for key in KEYS:
        if not (key + ".").startswith(group + "."):
            continue
        for value in WRONG_TYPES[type(DEFAULTS[key])]:
            sentence = rf"^{re.escape(key)} must be .*, got {re.escape(repr(value))}$"
            with pytest.raises(UserError, match=sentence):
                get_part_robust_cfg(None, [key, value])
            with pytest.raises(UserError, match=sentence):
                complete(key, value)


@pytest.mark.parametrize("group", GROUPS)
def test_every_key_refuses_a_wrong_value(group, complete):
    for key in KEYS:
        default = DEFAULTS[key]
        if not (key + ".").startswith(group + ".") or isinstance(default, bool) or key in FREE:
            continue
        refused = 0
        for value in WRONG_VALUES[type(default)]:
            try:
                complete(key, value)
            except UserError as error:
                assert re.match(rf"^{re.escape(key)} must (be|name) .*, got ", str(error)), error
                assert "\n" not in str(error)
                refused += 1
        # "" is right for some, and -1 has a meaning for others.
        assert refused >= 1, f"{key} takes {WRONG_VALUES[type(default)]}"


def test_the_defaults_and_all_numbers_as_yaml_writes_them_are_right(tmp_path):
    run_config.complete(tiny_cfg("resnet", "MODEL.PART_CLASSIFIER.NUM_CLASSES", 3))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"SOLVER": {"EPOCHS": 9, "BASE_LR": "1e-4"}, "TEST": {"EPS": 4}}))
    cfg = get_part_robust_cfg(tmp_path / "c.yaml", ["SOLVER.WEIGHT_DECAY", "0", "ATTACK.TRAIN.EPS", "4/255"])
    assert (cfg.SOLVER.EPOCHS, cfg.SOLVER.BASE_LR, cfg.TEST.EPS, cfg.ATTACK.TRAIN.EPS) == (9.0, 1e-4, 4.0, 4.0)
    assert isinstance(cfg.SOLVER.WEIGHT_DECAY, float)


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (["ATTACK.SPECS.pgd20.EPS", 300], "ATTACK.SPECS.pgd20.EPS must be at most 255"),
        (["TEST.EPS", -3], "TEST.EPS must be -1 .* got -3"),
        (["ATTACK.TRAIN.STEPS", 0], "ATTACK.TRAIN.STEPS must be a whole number of at least 1, got 0"),
        (["ATTACK.SPECS.pgd20.STEP_SIZE", 0], "ATTACK.SPECS.pgd20.STEP_SIZE must be a number above 0, got 0.0"),
        (["ATTACK.EVAL", ["pgd7"]], "ATTACK.EVAL must name attacks of ATTACK.SPECS .*pgd20.* got 'pgd7'"),
        (["TEST.TIER", "standart"], "TEST.TIER must name tiers of TEST.TIERS.*standard.* got 'standart'"),
        (["INPUT.FLIP_PROB", 3], "INPUT.FLIP_PROB must be a number from 0 to 1, got 3.0"),
        (["INPUT.TEST_RESIZE", 16], "INPUT.TEST_RESIZE must be 0 or at least INPUT.SIZE 32, got 16"),
        (["SOLVER.EPOCHS", -2], "SOLVER.EPOCHS must be a number of at least 0, got -2"),
        (["SOLVER.EVAL_EPOCHS", 0], "SOLVER.EVAL_EPOCHS must be a number above 0, got 0"),
        (["MODEL.RESNETS.NORM", "Batch"], "MODEL.RESNETS.NORM must be '', BN, .* got 'Batch'"),
        (["SOLVER.STEPS", (5, 3)], "SOLVER.STEPS must be a list of .* in ascending order, got"),
        (["DATALOADER.NUM_WORKERS", 10**4], "DATALOADER.NUM_WORKERS must be a whole number from 0 to 1024, got 10000"),
        (["IMPORTS", ["..mine"]], "IMPORTS must be a list of names of modules, got"),
        (["SEED", 2**40], "SEED must be a whole number up to 4294967295, got"),
        (["TEST.EXPECTED_RESULTS", [["x"]]], r"EXPECTED_RESULTS must be a list of entries \[task, metric, .*got"),
        (["MODEL.RESNETS.OUT_FEATURES", ["res9"]], r"OUT_FEATURES must name features .*res2, res3, .* got 'res9'"),
        (["MODEL.RESNETS.OUT_FEATURES", ["res5", "res5"]], "OUT_FEATURES must be .*each once, got"),
        (["MODEL.DINO.HEADS", 7], "MODEL.DINO.DIM must be a multiple of MODEL.DINO.HEADS 7, got 256"),
    ],
)
def test_what_means_nothing_is_refused(opts, words):
    with pytest.raises(UserError, match=words):
        run_config.complete(tiny_cfg("resnet", "MODEL.PART_CLASSIFIER.NUM_CLASSES", 3, *opts))


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ({"OBJECTIV": "dlr"}, r"ATTACK.SPECS.mine.OBJECTIV must be a key of attack PGD.*similar: OBJECTIVE"),
        ({"EPS": "eight"}, "ATTACK.SPECS.mine.EPS must be a number of at least 0, got 'eight'"),
        ({"NAME": "PDG"}, "ATTACK.SPECS.mine.NAME must be .*PGD.* got 'PDG'"),
        (3, "ATTACK.SPECS.mine must be a group of keys of an attack, got 3"),
    ],
)
def test_attacks_of_the_user_are_checked_too(node, words, tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"ATTACK": {"SPECS": {"mine": node}}}))
    with pytest.raises(UserError, match=words):
        run_config.load_config(tmp_path / "c.yaml")


def load(tmp_path, attack, opts=()):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"ATTACK": attack}))
    return run_config.load_config(tmp_path / "c.yaml", ["MODEL.PART_CLASSIFIER.NUM_CLASSES", 3, *opts])


def test_an_attack_of_the_user_has_keys_of_its_own(tmp_path, monkeypatch):
    node = {"NAME": "Bold", "BOLDNESS": 4, "HASTE": "great"}
    attack = {"SPECS": {"mine": node}, "TRAIN": node}
    # A config is read before its IMPORTS, which register the attack: both orders must do.
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"ATTACK": attack}))
    early = get_part_robust_cfg(tmp_path / "c.yaml", ["MODEL.PART_CLASSIFIER.NUM_CLASSES", 3])
    monkeypatch.setitem(ATTACK_REGISTRY._obj_map, "Bold", Bold)
    for cfg in (run_config.complete(early), load(tmp_path, attack)):
        spec = attack_spec(cfg, "mine")
        assert (spec.BOLDNESS, spec.HASTE, spec.STEPS, spec.RESTARTS) == (4, "great", 7, 1)
        assert (cfg.ATTACK.TRAIN.BOLDNESS, cfg.ATTACK.TRAIN.STEPS) == (4, 10)
    opts = ["ATTACK.SPECS.mine.BOLDNESS", "5", "ATTACK.TRAIN.BOLDNESS", "6", "ATTACK.SPECS.mine.RESTARTS", "2"]
    cfg = load(tmp_path, {"SPECS": {"mine": {"NAME": "Bold"}}, "TRAIN": {"NAME": "Bold"}}, opts)
    assert (cfg.ATTACK.SPECS.mine.BOLDNESS, cfg.ATTACK.TRAIN.BOLDNESS, cfg.ATTACK.SPECS.mine.RESTARTS) == (5.0, 6.0, 2)
    for node, words in (
        ({"NAME": "Bold", "BOLDNES": 4}, "BOLDNES must be a key of attack Bold.*BOLDNESS"),
        ({"NAME": "Bold", "BOLDNESS": "x"}, "BOLDNESS must be a number, got 'x'"),
        ({"NAME": "PGD", "BOLDNESS": 4}, "BOLDNESS must be a key of attack PGD"),
    ):
        with pytest.raises(UserError, match=f"ATTACK.SPECS.mine.{words}"):
            load(tmp_path, {"SPECS": {"mine": node}})
    with pytest.raises(KeyError, match="ATTACK.TRAIN.BOLDNESS"):
        load(tmp_path, {"TRAIN": {"NAME": "PGD", "BOLDNESS": 4}})


def test_a_config_is_short_and_complete():
    """Named attacks state what differs from their defaults, and a file of before, which states all, means the same."""
    cfg = get_part_robust_cfg("paco/mask_dino_simple.yaml", ["ATTACK.SPECS.pgd20.EPS", "4/255"])
    text = config_text(cfg)
    assert len(text.splitlines()) <= 500
    assert dict(cfg.ATTACK.SPECS.pgd20) == {"STEPS": 20, "STEP_SIZE": 2.0, "KEEP": "best", "EPS": 4.0}
    full = cfg.clone()
    for name in full.ATTACK.SPECS:
        full.ATTACK.SPECS[name] = attack_spec(cfg, name)
    assert same_run(full.dump(), text) and same_training(full.dump(), text)
    full.ATTACK.SPECS.pgd20.RESTARTS = 3
    assert not same_run(full.dump(), text)
    reread = CfgNode.load_cfg(full.dump())
    assert attack_spec(reread, "pgd20") == attack_spec(full, "pgd20")


@pytest.mark.parametrize(
    ("key", "choices"),
    [
        ("MODEL.DINO.MS_DEFORM_ATTN", BACKENDS),
        ("MODEL.MASK_DINO.MS_DEFORM_ATTN", BACKENDS),
        ("MODEL.ACTIVATION_CHECKPOINTING", [tuple(KINDS)]),
        ("ATTACK.TRAIN.PRECISION", PRECISIONS),
        ("ATTACK.TRAIN.METHOD", METHODS),
        ("ATTACK.TRAIN.PART_LOSS_ON", PART_LOSS_ON),
        ("ATTACK.TRAIN.MATCH_ON", MATCH_ON),
        ("ATTACK.TRAIN.NORM", NORMS),
        ("TEST.SAVE_ADVERSARIALS", MODES),
        ("TEST.BACKEND", TEST_BACKENDS),
    ],
)
def test_the_rules_allow_what_the_code_knows(key, choices):
    assert all(RULES[key].holds(choice) for choice in choices)
