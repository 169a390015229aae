"""Problems (2)-(5) by CVXPY: by rows and whole, identities between formulations, certificates."""

import copy
import pickle
import warnings

import cvxpy as cp
import numpy as np
import pytest

from cimf.errors import BackendError, CertificateError, FormulationError, InputError
from cimf.judge import ModelSolution, cone_certificate
from cimf.solve.conic import cvxpy_models
from cimf.solve.conic.cvxpy_front import solve_cvxpy
from cimf.solve.parameter_sweep import sweep
from formulations import Constrained, Exact, Lasso, OutputRow, Relaxed, StateRow
from formulations.losses import L1, LOSSES, ElasticNet, Loss, as_loss
from formulations.sets import SETS, Causal, NoSelfLoop

N, P, Q, M = 5, 3, 2, 40


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    U, X = rng.normal(size=(P, M)), np.abs(rng.normal(size=(N, M)))
    A = np.triu(rng.normal(size=(N, N)) * 0.15, 1)
    Z, Y = A @ X + rng.normal(size=(N, P)) @ U, rng.normal(size=(Q, N)) @ X
    return X, U, Z + 0.1 * rng.normal(size=Z.shape), Y + 0.1 * rng.normal(size=Y.shape)


@pytest.fixture(scope="module")
def matched(data):
    X, U, _, _ = data
    rng = np.random.default_rng(1)
    A = np.triu(rng.normal(size=(N, N)) * 0.15, 1)
    B, C = rng.normal(size=(N, P)), rng.normal(size=(Q, N))
    return (X, U, A @ X + B @ U, C @ X), (A, B, C, np.zeros((Q, P)))


class Whole(Loss):
    """A loss declared to couple the rows although it does not."""

    separable = False

    def __init__(self, inner):
        self.inner = inner

    def expression(self, rows):
        return self.inner.expression(rows)

    def value(self, rows):
        return self.inner.value(rows)


@pytest.mark.parametrize("name", [n for n in LOSSES if LOSSES[n].separable])
def test_losses_by_rows_and_whole_agree(data, name):
    loss = LOSSES[name].example(N, P, Q)
    rows = solve_cvxpy(Relaxed(*data, kappa=0.5, loss=loss))
    whole = solve_cvxpy(Relaxed(*data, kappa=0.5, loss=Whole(loss)))
    assert (len(rows.parts), len(whole.parts)) == (N + Q, 1)
    assert rows.passed
    assert whole.passed
    assert abs(rows.objective - whole.objective) <= 2e-7 * rows.scale
    for name in "ABCD":
        np.testing.assert_allclose(rows.values[name], whole.values[name], atol=2e-3)


@pytest.mark.parametrize("name", SETS)
def test_sets_by_rows_and_whole_agree(data, name):
    term = SETS[name].example(N, P, Q)
    rows = solve_cvxpy(Relaxed(*data, kappa=0.5, loss="l1", sets=term))
    whole = solve_cvxpy(Relaxed(*data, kappa=0.5, loss=Whole(L1()), sets=[term]))
    assert rows.passed
    assert whole.passed
    assert rows.violation == 0
    assert abs(rows.objective - whole.objective) <= 2e-7 * rows.scale


def test_a_coupling_loss_is_solved_whole(data):
    solution = solve_cvxpy(Relaxed(*data, kappa=0.5, loss="column-group"))
    assert len(solution.parts) == 1
    assert solution.passed


def test_the_rows_of_3_are_4_and_5(data):
    X, U, Z, Y = data
    loss, sets = ElasticNet(0.5, 2.0), [NoSelfLoop(), Causal((2, 3))]
    whole = solve_cvxpy(Relaxed(X, U, Z, Y, kappa=0.4, loss=loss, sets=sets, lam1=2.0, lam2=0.5))
    total = 0.0
    for i in range(N):
        row = solve_cvxpy(StateRow(X, U, Z[i], row=i, kappa=0.4, loss=loss, sets=sets, lam1=2.0))
        np.testing.assert_allclose(row.A[0], whole.A[i], atol=1e-6)
        total += row.objective
    for i in range(Q):
        row = solve_cvxpy(OutputRow(X, U, Y[i], row=i, loss=loss, sets=sets, lam2=0.5))
        np.testing.assert_allclose(row.D[0], whole.D[i], atol=1e-6)
        total += row.objective
    assert total == pytest.approx(whole.objective, rel=1e-8)


