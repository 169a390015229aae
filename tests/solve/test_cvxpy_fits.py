"""Data fits and sample weights in every formulation, against CVXPY by hand and other libraries."""

import cvxpy as cp
import numpy as np
import pytest
import scipy.optimize
import sklearn.linear_model

from cimf.solve.conic import cvxpy_models
from cimf.solve.conic.cvxpy_front import solve_cvxpy
from formulations import Constrained, Exact, Lasso, OutputRow, Relaxed, StateRow
from formulations.catalogue import FORMULATIONS
from formulations.errors import InputError
from formulations.fits import HuberFit, QuantileFit
from formulations.losses import L1, ElasticNet

N, P, Q, M = 4, 2, 3, 40


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    U, X = rng.normal(size=(P, M)), np.abs(rng.normal(size=(N, M)))
    Z = 0.3 * rng.normal(size=(N, N)) @ X + rng.normal(size=(N, P)) @ U
    labels = np.argmax(rng.normal(size=(Q, N)) @ X + rng.normal(size=(Q, M)), axis=0)
    return X, U, Z + 0.3 * rng.standard_t(1.5, size=Z.shape), np.eye(Q)[:, labels]


def by_hand(name, p, z):
    r = p - z
    if name == "softmax":
        return cp.sum(cp.log_sum_exp(p, axis=1)) - cp.sum(cp.multiply(z, p))
    return {
        "least-squares": lambda: cp.sum_squares(r),
        "huber": lambda: cp.sum(cp.huber(r)),
        "absolute": lambda: cp.norm1(cp.vec(r, order="F")),
        "quantile": lambda: cp.sum(0.5 * cp.abs(r)),
        "logistic": lambda: cp.sum(cp.logistic(p) - cp.multiply(z, p)),
    }[name]()


