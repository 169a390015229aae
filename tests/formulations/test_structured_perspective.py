"""Structured perspective regularisation: the closed form, and row problems against plain CVXPY."""

import cvxpy as cp
import numpy as np
import pytest

import cimf
from formulations import FORMULATIONS, LOSSES, InputError
from formulations.matrix_rows import Rows

RNG = np.random.default_rng(0)
GROUPS = [0, 0, 1, 1, 1, 2]
PERSPECTIVE = LOSSES["structured-perspective"]


def one_row(values):
    return Rows(np.asarray(values, float)[None], np.array([0]), 6)


def indicator_search(w, alpha, bound):
    """The minimum over y on a fine grid of the feasible ones."""
    least = np.abs(w).max() / bound
    y = np.geomspace(max(least, 1e-9), 1.0, 200_001)
    return float((alpha * np.square(w).sum() / y + (1 - alpha) * y).min())


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("bound", [0.5, 2.0, 50.0])
def test_the_closed_form_is_the_minimum_over_the_indicators(alpha, bound):
    for scale in (1e-3, 0.1, 1.0, 20.0):
        w = scale * RNG.normal(size=4)
        value = PERSPECTIVE(2.0, alpha, bound, [0, 0, 0, 0]).value(Rows(w[None], np.array([0]), 4))
        if np.abs(w).max() > bound:
            assert value == np.inf
        else:
            expected = 2.0 * 4 * indicator_search(w, alpha, bound)
            assert value == pytest.approx(expected, rel=1e-6)


def test_zero_costs_nothing_and_the_bound_is_named():
    loss = PERSPECTIVE(bound=1.0)
    assert loss.value(one_row(np.zeros(6))) == 0.0
    assert loss.violation(one_row([0, 0, 0, 0, 0, -1.5])) == 0.5
    for wrong in ({"alpha": 1.0}, {"alpha": 0.0}, {"bound": 0.0}, {"weight": -1.0}):
        with pytest.raises(InputError):
            PERSPECTIVE(**wrong)
    with pytest.raises(InputError, match="groups has shape"):
        PERSPECTIVE(groups=[0, 1]).value(one_row(np.zeros(6)))


@pytest.mark.parametrize("weight", [0.3, 3.0, 100.0])
def test_a_row_problem_against_plain_cvxpy(weight):
    """min l(w) + lam ||z - M w||^2 with the indicators written out, as Clarabel solves it."""
    design, target = RNG.normal(size=(40, 6)), RNG.normal(size=40)
    target += design @ [1.0, -1.0, 0, 0, 0, 0.3]
    alpha, bound, lam = 0.3, 1.2, 1.0
    w, y = cp.Variable(6), cp.Variable(3, nonneg=True)
    cost = lam * cp.sum_squares(target - design @ w)
    limits = [y <= 1]
    for g in range(3):
        columns = np.flatnonzero(np.array(GROUPS) == g)
        cost += weight * len(columns) * (
            alpha * cp.quad_over_lin(w[columns], y[g]) + (1 - alpha) * y[g]
        )  # fmt: skip
        limits += [w[columns] <= bound * y[g], -w[columns] <= bound * y[g]]
    plain = cp.Problem(cp.Minimize(cost), limits)
    plain.solve(cp.CLARABEL)
    problem = FORMULATIONS["state-row"](
        design[:, :4].T, design[:, 4:].T, target, kappa=None, lam1=lam,
        loss=PERSPECTIVE(weight, alpha, bound, GROUPS),
    )  # fmt: skip
    solution = cimf.solve_cvxpy(problem).raise_if_failed()
    found = np.concatenate([solution.values["A"].ravel(), solution.values["B"].ravel()])
    np.testing.assert_allclose(found, w.value, atol=2e-4)
    value = problem.record.objective(found[None])
    assert value == pytest.approx(plain.value, rel=1e-5)
    if weight == 100.0:  # groups go as wholes
        np.testing.assert_allclose(found, 0.0, atol=1e-4)
