"""Bisection (Algorithms 1 and 2) with the exact segment step: degenerate cases first."""

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from cimf.errors import InputError, UnknownNameError
from cimf.judge import certify
from cimf.solve import solve_path, solve_rows
from cimf.solve.bisection.algorithms import Bisection, bisect_rows
from cimf.solve.path import exact_rows as exact
from cimf.statistics import Gram
from formulations.columns import Columns
from formulations.level import Radius


def random_gram(m=40, n=12, r=5, seed=0):
    rng = np.random.default_rng(seed)
    design = rng.standard_normal((m, n))
    return Gram.from_arrays(
        design, design @ rng.standard_normal((n, r)) + rng.standard_normal((m, r))
    )


def degenerate_designs():
    rng = np.random.default_rng(1)
    base = rng.standard_normal((30, 6))
    target = base @ rng.standard_normal((6, 3)) + 0.1 * rng.standard_normal((30, 3))
    dead = base.copy()
    dead[:, 2] = 0.3 + 1e-9 * rng.standard_normal(30)
    return {
        "duplicate": (np.hstack([base, base[:, :3]]), target),
        "opposite": (np.hstack([base, -base]), target),
        "zero column": (np.hstack([base, np.zeros((30, 2))]), target),
        "all zero": (np.zeros((30, 4)), target),
        "ties": (np.eye(30)[:, :8], np.ones((30, 2))),
        "m < N": (rng.standard_normal((5, 20)), rng.standard_normal((5, 3))),
        "constant target": (np.hstack([base, np.ones((30, 1))]), np.full((30, 2), 3.0)),
        "zero target": (base, np.zeros((30, 2))),
        "dead column": (dead, target),
        "one column": (base[:, :1], target),
        "one sample": (base[:1], target[:1]),
        "tiny": (1e-8 * base, 1e-8 * target),
        "huge": (1e8 * base, 1e8 * target),
        "mixed scales": (base * np.logspace(-4, 4, 6), target),
        "no rows": (base, np.empty((30, 0))),
    }


@pytest.mark.parametrize("kappa", [0.0, 0.3, 2.0, 1e3])
@pytest.mark.parametrize("name", degenerate_designs())
def test_degenerate_problems_are_certified_and_agree_with_exact(name, kappa):
    gram = Gram.from_arrays(*degenerate_designs()[name])
    ours = solve_rows(gram, kappa, method="bisection", n_jobs=1).raise_if_failed()
    exact = solve_rows(gram, kappa, method="exact", n_jobs=1).raise_if_failed()
    scale = 0.5 * gram.target_sq + np.finfo(float).tiny
    assert np.abs(ours.objective - exact.objective).max(initial=0.0, where=scale > 1e-300) <= (
        2e-9 * scale.max(initial=1.0)
    )
    assert (ours.violation <= 1e-9 * kappa).all()


@pytest.mark.parametrize("warm_start", ["rows", "steps", "none"])
def test_the_bits_do_not_depend_on_warm_starts_or_row_order(warm_start):
    gram = random_gram(r=6)
    expected = bisect_rows(gram, 0.7).solution.raise_if_failed().coef
    order = np.array([3, 0, 5, 1, 4, 2])
    found = bisect_rows(gram.rows(order), 0.7, warm_start=warm_start)
    assert found.solution.method.tolist() == ["bisection"] * 6
    np.testing.assert_array_equal(found.solution.coef, expected[order])


def test_the_bits_of_the_door_do_not_depend_on_threads_order_or_chunks():
    gram = random_gram(r=40, seed=3)
    expected = solve_rows(gram, 0.7, method="bisection", n_jobs=1)
    np.testing.assert_array_equal(
        solve_rows(gram, 0.7, method="bisection", n_jobs=2).coef, expected.coef
    )
    backwards = solve_rows(gram.rows(slice(None, None, -1)), 0.7, method="bisection", n_jobs=2)
    np.testing.assert_array_equal(backwards.coef[::-1], expected.coef)
    np.testing.assert_array_equal(backwards.iterations[::-1], expected.iterations)


