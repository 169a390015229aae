"""Uncertain data: the worst case is what errors attain, and what the cone program bounds."""

import cvxpy as cp
import numpy as np
import pytest

import cimf
from formulations import FORMULATIONS, InputError, UnknownNameError

RobustRow = FORMULATIONS["robust-row"]
KINDS = ["matrix", "columns", "samples"]


def data(seed=0, m=30, n=6):
    rng = np.random.default_rng(seed)
    M = rng.normal(size=(m, n))
    return M, M @ rng.normal(size=n) + 0.3 * rng.normal(size=m)


def sizes(errors, E):
    """The size of errors that rho bounds."""
    if errors == "matrix":
        return np.linalg.norm(E, 2)
    return np.linalg.norm(E, axis=0 if errors == "columns" else 1)


@pytest.mark.parametrize("errors", KINDS)
def test_the_worst_case_is_attained_and_not_exceeded(errors):
    M, z = data()
    rng = np.random.default_rng(1)
    length = {"matrix": 1, "columns": 6, "samples": 30}[errors]
    rho = rng.uniform(0.1, 0.5, size=length)
    problem = RobustRow(M, z, rho, errors=errors)
    for _ in range(20):
        a = rng.normal(size=6)
        E = problem.worst_error(a)
        assert (sizes(errors, E) <= rho * (1 + 1e-12)).all()
        reached = np.linalg.norm((M + E) @ a - z)
        assert reached == pytest.approx(problem.worst_case(a), rel=1e-12)
        for _ in range(50):
            other = rng.normal(size=E.shape)
            size = sizes(errors, other)
            other *= (rho / size)[:, None] if errors == "samples" else rho / size
            assert np.linalg.norm((M + other) @ a - z) <= reached * (1 + 1e-12)


@pytest.mark.parametrize("errors", KINDS)
def test_the_optimum_is_certified_and_beats_least_squares_at_its_worst(errors):
    M, z = data()
    problem = RobustRow(M, z, 0.4, errors=errors)
    solution = cimf.solve_cvxpy(problem).raise_if_failed()
    a = solution.values["a"]
    assert solution.objective == pytest.approx(problem.worst_case(a), rel=1e-9)
    assert solution.bound <= solution.objective * (1 + 1e-12)
    plain = np.linalg.lstsq(M, z, rcond=None)[0]
    assert problem.worst_case(a) < problem.worst_case(plain)
    rng = np.random.default_rng(2)
    for _ in range(100):
        near = a + 1e-3 * rng.normal(size=6)
        assert problem.worst_case(near) >= solution.bound


def test_without_errors_it_is_least_squares():
    M, z = data()
    plain = np.linalg.lstsq(M, z, rcond=None)[0]
    for errors in KINDS:
        found = cimf.solve_cvxpy(RobustRow(M, z, 0.0, errors=errors)).values["a"]
        np.testing.assert_allclose(found, plain, atol=1e-4)  # flat at the optimum


def test_columns_are_the_square_root_lasso():
    """Xu, Caramanis and Mannor: the same minimiser as the norm plus weighted l1."""
    M, z = data()
    rho = np.linspace(0.1, 2.0, 6)
    a = cp.Variable(6)
    wanted = cp.Problem(cp.Minimize(cp.norm(M @ a - z) + rho @ cp.abs(a))).solve(cp.CLARABEL)
    assert cimf.solve_cvxpy(RobustRow(M, z, rho)).objective == pytest.approx(wanted, rel=1e-7)


def test_certain_columns_and_the_ball():
    M, z = data()
    certain = np.arange(6) == 5
    problem = RobustRow(M, z, 50.0, certain=certain, kappa=0.2, bounded=~certain)
    a = cimf.solve_cvxpy(problem).raise_if_failed().values["a"]
    assert np.abs(a[:5]).max() < 1e-6  # large errors: only the certain column is used
    assert abs(a[5]) == pytest.approx(abs(M[:, 5] @ z / (M[:, 5] @ M[:, 5])), rel=1e-4)
    assert not problem.worst_error(a)[:, 5].any()
    nothing = RobustRow(M, z, 0.1, kappa=0.0, bounded=~certain, errors="samples")
    zero = cimf.solve_cvxpy(nothing).values["a"]
    assert np.abs(zero[:5]).max() < 1e-9


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rho": -1.0}, "rho"),
        ({"rho": np.nan}, "NaN"),
        ({"rho": [1.0, 2.0]}, "rho"),
        ({"target": np.zeros(3)}, "needed"),
        ({"kappa": -1.0}, "kappa"),
        ({"certain": [True]}, "certain"),
        ({"bounded": np.ones(6)}, "bounded"),
    ],
)
def test_bad_data_is_refused(change, words):
    M, z = data()
    with pytest.raises(InputError, match=words):
        RobustRow(**{"design": M, "target": z, "rho": 0.1, **change})


def test_unknown_errors_are_refused():
    with pytest.raises(UnknownNameError, match="columns"):
        RobustRow(*data(), 0.1, errors="rows")
