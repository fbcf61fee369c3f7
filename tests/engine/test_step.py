"""The training step: pieces of a batch, precision, perturbed and averaged weights, activations computed again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from part_robust.engine import PartCheckpointer, PartTrainer
from part_robust.engine.step import TrainingStep, split
from part_robust.engine.weight_average import WeightAverage
from part_robust.engine.weight_perturbation import WeightPerturbation
from part_robust.modeling.activation_checkpointing import checkpoint_activations
from tests.toy import ADVERSARIAL, STEADY, run_cfg

LINEAR = ["MODEL.PART_CLASSIFIER.HEAD", "LinearHead"]


def gradients(step: TrainingStep, batch: list[dict]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Of the weights, and the losses by name."""
    step.zero_grad()
    losses = step(batch)
    sum(losses.values()).backward()
    found = {name: float(loss.detach()) for name, loss in losses.items()}
    assert float(step.loss) == pytest.approx(sum(found.values()))
    return {n: p.grad.clone() for n, p in step.model.named_parameters() if p.grad is not None}, found


def difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Largest, relative to the largest gradient."""
    assert first.keys() == second.keys()
    size = max(float(value.abs().max()) for value in first.values())
    return max(float((first[name] - second[name]).abs().max()) for name in first) / size


@pytest.mark.parametrize(
    ("model", "opts"),
    [
        ("deeplab_two_headed", [*LINEAR, "MODEL.SEM_SEG_HEAD.USE_DEPTHWISE_SEPARABLE_CONV", False]),
        ("dino_sequential", LINEAR),
        ("mask_dino_simple", []),
        # Boxes of masks would lie on borders between pixels, where rounding decides which of two gradients is taken.
        (
            "mask_dino_instance_segmenter",
            ["MODEL.MASK_DINO.CLASS_LOSS", "cross_entropy", "MODEL.MASK_DINO.BOX_INIT", "no"],
        ),
    ],
)
def test_pieces_add_up_to_the_batch(toy_data, tmp_path, model, opts):
    """Also when the pieces hold different numbers of labelled pixels, parts and judged queries, and one holds none."""
    torch.manual_seed(0)
    trainer = PartTrainer(run_cfg(tmp_path, *STEADY, "SOLVER.IMS_PER_BATCH", 12, *opts, model=model))
    batch = sorted(next(iter(trainer.data_loader)), key=lambda item: item["image_id"])
    assert len({int((item["sem_seg"] != 255).sum()) for item in batch}) > 1
    assert batch[3]["part_supervision"] == "none"
    whole, losses = gradients(TrainingStep(trainer.model), batch)
    assert ("loss_part_class" in losses) == ("dino" in model)
    for pieces in (2, 3, 12):
        parts, sums = gradients(TrainingStep(trainer.model, pieces=pieces), batch)
        assert sums == pytest.approx(losses, rel=1e-5, abs=1e-7)
        assert difference(whole, parts) < 1e-4


def test_split():
    assert [len(piece) for piece in split(list(range(10)), 3)] == [3, 3, 4]
    assert split([1, 2], 5) == [[1], [2]]
    assert sum(split(list(range(7)), 2), []) == list(range(7))


def test_accumulation_trains(toy_data, tmp_path):
    """Twice the real trainer: with and without pieces the same weights."""
    found = []
    for pieces in (1, 2):
        opts = ["SOLVER.ACCUMULATE", pieces, "SOLVER.MAX_ITER", 2, *ADVERSARIAL, *STEADY]
        torch.manual_seed(0)
        trainer = PartTrainer(run_cfg(tmp_path / str(pieces), *opts, model="resnet"))
        trainer.train()
        found.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    assert torch.allclose(found[0], found[1], atol=1e-4)


def test_bfloat16_training_step(toy_data, tmp_path):
    opts = ["SOLVER.AMP.ENABLED", True, "SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 0, *ADVERSARIAL]
    trainer = PartTrainer(run_cfg(tmp_path, *opts))
    seen = {True: set(), False: set()}
    head = trainer.model.head
    head.register_forward_hook(lambda module, args, output: seen[module.training].add(output.dtype))
    trainer.train()
    assert seen == {True: {torch.bfloat16}, False: {torch.float32}}, "the attack stays in float32"
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())


def test_float16_needs_cuda(toy_data, tmp_path):
    with pytest.raises(ValueError, match=r"SOLVER\.AMP\.DTYPE float16 needs a CUDA device"):
        PartTrainer(run_cfg(tmp_path, "SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "float16"))


class Valley(nn.Module):
    """One weight; a narrow hole at 1, and a wide valley whose bottom is at 2."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[start]]))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, batch):
        self.calls += 1
        w = self.weight.squeeze()
        return {"loss": 0.05 * (w - 2.0) ** 2 - 0.02 * torch.exp(-(((w - 1.0) / 0.03) ** 2))}


