"""Records: objective, violation and scaling agree with the CVXPY problems and with the formulas."""

import cvxpy as cp
import numpy as np
import pytest

from formulations import FORMULATIONS, Constrained, Exact, Lasso, OutputRow, Relaxed, StateRow
from formulations.columns import shrink
from formulations.errors import FormulationError, InputError, UnknownNameError
from formulations.level import Radius
from formulations.problem import RowRecord, paper_weight
from formulations.sets import Box


def model_data(n=5, p=3, q=2, m=30, seed=0):
    rng = np.random.default_rng(seed)
    U, X = rng.normal(size=(p, m)), np.abs(rng.normal(size=(n, m)))
    return X, U, rng.normal(size=(n, m)), rng.normal(size=(q, m))


def matched_data(n=5, p=3, q=2, m=30, seed=0):
    X, U, _, _ = model_data(n, p, q, m, seed)
    rng = np.random.default_rng(seed + 1)
    A = np.triu(rng.normal(size=(n, n)) * 0.1, 1)
    return X, U, A @ X + rng.normal(size=(n, p)) @ U, rng.normal(size=(q, n)) @ X


def instances():
    X, U, Z, Y = matched_data()
    design, target = np.vstack([X, U]).T, Z[:2].T
    return {
        "constrained": Constrained(design, target, 0.5),
        "lasso": Lasso(design, target, 0.5),
        "relaxed": Relaxed(X, U, Z, Y, loss="l1"),
        "state-row": StateRow(X, U, Z[1], row=1, loss="elastic-net"),
        "output-row": OutputRow(X, U, Y[1], row=1, loss="group"),
        "exact": Exact(X, U, Z, Y),
        "robust-row": FORMULATIONS["robust-row"](design, Z[0], 0.1, kappa=0.5),
    }


def test_every_formulation_is_a_dpp_problem_with_a_record():
    found = instances()
    assert set(found) == set(FORMULATIONS)
    for name, problem in found.items():
        assert isinstance(problem, FORMULATIONS[name])
        assert problem.is_dcp(dpp=True)
    assert set(found["relaxed"].var_dict) == {"A", "B", "C", "D"}
    assert set(found["state-row"].var_dict) == {"A", "B"}
    assert set(found["output-row"].var_dict) == {"C", "D"}
    assert found["constrained"].var_dict["a"].shape == (2, 8)


def test_the_ball_is_written_for_rows_with_any_bounded_column():
    X, U, Z, _ = model_data()
    problem = Constrained(np.vstack([X, U]).T, Z[:2].T, [1.0, 2.0], bounded=np.arange(8) < 3)
    assert [c.shape for c in problem.constraints] == [(2,)]
    a = np.zeros((2, 8))
    a[:, 5], a[0, 1], a[1, 2] = 100.0, 1.5, -2.25
    problem.coefficients = a
    np.testing.assert_allclose(problem.constraints[0].violation(), [0.5, 0.25])
    np.testing.assert_allclose(problem.record.violation(a), [0.5, 0.25])
    free = Constrained(np.vstack([X, U]).T, Z[0], 1.0, bounded=np.zeros(8, dtype=bool))
    assert free.constraints == []
    some = Constrained(np.vstack([X, U]).T, Z[:2].T, 1.0, weights=np.outer([0.0, 1.0], np.ones(8)))
    assert [c.shape for c in some.constraints] == [(1,)]  # the first row has no bounded column
    none = Constrained(np.vstack([X, U]).T, Z[0], 0.0, bounded=np.arange(8) < 3)
    assert [c.shape for c in none.constraints] == [(3,)]  # equalities


@pytest.mark.parametrize("name", ["constrained", "lasso"])
def test_objective_of_rows_equals_cvxpy(name):
    problem = instances()[name]
    coef = np.random.default_rng(3).normal(size=(2, 8))
    problem.coefficients = coef
    assert problem.record.objective(coef).sum() == pytest.approx(problem.objective.value, rel=1e-12)


