"""TF32 where the config wants it, and nowhere else."""

from __future__ import annotations

import json

import pytest
import torch
from detectron2.modeling import build_model

from part_robust.attacks import attack_mode
from part_robust.engine import PartCheckpointer, PartTrainer, evaluate, export, train
from part_robust.evaluation import verification
from part_robust.modeling.part_classifier import PartClassifier
from part_robust.utils.precision import describe_precision, tf32
from tests.toy import ADVERSARIAL, run_cfg, tiny_cfg

EXACT = {"matmul": "float32", "convolution": "float32"}
QUIET = ["DATASETS.VAL", (), "DATASETS.TEST", ()]
FAST = {"matmul": "tf32", "convolution": "tf32"}


@pytest.fixture
def seen(monkeypatch):
    """The precision of every pass through a backbone, with whether the model trains."""
    found: list[tuple[bool, dict]] = []
    original = PartClassifier.normalize

    def normalize(self, images):
        found.append((self.training, describe_precision()))
        return original(self, images)

    monkeypatch.setattr(PartClassifier, "normalize", normalize)
    return found


@pytest.fixture(autouse=True)
def fast_by_default():
    """A process in which everything uses TF32 that is not told otherwise."""
    with tf32(True):
        yield


@pytest.mark.parametrize(("key", "training"), [(False, EXACT), (True, FAST)])
@pytest.mark.parametrize(("attack_key", "attack"), [("float32", EXACT), ("tf32", FAST)])
def test_training_attack_and_evaluation(toy_data, tmp_path, seen, key, training, attack_key, attack):
    options = ["SOLVER.TF32", key, "ATTACK.TRAIN.PRECISION", attack_key, "SOLVER.MAX_ITER", 1]
    trainer = PartTrainer(run_cfg(tmp_path, *ADVERSARIAL, *options, "TEST.EVAL_PERIOD", 0, *QUIET, model="resnet"))
    gradients_during_attack = []
    attack_batch = trainer.data_loader.attack_batch
    trainer.data_loader.attack_batch = lambda batch: (
        gradients_during_attack.extend(p.grad for p in trainer.model.parameters()) or attack_batch(batch)
    )
    for parameter in trainer.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    trainer.train()
    assert [flags for trains, flags in seen if trains] == [training]
    assert {str(flags) for trains, flags in seen if not trains} == {str(attack)}
    assert gradients_during_attack and all(gradient is None for gradient in gradients_during_attack)
    seen.clear()
    PartTrainer.test(run_cfg(tmp_path, *ADVERSARIAL, model="resnet"), trainer.model)
    assert seen and all(flags == EXACT for _, flags in seen)
    assert describe_precision() == FAST, "and afterwards as before"


def test_evaluation_record_export_and_verification(toy_data, tmp_path, seen):
    train(run_cfg(tmp_path / "run", "SOLVER.MAX_ITER", 1, "TEST.EVAL_PERIOD", 0, model="resnet"))
    weights = ["MODEL.WEIGHTS", str(tmp_path / "run" / "model_final.pth")]
    seen.clear()
    tier = ["TEST.TIER", "quick", "TEST.SAVE_ADVERSARIALS", "npz", "TEST.CHECKS.IMAGES", 2]
    for name, options in (("tier", tier), ("plain", ["ATTACK.EVAL", ("fgsm",)])):
        cfg = run_cfg(tmp_path / name, *weights, *ADVERSARIAL, model="resnet").clone()
        cfg.defrost()
        cfg.TEST.TIERS.quick = ["fgsm"]
        cfg.merge_from_list(options)
        evaluate(cfg)
        record = json.loads((tmp_path / name / "robustness.json").read_text())
        assert record["precision"] == EXACT
    export.export_classifier(cfg, tmp_path / "export")
    cfg, record = verification.recorded_config(tmp_path / "tier")
    model = PartTrainer.build_model(cfg)
    PartCheckpointer(model, strict=True).load(cfg.MODEL.WEIGHTS)
    assert not verification.verify(tmp_path / "tier", cfg, model, record)[0].problems
    assert len(seen) > 8 and all(flags == EXACT for _, flags in seen)
    record["precision"] = FAST
    seen.clear()
    verification.verify(tmp_path / "tier", cfg, model, record)
    assert describe_precision() == FAST


def test_attack_view_ends_with_what_was_before(toy_data):
    model = build_model(tiny_cfg("resnet"))
    with pytest.raises(RuntimeError, match="inside"), attack_mode(model):
        assert describe_precision() == EXACT
        raise RuntimeError("inside")
    assert describe_precision() == FAST