def descend(perturbation: WeightPerturbation | None) -> torch.Tensor:
    """Loss along the way from 0.9 to 1.1 times the weight that training from the edge of the hole ends at."""
    model = Valley(1.01)
    step = TrainingStep(model, perturbation=perturbation)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        sum(step([{}]).values()).backward()
        if perturbation:
            perturbation.restore()
        optimizer.step()
    with torch.no_grad():
        end = float(model.weight)
        found = []
        for factor in torch.linspace(0.9, 1.1, 21):
            model.weight.fill_(end * float(factor))
            found.append(model([{}])["loss"])
    return torch.stack(found)


def test_weight_perturbation_prefers_flat_minima():
    """What it is for: the loss is higher at the weights, and lower around them."""
    plain, flat = descend(None), descend(WeightPerturbation(gamma=0.1))
    assert flat.max() < 0.85 * plain.max()
    assert flat[10] > plain[10]


def test_weight_perturbation_has_its_length_and_leaves_no_trace():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    before = copy.deepcopy(model.state_dict())
    perturbation = WeightPerturbation(gamma=0.01)
    x = torch.randn(8, 4)
    perturbation.perturb(model, [lambda: model(x[:4]).square().sum(), lambda: model(x[4:]).square().sum()])
    moved = model.state_dict()
    for name in ("0.weight", "2.weight"):
        assert float((moved[name] - before[name]).norm()) == pytest.approx(0.01 * float(before[name].norm()), rel=1e-3)
    for name in set(before) - {"0.weight", "2.weight"}:
        assert torch.equal(moved[name], before[name]), name
    perturbation.restore()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    perturbation.restore()


def test_perturbed_weights_learn(toy_data, tmp_path):
    """In the real trainer: the step goes out from the true weights, along the gradient at the perturbed
    ones.
    """
    opts = ["ATTACK.TRAIN.AWP.GAMMA", 0.01, "TEST.EVAL_PERIOD", 0, "SOLVER.MAX_ITER", 1, "SOLVER.OPTIMIZER", "SGD"]
    opts += ["SOLVER.MOMENTUM", 0.0, "SOLVER.WEIGHT_DECAY", 0.0]
    trainer = PartTrainer(run_cfg(tmp_path, *ADVERSARIAL, *opts, model="resnet"))
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    rate = trainer.optimizer.param_groups[0]["lr"]
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] - rate * parameter.grad)
    weight = "backbone.stem.conv1.weight"
    assert not torch.equal(dict(trainer.model.named_parameters())[weight], before[weight])


def test_weights_come_back_also_after_an_error(toy_data, tmp_path, monkeypatch):
    opts = ["ATTACK.TRAIN.AWP.GAMMA", 0.01, "ATTACK.TRAIN.AWP.WARMUP_ITERS", 1, "TEST.EVAL_PERIOD", 0]
    trainer = PartTrainer(run_cfg(tmp_path, *ADVERSARIAL, *opts, model="resnet"))
    before, during = [], []
    forward = trainer.model.forward

    def broken(batch):
        weights = trainer.model.backbone.stem.conv1.weight
        during.append(weights.detach().clone())
        if trainer.iter == 1:
            before.append(weights.detach().clone())
            if len(before) == 2:
                raise RuntimeError("cable pulled")
        return forward(batch)

    monkeypatch.setattr(trainer.model, "forward", broken)
    with pytest.raises(RuntimeError, match="cable pulled"):
        trainer.train()
    # Iteration 0 is warm-up (one pass), iteration 1 has a pass at the weights and one at the perturbed ones.
    assert len(during) == 3 and not torch.equal(during[1], during[2])
    assert torch.equal(trainer.model.backbone.stem.conv1.weight, during[1])