@pytest.mark.parametrize("name", ["relaxed", "state-row", "output-row", "exact"])
@pytest.mark.parametrize("normalised", [False, True])
def test_objective_of_models_equals_cvxpy(name, normalised):
    problem = instances()[name]
    record = problem.record
    problem = type(problem).from_record(record, normalised=normalised)
    for i, variable in enumerate(problem.variables()):
        variable.value = np.random.default_rng(i).normal(size=variable.shape)
    value = problem.objective.value * (record.scale if normalised else 1.0)
    assert record.objective(problem.coefficients) == pytest.approx(value, rel=1e-12)


def test_the_paper_has_no_half():
    """lam ||M a - z||^2 of (4) is 2 lam h(a)."""
    X, U, Z, _ = model_data()
    record = StateRow(X, U, Z[0], lam1=3.0).record
    w = np.random.default_rng(1).normal(size=(1, 8))
    expected = 3.0 * np.sum((np.vstack([X, U]).T @ w[0] - Z[0]) ** 2)
    assert record.objective(w) == pytest.approx(expected, rel=1e-12)
    assert paper_weight(np.array([3.0]))[0] == 6.0


def test_violations_are_seen():
    problem = instances()["relaxed"]
    w = np.zeros((7, 8))
    assert problem.record.violations(w) == {"ball": 0.0}
    w[2, 1], w[6, 0] = 1.98, 50.0
    assert problem.record.violations(w)["ball"] == pytest.approx(1.0)  # rows of C have no ball
    exact = instances()["exact"].record
    assert exact.violations(np.zeros((7, 8)))["matching"] == pytest.approx(1.0)
    rows = RowRecord.build(
        problem.record.fit, kappa=1.0, weights=[np.inf, 0, *[1.0] * 6], signs=[0] * 7 + [1]
    )
    a = np.zeros((7, 8))
    a[0, 0], a[1, 1], a[2, 2], a[3, 7] = 0.25, 9.0, 3.0, -0.5
    np.testing.assert_allclose(rows.violation(a), [0.25, 0, 2, 0.5, 0, 0, 0])
    assert (rows.violation(rows.feasible(a)) == 0).all()
    assert rows.feasible(a)[1, 1] == 9.0


def test_violations_are_relative_to_their_own_size():
    X, U, Z, Y = model_data()
    sets = [Box(-50.0, 75.0), lambda a, b: cp.norm1(b) <= 10.0]
    record = Relaxed(X, U, Z, Y, kappa=[0.0, 40.0, 1.0, 2.0, 3.0], sets=sets).record
    w = np.zeros((7, 8))
    w[6, 7] = 100.0
    found = record.violations(w)
    assert found == pytest.approx({"ball": 0.0, "set Box": 0.25, "set <lambda>": 0.9})
    w[1, 0] = -60.0
    assert record.violations(w)["ball"] == pytest.approx(0.5)
    w[0, 2] = 0.75  # kappa = 0: relative to 1
    assert record.violations(w)["ball"] == pytest.approx(0.75)
    # Entries below 1 count as such.
    small = np.zeros((7, 8))
    small[0, 1] = 1e-3
    assert record.violations(small)["ball"] == pytest.approx(1e-3)
    inside = record.nearest(w)
    assert record.violations(inside)["ball"] == 0.0
    assert record.violations(inside)["set Box"] == 0.0


def test_matching_is_relative_to_each_target_and_to_the_tolerance():
    X, U, Z, Y = matched_data()
    record = Exact(X, U, Z * np.array([1, 10, 100, 0, 1])[:, None], Y, tolerance=0.25).record
    w = np.vstack([np.linalg.lstsq(np.vstack([X, U]).T, t, rcond=None)[0]
                   for t in record.fit.target.T])  # fmt: skip
    assert record.violations(w)["matching"] == 0.0
    w[2] *= 0.6
    assert record.violations(w)["matching"] == pytest.approx(0.4 - 0.25)
    w[3] = np.linalg.lstsq(np.vstack([X, U]).T, Y[0], rcond=None)[0] / np.linalg.norm(Y[0])
    assert record.violations(w)["matching"] == pytest.approx(1.0 - 0.25)  # a zero target


