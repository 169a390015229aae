"""The network's own rows as candidates, and accuracy: known values."""

import numpy as np

from cimf.judge import certify
from cimf.methods.stacked.captured import share_correct
from cimf.methods.stacked.tie_break import OWN, prefer_own_rows
from cimf.solve import solve_rows
from cimf.statistics import Gram


def test_the_certificate_of_a_replaced_row_is_that_of_the_row():
    rng = np.random.default_rng(0)
    column = rng.normal(size=30)
    design = np.column_stack([column, column, rng.normal(size=30)])  # two equal columns
    gram = Gram.from_arrays(design, np.column_stack([column, design[:, 2]]))
    solution = solve_rows(gram, 1.0)
    both = solution.coef.copy()
    both[0] = [0.4, 0.6, 0.0]
    solution = type(solution)(both, certify(gram, both, 1.0), solution.method, solution.iterations)
    own = np.array([[1.0 - 2**-40, 0.0, 0.0], [0.0, 0.0, 1.0]])
    found = prefer_own_rows(solution, own, gram, 1.0, np.ones(3))
    np.testing.assert_array_equal(found.coef[0], own[0])
    assert found.method[0] == OWN
    expected = certify(gram, found.coef, 1.0)
    for name in ("objective", "gap", "norm", "passed"):
        np.testing.assert_array_equal(getattr(found.certificate, name), getattr(expected, name))
    assert found.certificate.norm[0] != solution.certificate.norm[0]


def test_a_sample_with_a_nan_output_is_wrong():
    outputs = np.array([[0.0, np.nan, 2.0], [1.0, 0.0, np.nan]])
    assert share_correct(outputs, np.array([1, 0, 0])) == 1 / 3
    assert share_correct(outputs, np.array([1, 1, 1])) == 1 / 3
    assert share_correct(np.array([[np.nan, -1.0, 1.0]]), np.array([0, 0, 1])) == 2 / 3