@pytest.mark.parametrize("kappa", [0.0, 0.3, 20.0])
def test_4_without_a_loss_is_p(data, kappa):
    """lam1 ||z - M w||^2 with the ball on the states alone is 2 lam1 h(w)."""
    X, U, Z, _ = data
    row = solve_cvxpy(StateRow(X, U, Z[0], kappa=kappa, lam1=3.0))
    same = solve_cvxpy(Constrained(np.vstack([X, U]).T, Z[0], kappa, bounded=np.arange(N + P) < N))
    assert row.objective == pytest.approx(6.0 * same.objective[0], rel=1e-7)
    np.testing.assert_allclose(np.hstack([row.A, row.B]), same.coef, atol=1e-4)


def test_5_with_l1_is_q(data):
    """l1 weight mu and lam2 without 1/2 are Q(mu / (2 lam2))."""
    X, U, _, Y = data
    row = solve_cvxpy(OutputRow(X, U, Y[0], loss=L1(6.0), lam2=0.5))
    same = solve_cvxpy(Lasso(np.vstack([X, U]).T, Y[0], 6.0))
    assert row.objective == pytest.approx(same.objective[0], rel=1e-7)
    np.testing.assert_allclose(np.hstack([row.C, row.D]), same.coef, atol=1e-4)


def test_exact_matching_finds_the_model(matched):
    states, known = matched
    solution = solve_cvxpy(Exact(*states, kappa=2.0))
    assert solution.passed
    for found, expected in zip(
        (solution.A, solution.B, solution.C, solution.D), known, strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-9)
    assert (solution.D == 0).all()  # exact zeros
    assert (solution.A[np.tril_indices(N)] == 0).all()


def test_relaxed_tends_to_exact(matched):
    states, _ = matched
    exact = solve_cvxpy(Exact(*states, kappa=2.0))
    far = []
    for lam in (1e1, 1e3, 1e5):
        relaxed = solve_cvxpy(Relaxed(*states, kappa=2.0, loss="l1", lam1=lam, lam2=lam))
        assert relaxed.objective <= exact.objective * (1 + 1e-7)
        far.append(exact.objective - relaxed.objective)
    assert far[0] > 10 * far[1] > 0
    assert far[2] < 1e-3 * exact.objective


def test_exact_matching_of_redundant_states(matched):
    """Dead and duplicated states: fewer equations than unknowns, consistent only up to rounding."""
    (X, U, Z, Y), _ = matched
    X, Z = np.vstack([X, X[:2], 0 * X[:1]]), np.vstack([Z, Z[:2], 0 * Z[:1]])
    solution = solve_cvxpy(Exact(X, U, Z, Y, kappa=2.0))
    assert solution.passed
    shorter = solve_cvxpy(Exact(X[:, :6], U[:, :6], Z[:, :6], Y[:, :6], kappa=5.0))
    assert shorter.passed
    assert shorter.objective < solution.objective


def test_exact_matching_of_captured_states():
    """The states of a layer, n + p = 56: one feasible point, so the solver has no interior."""
    rng = np.random.default_rng(0)
    U = rng.normal(size=(40, 200))
    Z = rng.normal(size=(16, 40)) @ U / 6
    X = np.maximum(Z, 0)
    solution = solve_cvxpy(Exact(X, U, Z, rng.normal(size=(3, 16)) @ X, kappa=2.0))
    assert solution.passed
    assert (solution.A == 0).all()
    assert (solution.D == 0).all()


