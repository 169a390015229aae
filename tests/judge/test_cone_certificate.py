"""The bound of a cone program: true of the problem, whatever point it is computed from."""

import clarabel  # noqa: F401  (the dual points below are its own)
import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse

from cimf.errors import CertificateError
from cimf.judge import ModelSolution
from cimf.judge.cone_certificate import ConeProgram, Cones, infeasible_within, lower_bound
from cimf.solve.conic.backends import run


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_second_order_points_meet_the_cone(rng):
    cones = Cones(zero=2, nonneg=3, soc=(4, 1))
    for _ in range(200):
        z = cones.dual_point(rng.normal(size=10))
        tail = rng.normal(size=3)
        s = np.concatenate([[0, 0], rng.exponential(size=3), [np.linalg.norm(tail)], tail, [1.0]])
        assert z @ s >= -1e-12
    np.testing.assert_array_equal(
        cones.dual_point(np.array([1.0, -2, 1, 1, 1, 5, 1, 1, 1, 0]))[:2], [1, -2]
    )


def test_semidefinite_points_meet_the_cone(rng):
    cones = Cones(psd=(3,))
    column, row = np.tril_indices(3)
    scale = np.where(row == column, 1.0, np.sqrt(2.0))
    for _ in range(200):
        z = cones.dual_point(rng.normal(size=6))
        factor = rng.normal(size=(3, 3))
        s = (factor @ factor.T)[row, column] * scale
        assert z @ s >= -1e-12
        np.testing.assert_allclose(cones.dual_point(s), s, atol=1e-12)


def test_exponential_points_meet_the_cone(rng):
    cones = Cones(exp=1)
    for _ in range(500):
        z = cones.dual_point(3 * rng.normal(size=3))
        x, y = rng.normal(), rng.uniform(0.05, 3.0)
        s = np.array([x, y, y * np.exp(x / y) + rng.exponential()])
        assert z @ s >= -1e-9 * np.abs(z) @ np.abs(s)


def test_power_points_meet_the_cone(rng):
    alpha = 0.3
    cones = Cones(power=(alpha,))
    for _ in range(500):
        z = cones.dual_point(rng.normal(size=3))
        x, y = rng.exponential(size=2)
        s = np.array([x, y, x**alpha * y ** (1 - alpha) * rng.uniform(-1, 1)])
        assert z @ s >= -1e-12


def test_sizes_that_do_not_add_up_are_refused():
    with pytest.raises(CertificateError, match="cones of 3 rows for a dual point of 4"):
        Cones(nonneg=3).dual_point(np.zeros(4))


def problems():
    x = cp.Variable(4, name="x")
    matrix = cp.Variable((3, 3), symmetric=True)
    target = np.arange(4.0) - 1.5
    symmetric = np.diag([1.0, -2.0, 0.5]) + 0.3
    return {
        "quadratic": cp.Problem(cp.Minimize(cp.sum_squares(x - target) + 7.0), [cp.norm1(x) <= 1]),
        "second-order": cp.Problem(cp.Minimize(cp.norm(x - target)), [x >= 0, cp.sum(x) == 1]),
        "semidefinite": cp.Problem(
            cp.Minimize(cp.sum_squares(matrix - symmetric)), [matrix >> 0, cp.trace(matrix) == 1]
        ),
        "exponential": cp.Problem(cp.Minimize(cp.sum(cp.exp(x)) - target @ x), [cp.sum(x) >= 1]),
        "power": cp.Problem(
            cp.Minimize(cp.sum(cp.power(x, 1.5, approx=False)) - (target + 2) @ x), [x <= 1]
        ),
    }


@pytest.mark.parametrize("name", problems())
def test_bound_is_tight_and_never_above_the_optimum(name, rng):
    problem = problems()[name]
    outcome = run(problem, "clarabel", 1e-10)
    optimum = problem.objective.value
    radius = 10 * np.abs(outcome.primal).max()
    bound = lower_bound(outcome.program, outcome.primal, outcome.dual, radius)
    assert 0 <= optimum - bound.value + 1e-9 < 1e-7 * max(1, abs(optimum))
    # Any other point proves something weaker, never something false.
    for size in (1e-6, 1e-2, 1.0):
        x = outcome.primal + size * rng.normal(size=outcome.primal.size)
        z = outcome.dual + size * rng.normal(size=outcome.dual.size)
        worse = lower_bound(outcome.program, x, z, radius)
        assert worse.value < optimum - 0.01 * size
    # A planted sign error in the dual point is not believed.
    assert (
        lower_bound(outcome.program, outcome.primal, -outcome.dual, radius).value < optimum - 1e-3
    )


