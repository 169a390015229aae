"""Records: objective, violation and scaling agree with the CVXPY problems and with the formulas."""

import numpy as np
import pytest

from formulations import FORMULATIONS, Constrained, Exact, Lasso, OutputRow, Relaxed, StateRow
from formulations.columns import shrink
from formulations.errors import FormulationError, InputError, UnknownNameError
from formulations.problem import RowRecord, paper_weight


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
        if record.kappa is not None:
            inside = small.columns.norm(coef) / small.kappa
            np.testing.assert_allclose(
                record.columns.norm(factor * coef) / record.kappa, inside, rtol=1e-12
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
