"""Checks of a model and of a record: each finds what it is for, and an honest evaluation passes."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from part_robust.attacks import attack_mode, build_attack
from part_robust.attacks.expanded_queries import expand_queries
from part_robust.evaluation.checks import (
    CATALOGUE,
    CheckSettings,
    check_untouched,
    record_checks,
    run_checks,
    tensor_hashes,
    wilson,
)
from tests.evaluation import check_models as models
from tests.evaluation import record_fixture
from tests.toy import SIZE, tiny_cfg

SMALL = CheckSettings(images=4, steps=4, long_steps=6, noise_draws=4, directions=2)
ATTACK = {"STEPS": 4, "STEP_SIZE": 1.0, "EPS": 2.0, "KEEP": "best"}


def by_id(results):
    assert len({result.id for result in results}) == len(results)
    assert [result.id for result in results] == sorted((r.id for r in results), key=lambda id: int(id[1:]))
    return {result.id: result for result in results}


def checked(model, images, audit=False, **values):
    with attack_mode(model) as view:
        labels = torch.zeros(len(images), dtype=torch.long)
        return by_id(run_checks(view, images, labels, build_attack(ATTACK), audit, settings=SMALL, **values))


def test_everything_runs_on_a_model_with_padding():
    images = models.make_images(6)
    padding = torch.zeros(6, models.SIZE, models.SIZE, dtype=torch.bool)
    padding[:, :, 10:] = True
    sizes = set()

    class Padded(models.Wrapped):
        def class_logits(self, images, padding=None):
            assert padding.shape == (len(images), *images.shape[-2:])
            sizes.add(len(images))
            return self(images.masked_fill(padding[:, None], 0.0))

    results = checked(Padded(), images, audit=True, padding=padding, adversarial=images, keys=torch.arange(6))
    assert set(results) == {*(f"C{number}" for number in range(1, 18)), "C21"}
    assert max(sizes) == SMALL.images
    assert all(results[id].status == "pass" for id in ("C1", "C2", "C3", "C4", "C6", "C7", "C17")), results


@pytest.mark.parametrize("kind", [models.TrainingNorm, models.Drifting])
def test_model_that_changes_under_attack(kind):
    result = checked(kind(), models.make_images(4))["C1"]
    assert result.status == "fail" and result.level == "error"
    assert ("inner.norm" if kind is models.TrainingNorm else "inner.last.bias") in result.sentence


def test_weights_that_changed_during_the_evaluation_before_the_checks():
    model, images = models.Honest(), models.make_images(3)
    before = tensor_hashes(model)
    assert checked(model, images, before=before)["C1"].status == "pass"
    with torch.no_grad():
        model.last.bias += 1e-3
    result = checked(model, images, before=before)["C1"]
    assert result.status == "fail" and "last.bias" in result.sentence


def test_weights_modified():
    model = models.Honest().eval()
    before = tensor_hashes(model)
    assert check_untouched(model, before).status == "pass"
    model.norm.running_mean[3] += 1e-6
    assert "norm.running_mean" in check_untouched(model, before).sentence
    model.norm.running_mean[3] -= 1e-6
    model.register_buffer("new", torch.empty(0), persistent=False)
    assert "new" in check_untouched(model, before).sentence
    model.train()
    assert "training mode" in check_untouched(model, before).sentence


def test_fingerprint_reads_every_type():
    module = nn.Module()
    for index, kind in enumerate((torch.bfloat16, torch.bool, torch.int64, torch.float64)):
        module.register_buffer(f"b{index}", torch.ones(2, 3).to(kind).T)
    module.register_buffer("scalar", torch.tensor(3.0))
    assert len(set(tensor_hashes(module).values())) == 5


@pytest.mark.parametrize("audit", [False, True])
def test_model_without_a_class_head_is_left_out_with_a_sentence(audit, toy_data):
    model = build_model(tiny_cfg("deeplab_segmenter"))
    images = 255 * torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    results = checked(model, images, audit, adversarial=images)
    assert results["C1"].status == results["C4"].status == "pass"
    others = [result for id, result in results.items() if id not in ("C1", "C4")]
    assert len(others) == (16 if audit else 5)
    assert all(r.status == "skipped" and "no class head" in r.sentence for r in others)


def test_no_images():
    with pytest.raises(ValueError, match="at least one image"):
        checked(models.Honest(), models.make_images(1)[:0])


def test_model_that_refuses_float64_is_audited_in_float32():
    class Stubborn(models.Wrapped):
        def forward(self, images):
            return super().forward(images.float()) if images.dtype == torch.float32 else images @ images.half()

    assert checked(Stubborn(), models.make_images(4))["C6"].status == "pass"


@pytest.mark.parametrize(("full", "status"), [(True, "pass"), (False, "fail")])
def test_detector_whose_gradient_is_cut(full, status, toy_data):
    torch.manual_seed(0)
    model = awake(build_model(tiny_cfg("dino_sequential", "ATTACK.FULL_GRADIENT", full)))
    images = 255 * torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    result = checked(model, images)["C6"]
    assert result.status == status, result


def awake(model):
    """An untrained detector whose boxes matter: their heads begin all zero."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


