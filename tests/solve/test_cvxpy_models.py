"""Problems (2)-(5) by CVXPY: by rows and whole, identities between formulations, certificates."""

import copy
import pickle
import warnings

import cvxpy as cp
import numpy as np
import pytest

from cimf.errors import CertificateError, FormulationError, InputError
from cimf.judge import ModelSolution
from cimf.solve.conic import cvxpy_models
from cimf.solve.conic.cvxpy_front import solve_cvxpy
from formulations import Constrained, Exact, Lasso, OutputRow, Relaxed, StateRow
from formulations.losses import L1, LOSSES, ElasticNet, Loss
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


def test_a_solve_that_stalls_is_repeated_with_care(data, monkeypatch):
    real, asked = cvxpy_models.solve, []

    def stalls(problem, backend, tol, *, careful):
        asked.append(careful)
        return real(problem, backend, tol if careful else 1e-2, careful=careful)

    monkeypatch.setattr(cvxpy_models, "solve", stalls)
    assert solve_cvxpy(Relaxed(*data, kappa=0.5, loss=nuclear)).passed
    assert asked == [False, True]


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
