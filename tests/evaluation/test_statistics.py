"""Intervals and tests against scipy, closed forms and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from part_robust.evaluation.breakdown import by_class, by_part, by_size, clean_to_attacked, pixel_share, share
from part_robust.evaluation.statistics import compare_paired, mcnemar, ratio_interval, spread, wilson_interval


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3000), st.floats(0, 1), st.sampled_from([0.9, 0.95, 0.99]))
def test_wilson_is_scipys(total, part, confidence):
    correct = round(part * total)
    expected = stats.binomtest(correct, total).proportion_ci(confidence, method="wilson")
    assert wilson_interval(correct, total, confidence) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_wilson_at_the_ends():
    assert wilson_interval(0, 50)[0] == 0.0 and wilson_interval(50, 50)[1] == 1.0
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 of 2"):
        wilson_interval(3, 2)
    with pytest.raises(ValueError, match="confidence"):
        wilson_interval(1, 2, 95.0)


def test_mcnemar_by_hand():
    assert mcnemar(0, 0) == 1.0
    # 1 of 9 or less, or 8 of 9 or more, heads of a fair coin.
    assert mcnemar(1, 8) == pytest.approx(2 * (1 + 9) / 2**9)
    assert mcnemar(8, 1) == mcnemar(1, 8) < mcnemar(4, 5) == 1.0


def test_pairs():
    first = np.array([1, 1, 1, 0, 0, 1, 1, 1, 0, 1], dtype=bool)
    second = np.array([1, 0, 1, 1, 0, 0, 0, 1, 0, 0], dtype=bool)
    found = compare_paired(first, second)
    assert (found.images, found.both, found.only_first, found.only_second) == (10, 3, 4, 1)
    assert found.difference == pytest.approx(-0.3)
    assert found.interval[0] < -0.3 < found.interval[1]
    back = compare_paired(second, first)
    assert back.interval == pytest.approx((-found.interval[1], -found.interval[0]))
    with pytest.raises(ValueError, match="pair"):
        compare_paired(first, second[:3])


def test_the_paired_interval_covers_what_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        first = generator.random(200) < 0.5
        second = np.where(generator.random(200) < 0.2, generator.random(200) < 0.7, first)
        low, high = compare_paired(first, second).interval
        covered += low <= 0.2 * (0.7 - 0.5) <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_pixels_of_an_image_are_no_independent_draws():
    right, pixels = np.array([100, 0, 100, 0, 100, 0, 7]), np.array([100, 100, 100, 100, 100, 100, 0])
    low, high = ratio_interval(right, pixels)
    by_image = stats.norm.ppf(0.975) * math.sqrt(0.25 / 5)
    assert (low, high) == pytest.approx((0.5 - by_image, 0.5 + by_image))
    assert ratio_interval(right[:1], pixels[:1]) == (0.0, 1.0)
    assert pixel_share(right[:6], pixels[:6])["accuracy"] == 50.0
    assert pixel_share(right[6:], pixels[6:])["accuracy"] is None


def test_breakdowns():
    labels, clean, robust = np.array([0, 0, 2]), np.array([1, 1, 0], bool), np.array([1, 0, 0], bool)
    assert share(clean) == {"correct": 2, "accuracy": pytest.approx(200 / 3), "interval": share(clean)["interval"]}
    assert by_class(labels, clean, robust, "abc") == [
        {"name": "a", "images": 2, "clean": 100.0, "robust": 50.0},
        {"name": "c", "images": 1, "clean": 0.0, "robust": 0.0},
    ]
    rows = by_size(np.array([0.1, np.nan, 0.5]), clean, robust, bins=2)
    assert [(row["low"], row["high"], row["images"], row["clean"]) for row in rows] == [
        (0.1, pytest.approx(0.3), 1, 100.0),
        (pytest.approx(0.3), 0.5, 1, 0.0),
    ]
    assert by_size(np.full(3, np.nan), clean, robust) == []
    assert sum(row["images"] for row in by_size(np.full(3, 0.2), clean, robust)) == 3, "all of one size"
    counts = {"label": np.array([0, 1, 0]), "hits": np.array([2, 0, 1]), "truth": np.array([4, 0, 2])}
    assert by_part(counts, counts, ["x", "y"]) == [{"name": "x", "pixels": 6, "clean": 50.0, "attacked": 50.0}]
    assert clean_to_attacked(np.array([0, 2, 2]), np.array([0, 1, 1]), 3).tolist() == [[1, 0, 0], [0, 0, 0], [0, 2, 0]]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8), st.lists(st.floats(-100, 100), min_size=8, max_size=8))
def test_difference_over_seeds_is_the_paired_t_test(first, second):
    found = spread([b - a for a, b in zip(first, second, strict=False)])
    assert found.count == len(first)
    expected = stats.ttest_rel(second[: len(first)], first)
    low, high = found.interval(0.9)
    if found.deviation > 1e-6:
        ends = expected.confidence_interval(0.9)
        assert (low, high) == pytest.approx((ends.low, ends.high), rel=1e-6, abs=1e-6)


def test_one_seed_has_no_deviation():
    assert spread([3.0]).deviation is None and spread([3.0]).interval() is None
    assert spread([1.0, 3.0]).deviation == pytest.approx(math.sqrt(2))
    with pytest.raises(ValueError, match="no mean"):
        spread([])