TWO_STAGES = ["MODEL.MASK_DINO.TWO_STAGE", True]


@pytest.mark.parametrize(
    ("name", "opts", "chooses"),
    [
        ("dino_sequential", [], True),
        ("dino_sequential", ["MODEL.DINO.NUM_QUERIES", 60], True),  # of 85 pixels
        ("dino_sequential", ["MODEL.SEQUENTIAL_HEAD.ORDER", "confidence"], True),
        ("dino_two_headed", [], False),
        ("mask_dino_simple", TWO_STAGES, True),
        ("mask_dino_simple", [*TWO_STAGES, "MODEL.MASK_DINO.LEARNED_CONTENT", True], True),
        ("mask_dino_simple", ["MODEL.MASK_DINO.TWO_STAGE", False], False),
        ("deeplab_pixel", [], False),
    ],
)
def test_gradients_past_the_choice_of_queries(name, opts, chooses, toy_data):
    model = awake(build_model(tiny_cfg(name, *opts)))
    images = 255 * torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with attack_mode(model) as view:
        expanded = expand_queries(view, None)
        assert (expanded is not None) == chooses
        if expanded is None:
            return
        x = images.clone().requires_grad_(True)
        own, past = view.class_logits(x), expanded(x)
        torch.testing.assert_close(own, past, rtol=0, atol=1e-6)
        slopes = [torch.autograd.grad(logits[:, 0].sum(), x)[0] for logits in (own, past)]
        assert all(torch.isfinite(slope).all() and slope.abs().sum() > 0 for slope in slopes)
        assert not torch.allclose(*slopes, rtol=1e-3)
        torch.testing.assert_close(view.class_logits(images), own.detach(), msg="the choice is as it was")


def test_queries_that_hide_a_path_are_found_in_the_audit():
    class Part(models.Chooser):
        head = True

    result = checked(Part(), models.red_patches(4, 1.1), audit=True)["C21"]
    assert (result.status, result.level) == ("fail", "error") and "past the choice" in result.sentence
    assert checked(Part(), models.red_patches(4, 9.0), audit=True)["C21"].status == "pass"


# The record.


def record_result(change, id, flags=None):
    E = record_fixture.evaluation()
    change(E)
    return by_id(record_checks(E, record_fixture.ATTACKS, flags))[id]


def test_consistent_record_passes():
    results = by_id(record_checks(record_fixture.evaluation(), record_fixture.ATTACKS, record_fixture.flags()))
    assert set(results) == {"C5", "C8", "C9", "C10", "C13", "C18", "C19", "C20"}
    assert all(result.status == "pass" for result in results.values()), results


def test_record_with_hardly_anything():
    results = by_id(record_checks({}))
    assert {id: result.status for id, result in results.items()} == {"C18": "skipped", "C19": "skipped", "C20": "fail"}


def put(E, path, value):
    *way, last = path
    for key in way:
        E = E[key]
    E[last] = value


RECORD_CASES = [
    ("C5", ("rescored",), {"images": 100, "mismatches": 1}),
    ("C8", ("tiers", "standard", "attacks", 0, "accuracy_alone"), 60.0),
    ("C9", ("eps_curve", 3, "accuracy"), 40.0),
    ("C9", ("tiers", "standard", "attacks", 2, "accuracy_after"), 36.0),
    ("C9", ("clean", "accuracy"), 30.0),
    ("C10", ("convergence", "apgd_ce"), [float(step) for step in range(100)]),
    ("C13", ("tiers", "standard", "attacks", 3, "accuracy_after"), 20.0),
    ("C14", ("transfer",), {"standing": 400, "broke": 7, "siblings": [{"name": "deeplab"}, {"name": "dino"}]}),
    ("C18", ("attack_matrix",), [record_fixture.matrix_row("standard", "class", 30.0, 70.0, 50.0, None, None)]),
    ("C18", ("attack_matrix",), [record_fixture.matrix_row("joint", "joint", 95.0, 70.0, 50.0, None, None)]),
    (
        "C18",
        ("attack_matrix",),
        [
            record_fixture.matrix_row("standard", "class", 33.3, 72.0, 52.0, None, None),
            record_fixture.matrix_row("segpgd", "part", 60.0, 61.0, 41.0, None, None),
            record_fixture.matrix_row("joint", "joint", 33.5, 63.0, 41.2, None, None),
        ],
    ),
    ("C19", ("tiers", "standard", "robust", "interval"), None),
    ("C19", ("clean", "interval"), [70.0, 80.0]),
    ("C20", ("num_images",), 999),
    ("C20", ("image_list_sha256",), None),
    ("C21", ("attack_matrix",), [record_fixture.matrix_row("part_loss", "part", 60.0, None, None, 15.0, 30.0)]),
]


