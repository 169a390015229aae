"""Polish: exact solutions from approximate ones, at the surface of the ball and inside it."""

import numpy as np
import pytest
import scipy.optimize

from cimf.solve import solve_rows
from cimf.solve.polish import polished_points
from cimf.statistics import Gram
from formulations.level import Radius

RNG = np.random.default_rng(0)
DESIGN, TARGET = RNG.standard_normal((40, 8)), RNG.standard_normal(40)
LEAST = np.linalg.lstsq(DESIGN, TARGET, rcond=None)[0]


def points(near, kappa, signs=None):
    signs = np.zeros(8, np.int8) if signs is None else signs
    gram, corr = DESIGN.T @ DESIGN, DESIGN.T @ TARGET
    return polished_points(gram, corr, np.ones(8), signs, near, Radius(np.array([kappa])))


def distance(found, expected):
    return np.abs(found - expected).max(axis=1).min()


def test_inside_the_ball_one_point_is_least_squares():
    near = LEAST + 1e-6 * RNG.standard_normal(8)
    kappa = 2.0 * np.abs(LEAST).sum()
    assert distance(points(near, kappa), LEAST) < 1e-13


def test_inside_the_ball_signs_are_kept():
    expected = scipy.optimize.nnls(DESIGN, TARGET)[0]
    assert (expected == 0).any()
    near = expected + 1e-6 * RNG.random(8)
    found = points(near, 2.0 * expected.sum(), np.ones(8, np.int8))
    assert distance(found, expected) < 1e-13


@pytest.mark.parametrize("part", [0.2, 0.6])
def test_at_the_ball_all_points_lie_on_it(part):
    kappa = part * np.abs(LEAST).sum()
    exact = solve_rows(Gram.from_arrays(DESIGN, TARGET), kappa).coef[0]
    near = exact + 1e-7 * RNG.standard_normal(8)
    near *= kappa / np.abs(near).sum()
    found = points(near, kappa)
    norm = np.abs(found).sum(axis=1)
    np.testing.assert_allclose(norm[norm > 0], kappa, rtol=1e-12)
    assert distance(found, exact) < 1e-12
