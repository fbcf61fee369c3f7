"""Mistakes that only show beside the data, the machine or an earlier run: refused before any work, by one sentence."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

import part_robust.modeling  # noqa: F401  (registration)
from part_robust.cli import train_net
from part_robust.data import register_part_dataset
from part_robust.engine import PartTrainer
from part_robust.engine.failures import NonFiniteStep
from part_robust.engine.resume import check_resumed
from part_robust.engine.setup import complete_config, evaluate, setup, setup_run, train
from part_robust.modeling.part_classifier import PartClassifier
from part_robust.utils.errors import UserError
from tests.toy import tiny_cfg, write_toy


def arguments(
    folder: Path, *opts, model: str = "deeplab_two_headed", eval_only: bool = False, resume: bool = False
) -> argparse.Namespace:
    """As train_net parses them, of a tiny model on the toy data."""
    config = folder / "config.yaml"
    config.write_text(tiny_cfg(model, "OUTPUT_DIR", str(folder / "out")).dump())
    values = [str(value) for value in opts]
    return argparse.Namespace(config_file=str(config), opts=values, eval_only=eval_only, resume=resume)


@pytest.mark.parametrize(
    ("model", "opts", "words"),
    [
        (
            "resnet",
            ["MODEL.PART_CLASSIFIER.NUM_CLASSES", 2],
            "NUM_CLASSES must be 3 as in dataset 'toy_train', got 2",
        ),
        (
            "deeplab_two_headed",
            ["MODEL.PART_CLASSIFIER.NUM_PARTS", 2],
            "NUM_PARTS must be 3 as in dataset 'toy_train', got 2",
        ),
        (
            "resnet",
            ["MODEL.PART_CLASSIFIER.NUM_CLASSES", 4],
            "NUM_CLASSES must be 3 as in dataset 'toy_val', got 4",
        ),
        ("resnet", ["DATASETS.TRAIN", "()", "MODEL.PART_CLASSIFIER.NUM_CLASSES", 3], "DATASETS.TRAIN must name"),
        (
            "resnet",
            ["TEST.BEST_METRIC", "accuracy"],
            "TEST.BEST_METRIC must be auto or one of classification/accuracy, .*got 'accuracy'",
        ),
        ("resnet", ["TEST.BEST_METRIC", "part_seg/mIoU"], "TEST.BEST_METRIC must be"),
        ("resnet", ["SOLVER.PATIENCE", 2, "TEST.EVAL_PERIOD", 0], "SOLVER.PATIENCE must be 0 without eval.*got 2"),
        ("resnet", ["SOLVER.PATIENCE", 1, "DATASETS.VAL", "()", "DATASETS.TEST", "()"], "SOLVER.PATIENCE must be 0"),
        ("resnet", ["TEST.BEST_METRIC", "classification_pgd20/accuracy"], "TEST.BEST_METRIC must be"),
        (
            "resnet",
            ["ATTACK.TRAIN.ENABLED", True, "ATTACK.TRAIN.OBJECTIVE", "segpgd"],
            "OBJECTIVE segpgd of attack PGD must be a loss of the class.*no part segmenter",
        ),
        (
            "dino_detector",
            ["ATTACK.TRAIN.ENABLED", True, "ATTACK.TRAIN.OBJECTIVE", "segpgd"],
            "OBJECTIVE segpgd of attack PGD must be part_loss: DinoSegmenter predicts boxes",
        ),
    ],
)
def test_trainings_that_cannot_be(model, opts, words, toy_data, tmp_path):
    with pytest.raises(UserError, match=words):
        complete_config(arguments(tmp_path, *opts, model=model))


@pytest.mark.parametrize("metric", ["classification/accuracy", "part_seg_pgd20/mIoU", "part_seg/IoU-lamp:base"])
def test_metrics_that_a_training_can_be_watched_by(metric, toy_data, tmp_path):
    complete_config(arguments(tmp_path, "TEST.BEST_METRIC", metric, "ATTACK.TRAIN.ENABLED", True))


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (["DATASETS.TEST", "()"], "DATASETS.TEST must name one or more data sets to evaluate on, got none"),
        (["ATTACK.EVAL", "['segpgd']"], "OBJECTIVE segpgd of attack PGD must be"),
        (["MODEL.PART_CLASSIFIER.NUM_CLASSES", 2], "NUM_CLASSES must be 3 as in dataset 'toy_val', got 2"),
    ],
)
def test_evaluations_that_cannot_be(opts, words, toy_data, tmp_path):
    with pytest.raises(UserError, match=words):
        complete_config(arguments(tmp_path, *opts, model="resnet", eval_only=True))


@pytest.mark.parametrize(("eval_only", "key"), [(False, "ATTACK.EVAL_DURING_TRAINING"), (True, "ATTACK.EVAL")])
def test_an_attack_with_the_name_of_other_results(eval_only, key, toy_data, tmp_path):
    args = arguments(tmp_path, key, "['clean']", model="resnet", eval_only=eval_only)
    config = Path(args.config_file)
    config.write_text(config.read_text().replace("  SPECS:", "  SPECS:\n    clean: {NAME: PGD}", 1))
    with pytest.raises(ValueError, match="tiers and attacks need names of their own; used twice: .'clean'"):
        complete_config(args)


@pytest.mark.parametrize("eval_only", [False, True])
def test_expected_results_of_no_task(eval_only, toy_data, tmp_path):
    opts = ["TEST.EXPECTED_RESULTS", "[['clasification', 'accuracy', 50, 1]]", "ATTACK.EVAL", ()]
    words = r"EXPECTED_RESULTS must name tasks \(classification.*\), got 'clasification'"
    args = arguments(tmp_path, *opts, model="resnet", eval_only=eval_only)
    with pytest.raises(UserError, match=words):
        complete_config(args)


@pytest.mark.parametrize(
    ("opts", "tasks"),
    [
        (["ATTACK.EVAL", "['pgd20']"], ["classification", "part_seg_pgd20", "part_mask_pgd20"]),
        (["TEST.TIER", "thesis,parts"], ["classification_thesis", "part_box_parts", "part_seg_sea_js"]),
    ],
)
def test_expected_results_are_named_by_attack_or_tier(opts, tasks, toy_data, tmp_path):
    def check(task: str, *more) -> None:
        expected = ["TEST.EXPECTED_RESULTS", f"[['{task}', 'AP', 50, 1]]"]
        complete_config(arguments(tmp_path, *opts, *expected, *more, model="mask_dino_simple", eval_only=True))

    for task in tasks:
        check(task)
    with pytest.raises(UserError, match="must name tasks .*got 'part_box_fgsm'"):
        check("part_box_fgsm")
    with pytest.raises(UserError, match="must be empty with several data sets"):
        check(tasks[0], "DATASETS.TEST", "('toy_val', 'toy_train')")


def test_a_data_set_and_a_model_that_do_not_exist(toy_data, tmp_path):
    with pytest.raises(KeyError, match=r"registered data sets, got 'toy_tran' \(similar: toy_train.*DATASETS.REGISTER"):
        complete_config(arguments(tmp_path, "DATASETS.TRAIN", "('toy_tran',)", model="resnet"))
    with pytest.raises(UserError, match="HEAD or SEGMENTER must name what the model predicts, got '' for both"):
        complete_config(arguments(tmp_path, "MODEL.PART_CLASSIFIER.HEAD", "", model="resnet"))


@pytest.mark.parametrize(
    ("model", "key", "value"),
    [
        ("resnet", "MODEL.LINEAR_HEAD.IN_FEATURE", "res9"),
        ("deeplab_two_headed", "MODEL.TWO_HEADED_HEAD.IN_FEATURE", "res9"),
        ("deeplab_two_headed", "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res2", "res9"]),
        ("dino_detector", "MODEL.DINO.IN_FEATURES", ["res2", "res3", "res4", "res9"]),
        ("mask_dino_segmenter", "MODEL.MASK_DINO.IN_FEATURES", ["res3", "res4", "res9"]),
        ("mask_dino_segmenter", "MODEL.MASK_DINO.MASK_FEATURE", "res9"),
    ],
)
def test_a_feature_that_the_backbone_does_not_give(model, key, value, toy_data):
    with pytest.raises(UserError, match=rf"^{key} must name what the backbone gives \(.*res5\), got 'res9'\. MODEL"):
        PartClassifier(tiny_cfg(model, key, value))


def test_low_level_features_without_channels(toy_data):
    with pytest.raises(UserError, match=r"PROJECT_CHANNELS must have a number for each of IN_FEATURES .*got \[4, 4\]"):
        PartClassifier(tiny_cfg("deeplab_two_headed", "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS", [4, 4]))


def test_a_device_that_computes_nothing(toy_data, tmp_path):
    for device, words in (("meta", "such as cpu, got meta"), ("mps", "got mps, .* Add MODEL.DEVICE cpu")):
        with pytest.raises(UserError, match=words):
            setup(arguments(tmp_path, "MODEL.DEVICE", device, model="resnet"))


def test_a_sibling_that_is_not_there(toy_data, tmp_path):
    opts = ["TEST.CHECKS.SIBLINGS", str(tmp_path), "ATTACK.EVAL", ()]
    with pytest.raises(FileNotFoundError, match="TEST.CHECKS.SIBLINGS names"):
        complete_config(arguments(tmp_path, *opts, model="resnet", eval_only=True))


def test_an_error_in_a_training_leaves_no_traceback_in_the_log(toy_data, tmp_path):
    cfg = complete_config(arguments(tmp_path, "SOLVER.BASE_LR", 1e30, "SOLVER.MAX_ITER", 3, model="resnet"))
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = records.append  # type: ignore[method-assign]
    log = logging.getLogger("detectron2.engine.train_loop")
    log.addHandler(handler)
    try:
        with pytest.raises(NonFiniteStep):
            train(cfg)
    finally:
        log.removeHandler(handler)
    (record,) = records
    assert record.exc_info is None and "NonFiniteStep: iteration" in record.getMessage()


def test_a_device_that_the_machine_lacks(toy_data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"MODEL\.DEVICE must be .* got cuda, .* Add MODEL\.DEVICE cpu"):
        setup(arguments(tmp_path, "MODEL.DEVICE", "cuda", model="resnet"))
    assert not (tmp_path / "out").exists(), "refused before anything is written"
    with pytest.raises(UserError, match=r"MODEL\.DEVICE cpu"):
        PartClassifier(tiny_cfg("resnet", "MODEL.DEVICE", "cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="one of the 2 GPUs .* got cuda:2"):
        setup(arguments(tmp_path, "MODEL.DEVICE", "cuda:2", model="resnet"))


@pytest.fixture
def begun(toy_data, tmp_path) -> Path:
    """Folder of a training that has a config and a last checkpoint of 4 iterations."""
    cfg = complete_config(arguments(tmp_path, model="resnet"))
    output = tmp_path / "out"
    output.mkdir()
    (output / "config.yaml").write_text(cfg.dump())
    trainer = PartTrainer(cfg)
    trainer.iter = 3
    trainer.checkpointer.save("model_0000003", iteration=3)
    return tmp_path


@pytest.mark.parametrize(
    "change",
    [
        ["SOLVER.BASE_LR", 0.5],
        ["SOLVER.WEIGHT_DECAY", 0.5],
        ["SOLVER.MOMENTUM", 0.5],
        ["SOLVER.OPTIMIZER", "AdamW"],
        ["MODEL.BACKBONE.FREEZE_AT", 2],
    ],
)
def test_resuming_refuses_keys_that_the_checkpoint_holds(change, begun):
    before = (begun / "out" / "config.yaml").read_text()
    with pytest.raises(UserError, match=rf"--resume continues .*another {change[0]} {change[1]} \(was .*OUTPUT_DIR"):
        setup(arguments(begun, *change, model="resnet", resume=True))
    assert (begun / "out" / "config.yaml").read_text() == before


def test_resuming_says_which_keys_hold(begun, caplog):
    opts = ["MODEL.WEIGHTS", "a.pth", "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", (1,), "TEST.NUM_IMAGES", 3]
    cfg = complete_config(arguments(begun, *opts, model="resnet"))
    sentences = check_resumed(cfg)
    assert sentences[0] == (
        "--resume: MODEL.WEIGHTS a.pth (was ) has no effect, the weights are those of the last checkpoint"
    )
    assert "SOLVER.MAX_ITER 2 (was 40000)" in sentences[1] and "NUM_IMAGES" not in sentences[1]
    with caplog.at_level("WARNING"):
        assert train(cfg, resume=True) is None
    assert f"{begun / 'out'} is already trained to 4 of SOLVER.MAX_ITER 2" in caplog.text
    assert not (begun / "out" / "started.yaml").exists(), "a training that does no step is none of this folder's"


def test_a_refused_run_leaves_the_config_of_the_weights(begun):
    before = (begun / "out" / "config.yaml").read_text()
    opts = ["INPUT.SIZE", 64, "MODEL.WEIGHTS", "nothing.pth"]
    for eval_only in (False, True):
        cfg, attacks = setup_run(arguments(begun, *opts, model="resnet", eval_only=eval_only))
        with pytest.raises(FileNotFoundError, match=r"nothing\.pth is not found"):
            evaluate(cfg, attacks=attacks) if eval_only else train(cfg)
        assert (begun / "out" / "config.yaml").read_text() == before


def test_resuming_from_a_checkpoint_that_is_gone(begun):
    (begun / "out" / "model_0000003.pth").unlink()
    with pytest.raises(UserError, match=r"last_checkpoint names model_0000003\.pth, which does not exist: write"):
        train(complete_config(arguments(begun, model="resnet")), resume=True)


def test_notes_of_an_earlier_training_that_cannot_be_read(begun):
    (begun / "out" / "started.yaml").touch()
    cfg = complete_config(arguments(begun, "SOLVER.MAX_ITER", 1, model="resnet"))
    assert all("BASE_LR" not in sentence for sentence in check_resumed(cfg)), "config.yaml says it, too"
    (begun / "out" / "last_checkpoint").write_bytes(b"\xff\xfe\x80")
    train(cfg)
    assert (begun / "out" / "last_checkpoint").read_text() == "model_final.pth"


def test_a_training_that_would_learn_nothing(tmp_path):
    path, root = write_toy(tmp_path)
    data = json.loads(path.read_text())
    data["annotations"] = []
    for image in data["images"]:
        image["part_supervision"] = "none"
    path.write_text(json.dumps(data))
    register_part_dataset("without_parts", path, root)
    opts = ["DATASETS.TRAIN", ("without_parts",), "DATASETS.VAL", ("without_parts",)]
    try:
        complete_config(arguments(tmp_path, *opts))
        with pytest.raises(UserError, match="part labels, got without_parts without any.*learn nothing"):
            complete_config(arguments(tmp_path, *opts, model="deeplab_segmenter"))
        attacked = [*opts, "ATTACK.TRAIN.ENABLED", True, "ATTACK.TRAIN.OBJECTIVE"]
        for objective in ("cross_entropy", "joint"):
            complete_config(arguments(tmp_path, *attacked, objective))
        with pytest.raises(UserError, match=r"without_parts without any.*ATTACK\.TRAIN\.OBJECTIVE to .*, is part_loss"):
            complete_config(arguments(tmp_path, *attacked, "part_loss"))
    finally:
        DatasetCatalog.pop("without_parts"), MetadataCatalog.pop("without_parts")


def test_a_tier_without_an_evaluation(toy_data, tmp_path):
    args = arguments(tmp_path, "TEST.TIER", "screen", model="resnet")
    args.audit = args.backend = None
    with pytest.raises(ValueError, match=r"TEST\.TIER .* --eval-only"):
        train_net.prepare(args)