@pytest.mark.parametrize(("id", "path", "value"), RECORD_CASES)
def test_record_check_finds(id, path, value):
    result = record_result(lambda E: put(E, path, value), id)
    assert result.status == "fail" and result.level == CATALOGUE[id].level and result.remedy


@pytest.mark.parametrize(("broke", "images", "status"), [(6, 1200, "pass"), (7, 1200, "fail"), (1, 100, "pass")])
def test_siblings_images(broke, images, status):
    E = {"num_images": images, "transfer": {"standing": 50, "broke": broke, "siblings": [{"name": "deeplab"}]}}
    result = by_id(record_checks(E))["C14"]
    assert result.status == status and f"made for deeplab broke {broke} of the 50" in result.sentence


def test_both_matchings_satisfy():
    rows = [
        record_fixture.matrix_row(name, "part", 60.0, None, None, ap, 30.0)
        for name, ap in (("part_loss", 15.0), ("part_loss_fixed", 17.0))
    ]
    result = record_result(lambda E: put(E, ("attack_matrix",), rows), "C21")
    assert result.status == "pass" and result.value == 2.0


def single_attack(name: str, correct: int, **values) -> dict:
    """The tier of an attack of ATTACK.EVAL."""
    row = record_fixture.tier_attack(name, correct, record_fixture.IMAGES, correct)
    objective = "class accuracy, every attack on every image"
    return {"objective": objective, "attacks": [row], "robust": record_fixture.score(correct), **values}


def test_an_attack_that_claims_no_worst_case_may_have_one_matching():
    rows = [record_fixture.matrix_row("part_loss", "part", 60.0, None, None, 15.0, 30.0)]

    def alone(E: dict) -> None:
        put(E, ("attack_matrix",), rows)
        put(E, ("tiers", "part_loss"), single_attack("part_loss", 720))

    result = record_result(alone, "C21")
    assert result.status == "fail" and result.level == "warning"


def test_losses_are_compared_in_one_threat_model():
    for eps, status in ((8.0, "fail"), (16.0, "pass")):
        result = record_result(
            lambda E, eps=eps: put(E, ("tiers", "margin"), single_attack("margin", 9, eps=eps)), "C8"
        )
        assert result.status == status


def test_a_joint_attack_is_compared_with_a_single_one_that_is_a_tier():
    rows = [
        record_fixture.matrix_row("standard", "class", 33.3, 72.0, 52.0, None, None),
        record_fixture.matrix_row("segpgd", "part", 60.0, 61.0, 41.0, None, None),
        record_fixture.matrix_row("joint", "joint", 33.5, 63.0, 41.2, None, None),
    ]

    def alone(E: dict) -> None:
        put(E, ("attack_matrix",), rows)
        put(E, ("tiers", "segpgd"), single_attack("segpgd", 720))

    assert record_result(alone, "C18").status == "fail"


def test_joint_attack_as_strong_as_the_single_ones():
    rows = [
        record_fixture.matrix_row("standard", "class", 33.3, None, None, 20.0, None),
        record_fixture.matrix_row("parts", "part", 30.0, None, None, 9.0, None),
        record_fixture.matrix_row("part_loss", "part", 60.0, None, None, 15.0, None),
        record_fixture.matrix_row("joint", "joint", 33.8, None, None, 15.4, None),
    ]
    result = record_result(lambda E: put(E, ("attack_matrix",), rows), "C18")
    assert result.status == "pass", "the tier of parts is not a single attack"


def test_flags_that_contradict():
    flags = record_fixture.flags()
    assert record_result(lambda E: None, "C5", flags).status == "pass"
    wrong = copy.deepcopy(flags)
    wrong["robust_standard"][0] = False
    assert "399 flags" in record_result(lambda E: None, "C5", wrong).sentence
    wrong = copy.deepcopy(flags)
    wrong["fooled_apgd_ce"][7] = True
    assert "1 images count as robust in standard" in record_result(lambda E: None, "C5", wrong).sentence


def test_pixels_are_no_images():
    E = record_fixture.evaluation()
    E["clean"] = {"correct": 800_000, "accuracy": 80.0, "interval": [79.0, 81.0]}
    del E["tiers"]["standard"], E["tiers"]["thesis"]
    results = by_id(record_checks(E))
    assert results["C19"].status == "skipped"


def test_wilson_interval_against_known_values():
    # Newcombe (1998), Table I: 81 of 263 and 0 of 20.
    assert wilson(81, 263) == pytest.approx((25.53, 36.62), abs=0.01)
    assert wilson(0, 20) == pytest.approx((0.0, 16.11), abs=0.01)
    assert wilson(0, 0) == (0.0, 100.0)