def test_the_interval_holds_the_multiplier_and_has_the_length_asked_for():
    gram = random_gram()
    for epsilon in (0.3, 1e-2, 1e-4):
        found = bisect_rows(gram, 0.7, epsilon=epsilon, inner_tol=1e-10)
        first = np.abs(gram.corr).max(axis=1)
        low, high = found.interval.T
        assert (high - low < epsilon * first).all()
        assert (high - low >= 0.5 * epsilon * first).all()
        assert (low <= found.solution.lam).all()
        assert (found.solution.lam <= high).all()
        np.testing.assert_array_equal(found.steps, np.floor(np.log2(1 / epsilon)) + 1)


def test_an_absolute_epsilon_as_in_the_paper():
    gram = random_gram()
    first = np.abs(gram.corr).max(axis=1)
    found = bisect_rows(gram, 0.7, epsilon=0.01 / first)
    assert (np.diff(found.interval)[:, 0] < 0.01).all()
    assert (np.diff(found.interval)[:, 0] >= 0.005).all()


def test_the_trace_is_the_bisection():
    """Every step is a certified solution of its Q(lam), and the interval follows the norm."""
    gram = random_gram()
    found = bisect_rows(gram, 0.7, inner_tol=1e-6, trace=True)
    trace = found.trace
    assert trace is not None
    assert trace.row.tolist() == np.repeat(np.arange(5), found.steps).tolist()
    np.testing.assert_array_equal(np.bincount(trace.row, trace.inner), found.inner)
    coef = trace.coef.toarray()
    certificate = certify(gram.rows(trace.row), coef, lam=trace.lam, tol=1e-6)
    certificate.raise_if_failed()
    np.testing.assert_allclose(trace.objective, certificate.objective, rtol=1e-12)
    np.testing.assert_allclose(trace.norm, np.abs(coef).sum(axis=1), rtol=1e-12)
    for i in range(5):
        low, high = 0.0, np.abs(gram.corr[i]).max()
        for lam, norm in zip(trace.lam[trace.row == i], trace.norm[trace.row == i], strict=True):
            assert lam == 0.5 * (low + high)
            low, high = (lam, high) if norm >= 0.7 else (low, lam)
        assert found.interval[i].tolist() == [low, high]
    assert bisect_rows(gram, 0.7).trace is None


def test_a_planted_wrong_trace_fails():
    gram = random_gram()
    trace = bisect_rows(gram, 0.7, trace=True).trace
    wrong = trace.coef.toarray() * 1.5
    passed = certify(gram.rows(trace.row), wrong, lam=trace.lam, tol=1e-6).passed
    assert not passed[trace.norm > 0.1].any()


def test_warm_starts_save_inner_iterations():
    """On correlated columns, and more so the smaller epsilon is."""
    rng = np.random.default_rng(5)
    design = rng.standard_normal((60, 40)) + 3.0 * rng.standard_normal((60, 1))
    gram = Gram.from_arrays(design, design @ rng.standard_normal((40, 8)))
    inner = {
        warm: bisect_rows(gram, 5.0, epsilon=1e-4, inner_tol=1e-6, warm_start=warm).inner.sum()
        for warm in ("steps", "none")
    }
    assert inner["steps"] < 0.8 * inner["none"]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(0, 10**6))
def test_weights_signs_free_and_excluded_columns(seed):
    rng = np.random.default_rng(seed)
    m, n, r = int(rng.integers(1, 25)), int(rng.integers(1, 15)), int(rng.integers(1, 4))
    design = rng.standard_normal((m, n)) * 10.0 ** rng.integers(-3, 4, n)
    gram = Gram.from_arrays(design, rng.standard_normal((m, r)))
    weights = rng.choice([0.0, 0.5, 1.0, 2.0, np.inf], (r, n) if rng.random() < 0.5 else n)
    signs = rng.choice([-1, 0, 0, 1], n)
    signs[(weights == 0.0).reshape(-1, n).any(axis=0)] = 0
    kappa = float(rng.choice([0.0, 0.1, 1.0, 100.0]))
    options = {"weights": weights, "signs": signs}
    ours = bisect_rows(gram, kappa, **options).solution.raise_if_failed()
    exact = solve_rows(gram, kappa, n_jobs=1, **options).raise_if_failed()
    np.testing.assert_allclose(
        ours.objective, exact.objective, rtol=0, atol=2e-9 * 0.5 * gram.target_sq.max()
    )
    assert not ours.coef[np.isinf(np.broadcast_to(weights, (r, n)))].any()