def test_average_is_steadier_than_the_weights():
    """What it is for: noisy steps around the optimum 0 average out."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, 0.98)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    own, averaged = [], []
    for step in range(600):
        optimizer.zero_grad()
        (0.5 * (model.weight - torch.randn(())) ** 2).sum().backward()
        optimizer.step()
        average.update()
        if step > 200:
            own.append(float(model.weight) ** 2)
            averaged.append(float(average.values["weight"]) ** 2)
    assert sum(averaged) < 0.25 * sum(own)


def test_average_by_hand():
    model = nn.BatchNorm1d(1)
    average = WeightAverage(model, 0.5)
    expected = 1.0
    for value in (2.0, 4.0):
        nn.init.constant_(model.weight, value)
        model.num_batches_tracked.add_(1)
        average.update()
        decay = min(0.5, (1 + average.updates) / (10 + average.updates))
        expected = decay * expected + (1 - decay) * value
    assert float(average.values["weight"]) == pytest.approx(expected)
    assert int(average.values["num_batches_tracked"]) == 2
    with pytest.raises(ZeroDivisionError), average.applied():
        assert float(model.weight) == pytest.approx(expected)
        raise ZeroDivisionError
    assert float(model.weight) == 4.0
    with pytest.raises(ValueError, match=r"SOLVER\.EMA\.DECAY"):
        WeightAverage(model, 1.0)


def test_average_is_evaluated_saved_and_resumed(toy_data, tmp_path):
    opts = ["SOLVER.EMA.DECAY", 0.9, "SOLVER.MAX_ITER", 4, "TEST.EVAL_PERIOD", 2, "SOLVER.BASE_LR", 0.5]
    trainer = PartTrainer(run_cfg(tmp_path, *opts, model="resnet"))
    seen = []
    test = trainer.test
    trainer.test = lambda cfg, model: seen.append(next(model.parameters()).detach().clone()) or test(cfg, model)
    trainer.train()
    own = next(trainer.model.parameters()).detach()
    final, best = (torch.load(tmp_path / name, weights_only=True) for name in ("model_final.pth", "model_best.pth"))
    name = next(iter(dict(trainer.model.named_parameters())))
    assert torch.equal(final["model"][name], own) and torch.equal(final["average"]["model"][name], seen[-1])
    assert not torch.allclose(own, seen[-1])
    assert "average" not in best and any(torch.equal(best["model"][name], value) for value in seen)
    # Evaluation and a further training take the average, resuming takes both.
    PartCheckpointer(trainer.model, strict=True).load(str(tmp_path / "model_final.pth"))
    assert torch.equal(next(trainer.model.parameters()), seen[-1])
    resumed = PartTrainer(run_cfg(tmp_path, *opts, "SOLVER.MAX_ITER", 6, model="resnet"))
    resumed.resume_or_load(resume=True)
    assert torch.equal(next(resumed.model.parameters()), final["model"][name])
    assert torch.equal(resumed.average.values[name], seen[-1]) and resumed.average.updates == 4


@pytest.mark.parametrize(
    ("model", "parts"), [("deeplab_two_headed", ["backbone"]), ("dino_two_headed", ["backbone", "encoder", "decoder"])]
)
def test_activations_computed_again_change_nothing(toy_data, tmp_path, model, parts):
    opts = ["MODEL.DINO.DENOISING_NUMBER", 0]
    trainer = PartTrainer(run_cfg(tmp_path, *opts, model=model))
    batch = next(iter(trainer.data_loader))
    again = copy.deepcopy(trainer.model)
    assert checkpoint_activations(again, parts) >= 4
    found = []
    for one in (trainer.model, again):
        torch.manual_seed(0)  # dropout
        found.append(gradients(TrainingStep(one), batch)[0])
    assert difference(*found) < 1e-4
    for (name, first), second in zip(trainer.model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.allclose(first.float(), second.float(), atol=1e-5), f"{name}: statistics count a batch once"


def test_activation_checkpointing_names_its_key(toy_data, tmp_path):
    for parts, message in ((["stem"], "must be of backbone, encoder, decoder"), (["encoder"], "no encoder")):
        with pytest.raises(ValueError, match=message):
            PartTrainer(run_cfg(tmp_path, "MODEL.ACTIVATION_CHECKPOINTING", parts, model="resnet"))
