"""Batch norm in training steps: what one image cannot train is refused, the step sees the network that is attacked."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from detectron2.utils.events import EventStorage

from part_robust.engine import PartTrainer
from part_robust.engine.batch_norm import StatisticsCheck, layers_with_one_value
from part_robust.utils.errors import UserError
from tests.toy import ADVERSARIAL, SIZE, metric_lines, run_cfg

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


class Brightness(torch.nn.Module):
    """Tells bright images from dark ones by their place in the batch's statistics; the running ones call all dark."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(1)
        self.norm.running_mean.fill_(1000.0)

    def preprocess(self, batch):
        return torch.stack([item["image"] for item in batch]), None

    def class_logits(self, images, padding=None):
        value = self.norm(images.mean(dim=(1, 2, 3))[:, None])
        return torch.cat([-value, value], dim=1)


def brightness_batch():
    return [{"image": torch.full((3, 2, 2), 200.0 * label), "class_id": label} for label in (0, 1, 1, 0)]


def test_a_gap_between_the_two_accuracies_is_one_warning(caplog):
    model = Brightness()
    check = StatisticsCheck(model)
    with caplog.at_level(logging.WARNING), EventStorage() as storage:
        for iteration in range(12 * StatisticsCheck.PERIOD):
            check(iteration, brightness_batch())
            assert bool(caplog.records) == (iteration + 1 >= StatisticsCheck.WINDOW * StatisticsCheck.PERIOD)
        assert storage.history("adv/accuracy_batch_statistics").values()[-1][0] == 100.0
        assert storage.history("adv/accuracy_running_statistics").values()[-1][0] == 50.0
        assert len(storage.history("adv/accuracy_batch_statistics").values()) == 12
    (record,) = caplog.records
    assert "100 % are right" in record.getMessage() and "50 % with the running" in record.getMessage()
    assert model.norm.running_mean == 1000.0 and model.norm.num_batches_tracked == 0


@pytest.mark.parametrize("cure", ["running", "true statistics"])
def test_equal_accuracies_are_no_warning(caplog, cure):
    model = Brightness()
    if cure == "running":
        model.norm.eval()  # as SOLVER.BATCH_NORM running does in the steps
    else:
        model.norm.running_mean.fill_(100.0)
    check = StatisticsCheck(model)
    with caplog.at_level(logging.WARNING), EventStorage() as storage:
        for iteration in range(12 * StatisticsCheck.PERIOD):
            check(iteration, brightness_batch())
        assert ("adv/accuracy_batch_statistics" in storage.histories()) == (cure != "running")
    assert not caplog.records


def test_only_the_first_piece_is_measured():
    model = Brightness()
    model.norm.running_mean.fill_(100.0)
    with EventStorage() as storage:
        StatisticsCheck(model, pieces=2)(
            19, [*brightness_batch()[:2], *[{**item, "class_id": 0} for item in brightness_batch()[1:3]]]
        )
        assert storage.history("adv/accuracy_running_statistics").latest() == 100.0


@pytest.mark.parametrize("model", ["resnet", "deeplab_two_headed", "mask_dino_simple"])
def test_the_two_accuracies_are_those_of_copies_and_the_model_stays(toy_data, tmp_path, model):
    trainer = PartTrainer(run_cfg(tmp_path, *ADVERSARIAL, "SOLVER.IMS_PER_BATCH", 8, model=model))
    trainer.model.backbone.eval()  # a frozen backbone stays in evaluation mode in the step
    batch = next(iter(trainer.data_loader.loader))
    modes = copy.deepcopy(trainer.model).eval(), copy.deepcopy(trainer.model).eval()
    for module in modes[0].modules():
        module.training = isinstance(module, torch.nn.BatchNorm2d) and module not in set(modes[0].backbone.modules())
    expected = []
    for mode in modes:
        images, padding = mode.preprocess(batch)
        found = mode.class_logits(images, padding).argmax(dim=1).tolist()
        expected.append(100.0 * sum(a == item["class_id"] for a, item in zip(found, batch, strict=True)) / len(batch))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    training = [module.training for module in trainer.model.modules()]
    random = torch.get_rng_state()
    with EventStorage() as storage:
        StatisticsCheck(trainer.model)(StatisticsCheck.PERIOD - 1, batch)
        found = [h.latest() for h in storage.histories().values()]
    layers = [m for m in trainer.model.modules() if isinstance(m, torch.nn.BatchNorm2d) and m.training]
    assert bool(layers) == (model == "deeplab_two_headed")
    assert found == pytest.approx(expected if layers else [])
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in trainer.model.modules()] == training
    after = trainer.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("way", ["batch", "running"])
def test_an_adversarial_training_writes_both_accuracies_where_they_can_differ(toy_data, tmp_path, monkeypatch, way):
    monkeypatch.setattr(StatisticsCheck, "PERIOD", 2)
    options = [*ADVERSARIAL, "SOLVER.BATCH_NORM", way, "SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 0]
    PartTrainer(run_cfg(tmp_path, *options, model="deeplab_two_headed")).train()
    names = {name for line in metric_lines(tmp_path) for name in line}
    assert names >= {"adv/eps"}
    for name in ("adv/accuracy_batch_statistics", "adv/accuracy_running_statistics"):
        assert (name in names) == (way == "batch")
