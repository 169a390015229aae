"""P(kappa) and Q(lam) as records."""

import numpy as np
import pytest

from formulations import InputError, Penalty, Radius
from formulations.level import stated


@pytest.mark.parametrize("given", [(None, None), (1.0, 1.0), ([1.0, 2.0], 0.0)])
def test_exactly_one_is_stated(given):
    with pytest.raises(InputError, match=r"exactly one of kappa .* and lam"):
        stated(*given, 2)


def test_the_record_says_which_and_has_a_value_per_row():
    assert type(stated(0.0, None, 3)) is Radius
    assert type(stated(None, 0.0, 3)) is Penalty
    np.testing.assert_array_equal(stated([1, 2], None, 2).values, [1.0, 2.0])
    np.testing.assert_array_equal(stated(None, 3, 2).values, [3.0, 3.0])
    for name, given in (("kappa", (-1.0, None)), ("lam", (None, np.nan)), ("lam", (None, [1.0]))):
        with pytest.raises(InputError, match=name):
            stated(*given, 2)


def test_a_ball_forbids_and_a_penalty_costs():
    norm = np.array([0.5, 3.0])
    ball, penalty = Radius(np.array([1.0, 2.0])), Penalty(np.array([4.0, 0.0]))
    np.testing.assert_array_equal(ball.excess(norm), [0.0, 1.0])
    np.testing.assert_array_equal(ball.cost(norm), [0.0, 0.0])
    np.testing.assert_array_equal(penalty.excess(norm), [0.0, 0.0])
    np.testing.assert_array_equal(penalty.cost(norm), [2.0, 0.0])


def test_parts_keep_their_kind():
    several = Penalty(np.arange(6.0).reshape(3, 2))
    column = several.take((slice(None), 1))
    assert type(column) is Penalty
    np.testing.assert_array_equal(column.values, [1.0, 3.0, 5.0])
