"""The counter-based generator: uniform, normal, and the same for any batch."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from part_robust.attacks.noise import hash_int64, make_keys, normal, uniform


def test_distributions():
    keys = make_keys(7, torch.arange(50))
    values = uniform(keys, (2000,)).flatten().numpy()
    assert 0.0 <= values.min() and values.max() < 1.0
    assert stats.kstest(values, "uniform").pvalue > 1e-3
    assert stats.kstest(normal(keys, (2000,)).flatten().numpy(), "norm").pvalue > 1e-3


def test_neighbouring_keys_pixels_and_streams_are_independent():
    keys = make_keys(0, torch.arange(200))
    draw = uniform(keys, (500,))
    correlations = [
        torch.corrcoef(torch.stack([draw[:-1].flatten(), draw[1:].flatten()]))[0, 1],
        torch.corrcoef(torch.stack([draw[:, :-1].flatten(), draw[:, 1:].flatten()]))[0, 1],
        torch.corrcoef(torch.stack([draw.flatten(), uniform(keys, (500,), stream=1).flatten()]))[0, 1],
    ]
    assert max(abs(float(c)) for c in correlations) < 0.02


def test_an_image_gets_the_same_numbers_in_any_batch():
    together = uniform(make_keys(3, torch.tensor([11, 5, 8]), 2), (3, 4, 4))
    for row, image_id in enumerate([11, 5, 8]):
        alone = uniform(make_keys(3, torch.tensor([image_id]), 2), (3, 4, 4))
        assert torch.equal(together[row], alone[0])


@pytest.mark.parametrize("change", [(4, 11, 2), (3, 12, 2), (3, 11, 1)])
def test_seed_image_and_restart_all_matter(change):
    seed, image_id, restart = change
    base = uniform(make_keys(3, torch.tensor([11]), 2), (64,))
    assert not torch.equal(base, uniform(make_keys(seed, torch.tensor([image_id]), restart), (64,)))


def test_hash_is_injective_and_known():
    """Reference values: MurmurHash3's fmix64, computed with Python integers."""

    def fmix64(x: int) -> int:
        mask = (1 << 64) - 1
        x &= mask
        for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            x = ((x ^ (x >> 33)) * multiplier) & mask
        return x ^ (x >> 33)

    values = [0, 1, -1, 2**40 + 17, -(2**63), 2**63 - 1]
    hashed = hash_int64(torch.tensor(values)).tolist()
    assert [value & ((1 << 64) - 1) for value in hashed] == [fmix64(value) for value in values]
    assert len(hash_int64(torch.arange(10000)).unique()) == 10000
