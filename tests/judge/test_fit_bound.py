"""The bound of a data fit: below the optimum whatever the slopes, and tight at the right ones."""

import numpy as np
import pytest
import scipy.optimize

from cimf.judge.fit_bound import fit_bound
from formulations import FITS, Relaxed
from formulations.losses import L1, ElasticNet, WeightedL1

RNG = np.random.default_rng(0)
N, P, M = 4, 2, 25
X, U = RNG.normal(size=(N, M)), RNG.normal(size=(P, M))
Z = RNG.normal(size=(N, N)) @ X + RNG.standard_t(2, size=(N, M))
Y = RNG.dirichlet(np.ones(3), size=M).T
RADIUS = np.full(N + P, 10.0)


def record(fit, loss, kappa=0.5):
    return Relaxed(X, U, Z, Y, kappa=kappa, loss=loss, fit=fit).record


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("kappa", [None, 0.0, 0.5])
def test_below_every_point_for_any_slopes(fit, kappa):
    """Weak duality at 200 random points inside the ball, slopes far from right."""
    loss = ElasticNet(0.3, 0.7) + WeightedL1(np.linspace(0.0, 2.0, N + P)) + L1(0.1)
    pair = ("huber", fit) if fit in ("logistic", "softmax") else fit
    problem = record(pair, loss, kappa)
    rng = np.random.default_rng(1)
    values = []
    for _ in range(200):
        w = rng.uniform(0, 1) * rng.normal(size=(N + 3, N + P))
        values.append(problem.objective(problem.nearest(w)))
    bounds = [
        fit_bound(problem, s * rng.normal(size=(M, N + 3)), RADIUS) for s in (0, 0.1, 1.0, 10.0)
    ]
    assert max(bounds) <= min(values) + 1e-9
    assert np.isfinite(bounds).all()


def test_tight_for_a_linear_program():
    """min ||z - M w||_1 + ||w||_1 by HiGHS, with its own multipliers as slopes."""
    design, z = np.vstack([X, U]).T, Z[0]
    n, m = N + P, M
    eye = np.eye(m)
    equal = np.hstack([design, -design, eye, -eye])
    found = scipy.optimize.linprog(np.ones(2 * n + 2 * m), A_eq=equal, b_eq=z)
    problem = Relaxed(X, U, Z, Y, kappa=None, loss="l1", fit="absolute").record.take([0])
    slopes = -found.eqlin.marginals[:, None]
    assert fit_bound(problem, slopes, RADIUS) == pytest.approx(found.fun, rel=1e-12)
    wrong = fit_bound(problem, 0.9 * slopes, RADIUS)
    assert 0.5 * found.fun < wrong < 0.95 * found.fun
    assert fit_bound(problem, -slopes, RADIUS) < 0.1 * found.fun


@pytest.mark.parametrize("kappa", [0.0, 0.4, 100.0])
def test_a_ball_with_squares_against_a_slow_minimum(kappa):
    """One row, slopes g alone: min c|w| + d/2 w^2 + g'w in the ball, by SLSQP."""
    loss = ElasticNet(0.5, 2.0)
    problem = record("huber", loss, kappa).take([0])
    slopes = RNG.normal(size=(M, 1))
    z = problem.fit.target
    v = np.clip(slopes, -2.0, 2.0)
    price = float((v * z + 0.25 * v**2).sum())
    g = (v.T @ problem.fit.design)[0]

    def value(parts):
        w = parts[: N + P] - parts[N + P :]
        return 0.5 * parts.sum() + np.square(w).sum() + g @ w

    inside = {"type": "ineq", "fun": lambda t: kappa - t[:N].sum() - t[N + P : N + P + N].sum()}
    found = scipy.optimize.minimize(
        value, np.zeros(2 * (N + P)), bounds=[(0, None)] * (2 * (N + P)), constraints=[inside],
        options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    assert fit_bound(problem, slopes, RADIUS) == pytest.approx(found.fun - price, abs=1e-6)


def test_losses_without_a_closed_form_and_broken_slopes_prove_nothing():
    assert fit_bound(record("huber", "group"), np.zeros((M, N + 3)), RADIUS) == -np.inf
    assert fit_bound(record("huber", "l1"), np.full((M, N + 3), np.nan), RADIUS) == -np.inf
