"""Every leaf config loads, builds its model (on a machine without the data), and is about what its name says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from part_robust.attacks import ATTACK_REGISTRY, build_attack
from part_robust.config import attack_spec, get_part_robust_cfg, zoo_configs
from part_robust.configured_attacks import build_attacks
from part_robust.data import register_builtin, register_part_dataset
from part_robust.data.mixing import mixes
from part_robust.engine.best_metric import best_metric
from part_robust.engine.setup import check_training, set_schedule
from part_robust.modeling.counts import with_counts
from part_robust.utils.errors import UserError
from tests.toy import toy_json, write_toy

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
LEAF_FOLDERS = (
    *("paco", "part_imagenet", "part_shapes", "part_shapes/recipes", "part_shapes/augmented", "car_parts", "plants"),
    "quick_schedules",
)
LEAVES = [
    CONFIGS / name
    for name in zoo_configs()
    if str(Path(name).parent) in LEAF_FOLDERS and not Path(name).stem.startswith("schedule")
]


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """For each size of taxonomy a data set with that many classes and parts and one image."""
    made = {}

    def make(classes: int, parts: int) -> str:
        name = f"stand_in_{classes}_{parts}"
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            data, _ = toy_json(1)
            data["categories"] = [{"id": i + 1, "name": f"part {i}"} for i in range(parts)]
            data["classes"] = [
                {"id": i + 1, "name": f"class {i}", "part_category_ids": list(range(1 + i, parts + 1, classes))}
                for i in range(classes)
            ]
            _, root = write_toy(folder, 1)
            (folder / "toy.json").write_text(json.dumps(data))
            register_part_dataset(name, folder / "toy.json", root)
            made[name] = name
        return made[name]

    return make


@pytest.mark.parametrize("path", LEAVES, ids=lambda p: str(p.relative_to(CONFIGS).with_suffix("")))
def test_leaf_builds(path, stand_in):
    cfg = get_part_robust_cfg(path, ["MODEL.DEVICE", "meta"])  # shapes without memory
    if cfg.MODEL.BACKBONE.NAME == "build_timm_backbone":
        pytest.importorskip("timm")
    assert path.stem in cfg.OUTPUT_DIR and path.parent.name in cfg.OUTPUT_DIR, "runs must not share a folder"
    assert not path.is_file() or len(path.read_text().splitlines()) <= 15, "a leaf is a few lines"
    assert set(cfg.DATASETS.TRAIN) | set(cfg.DATASETS.VAL) | set(cfg.DATASETS.TEST) <= set(register_builtin())
    assert len({*cfg.DATASETS.TRAIN, *cfg.DATASETS.VAL, *cfg.DATASETS.TEST}) == 3, "three different splits"
    clean = path.with_stem(path.stem.removesuffix("_adv"))
    if clean != path and clean in LEAVES:
        same = get_part_robust_cfg(clean, ["MODEL.DEVICE", "meta", "MODEL.WEIGHTS", cfg.MODEL.WEIGHTS])
        assert cfg.MODEL == same.MODEL, "its weights are those of the clean run, whose model is built"
    node = cfg.MODEL.PART_CLASSIFIER
    cfg.DATASETS.TRAIN = (stand_in(node.NUM_CLASSES or 8, node.NUM_PARTS or 24),)
    cfg = with_counts(cfg)
    set_schedule(cfg)
    attacks = build_attacks(cfg, [*cfg.ATTACK.EVAL, *cfg.ATTACK.EVAL_DURING_TRAINING])
    assert attacks and best_metric(cfg)
    assert cfg.ATTACK.TRAIN.ENABLED == path.stem.endswith("_adv")
    if clean != path and clean in LEAVES:
        return
    with torch.device("meta"):
        model = build_model(cfg)
    assert (model.head is None) == (not node.HEAD)
    assert (model.segmenter is None) == (not node.SEGMENTER)


def test_a_recipe_with_augmentation_for_each_objective():
    found = set()
    for path in (CONFIGS / "part_shapes" / "augmented").iterdir():
        cfg = get_part_robust_cfg(path)
        check_training(cfg)
        train = cfg.ATTACK.TRAIN
        assert train.ENABLED and train.EPS == 8.0 and cfg.SOLVER.EMA.DECAY == 0.999
        assert cfg.MODEL.WEIGHTS == "./output/part_shapes/deeplab_two_headed/model_best.pth"
        assert mixes(cfg) or (cfg.INPUT.ROTATION and cfg.INPUT.ERASING_PROB and train.EPS_WARMUP_ITERS)
        found.add((train.NAME, train.METHOD))
    assert found == {("PGD", "adversarial"), ("PGD", "trades"), ("PGD", "mart"), ("NFGSM", "adversarial")}


def test_there_are_leaves_for_every_folder():
    assert {path.parent.name for path in LEAVES} >= {"paco", "part_imagenet", "part_shapes"}
    assert len({path for path in LEAVES if path.stem.endswith("_adv")}) >= 64


def test_an_adversarial_training_needs_no_file(tmp_path):
    clean, adversarial = tmp_path / "mine.yaml", tmp_path / "mine_adv.yaml"
    clean.write_text('_BASE_: "paco/resnet50.yaml"\nOUTPUT_DIR: "./output/mine"\nINPUT: {SIZE: 96}\n')
    cfg = get_part_robust_cfg(adversarial)
    assert (cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS) == ("./output/mine_adv", "./output/mine/model_best.pth")
    train = cfg.ATTACK.TRAIN
    assert (cfg.INPUT.SIZE, train.ENABLED, train.NAME, train.STEPS, train.EPS) == (96, True, "PGD", 10, 8.0)
    (tmp_path / "schedule_adv.yaml").write_text("SOLVER: {EPOCHS: 3.0}\n")
    assert get_part_robust_cfg(adversarial).SOLVER.EPOCHS == 3.0
    (tmp_path / "nowhere.yaml").write_text("SOLVER: {EPOCHS: 3.0}\n")
    with pytest.raises(UserError, match="nowhere_adv.yaml must exist, or OUTPUT_DIR must be set in .*nowhere.yaml"):
        get_part_robust_cfg(tmp_path / "nowhere_adv.yaml")
    adversarial.write_text("OUTPUT_DIR: own\n")
    assert get_part_robust_cfg(adversarial).OUTPUT_DIR == "own", "a file that exists wins"
    with pytest.raises(FileNotFoundError, match="yours_adv.yaml does not exist"):
        get_part_robust_cfg(tmp_path / "yours_adv.yaml")


def test_unknown_key_and_missing_file_are_named():
    with pytest.raises(KeyError, match="MODEL.PART_CLASIFIER"):
        get_part_robust_cfg(None, ["MODEL.PART_CLASIFIER.HEAD", ""])
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        get_part_robust_cfg("nowhere.yaml")


def test_radii_as_the_literature_writes_them():
    opts = ["TEST.EPS", "8/255", "ATTACK.TRAIN.STEP_SIZE", "0.5/255", "OUTPUT_DIR", "4/255"]
    cfg = get_part_robust_cfg(None, opts)
    assert (cfg.TEST.EPS, cfg.ATTACK.TRAIN.STEP_SIZE, cfg.OUTPUT_DIR) == (8.0, 0.5, "4/255")
    assert get_part_robust_cfg(None, ["TEST.EPS", 8.0]).TEST.EPS == 8.0
    with pytest.raises(ValueError, match="TEST.EPS"):
        get_part_robust_cfg(None, ["TEST.EPS", "8/256"])


def test_whole_numbers_without_a_point():
    opts = ["SOLVER.EPOCHS", "1", "TEST.EPS", -1, "SOLVER.MAX_ITER", "7", "OUTPUT_DIR", "runs/5"]
    cfg = get_part_robust_cfg(None, opts)
    assert (cfg.SOLVER.EPOCHS, cfg.TEST.EPS, cfg.SOLVER.MAX_ITER, cfg.OUTPUT_DIR) == (1.0, -1.0, 7, "runs/5")
    assert isinstance(cfg.SOLVER.EPOCHS, float) and isinstance(cfg.SOLVER.MAX_ITER, int)
    with pytest.raises(KeyError, match="SOLVER.EPOCH"):
        get_part_robust_cfg(None, ["SOLVER.EPOCH", "1"])
    with pytest.raises(ValueError, match="SOLVER.MAX_ITER"):
        get_part_robust_cfg(None, ["SOLVER.MAX_ITER", "1.5"])


def test_attack_specs():
    cfg = get_part_robust_cfg(None, ["ATTACK.SPECS.pgd20.STEPS", 7])
    assert build_attack(attack_spec(cfg, "pgd20")).steps == 7
    cfg.ATTACK.SPECS.mine = cfg.ATTACK.SPECS.pgd20.__class__({"STEPS": 3})
    assert attack_spec(cfg, "mine").STEP_SIZE == cfg.ATTACK.TRAIN.STEP_SIZE, "missing keys take the defaults"
    with pytest.raises(KeyError, match="pgd20"):
        attack_spec(cfg, "pgd21")
    cfg.ATTACK.SPECS.bad = cfg.ATTACK.SPECS.pgd20.__class__({"STEP": 3})
    with pytest.raises(ValueError, match="'STEP'.*similar: STEPS"):
        build_attack(attack_spec(cfg, "bad"))


def test_attack_defaults_in_code_and_config_agree():
    cfg = get_part_robust_cfg()
    assert build_attack({}).describe() == build_attack(cfg.ATTACK.TRAIN).describe()
    assert "PGD" in ATTACK_REGISTRY


def test_thesis_protocol():
    attack = build_attack(attack_spec(get_part_robust_cfg(), "pgd100x5"))
    assert (attack.steps, attack.restarts, attack.step_size, attack.keep) == (100, 5, 0.255, "last")
    assert attack.threat_model.eps == 8.0
    assert "part_robust_paco_train" in register_builtin() and "part_robust_paco_train" in DatasetCatalog.list()
