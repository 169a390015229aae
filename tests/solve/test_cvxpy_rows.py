"""P(kappa) and Q(lam) by CVXPY: known solutions, slow independent solvers, degenerate data."""

import itertools

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cimf.errors import BackendError
from cimf.judge import certify
from cimf.solve.conic import cvxpy_rows
from cimf.solve.conic.cvxpy_front import solve_cvxpy
from cimf.solve.conic.cvxpy_rows import solve_path_cvxpy
from cimf.statistics import Gram
from formulations import Constrained, Lasso


def soft(x, t):
    return np.sign(x) * np.maximum(np.abs(x) - t, 0.0)


def random_row(m=30, n=8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(m, n)), rng.normal(size=m) + rng.normal(size=(m, n)) @ rng.normal(
        size=n
    )


def brute_force(design, target, kappa):
    """Best stationary point over every support and sign pattern: exact for N <= 6."""
    gram, corr = design.T @ design, design.T @ target
    best, best_a = 0.5 * target @ target, np.zeros(design.shape[1])
    n = design.shape[1]
    for signs in itertools.product((-1, 0, 1), repeat=n):
        s = np.array(signs, dtype=float)
        on = np.flatnonzero(s)
        if not on.size:
            continue
        system = np.block([[gram[np.ix_(on, on)], s[on, None]], [s[None, on], np.zeros((1, 1))]])
        ball = np.linalg.lstsq(system, np.append(corr[on], kappa), rcond=None)[0][:-1]
        free = np.linalg.lstsq(gram[np.ix_(on, on)], corr[on], rcond=None)[0]
        for part in (ball, free):
            a = np.zeros(n)
            a[on] = part
            value = 0.5 * np.sum((design @ a - target) ** 2)
            if np.abs(a).sum() <= kappa * (1 + 1e-12) and value < best:
                best, best_a = value, a
    return best, best_a


def fista(design, target, lam, weights, steps=20_000):
    """Accelerated proximal gradient for Q(lam), with restarts."""
    gram, corr = design.T @ design, design.T @ target
    lipschitz = np.linalg.eigvalsh(gram)[-1]
    a = y = np.zeros(design.shape[1])
    t = 1.0
    for _ in range(steps):
        new = soft(y - (gram @ y - corr) / lipschitz, lam * weights / lipschitz)
        if (y - new) @ (new - a) > 0:
            t = 1.0
        t_new = 0.5 * (1 + np.sqrt(1 + 4 * t * t))
        a, y, t = new, new + (t - 1) / t_new * (new - a), t_new
    return a