def test_bound_holds_for_feasible_points_within_the_radius(rng):
    problem = problems()["quadratic"]
    outcome = run(problem, "clarabel", 1e-10)
    program = outcome.program
    bound = lower_bound(program, outcome.primal, outcome.dual, 100.0)
    for _ in range(50):
        a = rng.dirichlet(np.ones(5))[:4] * rng.choice([-1, 1], 4)
        value = np.sum((a - np.arange(4.0) + 1.5) ** 2) + 7.0
        assert value >= bound.value


@pytest.mark.parametrize("equalities", [0, 20, 60])
def test_a_dual_point_is_refined_to_the_last_digits(equalities, rng):
    """Stationarity of a linear program is missed by 1e-4 and met after the refinement."""
    A, exact, x = rng.normal(size=(60, 30)), rng.uniform(0.5, 2.0, 60), rng.normal(size=30)
    exact[:equalities] *= rng.choice([-1, 1], equalities)
    program = ConeProgram(
        scipy.sparse.csc_array((30, 30)), -A.T @ exact, scipy.sparse.csc_array(A), A @ x,
        Cones(zero=equalities, nonneg=60 - equalities), 7.0,
    )  # fmt: skip
    near = exact * (1.0 + 1e-4 * rng.normal(size=60))
    assert np.abs(program.q + A.T @ near).sum() > 1e-5
    bound = lower_bound(program, x, near, 10.0)
    assert bound.residual < 1e-11
    assert bound.radius == 10.0
    # Every z with A'z = -q proves the value of the feasible x, which is on all constraints.
    assert bound.value == pytest.approx(7.0 + program.q @ x, abs=1e-9)


def test_nan_proves_nothing():
    program = ConeProgram(
        scipy.sparse.csc_array((1, 1)), np.ones(1), scipy.sparse.csc_array([[1.0]]), np.ones(1),
        Cones(nonneg=1), 0.0,
    )  # fmt: skip
    assert lower_bound(program, np.array([np.nan]), np.ones(1), 1.0).value == -np.inf
    assert infeasible_within(program, np.array([np.nan])) == 0.0


def test_infeasibility_proof():
    """x <= 1 and x >= 2: z = (1, 1) proves it for every x; z = (1, 0.9) for |x| < 8."""
    program = ConeProgram(
        scipy.sparse.csc_array((1, 1)), np.zeros(1), scipy.sparse.csc_array([[1.0], [-1.0]]),
        np.array([1.0, -2.0]), Cones(nonneg=2), 0.0,
    )  # fmt: skip
    assert infeasible_within(program, np.array([1.0, 1.0])) == np.inf
    assert infeasible_within(program, np.array([1.0, 0.9])) == pytest.approx(8.0)
    assert infeasible_within(program, np.array([1.0, 0.0])) == 0.0


def test_the_radius_of_a_proof_is_in_the_l1_norm():
    """x + y <= -1, x >= 0, y >= 0; z misses A'z = 0 by 0.1 in both entries."""
    A = scipy.sparse.csc_array([[1.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    empty = scipy.sparse.csc_array((2, 2))
    program = ConeProgram(empty, np.zeros(2), A, np.array([-1.0, 0.0, 0.0]), Cones(nonneg=3), 0.0)
    assert infeasible_within(program, np.array([1.0, 0.9, 0.9])) == pytest.approx(1 / 0.2)
    assert infeasible_within(program, np.ones(3)) == np.inf


def test_a_bound_above_the_objective_certifies_nothing():
    fields = dict.fromkeys(ModelSolution.__dataclass_fields__, ())
    fields |= {"values": {}, "violations": {}, "objective": 1.0, "bound": 1.1, "tol": 1e-7}
    assert not ModelSolution(**fields | {"gap": -0.1}).passed
    assert ModelSolution(**fields | {"gap": 1e-8}).passed
    with pytest.raises(CertificateError, match=r"gap -0\.1") as caught:
        (failed := ModelSolution(**fields | {"gap": -0.1})).raise_if_failed()
    assert caught.value.solution is failed
    assert "not certified: gap -1.0e-01" in repr(ModelSolution(**fields | {"gap": -0.1}))