def test_tolerance_form(matched):
    states, _ = matched
    exact = solve_cvxpy(Exact(*states, kappa=2.0))
    loose = solve_cvxpy(Exact(*states, kappa=2.0, tolerance=0.05))
    assert loose.passed
    assert loose.objective < exact.objective
    X, U, Z, _ = states
    missed = np.linalg.norm(Z - loose.A @ X - loose.B @ U, axis=1) / np.linalg.norm(Z, axis=1)
    np.testing.assert_allclose(missed, 0.05, rtol=1e-5)


def test_tolerance_form_of_targets_outside_the_span(matched):
    """What no W can reach is part of the tolerance: against the problem written by hand."""
    (X, U, Z, Y), _ = matched
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(N + Q, M))
    basis = np.linalg.qr(np.vstack([X, U]).T)[0]
    noise -= noise @ basis @ basis.T
    targets = np.vstack([Z, Y])
    targets = (
        targets
        + 0.04 * noise * (np.linalg.norm(targets, axis=1) / np.linalg.norm(noise, axis=1))[:, None]
    )
    solution = solve_cvxpy(Exact(X, U, targets[:N], targets[N:], kappa=2.0, tolerance=0.05))
    solution.raise_if_failed()
    W = cp.Variable((N + Q, N + P))
    missed = cp.norm(np.vstack([X, U]).T @ W.T - targets.T, 2, axis=0)
    inside = [missed <= 0.05 * np.linalg.norm(targets, axis=1)]
    inside.append(cp.sum(cp.abs(W[:N, :N]), axis=1) <= 2.0)
    best = cp.Problem(cp.Minimize(cp.sum(cp.abs(W))), inside)
    best.solve(solver=cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    assert solution.objective == pytest.approx(best.value, rel=1e-6)


def test_the_certificate_speaks_of_the_smallest_radius_of_the_parts(data, monkeypatch):
    from cimf.judge.cone_certificate import lower_bound

    asked = []

    def noted(program, primal, dual, radius, enough):
        asked.append((radius, np.abs(primal).max()))
        return lower_bound(program, primal, dual, radius, enough)

    monkeypatch.setattr(cvxpy_models, "lower_bound", noted)
    solution = solve_cvxpy(Relaxed(*data, kappa=0.5, loss="l1"))
    assert len({radius for radius, _ in asked}) > 1
    assert solution.radius == min(radius for radius, _ in asked)
    for radius, size in asked:
        assert radius == 10.0 * max(size, 1.0)


def test_exact_matching_outside_the_ball_is_proved_infeasible(matched):
    with pytest.raises(FormulationError, match="infeasible because the constraints exclude"):
        solve_cvxpy(Exact(*matched[0], kappa=0.01))


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1e8])
def test_scales(data, scale):
    """States in other units: with lam ~ 1 / scale^2 the same W."""
    lam = scale**-2
    plain = solve_cvxpy(Relaxed(*data, kappa=0.5, loss="l1"))
    scaled = solve_cvxpy(
        Relaxed(*(scale * part for part in data), kappa=0.5, loss="l1", lam1=lam, lam2=lam)
    )
    assert scaled.passed
    assert scaled.objective == pytest.approx(plain.objective, rel=1e-6)


@pytest.mark.parametrize("loss", ["l1", "column-group"])
def test_states_of_different_scales(data, loss):
    """Columns of M from 1e-4 to 1e3, a dead state among them."""
    X, U, Z, Y = data
    X = X * 10.0 ** np.arange(-4, 1)[:, None]
    X[2] = 0.0
    solution = solve_cvxpy(Relaxed(X, U * 1e3, Z, Y, kappa=3.0, loss=loss))
    assert solution.passed
    assert (solution.A[:, 2] == 0).all()


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_loss_far_from_the_matching_term(data, scale):
    solution = solve_cvxpy(Relaxed(*(scale * part for part in data), kappa=0.5, loss="group"))
    assert solution.passed
    if scale < 1:
        assert all((block == 0).all() for block in solution.values.values())


def nuclear(A, B, C, D):
    return 5.0 * cp.norm(A, "nuc") + cp.norm1(C)


