"""Randomised smoothing: bounds against simulation, radii against exact ones, trials against models that cheat."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from part_robust.attacks.noise import make_keys, normal
from part_robust.evaluation.certificate_trials import SHARE, run_trials, trial_p_value
from part_robust.evaluation.certification import count_votes
from part_robust.evaluation.checks.certificates import check_certificates
from part_robust.evaluation.journal import Journal
from part_robust.evaluation.report.certified import certified_section
from part_robust.evaluation.smoothing import (
    SEED,
    Smoothing,
    certify,
    count_predictions,
    curve_radii,
    noisy_batches,
    votes_seed,
)
from part_robust.evaluation.statistics import binomial_lower_bound
from tests.evaluation.check_models import CLASSES, Honest, make_images
from tests.evaluation.tier_fixture import SmallPartModel, make_items

SIGMA = 20.0
SETTINGS = Smoothing(sigma=SIGMA, samples=200, selection=30, alpha=0.001)


@given(st.floats(0.001, 0.999), st.integers(1, 60), st.floats(0.001, 0.3))
@settings(deadline=None, max_examples=60)
def test_bounds_hold_as_often_as_promised(share, trials, alpha):
    """The probability that the bound lies above the true share, summed over all outcomes."""
    outcomes = np.arange(trials + 1)
    too_high = binomial_lower_bound(outcomes, trials, alpha) > share
    assert stats.binom.pmf(outcomes, trials, share)[too_high].sum() <= alpha * (1 + 1e-9)


def test_bounds_are_not_needlessly_low():
    assert binomial_lower_bound(np.array([0, 50]), 50, 0.01) == pytest.approx([0.0, 0.01 ** (1 / 50)])
    ours = binomial_lower_bound(np.array([87]), 100, 0.001)[0]
    assert ours == pytest.approx(stats.binomtest(87, 100).proportion_ci(0.998, method="exact").low)


def test_radius_and_decision():
    votes = np.array([[200, 0, 0], [130, 70, 0], [101, 99, 0], [0, 20, 180], [40, 150, 10]])
    selection = np.array([[30, 0, 0], [20, 10, 0], [16, 14, 0], [9, 1, 5], [0, 30, 0]])
    found = certify(selection, votes, SETTINGS)
    # Cohen et al. (2019), Theorem 1 with the runner-up at 1 - p.
    lower = stats.beta.ppf(0.001, 150, 51)
    assert found.radius[4] == pytest.approx(SIGMA * stats.norm.ppf(lower))
    assert found.radius[0] == pytest.approx(SETTINGS.largest_radius)
    assert found.certified.tolist() == [0, 0, -1, -1, 1], "the fourth chose a class that then got no votes"
    assert found.prediction.tolist() == [0, 0, -1, 2, 1]
    assert (found.radius > 0).tolist() == [True, True, False, False, True]
    labels = np.array([0, 1, 0, 2, 1])
    assert found.holds(labels, 0.0).tolist() == [True, False, False, False, True]
    assert not found.holds(labels, SETTINGS.largest_radius).any(), "radii are those of open balls"
    with pytest.raises(AttributeError):
        found.radius = 1  # certificates do not change


class Linear(torch.nn.Module):
    """Two classes divided by a plane, whose smoothed model is itself: radii are distances from the plane."""

    def __init__(self) -> None:
        super().__init__()
        self.normal = torch.randn(3 * 6 * 6, generator=torch.Generator().manual_seed(1))

    def distance(self, images):
        return (images.flatten(1) - 128) @ (self.normal / self.normal.norm())

    def forward(self, images, padding=None):
        distance = self.distance(images)
        return torch.stack([distance, -distance], dim=1)


def test_radii_of_a_linear_model_are_near_its_distances_and_below():
    model, smoothing = Linear(), Smoothing(SIGMA, 4000, 50, 0.001)
    generator = torch.Generator().manual_seed(2)
    images = 128 + 30 * torch.randn(40, 3, 6, 6, generator=generator)
    votes = [
        count_predictions(model, images, torch.arange(40), draws, SIGMA, 4096).numpy()
        for draws in (range(50), range(50, 4050))
    ]
    found, exact = certify(*votes, smoothing), model.distance(images).numpy()
    assert (votes[1].sum(axis=1) == 4000).all()
    clear = np.abs(exact) > 6
    assert (found.certified[clear] == (exact < 0)[clear]).all()
    assert (found.radius <= np.abs(exact)).all(), "alpha is one in a thousand, for 40 images"
    middle = clear & (np.abs(exact) < 2 * SIGMA)
    assert middle.sum() > 10 and (found.radius[middle] > np.abs(exact)[middle] - 0.2 * SIGMA).all()
    # The draws are Gaussian of the deviation that the formula takes.
    shares = votes[1][np.arange(40), (exact < 0).astype(int)] / 4000
    assert shares == pytest.approx(stats.norm.cdf(np.abs(exact) / SIGMA), abs=4.5 * math.sqrt(0.25 / 4000))


def test_any_batch_size_and_company_give_the_same_noise():
    images, keys = torch.rand(3, 3, 5, 4) * 255, torch.tensor([7, 9, 2**40])
    padding = torch.zeros(3, 5, 4, dtype=torch.bool)
    padding[1, 3:] = True

    def drawn(images, keys, padding, batch_size):
        rows, noisy = zip(*noisy_batches(images, keys, range(2, 9), SIGMA, batch_size, padding), strict=True)
        assert max(map(len, rows)) <= batch_size
        return {row: torch.cat(noisy)[torch.cat(rows) == row] for row in range(len(images))}

    whole = drawn(images, keys, padding, 100)
    for batch_size in (1, 4, 6):
        assert all(torch.equal(whole[row], own) for row, own in drawn(images, keys, padding, batch_size).items())
    first = next(noisy_batches(images[:1], keys[:1], range(4), SIGMA, 100, None))[1]
    assert torch.equal(first[2:], whole[0][:2]), "the number of a draw does not depend on where one begins"
    alone = drawn(images[2:], keys[2:], padding[2:], 3)[0]
    assert torch.equal(alone, whole[2]) and alone.shape == (7, 3, 5, 4)
    assert len(torch.unique(whole[0][:, 0, 0, 0])) == 7, "every draw has noise of its own"
    assert torch.equal(whole[1][:, :, 3:], images[1:2, :, 3:].expand(7, -1, -1, -1)), "padding has none"
    assert not (whole[1][:, :, :3] == images[1, :, :3]).any()


class Averaging(Honest):
    """Takes the mean of its batch before it predicts, which removes the noise from many copies of one image."""

    def forward(self, images):
        return super().forward(images.mean(dim=0, keepdim=True).expand_as(images))


class Random(Honest):
    """One random class for each call: the draws of a batch are not independent."""

    def forward(self, images):
        logits = super().forward(images)
        return logits + 1000 * torch.eye(CLASSES)[torch.randint(CLASSES, (1,))]


class KnowsTheNoise(Honest):
    """Recognises the noise that the evaluation draws, and takes it away."""

    known = None

    def forward(self, images):
        if self.known is None:
            keys = make_keys(SEED, torch.arange(8)[:, None], torch.arange(400)).flatten()
            clean = make_images(8).repeat_interleave(400, dim=0)
            noisy = clean + SIGMA * normal(keys, clean.shape[1:])
            self.known = {
                round(float(image.detach().double().sum()), 2): own for image, own in zip(noisy, clean, strict=True)
            }
        return super().forward(
            torch.stack([self.known.get(round(float(image.detach().double().sum()), 2), image) for image in images])
        )


def trials_of(model, smoothing=SETTINGS, batch_size=230, images=8, seed=5):
    """What the evaluation does: votes of one image after the other, then trials."""
    torch.manual_seed(0)
    images, keys = make_images(images), torch.arange(images)
    draws = range(smoothing.selection), range(smoothing.selection, smoothing.selection + smoothing.samples)
    votes = [
        torch.cat(
            [
                count_predictions(model.class_logits, images[i : i + 1], keys[i : i + 1], own, SIGMA, batch_size)
                for i in range(len(images))
            ]
        ).numpy()
        for own in draws
    ]
    found = certify(*votes, smoothing)
    rows = np.flatnonzero(found.radius)
    trials = run_trials(
        model.class_logits,
        images[rows],
        torch.from_numpy(found.certified[rows]),
        found.counts[rows],
        found.radius[rows],
        keys[rows],
        None,
        smoothing,
        batch_size,
        seed,
    )
    return found, trials


def finding_of(trials, **changes):
    curve = [{"eps": 0.0, "correct": 5}, {"eps": 10.0, "correct": 2}]
    smoothing = {**SETTINGS.describe(), "largest_radius": SETTINGS.largest_radius, "certified": curve, "trials": trials}
    return check_certificates({"smoothing": {**smoothing, **changes}})


def test_an_honest_model_passes_and_is_attacked_inside_its_radii():
    found, trials = trials_of(Honest())
    assert (found.radius > 0).sum() >= 4 and len(trials) == 2 * (found.radius > 0).sum()
    radius = dict(enumerate(found.radius))
    distances = [trial["distance"] for trial in trials]
    assert distances[::2] == [0.0] * (len(trials) // 2)
    for trial in trials[1::2]:
        assert 0.5 * radius[trial["image_id"]] < trial["distance"] <= SHARE * radius[trial["image_id"]] + 1e-3
    assert sum(t["votes"] for t in trials[1::2]) < sum(t["votes"] for t in trials[::2]), "the attack does something"
    assert finding_of(trials).status == "pass"
    assert json.loads(json.dumps(trials)) == trials


@pytest.mark.parametrize("model", [Averaging, Random, KnowsTheNoise])
def test_radii_that_cannot_be_true_are_found(model):
    found, trials = trials_of(model())
    assert np.median(found.radius[found.radius > 0]) > 0.9 * SETTINGS.largest_radius, "it looks very robust"
    finding = finding_of(trials)
    assert finding.status == "fail" and "refute" in finding.sentence


def test_trials_have_noise_of_their_own():
    """Its seed is a hash of the votes, which no model can know before."""
    (_, one), (_, two) = (trials_of(Honest(), images=3, seed=seed) for seed in (SEED, SEED + 1))
    unmoved = [[trial["votes"] for trial in trials[::2]] for trials in (one, two)]
    assert unmoved[0] != unmoved[1], "the image itself, in other draws"
    votes = np.array([[3, 7], [10, 0]])
    assert votes_seed(votes) == votes_seed(votes.copy()) != votes_seed(votes[::-1]) and 0 <= votes_seed(votes) < 2**63


def test_a_model_without_gradient_is_tried_without_attack(caplog):
    class Detached(Honest):
        def forward(self, images):
            return super().forward(images.detach()).detach()

    _, trials = trials_of(Detached(), images=3)
    assert {trial["distance"] for trial in trials} == {0.0} and "cannot be attacked" in caplog.text


def test_p_values_are_those_of_sound_radii():
    """A linear model is the worst case of the theorem: votes at distance d are exactly as few as it allows."""
    generator = np.random.default_rng(0)
    share, distance, samples, draws = 0.93, 18.0, 500, 300
    least = stats.norm.cdf(stats.norm.ppf(share) - distance / SIGMA)
    p_values = [
        trial_p_value(
            {
                "count": int(generator.binomial(samples, share)),
                "samples": samples,
                "votes": int(generator.binomial(draws, least)),
                "draws": draws,
                "distance": distance,
            },
            SIGMA,
        )
        for _ in range(2000)
    ]
    assert np.mean(np.array(p_values) < 0.05) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)
    few = {"count": 500, "samples": samples, "votes": 100, "draws": draws, "distance": distance}
    assert trial_p_value(few, SIGMA) < 1e-5


def test_findings_without_trials():
    assert check_certificates({}) is None
    assert finding_of([]).status == "skipped"
    rising = [{"eps": 0.0, "correct": 2}, {"eps": 10.0, "correct": 5}]
    beyond = [{"eps": 0.0, "correct": 2}, {"eps": SETTINGS.largest_radius, "correct": 2}]
    for curve in (rising, beyond):
        assert finding_of([], certified=curve).status == "fail"


def test_the_curve_has_the_radii_of_attacks():
    radii = curve_radii(SETTINGS, [0.0, 12.5, 900.0])
    assert radii[:4] == [0.0, 5.0, 10.0, 12.5] and radii[-2:] == [SETTINGS.largest_radius, 900.0]


def test_votes_in_pieces_are_those_in_one(tmp_path):
    """Any batch size, and an interruption after three images."""
    model = SmallPartModel()
    items = make_items(model, 6, padded=True)
    smoothing = Smoothing(sigma=25.0, samples=40, selection=10, alpha=0.01)

    def run(folder, batch_size, loader_size, images):
        def loader(done):
            left = [item for item in images if item["image_id"] not in done]
            return [left[i : i + loader_size] for i in range(0, len(left), loader_size)]

        journal = Journal.open(folder, {"of": "a test"}, resume=True)
        return count_votes(smoothing, model, loader, len(images), journal, batch_size)

    whole = run(tmp_path / "one", 64, 4, items)
    assert whole.votes.sum(axis=1).tolist() == [40] * 6 and whole.selection.sum(axis=1).tolist() == [10] * 6
    assert (whole.votes.max(axis=1) < 40).any(), "the noise changes classes"
    run(tmp_path / "two", 7, 1, items[:3])
    before = model.passes
    again = run(tmp_path / "two", 7, 2, items)
    assert model.passes - before == 3 * 50, "only what was missing"
    for name in ("image_id", "label", "selection", "votes"):
        assert np.array_equal(getattr(whole, name), getattr(again, name)), name
    assert len(list((tmp_path / "two").glob("batch_*.npz"))) == 6, "an image is an entry"


def test_the_report_says_which_model_is_certified():
    score = {"correct": 3, "accuracy": 50.0, "interval": [20.0, 80.0]}
    smoothing = {
        **SETTINGS.describe(),
        "num_images": 6,
        "largest_radius": 36.0,
        "average_radius": 9.0,
        "abstained": 1,
        "without_radius": 2,
        "clean": score,
        "accuracy": score,
        "certified": [{"eps": 0.0, **score}, {"eps": 5.0, **score}],
        "attacked": [],
        "attacked_norms": ["linf"],
    }
    texts = " ".join(text.text for text in certified_section({"smoothing": smoothing}).texts)
    assert "certify the smoothed model and not the model that was attacked" in texts
    assert "under linf" in texts and "not comparable" in texts
    section = certified_section({"smoothing": {**smoothing, "attacked": [{"eps": 5.0, **score}]}})
    assert "not comparable" not in " ".join(text.text for text in section.texts)
    assert "model, attacked" in section.figures[0].svg and section.tables[0].rows[1][-1].text == "50.0"
    assert not certified_section({})