def test_free_columns_in_the_trace_are_at_their_least_squares_value():
    gram = random_gram()
    bounded = np.arange(12) >= 2
    trace = bisect_rows(gram, 0.5, bounded=bounded, trace=True, inner_tol=1e-8).trace
    coef = trace.coef.toarray()
    gradient = coef @ gram.gram - gram.corr[trace.row]
    assert np.abs(gradient[:, :2]).max() < 1e-9


def slow_solution(gram, kappa):
    """SLSQP on the split problem: another algorithm, none of our code."""
    n = gram.n_features
    split = np.hstack([np.eye(n), -np.eye(n)])
    found = scipy.optimize.minimize(
        lambda x: 0.5 * (split @ x) @ gram.gram @ (split @ x) - gram.corr[0] @ split @ x,
        np.full(2 * n, kappa / (4 * n)),
        jac=lambda x: split.T @ (gram.gram @ (split @ x) - gram.corr[0]),
        bounds=[(0, None)] * (2 * n),
        constraints={"type": "ineq", "fun": lambda x: kappa - x.sum()},
        options={"ftol": 1e-14, "maxiter": 1000},
        method="SLSQP",
    )
    return found.fun + 0.5 * gram.target_sq[0]


@pytest.mark.parametrize("seed", range(5))
def test_against_an_independent_slow_solver(seed):
    gram = random_gram(r=1, n=6, seed=seed)
    found = bisect_rows(gram, 0.8).solution
    assert found.objective[0] == pytest.approx(slow_solution(gram, 0.8), rel=1e-7)


def test_penalised_problems_and_paths():
    gram = random_gram()
    lam = 0.1 * np.abs(gram.corr).max(axis=1)
    ours = solve_rows(gram, lam=lam, method="bisection", n_jobs=1).raise_if_failed()
    np.testing.assert_allclose(ours.objective, solve_rows(gram, lam=lam).objective, rtol=1e-9)
    path = solve_path(gram, [2.0, 0.1, 0.5], method="bisection", n_jobs=1)
    for kappa, found in zip((2.0, 0.1, 0.5), path, strict=True):
        found.raise_if_failed()
        single = solve_rows(gram, kappa, method="bisection", n_jobs=1)
        np.testing.assert_array_equal(found.coef, single.coef)


def test_an_inactive_ball_is_handed_over_and_says_so():
    gram = random_gram()
    found = bisect_rows(gram, 1e3)
    assert isinstance(found, Bisection)
    assert (found.solution.raise_if_failed().method == "exact").all()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"epsilon": 0.0}, InputError),
        ({"epsilon": np.nan}, InputError),
        ({"inner_tol": 1.0}, InputError),
        ({"warm_start": "hot"}, UnknownNameError),
        ({"weights": -np.ones(12)}, InputError),
    ],
)
def test_bad_options(options, error):
    with pytest.raises(error):
        bisect_rows(random_gram(), 0.7, **options)


def test_each_row_starts_at_zero_with_steps():
    rng = np.random.default_rng(5)
    design, targets = rng.normal(size=(40, 12)), rng.normal(size=(40, 6))
    gram = Gram.from_arrays(design, targets)
    order = [3, 5, 0, 1, 4, 2]
    one = bisect_rows(gram, 0.5, warm_start="steps")
    other = bisect_rows(gram.rows(order), 0.5, warm_start="steps")
    np.testing.assert_array_equal(other.inner, one.inner[order])
    np.testing.assert_array_equal(other.steps, one.steps[order])


@pytest.mark.parametrize("n_rows", [3, 70])
def test_several_rows_of_a_chunk_have_their_own_weights(n_rows):
    """More than 64 rows are solved in chunks of several."""
    rng = np.random.default_rng(6)
    gram = Gram.from_arrays(rng.normal(size=(40, 8)), rng.normal(size=(40, n_rows)))
    weights = rng.uniform(0.5, 2.0, size=(n_rows, 8))
    weights[np.arange(n_rows), rng.integers(0, 8, n_rows)] = 0.0
    level = Radius(np.full((n_rows, 1), 0.5))
    columns = Columns.build(8, n_rows, weights=weights)
    found = exact.solve_chunk(gram, columns, level, 1e-9).coef[:, 0]
    whole = solve_rows(gram, 0.5, weights=weights)
    assert whole.certificate.passed.all()
    np.testing.assert_array_equal(found, whole.coef)
    for i in range(n_rows):
        alone = solve_rows(gram.rows([i]), 0.5, weights=weights[i])
        np.testing.assert_array_equal(found[i], alone.coef[0])