def softplus(a, b):
    return cp.sum(cp.logistic(a)) + cp.norm(b, 2)


def unit_inputs(a, b):
    return [cp.norm(b, 2) <= 1, a >= -0.1]


def symmetric(A, B, C, D):
    return A == A.T


@pytest.mark.parametrize("loss", [nuclear, softplus])
@pytest.mark.parametrize("sets", [unit_inputs, symmetric])
def test_functions_of_cvxpy_expressions(data, loss, sets):
    problem = Relaxed(*data, kappa=0.5, loss=loss, sets=sets)
    solution = solve_cvxpy(problem)
    by_rows = loss is softplus and sets is unit_inputs
    assert len(solution.parts) == (N + Q if by_rows else 1)
    assert solution.passed
    plain = cp.Problem(problem.objective, problem.constraints)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Clarabel 0.9 calls one of these inaccurate
        plain.solve(solver=cp.CLARABEL)
    assert solution.objective == pytest.approx(plain.value, rel=1e-5)


def largest(a, b):
    t = cp.Variable()
    return 5 * t, [cp.abs(a) <= t]


def norms(A, B, C, D):
    t = cp.Variable()
    return 5 * t, [cp.norm(A, "fro") <= t, cp.norm(C, "nuc") <= t]


def soft_largest(a, b):
    t = cp.Variable()
    return 3 * t, cp.log_sum_exp(a) <= t


def small(a, b):
    t = cp.Variable()
    return t, [cp.norm1(b) <= t, t <= 1]


class Epigraph(Loss):
    """Own variables, one per row, and no numpy value."""

    def expression(self, rows):
        t = cp.Variable(rows.values.shape[0])
        return 4 * cp.sum(t), [cp.max(cp.abs(rows.values), axis=1) <= t]


def by_rows(term):
    return lambda W: sum(term(W[i, :N], W[i, N:]) for i in range(N + Q))


