"""Each check fails on a model built to fail it, and passes on an honest one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from part_robust.attacks import EotView, Square, ThreatModel, attack_batch, attack_mode, build_attack, get_objective
from part_robust.attacks.expanded_queries import expand_queries
from part_robust.evaluation.checks import (
    CATALOGUE,
    CheckContext,
    CheckResult,
    CheckSettings,
    check_bounds,
    competitors,
    merge_checks,
    round_towards,
    run_audit,
    run_cheap_checks,
    strength,
)
from part_robust.evaluation.checks.context import RecordingModel
from part_robust.evaluation.checks.gradients import check_gradient, check_losses
from part_robust.evaluation.checks.outputs import check_classes, check_deterministic, check_logits
from tests.evaluation import check_models as models

SMALL = CheckSettings(steps=8, long_steps=16, noise_draws=20, directions=3, eot_draws=4)


def pgd(**values):
    return build_attack({"STEPS": 10, "STEP_SIZE": 0.5, "EPS": 2.0, "KEEP": "best", **values})


class Corners:
    """Attack without gradients: the worst of many random patterns of a few large cells."""

    def __init__(self, eps: float, tries: int = 150) -> None:
        self.threat_model = ThreatModel("linf", eps)
        self.tries = tries

    @torch.no_grad()
    def __call__(self, forward, images, labels, *, keys, padding=None):
        generator = torch.Generator().manual_seed(0)
        best, margin = images, torch.full((len(images),), float("-inf"))
        for _ in range(self.tries):
            cells = torch.rand(len(images), 3, 4, 4, generator=generator) - 0.5
            pattern = torch.nn.functional.interpolate(cells, size=images.shape[-2:]).sign()
            candidate = self.threat_model.project(images + self.threat_model.eps * pattern, images)
            logits = forward(candidate)
            right = logits.gather(1, labels[:, None])[:, 0]
            wrong = logits.scatter(1, labels[:, None], float("-inf")).amax(dim=1)
            take = wrong - right > margin
            margin = torch.where(take, wrong - right, margin)
            best = torch.where(take.view(-1, 1, 1, 1), candidate, best)
        return SimpleNamespace(images=best)


def subject_of(model, attack=None, count=10, images=None):
    images = models.make_images(count) if images is None else images
    with torch.no_grad():
        labels = model.eval()(images).float().argmax(dim=1)
    return CheckContext(model, images, labels, attack or pgd())


def by_id(results: list[CheckResult]) -> dict[str, CheckResult]:
    assert len({result.id for result in results}) == len(results)
    return {result.id: result for result in results}


def test_an_honest_model_passes_everything():
    with attack_mode(models.Honest()) as view:
        context = subject_of(view)
        attacked = context.run(context.attack)
        assert 0 < attacked.num_right < len(context), "the checks must have something to compare"
        cheap, same = run_cheap_checks(context, SMALL, attacked.images)
        assert same is context
        audit = run_audit(context, SMALL, black_box=Corners(2.0), transferred=attacked.images)
    assert {result.id for result in cheap} == {"C2", "C3", "C4", "C6", "C7", "C17"}
    results = by_id(merge_checks(cheap, audit))
    wrong = [result for result in results.values() if result.status == "fail"]
    assert not wrong, wrong
    left = {id for id, result in results.items() if result.status == "skipped"}
    assert left <= {"C21"}, "the black box here has no queries"
    assert all(result.sentence and not result.remedy for result in results.values())


CHEAP = [
    (models.NoisyInput, "C2"),
    (models.TrainingNorm, "C2"),
    (models.NotANumber, "C3"),
    (models.Half, "C3"),
    (models.Probabilities, "C3"),
    (models.Probabilities, "C7"),
    (models.Quantised, "C6"),
    (models.Detached, "C6"),
    (models.FullyDetached, "C6"),
    (models.FullyDetached, "C7"),
    (models.LargeLogits, "C7"),
    (models.Quantised, "C7"),
]


@pytest.mark.parametrize(("kind", "id"), CHEAP, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_cheap_check_finds(kind, id):
    with attack_mode(kind()) as view:
        results, _ = run_cheap_checks(subject_of(view, count=6), SMALL)
    result = by_id(results)[id]
    assert result.status == "fail" and result.level == CATALOGUE[id].level
    assert result.sentence and result.remedy


def test_large_logits_are_told_from_a_wrong_gradient():
    with attack_mode(models.LargeLogits()) as view:
        assert by_id(run_cheap_checks(subject_of(view, count=6), SMALL)[0])["C6"].status == "pass"


def test_the_same_model_without_the_cut_passes():
    with attack_mode(models.Detached(cut=False)) as view:
        result = check_gradient(view, models.make_images(6), torch.arange(6))
    assert result.status == "pass" and result.value < 0.01


def test_gradient_of_padding_is_not_asked_for():
    model = models.Honest().eval()
    padding = torch.zeros(6, models.SIZE, models.SIZE, dtype=torch.bool)
    padding[:, :4] = True

    def forward(images):  # what is under the padding must not matter, and the honest gradient there is cut
        return model(torch.where(padding[:, None], images.detach(), images))

    assert check_gradient(forward, models.make_images(6), torch.arange(6), padding).status == "pass"
    assert check_gradient(forward, models.make_images(6), torch.arange(6)).status == "fail"


def test_flat_outputs_are_no_gradient_error():
    result = check_gradient(
        lambda images: images.flatten(1)[:, :4] * 1e-12 + torch.arange(4.0), torch.ones(4, 3, 2, 2), torch.arange(4)
    )
    assert result.status == "skipped"


def test_outputs_that_jump_cannot_be_audited_in_float32_and_can_in_float64():
    weights = torch.linspace(-1, 1, 12 * 5).view(12, 5).double()

    def rugged(images):
        return torch.sin(300 * images.flatten(1)[:, :12]) @ weights.to(images)

    images = 100 * torch.rand(8, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    result = check_gradient(rugged, images, torch.arange(8))
    assert result.status == "fail" and result.level == "warning" and "jump" in result.sentence
    assert check_gradient(rugged, images.double(), torch.arange(8)).status == "pass"


def test_quantised_input_is_found_in_float64_too():
    model = models.Quantised().double().eval()
    assert check_gradient(model, models.make_images(5).double(), torch.arange(5)).status == "fail"


def test_randomness_leads_to_the_expectation():
    torch.manual_seed(0)
    with attack_mode(models.NoisyInput()) as view:
        results, context = run_cheap_checks(subject_of(view, count=6), SMALL)
    assert isinstance(context.forward, EotView) and context.forward.draws == 4
    # Under common random numbers its gradient is right: randomness is one finding, not two.
    assert by_id(results)["C6"].status == "pass"
    again = check_deterministic(context.forward, context.images)
    assert again.status == "fail" and again.level == "warning" and "4 draws" in again.sentence


def test_expectation_averages_outputs_and_gradients():
    generator = torch.Generator().manual_seed(0)

    def noisy(images):
        return images.flatten(1)[:, :3] * (1 + torch.rand(1, 3, generator=generator))

    images = torch.ones(2, 3, 1, 1, requires_grad=True)
    outputs = EotView(noisy, 2000)(images)
    torch.testing.assert_close(outputs, torch.full((2, 3), 1.5), atol=0.03, rtol=0)
    (slope,) = torch.autograd.grad(outputs.sum(), images)
    torch.testing.assert_close(slope.flatten(1), torch.full((2, 3), 1.5), atol=0.03, rtol=0)
    vote = EotView(lambda images: images.flatten(1), 3, "probabilities")(images)
    torch.testing.assert_close(vote.exp().sum(dim=1), torch.ones(2))
    with pytest.raises(ValueError, match="at least 1 draw"):
        EotView(noisy, 0)
    with pytest.raises(ValueError, match="average"):
        EotView(noisy, 2, "votes")


def test_logits_of_a_wrong_shape_and_honest_ones_that_sum_to_one():
    assert check_logits(torch.zeros(2, 3, 4)).status == "fail"
    logits = torch.tensor([[2.0, -1.0], [0.5, 0.5]])
    assert check_logits(logits).status == "pass", "a negative logit is not a probability"
    assert check_logits(torch.tensor([[0.5, 0.5], [1.0, 0.0]])).status == "fail"


@pytest.mark.parametrize("labels", [[0, 5], [-1, 2]])
def test_labels_that_do_not_exist(labels):
    assert check_classes(torch.zeros(2, 5), torch.tensor(labels), pgd()).status == "fail"
    with attack_mode(models.Honest()) as view:
        context = CheckContext(view, models.make_images(2), torch.tensor(labels), pgd())
        results = by_id(run_cheap_checks(context, SMALL)[0])
    assert results["C17"].status == "fail" and results["C7"].status == "skipped"


def test_too_few_classes():
    assert check_classes(torch.zeros(2, 1), torch.tensor([0, 0]), pgd()).status == "fail"
    ratio = SimpleNamespace(objective=SimpleNamespace(name="targeted_dlr"))
    assert check_classes(torch.zeros(2, 3), torch.tensor([0, 1]), ratio).status == "fail"
    assert check_classes(torch.zeros(2, 4), torch.tensor([0, 1]), ratio).status == "pass"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda x: x + 9.0, "length"),
        (lambda x: x - 120.0, "length"),
        (lambda x: torch.full_like(x, float("nan")), "not a number"),
        (lambda x: x + torch.where(x > 250, 7.9, 0.0), "pixels run"),
    ],
)
def test_images_outside_the_threat_model(change, word):
    images = models.make_images(3)
    images[0, 0, 0, 0] = 252.0
    result = check_bounds(change(images), images, ThreatModel("linf", 8.0))
    assert result.status == "fail" and word in result.sentence


def test_padding_that_moved():
    images = models.make_images(3)
    padding = torch.zeros(3, models.SIZE, models.SIZE, dtype=torch.bool)
    padding[0, 0, 0] = True
    assert check_bounds(images + 1.0, images, ThreatModel("linf", 8.0)).status == "pass"
    assert "padding" in check_bounds(images + 1.0, images, ThreatModel("linf", 8.0), padding).sentence


def test_rounding_stays_in_the_ball():
    generator = torch.Generator().manual_seed(0)
    images = 255 * torch.rand(50, 3, 4, 4, generator=generator)
    for originals in (images, images.round()):
        moved = (originals + 0.7 * (2 * torch.rand(images.shape, generator=generator) - 1)).clamp(0, 255)
        rounded = round_towards(moved, originals)
        assert ((rounded - originals).abs() <= (moved - originals).abs() + 1e-5).all()
        assert ((rounded == rounded.round()) | (rounded == originals)).all()


STRONG = [
    (models.LargeLogits, strength.check_losses_agree, (8,), {}),
    (models.LargeLogits, strength.check_unbounded, (), {}),
    (models.Quantised, strength.check_unbounded, (), {}),
    (models.Quantised, competitors.check_noise, (60,), {"EPS": 8.0, "STEP_SIZE": 2.0, "RANDOM_START": False}),
    (models.Quantised, competitors.check_black_box, (Corners(8.0),), {"EPS": 8.0}),
    (models.Quantised, competitors.check_active, (pgd(EPS=8.0),), {"EPS": 8.0}),
]


@pytest.mark.parametrize(("kind", "check", "arguments", "values"), STRONG)
def test_masked_models_are_found(kind, check, arguments, values):
    with attack_mode(kind()) as view:
        result = check(subject_of(view, pgd(**values)), *arguments)
    assert result.status == "fail", result


def test_images_of_the_undefended_sibling_break_the_masked_model():
    attack = pgd(EPS=8.0, STEP_SIZE=2.0)
    with attack_mode(models.Honest()) as view:
        transferred = subject_of(view, attack).run(attack).images
    with attack_mode(models.Quantised()) as view:
        context = subject_of(view, attack)
        context.pgd(4, 0.25)
        assert competitors.check_transfer(context, transferred).status == "fail"
        assert competitors.check_transfer(context, None).status == "skipped"


def test_one_step_that_beats_many():
    with attack_mode(models.Valley()) as view:
        context = subject_of(view, pgd(EPS=8.0), images=models.grey(5))
        result = strength.check_effort(context, 20)
    assert result.status == "fail" and result.value == 100.0
    assert "5 of 5 images are right under 20 steps, 0 under 1 step" in result.sentence


def test_attack_that_has_not_converged():
    with attack_mode(models.Honest()) as view:
        context = subject_of(view, pgd(EPS=4.0))
        assert strength.check_convergence(context, 2).status == "fail"
        assert strength.check_convergence(context, 32).status == "pass"


def test_restarts_that_find_more():
    images = torch.full((24, 3, 4, 4), 128.0)
    with attack_mode(models.Watershed()) as view:
        context = subject_of(view, pgd(EPS=8.0), images=images)
        result = strength.check_convergence(context, 16)
        assert context.pgd(32, 0.1).num_right == 24, "more steps from the image itself do not help"
        assert result.status == "fail" and "after one random start" in result.sentence and result.value > 10
        assert strength.check_convergence(context, 16, restarts=1).status == "pass"
        near = subject_of(view, pgd(EPS=4.0), images=images)
        assert strength.check_convergence(near, 16).status == "pass", "no start gets there"


@pytest.mark.parametrize(("lead", "status"), [(6.0, "fail"), (12.0, "pass")])
def test_choice_of_queries_that_hides_a_path(lead, status):
    with attack_mode(models.Chooser()) as view:
        context = subject_of(view, pgd(EPS=8.0), count=4, images=models.red_patches(4, lead))
        assert context.labels.tolist() == [0] * 4
        expanded = expand_queries(view, None)
        result = CATALOGUE["C21"].result(competitors.check_query_selection(context, expanded, 16))
        assert context.pgd(16, 0.1).num_right == 4, "through the gate nothing is to be found"
    assert result.status == status and "4 images" in result.sentence
    if status == "fail":
        assert result.level == "error" and "QUERY_FACTOR" in result.remedy
    assert competitors.check_query_selection(context, None, 16).status == "skipped"
    assert expand_queries(models.Honest(), None) is None


def test_attack_past_the_choice_of_queries():
    model, images = models.Chooser(), models.red_patches(3, 6.0)
    items = [{"class_id": 0}] * 3
    model.preprocess = lambda items: (images, None)
    sent = []
    model.register_forward_pre_hook(lambda module, arguments: sent.append(len(arguments[0])))
    for factor, success in ((1, False), (4, True)):
        attack = pgd(EPS=8.0, STEP_SIZE=1.0, QUERY_FACTOR=factor, RANDOM_START=False, EARLY_STOP=True, COMPACT_EVERY=3)
        with attack_mode(model) as view:
            sent.clear()
            result, _ = attack_batch(attack, view, items, torch.arange(3))
        assert result.forwards == sum(sent)
        assert result.success.tolist() == [success] * 3
        assert attack.describe().get("query_factor", 1) == factor
    with pytest.raises(ValueError, match="QUERY_FACTOR"):
        pgd(QUERY_FACTOR=0)


@pytest.mark.parametrize(("keep", "status"), [("last", "fail"), ("best", "pass")])
def test_success_that_is_not_returned(keep, status):
    attack = build_attack(
        {"STEPS": 7, "STEP_SIZE": 0.9, "EPS": 8.0, "RANDOM_START": False, "KEEP": keep, "OBJECTIVE": "margin"}
    )

    class Overshoot(models.Wave):
        """Uphill always leads on, over right and wrong."""

        def forward(self, images):
            d = images.mean(dim=(1, 2, 3)) - 128
            logits = super().forward(images)
            return torch.stack([logits[:, 0], logits[:, 1].detach() + d - d.detach()], dim=1)

    with attack_mode(Overshoot()) as view:
        result = strength.check_best_iterate(subject_of(view, attack, images=models.grey(4)))
    assert result.status == status, result


class LateSquare(Square):
    """Asks only about the image itself until `late` queries are over, as a black box does that has too few."""

    late = 0

    def _changed(self, problem, x, step):
        return problem.images if step < self.late else super()._changed(problem, x, step)

    def start(self, problem, restart):
        state = super().start(problem, restart)
        state.x = problem.images
        return state


@pytest.mark.parametrize(("late", "status"), [(0, "pass"), (20, "fail")])
def test_queries_that_break_late(late, status):
    # Gradient attacks find nothing, so that the black box finds what is left.
    with attack_mode(models.Quantised()) as view:
        context = subject_of(view, pgd(EPS=8.0))
        unbroken = len(competitors.find_unbroken(context))
        attack = LateSquare(
            threat_model=context.threat_model, objective=get_objective("margin"), steps=80, area_share=0.8
        )
        attack.late = late
        result = CATALOGUE["C21"].result(competitors.check_queries(context, attack))
        assert competitors.check_black_box(context, attack).status == "fail" and unbroken > 2
    assert result.status == status and result.level == ("warning" if status == "fail" else "error"), result
    assert competitors.check_queries(context, None).status == "skipped"


def test_attack_that_misjudges_itself():
    attack = pgd()

    class Boaster:
        threat_model, objective = attack.threat_model, attack.objective

        def __call__(self, *arguments, **values):
            return SimpleNamespace(images=attack(*arguments, **values).images, success=torch.ones(10, dtype=torch.bool))

    with attack_mode(models.Honest()) as view:
        assert strength.check_verdicts(subject_of(view, Boaster())).status == "fail"


def test_watching_follows_a_shrinking_batch_and_the_ball():
    model = models.Wave()
    images = models.grey(4)
    labels = model(images).argmax(dim=1)
    watch = RecordingModel(model, images, labels, ThreatModel("linf", 3.0))
    watch(images)
    part = watch.select(torch.tensor([1, 3]))
    part(images[[1, 3]] + 2.0)
    assert watch.found_any.tolist() == [False, True, False, True]
    watch.select(torch.tensor([0]))(images[:1] + 3.9)
    assert not watch.found_any[0], "outside the ball nothing counts"


def test_losses_of_a_part_attack_are_judged_on_the_class():
    attack = pgd(OBJECTIVE="pixel_cross_entropy")
    with attack_mode(models.Honest()) as view:
        context = subject_of(view, attack, count=4)
        assert context.objective.name == "margin"
        assert check_losses(context).status == "pass"
        results = by_id(run_audit(context, CheckSettings(steps=3, long_steps=4, noise_draws=2, directions=1)))
    assert results["C11"].status == "pass"