def test_the_ball_of_radius_zero_is_written_as_equalities():
    problem = Relaxed(*model_data(), kappa=[0.0, 1.0, 1.0, 0.0, 2.0])
    zero, ball = problem.constraints
    problem.coefficients = np.full((7, 8), 0.5)
    np.testing.assert_allclose(zero.violation(), np.full((2, 5), 0.5))
    np.testing.assert_allclose(ball.violation(), [1.5, 1.5, 0.5])


def test_scales_of_records():
    X, U, Z, Y = matched_data()
    record = Relaxed(X, U, Z, Y, lam1=2.0, lam2=3.0).record
    assert record.scale == pytest.approx(2 * np.square(Z).sum() + 3 * np.square(Y).sum())
    assert Relaxed(X, U, 0 * Z, 0 * Y).record.scale == 1.0
    norms = np.linalg.norm(np.vstack([X, U]), axis=1)
    longest = np.linalg.norm(np.vstack([Z, Y]), axis=1).max()
    np.testing.assert_allclose(record.unit, longest / norms, rtol=1e-12)
    X0 = X.copy()
    X0[1] = 0.0
    np.testing.assert_allclose(
        Relaxed(X0, U, Z, Y).record.unit[1], longest / np.delete(norms, 1).max(), rtol=1e-12
    )
    exact = Exact(X, U, Z, Y).record
    w = np.linalg.lstsq(np.vstack([X, U]).T, np.vstack([Z, Y]).T, rcond=None)[0]
    assert exact.scale == pytest.approx(np.abs(w).sum())
    assert Exact(X, U, Z, Y, loss="zero").record.scale == 1.0
    # A loss that is rounding at least squares: that of columns of typical size instead.
    only_c = Exact(X, U, Z, 0 * Y, loss=lambda A, B, C, D: cp.norm1(C)).record
    assert only_c.scale == pytest.approx(2 * exact.unit[:5].sum(), rel=0.9)
    assert only_c.scale == pytest.approx(2 * only_c.unit[:5].sum())


def test_rows_and_parts_of_records():
    X, U, Z, Y = matched_data()
    record = Relaxed(X, U, Z, Y, kappa=[1, 2, 3, 4, 5], lam1=2.0, lam2=3.0, loss="l1").record
    part = record.take([1, 6])
    assert part.index.tolist() == [1, 6]
    assert part.lam.tolist() == [2.0, 3.0]
    assert part.kappa.tolist() == [2.0, np.inf]
    np.testing.assert_array_equal(part.fit.target, np.stack([Z[1], Y[1]], axis=1))
    w = np.arange(16.0).reshape(2, 8)
    assert {k: v.shape for k, v in part.split(w).items()} == {
        "A": (1, 5), "B": (1, 3), "C": (1, 5), "D": (1, 3),
    }  # fmt: skip
    np.testing.assert_array_equal(part.split(w)["D"], [[13.0, 14.0, 15.0]])
    assert set(record.take([0]).split(w[:1])) == {"A", "B"}
    assert record.coupling == ()
    coupled = Relaxed(X, U, Z, Y, loss="column-group", sets=lambda A, B, C, D: A == A.T).record
    assert coupled.coupling == ("loss ColumnGroup", "set <lambda>")
    assert not coupled.separable
    rows = Lasso(np.vstack([X, U]).T, Z.T, [1, 2, 3, 4, 5], weights=[0, 1, 2, 3, 4, 5, 6, 7]).record
    one = rows.row(2)
    coef = np.random.default_rng(0).normal(size=(5, 8))
    assert one.objective(coef[[2]]) == pytest.approx(rows.objective(coef)[[2]])
    ball = Constrained(np.vstack([X, U]).T, Z.T, [1, 2, 3, 4, 5]).record
    assert isinstance(ball.row(3).level, Radius)
    assert ball.row(3).level.values.tolist() == [4.0]