@pytest.mark.parametrize(
    ("states", "outputs"),
    [("huber", "huber"), ("quantile", "absolute"), ("least-squares", "logistic"),
     ("absolute", "softmax")],
)  # fmt: skip
@pytest.mark.parametrize("loss", ["l1", lambda a, b: cp.norm(cp.hstack([a, b]))])
def test_against_cvxpy_by_hand(data, states, outputs, loss):
    X, U, Z, Y = data
    problem = Relaxed(*data, kappa=0.4, loss=loss, lam1=2.0, fit=(states, outputs))
    solution = solve_cvxpy(problem).raise_if_failed()
    assert len(solution.parts) == (1 if outputs == "softmax" else N + Q)
    W, M_ = cp.Variable((N + Q, N + P)), np.vstack([X, U]).T
    matching = 2.0 * by_hand(states, M_ @ W[:N].T, Z.T) + by_hand(outputs, M_ @ W[N:].T, Y.T)
    size = cp.sum(cp.abs(W)) if loss == "l1" else cp.sum(cp.norm(W, 2, axis=1))
    ball = [cp.sum(cp.abs(W[:N, :N]), axis=1) <= 0.4]
    best = cp.Problem(cp.Minimize(matching + size), ball)
    best.solve(solver=cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    assert abs(solution.objective - best.value) <= 2e-7 * solution.scale
    assert solution.bound <= best.value + 2e-8 * solution.scale
    assert problem.objective.value == pytest.approx(solution.objective, rel=1e-9)


def test_the_bound_of_the_fit_alone_certifies(data, monkeypatch):
    """With the bound of the cone program taken away, in one test for all fits."""
    real = cvxpy_models._bound
    monkeypatch.setattr(
        cvxpy_models, "_bound", lambda *a: type(b := real(*a))(-np.inf, b.radius, b.residual)
    )
    X, U, Z, Y = data
    for fit in ("huber", "absolute", QuantileFit(0.8)):
        for loss in ("l1", ElasticNet(0.1, 1.0)):
            solve_cvxpy(StateRow(X, U, Z[0], kappa=0.4, loss=loss, fit=fit)).raise_if_failed()
    solve_cvxpy(OutputRow(X, U, Y[0], loss="l1", fit="logistic")).raise_if_failed()
    solve_cvxpy(Relaxed(*data, kappa=0.4, loss="l1", fit=("huber", "softmax"))).raise_if_failed()
    assert not solve_cvxpy(StateRow(X, U, Z[0], kappa=0.4, loss="group", fit="huber")).passed


def test_quantiles_are_those_of_scikit_learn(data):
    X, U, Z, _ = data
    design = np.vstack([X, U]).T
    found = solve_cvxpy(StateRow(X, U, Z[0], kappa=None, loss=L1(2.0), fit=QuantileFit(0.8)))
    other = sklearn.linear_model.QuantileRegressor(
        quantile=0.8, alpha=2.0 / M, fit_intercept=False, solver="highs"
    ).fit(design, Z[0])
    np.testing.assert_allclose(np.hstack([found.A, found.B])[0], other.coef_, atol=1e-5)


def test_logistic_rows_are_those_of_newton(data):
    X, U, _, Y = data
    design = np.vstack([X, U]).T
    found = solve_cvxpy(OutputRow(X, U, Y[0], loss=ElasticNet(0.0, 2.0), fit="logistic", lam2=3.0))

    def value(w):
        p = design @ w
        return 3.0 * (np.logaddexp(0, p) - Y[0] * p).sum() + w @ w

    other = scipy.optimize.minimize(value, np.zeros(N + P), tol=1e-12)
    assert found.raise_if_failed().objective == pytest.approx(other.fun, rel=1e-8)
    np.testing.assert_allclose(np.hstack([found.C, found.D])[0], other.x, atol=1e-4)


def test_a_wide_knee_is_least_squares(data):
    huber = solve_cvxpy(Relaxed(*data, kappa=0.4, loss="l1", fit=HuberFit(1e4)))
    squares = solve_cvxpy(Relaxed(*data, kappa=0.4, loss="l1"))
    assert huber.objective == pytest.approx(squares.objective, rel=1e-7)


@pytest.mark.parametrize("scale", [1e-5, 1e6])
def test_scales(data, scale):
    X, U, Z, _ = data
    for fit, power in ((HuberFit(scale), 2), ("absolute", 1)):
        unit = HuberFit(1.0) if power == 2 else fit
        found = solve_cvxpy(StateRow(scale * X, scale * U, scale * Z[0], kappa=0.4, fit=fit))
        plain = solve_cvxpy(StateRow(X, U, Z[0], kappa=0.4, fit=unit))
        assert found.raise_if_failed().objective == pytest.approx(
            scale**power * plain.objective, rel=1e-6
        )


def repeated(build, arrays, weight):
    """Solve with integer weights, and with repeated samples (the last axis of every array)."""
    weighted = build(*arrays, sample_weight=weight)
    again = build(*(np.repeat(part, weight, axis=-1) for part in arrays))
    return solve_cvxpy(weighted, tol=1e-10), solve_cvxpy(again, tol=1e-10)


WEIGHT = np.random.default_rng(3).integers(0, 4, size=M)


@pytest.mark.parametrize(
    "build",
    [
        lambda X, U, Z, Y, **k: Constrained(np.vstack([X, U]).T, Z[:2].T, 0.4, **k),
        lambda X, U, Z, Y, **k: Lasso(np.vstack([X, U]).T, Z[:2].T, 3.0, **k),
        lambda *a, **k: Relaxed(*a, loss="l1", **k),
        lambda *a, **k: Relaxed(*a, loss="l1", fit=("huber", "logistic"), **k),
        lambda *a, **k: Relaxed(*a, loss="l1", fit=("absolute", "softmax"), **k),
        lambda X, U, Z, Y, **k: StateRow(X, U, Z[0], loss="group", **k),
        lambda X, U, Z, Y, **k: OutputRow(X, U, Z[1], loss="l1", fit="quantile", **k),
        lambda X, U, Z, Y, **k: Exact(X, U, Z, Y, kappa=None, tolerance=0.97, **k),
        *(
            lambda X, U, Z, Y, e=errors, **k: FORMULATIONS["robust-row"](
                np.vstack([X, U]).T, Z[0], 0.2, errors=e, kappa=0.4, **k
            )
            for errors in ("matrix", "columns", "samples")
        ),
    ],
)
def test_integer_weights_are_repeated_samples(data, build):
    weighted, again = repeated(build, data, WEIGHT)
    assert np.all(weighted.objective == pytest.approx(again.objective, rel=1e-8, abs=1e-9))
    plain = solve_cvxpy(build(*data))
    if np.all(weighted.objective != 0):
        assert np.any(np.abs(plain.objective / weighted.objective - 1.0) > 1e-3), "they count"


@pytest.mark.parametrize("errors", ["matrix", "columns", "samples"])
def test_worst_errors_of_weighted_samples(data, errors):
    X, U, Z, _ = data
    problem = FORMULATIONS["robust-row"](
        np.vstack([X, U]).T, Z[0], 0.2, errors=errors, sample_weight=WEIGHT
    )
    a = np.linspace(-1.0, 1.0, N + P)
    moved = problem.design + problem.worst_error(a)
    attained = np.linalg.norm(problem.root * (moved @ a - problem.target))
    assert attained == pytest.approx(problem.worst_case(a), rel=1e-12)


@pytest.mark.parametrize(
    ("weight", "words"),
    [(-np.ones(M), ">= 0"), (np.zeros(M), "is 0 for every sample"), (np.ones(3), "has shape"),
     (np.full(M, np.nan), "NaN")],
)  # fmt: skip
def test_bad_weights(data, weight, words):
    X, U, Z, _ = data
    for fit in ("least-squares", "huber"):
        with pytest.raises(InputError, match=words):
            Relaxed(*data, sample_weight=weight, fit=fit)
    with pytest.raises(InputError, match=words):
        Lasso(np.vstack([X, U]).T, Z[0], 1.0, sample_weight=weight)