@pytest.mark.parametrize(
    ("loss", "by_hand", "limit"),
    [
        (largest, by_rows(lambda a, b: 5 * cp.norm_inf(a)), None),
        (norms, lambda W: 5 * cp.maximum(cp.norm(W[:N, :N], "fro"), cp.normNuc(W[N:, :N])), None),
        (soft_largest, by_rows(lambda a, b: 3 * cp.log_sum_exp(a)), None),
        (small, by_rows(lambda a, b: cp.norm1(b)), 1.0),
        (Epigraph(), lambda W: 4 * cp.sum(cp.max(cp.abs(W), axis=1)), None),
        (
            L1() + (lambda a, b: 0.1 * cp.sum_squares(a)) + 2.0 * as_loss(largest),
            by_rows(
                lambda a, b: (
                    cp.norm1(a) + cp.norm1(b) + 0.1 * cp.sum_squares(a) + 10 * cp.norm_inf(a)
                )
            ),
            None,
        ),
    ],
)
def test_losses_with_own_variables_and_sums_of_losses(data, loss, by_hand, limit):
    """Against the same problem written by hand without them, at a tight tolerance."""
    X, U, Z, Y = data
    problem = Relaxed(*data, kappa=0.5, loss=loss)
    solution = solve_cvxpy(problem).raise_if_failed()
    assert len(solution.parts) == (1 if loss is norms else N + Q)
    W = cp.Variable((N + Q, N + P))
    inside = [cp.sum(cp.abs(W[:N, :N]), axis=1) <= 0.5]
    if limit is not None:
        inside.append(cp.sum(cp.abs(W[:, N:]), axis=1) <= limit)
    fit = cp.sum_squares(np.vstack([X, U]).T @ W.T - np.vstack([Z, Y]).T)
    best = cp.Problem(cp.Minimize(by_hand(W) + fit), inside)
    best.solve(solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    assert abs(solution.objective - best.value) <= 2e-8 * solution.scale
    assert solution.bound <= best.value + 1e-9 * solution.scale
    # The problem's own variables are at their best for the solution's W.
    assert problem.objective.value == pytest.approx(solution.objective, rel=1e-8)
    np.testing.assert_array_equal(problem.var_dict["A"].value, solution.A)


def test_exact_matching_with_own_variables(matched):
    plain = solve_cvxpy(Exact(*matched[0], kappa=2.0, loss=lambda a, b: 5 * cp.norm_inf(a)))
    lifted = solve_cvxpy(Exact(*matched[0], kappa=2.0, loss=largest)).raise_if_failed()
    assert lifted.objective == pytest.approx(plain.objective, rel=1e-8)

    # Least squares is outside the loss's domain: its scale is then 1, not infinity.
    def tight(a, b):
        t = cp.Variable()
        return t, [cp.norm1(a) <= t, t <= 1e-3]

    assert Exact(*matched[0], kappa=2.0, loss=tight).record.scale == 1.0


def test_constant_objectives(data):
    x = cp.Variable(2, name="x")
    for objective, inside, value in (
        (0, [x >= 1], 0.0),
        (3.0, [cp.sum(x) == 1], 3.0),
        (0 * cp.sum(x), [], 0.0),
        (1.0, [], 1.0),  # no variables at all
        (1.0, [cp.Constant(0) <= 1], 1.0),
    ):
        solution = solve_cvxpy(cp.Problem(cp.Minimize(objective), inside)).raise_if_failed()
        assert solution.objective == value
        assert solution.bound == pytest.approx(value, abs=1e-12)
    with pytest.raises(FormulationError, match="no variables and a constraint is false"):
        solve_cvxpy(cp.Problem(cp.Minimize(1.0), [cp.Constant(2) <= 1]))
    X, U, Z, _ = data
    nothing = lambda a, b: cp.Constant(2.0)  # noqa: E731
    solution = solve_cvxpy(StateRow(X, U, Z[0], kappa=0.5, lam1=0.0, loss=nothing))
    assert solution.raise_if_failed().objective == 2.0


def test_what_a_variable_is_declared_to_be_is_judged(monkeypatch):
    x = cp.Variable(2, nonneg=True, name="x")
    problem = cp.Problem(cp.Minimize(cp.sum(x)), [x <= 3])
    assert solve_cvxpy(problem).raise_if_failed().objective == pytest.approx(0, abs=1e-8)
    real = cvxpy_models.solve

    def negative(prob, *args, **options):
        outcome = real(prob, *args, **options)
        x.save_value(np.array([0.25, -0.25]))  # the optimal value, at a point that is not allowed
        return outcome

    monkeypatch.setattr(cvxpy_models, "solve", negative)
    solution = solve_cvxpy(problem)
    assert solution.violations == {"constraint 0": 0.0, "declared x": 0.25}
    assert not solution.passed


def test_sweep_over_a_parameter(data):
    mu = cp.Parameter(nonneg=True, value=7.0)
    problem = Relaxed(*data, kappa=0.5, loss=lambda a, b: mu * cp.norm1(a))
    found = sweep(problem, mu, [0.1, 1.0, 50.0], tol=1e-10)
    for weight, solution in zip([0.1, 1.0, 50.0], found, strict=True):
        solution.raise_if_failed()
        fixed = solve_cvxpy(
            Relaxed(*data, kappa=0.5, loss=lambda a, b, w=weight: w * cp.norm1(a)), tol=1e-10
        )
        assert solution.objective == pytest.approx(fixed.objective, rel=1e-12)
    assert found[0].objective < found[1].objective < found[2].objective
    assert mu.value == 7.0
    same = sweep(Relaxed(*data, kappa=0.5, loss=lambda a, b: 2 * cp.norm1(a) * mu), mu, [0.5])
    assert same[0].objective == pytest.approx(found[1].objective, rel=1e-9)


@pytest.mark.parametrize("fit", ["least-squares", "huber"])
def test_sweeps_are_the_solutions_of_each_value(data, monkeypatch, fit):
    """To the bit, compiled once per row, in one process and in two."""
    mu = cp.Parameter(2, nonneg=True)
    loss = lambda a, b: mu[0] * cp.norm1(a) + mu[1] * cp.norm(b)  # noqa: E731
    problem = Relaxed(*data, kappa=0.5, loss=loss, fit=fit)
    values, done, built = [[0.5, 1.0], [3.0, 0.1]], [], []
    real = Relaxed.from_record.__func__
    monkeypatch.setattr(
        Relaxed, "from_record", classmethod(lambda *a, **k: built.append(1) or real(*a, **k))
    )
    found = sweep(problem, mu, values, progress=done.append, n_jobs=1)
    assert len(built) == N + Q
    assert done == list(range(1, N + Q + 1))
    np.testing.assert_array_equal(problem.var_dict["A"].value, found[1].A)
    assert mu.value is None
    two = sweep(problem, mu, values, n_jobs=2)
    for value, one, other in zip(values, found, two, strict=True):
        mu.value = value
        alone = solve_cvxpy(problem)
        for name in "ABCD":
            np.testing.assert_array_equal(one.values[name], alone.values[name])
            np.testing.assert_array_equal(one.values[name], other.values[name])
        assert one.raise_if_failed().objective == alone.objective
        assert one.bounds == other.bounds
        assert one.bound <= alone.objective + 1e-9 * one.scale
    assert sweep(problem, mu, []) == []


def test_a_bound_that_is_enough_is_not_refined(data, monkeypatch):
    called = []
    real = cone_certificate._refined
    monkeypatch.setattr(cone_certificate, "_refined", lambda *a: called.append(1) or real(*a))
    mu = cp.Parameter(nonneg=True, value=1.0)
    problem = Relaxed(*data, kappa=0.5, loss=L1() * mu)
    assert all(solution.passed for solution in sweep(problem, mu, [0.5, 1.0]))
    assert not called
    solve_cvxpy(problem)
    assert len(called) == N + Q


def test_bad_sweeps(data):
    mu, other = cp.Parameter(nonneg=True), cp.Parameter(name="other")
    problem = Relaxed(*data, kappa=0.5, loss=lambda a, b: mu * cp.norm1(a))
    for parameter, values, words in (
        (other, [1.0], "does not depend on the parameter other"),
        (1.0, [1.0], r"a cvxpy\.Parameter is needed"),
        (mu, [1.0, -1.0], "must be nonnegative"),
        (mu, [None], "None is no value"),
        (mu, ["a"], "'a' is no value"),
    ):
        with pytest.raises(InputError, match=words):
            sweep(problem, parameter, values)
    assert mu.value is None
    with pytest.raises(InputError, match="have no value"):
        solve_cvxpy(problem)


def test_losses_of_rows_with_parameters_and_lists(data):
    """A parameter per row, an epigraph variable and a name, in this process and in two."""
    mu = cp.Parameter(N + Q, nonneg=True, value=np.linspace(0.5, 3.0, N + Q))

    def weighted(a, b, row):
        t = cp.Variable()
        return mu[row] * t, [cp.norm1(a) <= t]

    problem = Relaxed(*data, kappa=0.5, loss=[weighted, 0.1 * L1()])
    found = solve_cvxpy(problem).raise_if_failed()
    by_hand = as_loss(lambda a, b, row: float(mu.value[row]) * cp.norm1(a))
    plain = solve_cvxpy(Relaxed(*data, kappa=0.5, loss=by_hand + 0.1 * L1()))
    assert found.objective == pytest.approx(plain.objective, abs=2e-7 * found.scale)
    two = solve_cvxpy(problem, n_jobs=2)
    assert two.objective == found.objective
    mu.value = 10.0 * mu.value
    assert solve_cvxpy(problem).objective > found.objective + 1e-3


def test_a_solve_that_stalls_is_repeated_with_care(data, monkeypatch):
    real, asked = cvxpy_models.solve, []

    def stalls(problem, backend, tol, *, careful):
        asked.append(careful)
        return real(problem, backend, tol if careful else 1e-2, careful=careful)

    monkeypatch.setattr(cvxpy_models, "solve", stalls)
    assert solve_cvxpy(Relaxed(*data, kappa=0.5, loss=nuclear)).passed
    assert asked == [False, True]


def test_a_second_attempt_that_fails_keeps_the_first(data, monkeypatch):
    real = cvxpy_models.solve

    def fails(problem, backend, tol, *, careful):
        if careful:
            raise BackendError("stalled")
        return real(problem, backend, 1e-5, careful=careful)

    monkeypatch.setattr(cvxpy_models, "solve", fails)
    solution = solve_cvxpy(Relaxed(*data, kappa=0.5, loss=nuclear))
    assert 1e-9 < solution.gap < 1e-3


def test_any_cvxpy_problem():
    x = cp.Variable(3, name="x")
    t = cp.Variable(name="t")
    problem = cp.Problem(cp.Minimize(t + cp.sum(cp.exp(x))), [cp.norm(x - 1) <= t, cp.sum(x) == 0])
    solution = solve_cvxpy(problem)
    assert solution.passed
    assert set(solution.values) == {"x", "t"}
    np.testing.assert_allclose(solution.x, 0, atol=1e-5)
    assert solution.objective == pytest.approx(np.sqrt(3) + 3, rel=1e-7)


def test_only_minimisation_and_only_problems():
    x = cp.Variable()
    with pytest.raises(InputError, match="minimisation"):
        solve_cvxpy(cp.Problem(cp.Maximize(-cp.square(x))))
    with pytest.raises(InputError, match=r"a cvxpy\.Problem is needed"):
        solve_cvxpy("lasso")


def test_unbounded_is_said(data):
    X, U, Z, _ = data
    with pytest.raises(FormulationError, match="unbounded below"):
        solve_cvxpy(StateRow(X, U, Z[0], kappa=None, lam1=0.0, loss=lambda a, b: cp.sum(a)))


def test_a_planted_wrong_solution_is_not_certified(data):
    solution = solve_cvxpy(Relaxed(*data, kappa=0.5, loss="l1"))
    record = Relaxed(*data, kappa=0.5, loss="l1").record
    w = np.vstack([np.hstack([solution.A, solution.B]), np.hstack([solution.C, solution.D])])
    assert record.objective(w) == solution.objective
    for wrong in (0.999 * w, w + 1e-3, np.roll(w, 1, axis=0)):
        gap = (record.objective(wrong) - solution.bound) / solution.scale
        fields = {**vars(solution), "gap": gap, "violations": record.violations(wrong)}
        bad = ModelSolution(**fields)
        assert not bad.passed
        with pytest.raises(CertificateError, match="relative gap"):
            bad.raise_if_failed()
    assert solution.raise_if_failed() is solution


def test_variables_hold_the_solution_and_zeros_are_exact(data):
    problem = Relaxed(*data, kappa=0.5, loss=L1(20.0))
    solution = solve_cvxpy(problem)
    for name in "ABCD":
        np.testing.assert_array_equal(problem.var_dict[name].value, solution.values[name])
    assert problem.objective.value == pytest.approx(solution.objective, rel=1e-12)
    size = np.abs(solution.A[solution.A != 0]).min()
    assert (solution.A == 0).any()
    assert size > 1e-4


def test_solutions_can_be_copied_and_pickled(data):
    X, U, Z, _ = data
    solution = solve_cvxpy(StateRow(X, U, Z[0]))
    for twin in (copy.deepcopy(solution), pickle.loads(pickle.dumps(solution))):
        np.testing.assert_array_equal(twin.A, solution.A)
    with pytest.raises(AttributeError, match="no variable is called"):
        _ = solution.E


def test_progress_and_times(data):
    done = []
    solution = solve_cvxpy(Relaxed(*data), progress=done.append)
    assert done == list(range(1, N + Q + 1))
    assert set(solution.seconds) == {"build", "solve", "certify"}
    assert all(value > 0 for value in solution.seconds.values())
