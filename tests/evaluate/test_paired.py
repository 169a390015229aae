"""The interval of a paired difference: by hand, against the bootstrap, degenerate cases."""

import numpy as np
import pytest

from cimf.errors import InputError
from cimf.evaluate.paired import packed, paired_difference, unpacked


def answers(m=2000, seed=0):
    rng = np.random.default_rng(seed)
    one = rng.random(m) < 0.9
    return one, np.where(rng.random(m) < 0.05, ~one, one)


def test_by_hand():
    one = np.array([True] * 8 + [False] * 2)
    two = np.array([True] * 5 + [False] * 4 + [True])
    found = paired_difference(one, two)  # 3 samples the first alone, 1 the second alone
    assert found.difference == pytest.approx(0.2)
    assert found.margin == pytest.approx(1.959964 * np.sqrt(4 - 4 / 10) / 10)
    assert not found.sure
    assert str(found) == "+20.00 ± 37.19"


def test_it_is_the_interval_of_resampled_samples():
    one, two = answers()
    found = paired_difference(one, two)
    rng = np.random.default_rng(1)
    index = rng.integers(0, one.size, (4000, one.size))
    means = (one[index].astype(float) - two[index]).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    assert found.difference == pytest.approx(means.mean(), abs=1e-3)
    assert found.margin == pytest.approx((high - low) / 2, rel=0.05)
    assert found.sure == (not low <= 0 <= high)


def test_the_same_answers_differ_by_nothing_and_order_turns_the_sign():
    one, two = answers()
    assert paired_difference(one, one) == (0.0, 0.0)
    assert not paired_difference(one, one).sure
    assert paired_difference(two, one).difference == -paired_difference(one, two).difference
    assert paired_difference([True], [False]) == (1.0, 0.0)


@pytest.mark.parametrize(("one", "two"), [([], []), ([True], [True, False]), ([[True]], [[True]])])
def test_what_is_no_pair_is_refused(one, two):
    with pytest.raises(InputError, match="as many samples"):
        paired_difference(one, two)


@pytest.mark.parametrize("m", [1, 7, 8, 9, 2001])
def test_packing_loses_nothing(m):
    one, _ = answers(m)
    np.testing.assert_array_equal(unpacked(packed(one), m), one)
