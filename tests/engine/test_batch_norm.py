"""One image per process or accumulated piece: refused where batch norm could not train on it, and only there."""

from __future__ import annotations

import pytest
import torch

from part_robust.engine import PartTrainer
from part_robust.engine.batch_norm import layers_with_one_value
from part_robust.utils.errors import UserError
from tests.toy import ADVERSARIAL, SIZE, run_cfg

BACKBONE, HEAD = "MODEL.RESNETS.NORM FrozenBN", "MODEL.PART_CLASSIFIER.HEAD_NORM ''"
FROZEN = ["MODEL.RESNETS.NORM", "FrozenBN"]
QUIET = ["DATASETS.VAL", (), "DATASETS.TEST", (), "TEST.EVAL_PERIOD", 0, "SOLVER.MAX_ITER", 1]


@pytest.mark.parametrize(
    ("model", "options", "remedies"),
    [
        ("resnet", [], [BACKBONE]),  # the last maps have one pixel
        ("resnet", ["SOLVER.IMS_PER_BATCH", 4, "SOLVER.ACCUMULATE", 4], [BACKBONE]),
        ("resnet", ["SOLVER.BACKBONE_FREEZE_ITERS", 1], [BACKBONE]),  # the backbone learns later
        ("deeplab_two_headed", [], [HEAD]),
        ("dino_sequential", [], [BACKBONE, HEAD]),
        ("dino_sequential", FROZEN, [HEAD]),
    ],
)
def test_one_value_per_channel_is_refused_by_key(toy_data, tmp_path, model, options, remedies):
    with pytest.raises(UserError, match=r"SOLVER\.IMS_PER_BATCH must be at least \d") as error:
        PartTrainer(run_cfg(tmp_path, "SOLVER.IMS_PER_BATCH", 1, *options, model=model))
    assert str(error.value).endswith(f"Or set {' and '.join(remedies)}")


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("resnet", ["INPUT.SIZE", 2 * SIZE]),
        ("resnet", FROZEN),
        ("deeplab_pixel", []),
        ("deeplab_two_headed", ["MODEL.PART_CLASSIFIER.HEAD_NORM", ""]),
        ("mask_dino_simple", FROZEN),
        ("deeplab_two_headed", ["SOLVER.BATCH_NORM", "running"]),
    ],
)
def test_one_image_is_trained_on_where_that_is_possible(toy_data, tmp_path, model, options):
    trainer = PartTrainer(run_cfg(tmp_path, *QUIET, "SOLVER.IMS_PER_BATCH", 1, *options, model=model))
    trainer.train()
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())


@pytest.mark.parametrize("freeze", [0, 1])
def test_running_statistics_stay_in_steps_that_see_the_network_of_the_attack(toy_data, tmp_path, freeze):
    """Also after evaluations, and after a backbone that was frozen at first; the layers' weights learn."""
    options = ["SOLVER.BATCH_NORM", "running", "SOLVER.BACKBONE_FREEZE_ITERS", freeze]
    options += ["SOLVER.MAX_ITER", 3, "TEST.EVAL_PERIOD", 1]
    trainer = PartTrainer(run_cfg(tmp_path, *ADVERSARIAL, *options, model="deeplab_two_headed"))
    layers = {name: m for name, m in trainer.model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    seen = []
    for layer in layers.values():
        layer.register_forward_pre_hook(lambda module, _: seen.append((trainer.model.training, module.training)))
    trainer.train()
    assert seen.count((True, False)) >= 3 * len(layers) and (True, True) not in seen
    assert all(layer.training for layer in layers.values()), "as they were"
    after = trainer.model.state_dict()
    for name in layers:
        assert torch.equal(after[f"{name}.running_mean"], before[f"{name}.running_mean"])
        assert torch.equal(after[f"{name}.running_var"], before[f"{name}.running_var"])
    assert all(layer.weight.grad.abs().sum() > 0 for layer in layers.values())
    assert any(not torch.equal(after[f"{name}.weight"], before[f"{name}.weight"]) for name in layers)


def test_looking_for_such_layers_changes_nothing(toy_data, tmp_path):
    model = PartTrainer(run_cfg(tmp_path, *QUIET, model="deeplab_two_headed")).model
    model.backbone.eval()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    training = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    (layer,) = layers_with_one_value(model, SIZE)
    assert layer.startswith("head.")
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == training
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
