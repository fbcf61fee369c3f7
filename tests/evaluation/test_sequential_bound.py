"""The sequential bound says what is true as often as it promises, for every population."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from part_robust.evaluation.sequential_bound import SequentialSample, most_that_fall


def probability_of_error(sample: SequentialSample, fall: int) -> float:
    """Exact: over all ways in which a sample can grow, the statement at its end is wrong."""
    wrong, states = 0.0, {(0, 0): 1.0}
    while states:
        drawn, fallen = min(states)  # all ways to get there are known
        probability = states.pop((drawn, fallen))
        size = sample.next_size(drawn, fallen)
        if size is None:
            wrong += probability * (fall - fallen > sample.at_most_more(drawn, fallen))
            continue
        new = np.arange(size - drawn + 1)
        chances = stats.hypergeom.pmf(new, sample.population - drawn, fall - fallen, size - drawn)
        for more, chance in zip(new.tolist(), chances.tolist(), strict=True):
            if chance > 0:
                key = (size, fallen + more)
                states[key] = states.get(key, 0.0) + probability * chance
    return wrong


@pytest.mark.parametrize("population, tolerated", [(1, 0), (7, 0), (12, 3), (40, 2), (80, 5), (80, 40)])
def test_it_is_wrong_at_most_once_in_twenty_whatever_falls(population, tolerated):
    sample = SequentialSample(population, tolerated)
    errors = [probability_of_error(sample, fall) for fall in range(population + 1)]
    assert max(errors) <= 0.05
    if tolerated and population > 20 * tolerated:
        assert max(errors) > 0.02, "the bound is so wide that more images are attacked than it needs"


def test_a_rule_that_ignores_how_often_it_looks_is_caught(monkeypatch):
    monkeypatch.setattr(SequentialSample, "error_at_look", lambda self, look: 1 - self.confidence)
    sample = SequentialSample(80, 5)
    assert max(probability_of_error(sample, fall) for fall in range(81)) > 0.05


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 400), st.floats(0, 1), st.floats(0, 0.2), st.sampled_from([0.8, 0.95]), st.integers(0, 2**31 - 1))
def test_simulated_populations(population, share, tolerated_share, confidence, seed):
    """Members drawn one after the other in a random order, as images are."""
    fall, tolerated = round(share * population), int(tolerated_share * population)
    sample, generator = SequentialSample(population, tolerated, confidence), np.random.default_rng(seed)
    wrong, repeats = 0, 150
    sizes: dict[tuple[int, int], int | None] = {}
    bounds: dict[tuple[int, int], int] = {}
    for _ in range(repeats):
        falls = np.cumsum(generator.permutation(np.arange(population) < fall))
        drawn = fallen = 0
        while True:
            if (drawn, fallen) not in sizes:
                sizes[drawn, fallen] = sample.next_size(drawn, fallen)
            if sizes[drawn, fallen] is None:
                break
            drawn = sizes[drawn, fallen]
            fallen = int(falls[drawn - 1])
        bound = bounds.get((drawn, fallen)) or sample.at_most_more(drawn, fallen)
        bounds[drawn, fallen] = bound
        assert bound <= tolerated, "it ends before the bound is met"
        wrong += fall - fallen > bound
    # More than this is less likely than one in a million where the rate is what was promised.
    assert wrong <= stats.binom.ppf(1 - 1e-6, repeats, 1 - confidence)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(0, 60), st.integers(0, 60), st.sampled_from([0.001, 0.05, 0.3]))
def test_the_bound_of_one_look_by_counting(population, drawn, fallen, error):
    drawn = min(drawn, population)
    fallen = min(fallen, drawn)

    def chance(fall: int) -> Fraction:
        ways = sum(comb(fall, x) * comb(population - fall, drawn - x) for x in range(fallen + 1))
        return Fraction(ways, comb(population, drawn))

    possible = range(fallen, population - (drawn - fallen) + 1)
    expected = max(fall for fall in possible if fall == fallen or chance(fall) > error)
    assert most_that_fall(population, drawn, fallen, error) == expected


def test_edges():
    nothing = SequentialSample(0, 3)
    assert nothing.next_size(0, 0) is None and nothing.at_most_more(0, 0) == 0
    few = SequentialSample(4, 5)
    assert few.next_size(0, 0) is None and few.at_most_more(0, 0) == 4
    # Nothing is tolerated: all are drawn but for at most the error's share, and everything falls.
    strict = SequentialSample(10, 0)
    assert strict.next_size(0, 0) == 10 and strict.at_most_more(10, 7) == 0
    assert [strict.next_size(10, fallen) for fallen in (0, 5, 10)] == [None, None, None]
    # Where all that are drawn fall, it ends when no more are left than are tolerated.
    sample, drawn = SequentialSample(50, 4), 0
    while (size := sample.next_size(drawn, drawn)) is not None:
        assert size > drawn
        drawn = size
    assert drawn == 46 and sample.at_most_more(46, 46) == 4


def test_sizes_grow_with_what_falls_and_shrink_with_what_is_tolerated():
    sizes = [SequentialSample(132, 5).size_at_look(look) for look in range(1, 40)]
    assert sizes == sorted(sizes) and sizes[0] < 66, "less than half of the images where nothing falls"
    assert SequentialSample(132, 10).size_at_look(1) < sizes[0] < SequentialSample(132, 2).size_at_look(1)
    errors = [SequentialSample(132, 5).error_at_look(look) for look in range(1, 100_000)]
    assert sum(errors) == pytest.approx(0.05, rel=1e-4) and sum(errors) < 0.05


def test_impossible_values():
    with pytest.raises(ValueError, match="population"):
        SequentialSample(-1, 0)
    with pytest.raises(ValueError, match="confidence"):
        SequentialSample(5, 1, 95.0)
    with pytest.raises(ValueError, match="cannot have fallen"):
        most_that_fall(10, 3, 4, 0.05)
    with pytest.raises(ValueError, match="size of a look"):
        SequentialSample(132, 5).at_most_more(3, 0)