@pytest.mark.parametrize("kind", [Constrained, Lasso])
def test_rows_from_moments_are_those_of_the_arrays(kind):
    rng = np.random.default_rng(2)
    design, target = rng.normal(size=(20, 4)), rng.normal(size=(20, 3))
    moments = design.T @ design, target.T @ design, np.square(target).sum(axis=0)
    columns = {"weights": [1.0, np.inf, 2.0, 0.5], "signs": [0, 0, 1, -1]}
    given = kind(design, target, [0.5, 1.0, 2.0], **columns)
    made = kind.from_moments(*moments, [0.5, 1.0, 2.0], **columns)
    coef = rng.normal(size=(3, 4))
    for record, other in ((made.record, given.record), (made.record.row(1), given.record.row(1))):
        part = coef if record.fit.n_targets == 3 else coef[[1]]
        np.testing.assert_allclose(record.objective(part), other.objective(part), rtol=1e-12)
        np.testing.assert_array_equal(record.violation(part), other.violation(part))
    made.coefficients = given.coefficients = coef
    assert made.objective.value == pytest.approx(given.objective.value, rel=1e-12)
    some = made.record.fit.rows([2, 0])
    for kept, expected in zip(some.moments, (moments[0], *(v[[2, 0]] for v in moments[1:]))):  # noqa: B905
        np.testing.assert_array_equal(kept, expected)


def test_reduced_records_are_the_same_problem():
    X, U, Z, Y = matched_data()
    w = np.random.default_rng(1).normal(size=(7, 8))
    for record in (Relaxed(X, U, Z + 1.0, Y, loss="l1", lam1=2.0).record, Exact(X, U, Z, Y).record):
        small = record.reduced()
        assert record.fit.design.shape == (30, 8)
        assert small.fit.design.shape == (8, 8)
        assert small.objective(w) == pytest.approx(record.objective(w), rel=1e-12)
        assert small.violations(w) == pytest.approx(record.violations(w), rel=1e-12)
    rows = Lasso(np.vstack([X, U]).T, Z.T, 0.5).record
    np.testing.assert_allclose(rows.reduced().objective(w[:5]), rows.objective(w[:5]), rtol=1e-12)


