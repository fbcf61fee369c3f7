"""How many more of a finite population would fall, from a random sample that grows until the answer is good enough.

Letters: M members of the population, K of them fall when tried, n drawn without replacement, x of these fell,
T further ones are tolerated.

For one n planned beforehand x is hypergeometric, so the largest K with P(X <= x) > error is exceeded with probability
`error` at most: the exact bound of Clopper and Pearson (1934) for a finite population (Wright, Exact confidence bounds
when sampling from small finite universes, 1991). A sample that is looked at several times would be wrong more often.
So the numbers drawn at all looks are fixed before the first draw, and the looks share the error between them
(Bonferroni; error spending of Lan and DeMets, 1983).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from scipy import stats

# Share of the error that the first look spends, which is the only one wherever nothing falls.
FIRST_SHARE = 0.7


@dataclass(frozen=True)
class SequentialSample:
    """A sample that grows until, with the requested confidence, at most T further members would fall.

    The j-th look is at the least n at which x = j - 1 shows that, so which look follows depends on x alone. It ends
    when no member fell since the look before, or at the latest when T members are left.

    Attributes:
        population: M.
        tolerated: T.
        confidence: 0..1, that the statement at the end is true, whatever K is.
    """

    population: int
    tolerated: int
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.population < 0 or self.tolerated < 0:
            raise ValueError(f"population and tolerated must be at least 0, got {self.population}, {self.tolerated}")
        if not 0.0 < self.confidence < 1.0:
            raise ValueError(f"confidence must lie between 0 and 1, got {self.confidence}")

    def size_at_look(self, look: int) -> int:
        """Return n of a look, which are counted from 1."""
        return _least_sample(self.population, self.tolerated, look, self.error_at_look(look))

    def error_at_look(self, look: int) -> float:
        """Return the probability, at most, that the statement at this look is wrong; over all looks 1 - confidence."""
        error = 1.0 - self.confidence
        return error * FIRST_SHARE if look == 1 else error * (1.0 - FIRST_SHARE) / (look * (look - 1))

    def next_size(self, drawn: int, fallen: int) -> int | None:
        """Return n of the next look; None if the sample is large enough.

        Args:
            drawn: n of the last look, 0 before the first.
            fallen: x.
        """
        size = self.size_at_look(fallen + 1)
        return size if drawn < size else None

    def at_most_more(self, drawn: int, fallen: int) -> int:
        """Return how many further members would fall at most, with the requested confidence.

        Args:
            drawn: n of a look, 0 before the first.
            fallen: x.

        Raises:
            ValueError: the sample is not that of a look.
        """
        if drawn in (0, self.population):
            return self.population - drawn
        look = 1
        while self.size_at_look(look) < drawn:
            look += 1
        if self.size_at_look(look) != drawn:
            raise ValueError(f"the sample must have the size of a look, got {drawn}")
        return most_that_fall(self.population, drawn, fallen, self.error_at_look(look)) - fallen


@functools.lru_cache(maxsize=4096)
def most_that_fall(population: int, drawn: int, fallen: int, error: float) -> int:
    """Return the largest K that is not excluded, as P(X <= x) is more than the error.

    Args:
        population: M.
        drawn: n.
        fallen: x.
        error: probability, at most, that K is larger.

    Raises:
        ValueError: more fell than were drawn, or more were drawn than there are.
    """
    if not 0 <= fallen <= drawn <= population:
        raise ValueError(f"{fallen} of {drawn} drawn of {population} cannot have fallen")
    most = population - (drawn - fallen)

    def excluded(fall: int) -> bool:
        return bool(stats.hypergeom.cdf(fallen, population, fall, drawn) <= error)

    return _least(lambda fall: fall == most or excluded(fall + 1), fallen, most)


@functools.lru_cache(maxsize=4096)
def _least_sample(population: int, tolerated: int, look: int, error: float) -> int:
    """Return the least n at which look - 1 that fell show that at most `tolerated` more would."""
    fall = tolerated + look  # the smallest K for which that is wrong
    if fall > population:
        return max(population - tolerated, 0)

    def shown(drawn: int) -> bool:
        return bool(stats.hypergeom.cdf(look - 1, population, fall, drawn) <= error)

    # With as many left as are tolerated, at least `look` of them were drawn.
    return _least(shown, 0, population - tolerated)


def _least(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Return the least number in low..high from which on `holds` is true; it is at `high`."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