def test_orthonormal_design_has_the_soft_threshold():
    """M'M = I: Q(lam) is solved by soft(M'z, lam), whose l1 norm is the kappa of that lam."""
    rng = np.random.default_rng(0)
    design = np.linalg.qr(rng.normal(size=(20, 6)))[0]
    target = rng.normal(size=20)
    corr = design.T @ target
    lam = float(np.sort(np.abs(corr))[2:4].mean())
    known = soft(corr, lam)
    penalised = solve_cvxpy(Lasso(design, target, lam))
    np.testing.assert_allclose(penalised.coef[0], known, atol=1e-12)
    bounded = solve_cvxpy(Constrained(design, target, np.abs(known).sum()))
    np.testing.assert_allclose(bounded.coef[0], known, atol=1e-12)
    assert bounded.lam[0] == pytest.approx(lam, rel=1e-10)
    assert (bounded.coef[0] == 0).sum() == 3  # zeros are exact
    with pytest.raises(AssertionError):  # the test can fail
        np.testing.assert_allclose(penalised.coef[0], soft(corr, 1.001 * lam), atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kappa", [0.05, 0.7, 3.0, 50.0])
def test_against_brute_force(seed, kappa):
    design, target = random_row(12, 5, seed)
    value, coef = brute_force(design, target, kappa)
    solution = solve_cvxpy(Constrained(design, target, kappa))
    assert solution.certificate.passed.all()
    assert solution.objective[0] == pytest.approx(value, rel=1e-10)
    np.testing.assert_allclose(solution.coef[0], coef, atol=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_against_proximal_gradient(seed):
    design, target = random_row(30, 10, seed)
    weights = np.random.default_rng(seed).uniform(0.5, 2.0, 10)
    lam = 0.2 * np.abs(design.T @ target).max()
    slow = fista(design, target, lam, weights)
    solution = solve_cvxpy(Lasso(design, target, lam, weights=weights))
    np.testing.assert_allclose(solution.coef[0], slow, atol=1e-9)
    kappa = float(weights @ np.abs(slow))
    same = solve_cvxpy(Constrained(design, target, kappa, weights=weights))
    np.testing.assert_allclose(same.coef[0], slow, atol=1e-8)
    assert same.lam[0] == pytest.approx(lam, rel=1e-6)


def degenerate():
    rng = np.random.default_rng(7)
    design = rng.normal(size=(30, 8))
    target = design @ rng.normal(size=8) + 0.1 * rng.normal(size=30)
    tied = np.repeat(rng.normal(size=(30, 4)), 2, axis=1) * np.array([1, -1] * 4)
    duplicated = design.copy()
    duplicated[:, 1], duplicated[:, 2], duplicated[:, 3] = design[:, 0], 0.0, -design[:, 0]
    close = design.copy()
    close[:, 1] = close[:, 0] + 1e-9 * rng.normal(size=30)
    return {
        "ordinary": (design, target),
        "duplicate and zero columns": (duplicated, target),
        "ties": (tied, target),
        "nearly equal columns": (close, target),
        "fewer samples than columns": (design[:3], target[:3]),
        "one sample": (design[:1], target[:1]),
        "one column": (design[:, :1], target),
        "zero target": (design, 0 * target),
        "zero design": (0 * design, target),
        "constant target": (design, np.ones(30)),
        "target in the span": (design, design @ np.arange(8.0)),
        "mixed scales": (design * 10.0 ** np.arange(-4, 4), target),
    }


@pytest.mark.parametrize("kappa", [0.0, 1e-6, 0.5, 2.0, 100.0])
@pytest.mark.parametrize("name", degenerate())
def test_degenerate_rows_are_certified(name, kappa):
    design, target = degenerate()[name]
    solution = solve_cvxpy(Constrained(design, target, kappa))
    assert solution.certificate.passed.all(), (solution.gap, solution.violation)
    assert (solution.violation == 0).all()
    again = certify(Gram.from_arrays(design, target), solution.coef, kappa=kappa, tol=1e-7)
    np.testing.assert_array_equal(again.gap, solution.gap)
    if kappa == 0:
        assert (solution.coef == 0).all()


@pytest.mark.parametrize("relative", [1e-3, 0.3, 2.0])
@pytest.mark.parametrize("name", degenerate())
def test_degenerate_penalised_rows_are_certified(name, relative):
    design, target = degenerate()[name]
    lam = relative * np.abs(design.T @ target).max()
    solution = solve_cvxpy(Lasso(design, target, lam))
    assert solution.certificate.passed.all(), solution.gap
    if relative > 1:
        assert (solution.coef == 0).all()


@pytest.mark.parametrize("design_scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("target_scale", [1e-8, 1.0, 1e8])
def test_scales(design_scale, target_scale):
    design, target = random_row()
    kappa = 1.3
    plain = solve_cvxpy(Constrained(design, target, kappa))
    unit = target_scale / design_scale
    scaled = solve_cvxpy(Constrained(design_scale * design, target_scale * target, unit * kappa))
    np.testing.assert_allclose(scaled.coef, unit * plain.coef, rtol=1e-9, atol=1e-12 * unit)
    assert scaled.certificate.passed.all()


@pytest.mark.parametrize("kappa", [0.5, 5.0, 50.0])
def test_gram_of_condition_number_1e17(kappa):
    grid = np.linspace(0, 1, 100)
    design, target = np.vander(grid, 25), np.sin(5 * grid)
    moments = (design.T @ design, design.T @ target, target @ target)
    assert np.linalg.cond(moments[0]) > 1e16
    solution = solve_cvxpy(Constrained.from_moments(*moments, kappa))
    same = solve_cvxpy(Constrained(design, target, kappa))
    for found in (solution, same):
        assert found.certificate.passed.all()
        assert (found.violation == 0).all()
    assert solution.objective[0] == pytest.approx(same.objective[0], rel=1e-6)


def test_free_excluded_and_signed_columns():
    design, target = random_row(40, 9)
    weights = np.array([0, np.inf, 2, 1, 1, 1, 1, 0, 3.0])
    signs = np.array([0, 0, 1, -1, 0, 0, 1, 0, 0])
    solution = solve_cvxpy(Constrained(design, target, 0.8, weights=weights, signs=signs))
    assert solution.certificate.passed.all()
    assert (solution.violation == 0).all()
    a = cp.Variable(9)
    inside = np.array([2, 3, 4, 5, 6, 8])
    check = cp.Problem(
        cp.Minimize(0.5 * cp.sum_squares(design @ a - target)),
        [cp.norm1(cp.multiply(weights[inside], a[inside])) <= 0.8, a[1] == 0, a[2] >= 0,
         a[3] <= 0, a[6] >= 0],
    )  # fmt: skip
    check.solve(solver=cp.CLARABEL)
    assert solution.objective[0] == pytest.approx(check.value, rel=1e-6)


def test_rows_have_their_own_kappa_and_weights():
    design, target = random_row(25, 6)
    targets = np.stack([target, target[::-1], 0 * target], axis=1)
    weights = np.ones((3, 6))
    weights[0, 2] = np.inf
    weights[1, :3] = 0.5
    kappa = np.array([0.4, 1.0, 2.0])
    together = solve_cvxpy(Constrained(design, targets, kappa, weights=weights))
    assert together.certificate.passed.all()
    for i in range(3):
        alone = solve_cvxpy(Constrained(design, targets[:, i], kappa[i], weights=weights[i]))
        np.testing.assert_allclose(together.coef[i], alone.coef[0], atol=1e-9)


def test_path_on_moments_equals_the_data():
    design, target = random_row(25, 6)
    targets = np.stack([target, target[::-1]], axis=1)
    gram = Gram.from_arrays(design, targets)
    done = []
    path = solve_path_cvxpy(gram, [2.0, 0.3], progress=done.append)
    assert done == [1, 2, 1, 2]
    for kappa, found in zip([2.0, 0.3], path, strict=True):
        same = solve_cvxpy(Constrained(design, targets, kappa))
        np.testing.assert_allclose(found.coef, same.coef, atol=1e-9)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 8), st.floats(0.01, 5))
def test_random_rows_are_certified(seed, m, n, kappa):
    rng = np.random.default_rng(seed)
    design = rng.integers(-2, 3, size=(m, n)).astype(float)  # ties and dependent columns abound
    solution = solve_cvxpy(Constrained(design, rng.integers(-3, 4, size=m).astype(float), kappa))
    assert solution.certificate.passed.all(), solution.gap


def test_raw_and_polished_are_both_recorded():
    design, target = random_row(50, 12)
    solution = solve_cvxpy(Constrained(design, target, 0.7))
    assert solution.method[0] == "clarabel+polish"
    assert solution.gap[0] < 1e-13 < solution.raw.gap[0] < 1e-7
    assert solution.raw.objective[0] >= solution.objective[0]
    assert set(solution.seconds) == {"build", "solve", "certify"}
    assert solution.backend[0].startswith("clarabel ")


def test_a_planted_wrong_answer_fails():
    design, target = random_row()
    gram = Gram.from_arrays(design, target)
    coef = solve_cvxpy(Constrained(design, target, 1.0)).coef
    assert certify(gram, coef, kappa=1.0, tol=1e-7).passed.all()
    for wrong in (coef * 0.999, coef * 1.001, np.roll(coef, 1, axis=1), -coef):
        assert not certify(gram, wrong, kappa=1.0, tol=1e-7).passed.any()


def test_variables_hold_the_polished_solution():
    problem = Constrained(*random_row(), 1.0)
    solution = solve_cvxpy(problem)
    np.testing.assert_array_equal(problem.var_dict["a"].value, solution.coef)


def test_one_failing_row_does_not_end_the_run(monkeypatch):
    design, target = random_row()
    real, calls = cvxpy_rows.solve, []

    def solve(problem, backend, tol):
        calls.append(backend)
        if len(calls) == 1:
            raise BackendError("numerical trouble")
        return real(problem, backend, tol)

    monkeypatch.setattr(cvxpy_rows, "solve", solve)
    solution = solve_cvxpy(Constrained(design, np.stack([target, target], axis=1), 1.0))
    assert list(solution.backend_status) == ["failed", "optimal"]
    assert solution.certificate.passed[1]
    assert not solution.certificate.passed[0]