def test_defaults_are_those_of_the_paper():
    X, U, Z, Y = matched_data()
    state, output = StateRow(X, U, Z[0]).record, OutputRow(X, U, Y[0]).record
    for record in (Relaxed(X, U, Z, Y).record, state, output):
        assert (record.lam == 1.0).all()
        assert record.loss.name == "loss Zero"
    exact = Exact(X, U, Z, Y).record
    assert (exact.loss.name, exact.tolerance) == ("loss L1", 0.0)
    for record in (Relaxed(X, U, Z, Y).record, exact):
        assert record.kappa.tolist() == [0.99] * 5 + [np.inf] * 2
    for record in (state, output, exact):
        assert record.sets == ()
    assert (state.kappa.tolist(), state.index.tolist()) == ([0.99], [0])
    assert (output.kappa.tolist(), output.index.tolist()) == ([np.inf], [5])


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_shrink_ends_inside_to_the_last_bit(scale):
    rng = np.random.default_rng(0)
    coef = rng.normal(size=(200, 9)) * scale
    weights = np.array([0.0, np.inf, *rng.uniform(0.1, 5, 7)])
    radius = rng.uniform(0, 2, 200) * scale
    radius[0] = 0.0
    out = shrink(coef, weights, radius)
    norm = (np.where(np.isfinite(weights), weights, 0) * np.abs(out)).sum(axis=1)
    assert (norm <= radius).all()
    assert (norm[1:] >= np.minimum(1 - 1e-12, norm[1:] / radius[1:]) * radius[1:]).all()
    assert (out[:, :2] == coef[:, :2]).all()


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_normalised_rows_have_the_same_solutions(scale):
    rng = np.random.default_rng(0)
    design, target = rng.normal(size=(20, 4)) * scale, rng.normal(size=(20, 2)) * [[1.0, 1e3]]
    for record in (
        Constrained(design, target, [1.0, 2.0], weights=[1, 2, 0, 30]).record,
        Lasso(design, target, [1.0, 2.0], weights=[1, 2, 0, 30]).record,
    ):
        small, factor = record.normalised()
        coef = rng.normal(size=(2, 4))
        ratio = record.objective(factor * coef) / small.objective(coef)
        np.testing.assert_allclose(ratio, record.fit.target_sq, rtol=1e-12)
        if isinstance(record.level, Radius):
            inside = small.columns.norm(coef) / small.level.values
            np.testing.assert_allclose(
                record.columns.norm(factor * coef) / record.level.values, inside, rtol=1e-12
            )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda X, U, Z, Y: Constrained(X.T, Z[0], -1.0), "kappa must be >= 0"),
        (lambda X, U, Z, Y: Constrained(X.T, Z[0], np.nan), "NaN"),
        (lambda X, U, Z, Y: Constrained(X.T, Z[:2].T, [1, 2, 3]), "kappa has shape"),
        (lambda X, U, Z, Y: Constrained(X.T, Z[0], 1, weights=[-1] * 5), "weights must be >= 0"),
        (lambda X, U, Z, Y: Constrained(X.T, Z[0], 1, bounded=[1] * 5), "boolean mask"),
        (lambda X, U, Z, Y: Lasso(X.T, Z[0], 1, signs=[2] * 5), "only -1, 0"),
        (lambda X, U, Z, Y: RowRecord.build(Lasso(X.T, Z[0], 1).record.fit), "exactly one"),
        (lambda X, U, Z, Y: Relaxed(X, U[:, 1:], Z, Y), "same samples"),
        (lambda X, U, Z, Y: Relaxed(X, U, Z[1:], Y), "do not fit X"),
        (lambda X, U, Z, Y: Relaxed(X, U, Z, Y, lam1=-1), "lam1 must be >= 0"),
        (lambda X, U, Z, Y: Relaxed(X, U, Z, Y, sets="causal"), "needs data"),
        (lambda X, U, Z, Y: Relaxed(X, U, Z, Y, loss=3), "is no loss"),
        (lambda X, U, Z, Y: Relaxed(X, U, Z, Y, loss=lambda w: w), "takes 1 arguments"),
        (lambda X, U, Z, Y: StateRow(X, U, Z[0], row=9), "row 9 of A does not exist"),
        (lambda X, U, Z, Y: StateRow(X, U, Z[0], loss="column-group"), "couples the rows"),
        (lambda X, U, Z, Y: Exact(X, U, Z * np.nan, Y), "NaN"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(InputError, match=words):
        call(*model_data())


@pytest.mark.parametrize("keyword", ["loss", "sets"])
def test_unknown_names_list_the_known(keyword):
    with pytest.raises(UnknownNameError, match=r"known: .*(box|l1)"):
        Relaxed(*model_data(), **{keyword: "lassso"})


def test_preflight_names_the_row_and_the_reason():
    X, U, Z, Y = matched_data()
    assert Exact(X, U, Z, Y).preflight.rank == 8
    Y = Y.copy()
    Y[1] += 1e-3 * np.random.default_rng(5).normal(size=30)
    with pytest.raises(
        FormulationError, match=r"infeasible because row 1 of Y.*1 such rows.*rank 8"
    ):
        Exact(X, U, Z, Y)
    assert Exact(X, U, Z, Y, tolerance=0.01).record.tolerance == 0.01
    Y[0] += 1e-5 * np.random.default_rng(6).normal(size=30)
    with pytest.raises(FormulationError, match=r"row 1 of Y.*2 such rows"):
        Exact(X, U, Z, Y)  # the worst of two


def test_preflight_refuses_float32_states():
    X, U, Z, Y = (np.asarray(v, dtype=np.float32) for v in matched_data())
    with pytest.raises(FormulationError, match="Capture the states in float64"):
        Exact(X, U, Z, Y)
    assert Exact(X, U, Z, Y, tolerance=1e-6).preflight.residual.max() < 1e-6


def test_preflight_of_rank_deficient_states():
    X, U, _, _ = matched_data()
    X[0] = X[1]
    X[2] = 0.0
    assert Exact(X, U, np.eye(5)[::-1] @ X, U[:2]).preflight.rank == 6
