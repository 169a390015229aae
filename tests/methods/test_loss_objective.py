"""A user's loss in the main job: against CVXPY by hand, the fast path, and planted mistakes."""

import dataclasses
import threading

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import nn

import cimf
from cimf.errors import CertificateError, FormulationError, InputError, UnknownNameError
from cimf.judge.certificate import certify_bounds
from cimf.methods.stacked import loss_rows
from cimf.methods.stacked.captured import Reference
from cimf.methods.stacked.designs import DESIGNS, column_weights
from cimf.methods.stacked.loss_options import LossOptions
from cimf.methods.stacked.moments import Moments
from cimf.methods.stacked.sensitivity_options import SensitivityOptions
from cimf.solve.conic import cvxpy_models
from formulations import LOSSES, SETS, LeastSquares, Relaxed, Rows, StateRow, StateRows
from formulations.columns import Columns
from formulations.fits import HuberFit
from formulations.state_rows import StateRowsRecord


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


@pytest.fixture(scope="module")
def net():
    return network().eval()


@pytest.fixture(scope="module")
def inputs():  # away from zero: the bias has work to do
    return 1.5 + torch.randn(200, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def reference(net, inputs):
    return Reference.capture(net, [inputs])


def solved(reference, kappa=0.5, design="causal", rescale=True, **options):
    return cimf.sparsify_path(reference, [kappa], design, rescale, LossOptions(**options))[0]


def by_hand(reference, i, kappa, lam, rescale):
    """Row i of the l1 loss on the samples themselves, the bias a variable that nothing counts."""
    (states,) = reference.calibration.chunks()
    states = states.scaled(reference.scale(rescale))
    used = DESIGNS["causal"].allowed(states)[i] & ~states.free_columns
    a, bias = cp.Variable(int(used.sum())), cp.Variable()
    M = np.concatenate([states.X, states.U]).T[:, used]
    fit = 0.5 * cp.sum_squares(states.Z[i] - M @ a - bias)
    ball = [cp.norm1(a) <= kappa] if np.isfinite(kappa) else []
    problem = cp.Problem(cp.Minimize(fit + lam * cp.norm1(a)), ball)
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    row = np.zeros(used.size)
    row[used] = a.value
    row[states.free_columns] = bias.value
    return problem.value, row


@pytest.mark.parametrize(("kappa", "rescale"), [(0.5, True), (0.5, False), (None, True)])
def test_l1_against_cvxpy_by_hand(reference, kappa, rescale):
    report = solved(reference, kappa, rescale=rescale, loss="l1", lam=2.0).report
    solution = report.solution
    for i in (0, 4, 7):
        wanted, row = by_hand(reference, i, np.inf if kappa is None else kappa, 2.0, rescale)
        assert solution.objective[i] == pytest.approx(wanted, rel=1e-6)
        np.testing.assert_allclose(solution.coef[i], row, atol=2e-4 * np.abs(row).max())
        assert ((solution.coef[i] != 0) == (np.abs(row) > 1e-5)).all(), "exact zeros"
    assert report.certified == 11
    assert report.rescale is rescale


@pytest.mark.parametrize("design", DESIGNS)
def test_without_a_ball_l1_is_the_fast_penalty(reference, design):
    """Q(lam) by the exact path, on the same moments: same optimum, same zeros."""
    report = solved(reference, None, design, loss="l1", lam=3.0, allow_ill_posed=True).report
    layout = reference.calibration.layout
    weights = column_weights(layout, DESIGNS[design].allowed(layout))
    exact = cimf.solve_rows(Moments.of(reference).gram, lam=3.0, weights=weights, n_jobs=1)
    np.testing.assert_allclose(report.solution.objective, exact.objective, rtol=1e-6)
    np.testing.assert_allclose(report.solution.coef, exact.coef, atol=1e-4)
    np.testing.assert_array_equal(report.solution.coef != 0, exact.coef != 0)
    assert report.kappa == np.inf
    assert str(report).startswith(f"no ball, design {design}, states rescaled")


def test_without_a_loss_sets_bound_the_plain_ball(net, inputs, reference):
    plain = cimf.sparsify_path(reference, [0.3], "causal")[0].report.solution
    same = solved(reference, 0.3, loss="zero").report.solution
    np.testing.assert_allclose(same.objective, plain.objective, rtol=1e-6, atol=1e-6)
    wide = cimf.sparsify(net, [inputs], 0.3, "causal", sets=SETS["box"](-0.05, 0.05)).report
    found = wide.solution.coef[:, :-1]
    assert np.abs(found).max() <= 0.05 * (1 + 1e-9)
    assert (wide.solution.objective >= plain.objective * (1 - 1e-9)).all()
    assert "in Box" in str(wide)


def written(a, b):
    return cp.norm1(a) + cp.norm1(b)


def lifted(a, b):
    t = cp.Variable(a.size + b.size, nonneg=True)
    row = cp.hstack([a, b])
    return cp.sum(t), [row <= t, -row <= t]


@pytest.mark.parametrize("loss", [written, lifted, 0.5 * LOSSES["l1"]() + 0.5 * LOSSES["l1"]()])
def test_a_loss_of_the_users_own_is_the_named_one(net, inputs, reference, loss):
    named = solved(reference, loss="l1").report
    own = cimf.sparsify(net, [inputs], 0.5, "causal", loss=loss).report
    np.testing.assert_allclose(own.solution.objective, named.solution.objective, rtol=1e-6)
    assert own.loss.value == pytest.approx(named.loss.value, rel=1e-5)
    assert own.certified == 11


def test_the_loss_sees_no_bias_and_whole_rows(reference):
    seen = []

    def looking(a, b):
        seen.append((a.shape, b.shape))
        return 1e6 * cp.square(b[-1]) + cp.square(a[0])

    report = solved(reference, loss=looking).report
    assert set(seen) == {((11,), (5,))}
    assert report.loss.value < 1.0
    assert np.abs(report.solution.coef[:, -1]).max() > 0.1


@pytest.mark.parametrize("loss", ["row-sums", "column-group"])
def test_coupled_rows_are_solved_whole(reference, loss):
    """Against the plain formulation with the bias's share of the data taken out by hand."""
    report = solved(reference, 0.5, "full", loss=loss, lam=2.0).report
    (states,) = reference.calibration.chunks()
    states = states.scaled(reference.scale(True))
    X, U, Z = (part - part.mean(axis=1, keepdims=True) for part in (states.X, states.U, states.Z))
    ball = SETS["l1-ball"](0.5)
    term = 2.0 * LOSSES[loss]()
    none = np.zeros((0, 200))
    problem = Relaxed(X, U[:-1], Z, none, kappa=None, loss=term, sets=ball, lam1=0.5)
    wanted = cimf.solve_cvxpy(problem).objective
    np.testing.assert_allclose(report.solution.objective, wanted, rtol=1e-6)
    assert report.certified == 11
    assert "solved together, with one certificate" in str(report)


@pytest.mark.parametrize("kappa", [0.0, 0.2, 0.5, None])
def test_l1_by_the_exact_path_is_that_of_the_cone_solver(reference, kappa):
    """Some rows are held back by the ball and some by the loss; the same optimum and zeros."""
    exact = solved(reference, kappa, loss=2.0 * LOSSES["l1"](), lam=4.0).report
    cone = solved(reference, kappa, loss="l1", lam=8.0, backend="clarabel").report
    assert set(exact.methods) != {"clarabel"} == set(cone.methods)
    np.testing.assert_allclose(
        exact.solution.objective, cone.solution.objective, rtol=1e-6, atol=1e-7
    )
    np.testing.assert_allclose(exact.solution.coef, cone.solution.coef, atol=1e-4)
    assert exact.certified == cone.certified == 11
    assert exact.loss.value == pytest.approx(2.0 * cone.loss.value, rel=1e-4)
    if kappa == 0.2:
        assert 0 < exact.loss.inside < 11, "both kinds of rows"
    assert (exact.solution.gap <= 1e-9).all()
    assert exact.loss.inside == cone.loss.inside


def test_kappa_zero_leaves_the_bias(reference):
    report = solved(reference, 0.0, loss="l1").report
    (states,) = reference.calibration.chunks()
    states = states.scaled(reference.scale(True))
    np.testing.assert_array_equal(report.solution.coef[:, :-1], 0.0)
    np.testing.assert_allclose(report.solution.coef[:, -1], states.Z.mean(axis=1), rtol=1e-9)
    assert report.loss.value == 0
    assert report.loss.inside == 0
    assert report.certified == 11


def test_a_multiplier_of_nothing_is_no_loss(reference):
    none, zero = (solved(reference, 0.2, **given) for given in ({"loss": "l1", "lam": 0}, {}))
    np.testing.assert_allclose(
        none.report.solution.objective, zero.report.solution.objective, rtol=1e-6, atol=1e-6
    )


def test_processes_change_no_bit(reference):
    one, two = (solved(reference, loss="l1", n_jobs=jobs) for jobs in (1, 2))
    np.testing.assert_array_equal(one.report.solution.coef, two.report.solution.coef)
    np.testing.assert_array_equal(one.report.solution.gap, two.report.solution.gap)


def test_the_report_says_what_the_loss_was(reference):
    result = solved(reference, 0.3, loss="group", lam=0.5)
    text, row = str(result.report), result.report.row()
    assert "11 of 11 rows certified at 1e-07" in text
    assert "(clarabel:11)" in text or "(mosek:11)" in text
    assert f"loss          Group = {result.report.loss.value:.6g}, multiplier 0.5; " in text
    scaled = result.model.scaled(reference.scale(True))
    W = np.hstack([scaled.A, scaled.B])
    W[:, -1] = 0.0
    value = LOSSES["group"]().value(Rows(W, np.arange(11), 11))
    assert row["loss_value"] == pytest.approx(value, rel=1e-9)
    assert (row["loss"], row["lam"], row["certified"]) == ("Group", 0.5, 11)
    assert all(isinstance(v, int | float | str | bool | None) for v in row.values())
    plain = cimf.sparsify_path(reference, [0.3], "causal")[0].report
    assert "loss" not in plain.row()
    assert "loss  " not in str(plain)


def concave(a, b):
    return cp.sqrt(cp.sum(a))


def missing(a, b):
    return cp.norm1(a) + np.nan


class Liar(LOSSES["l1"]):
    def value(self, rows):
        return np.nan


def bottomless(a, b):
    return cp.sum(a) - cp.Variable(nonneg=True)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (concave, "not convex"),
        (missing, "nan"),
        (Liar(), "value.. gives nan"),
        (lambda a, b: a, "a scalar is needed"),
        (lambda a, b: 3, "a CVXPY expression is needed"),
        (bottomless, "unbounded below"),
    ],
)
def test_losses_that_are_none_are_refused(reference, loss, words):
    with pytest.raises(FormulationError, match=words):
        solved(reference, loss=loss)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"loss": "l2"}, r"unknown loss 'l2'; known: .*l1.*sensitivity"),
        ({"loss": "weighted-l1"}, "needs data"),
        ({"loss": LOSSES["l1"]}, "an instance of Loss"),
        ({"loss": "l1", "sets": "bx"}, "unknown set 'bx'; known: box"),
        ({"loss": "l1", "lam": -1.0}, "lam must be a number >= 0"),
        ({"loss": "l1", "lam": float("nan")}, "lam must be a number >= 0"),
        ({"loss": "l1", "method": "torch"}, "unknown option 'method'; known: .*lam"),
        ({"loss": "l1", "backend": "gurobi"}, "unknown backend 'gurobi'"),
        ({"loss": "l1", "kappa": None, "design": "full"}, "unique equilibrium"),
        ({"loss": "l1", "kappa": [0.1, 0.2]}, "kappa must be one number"),
        ({"loss": "l1", "kappa": -0.1}, "kappas must be"),
        ({"loss": "l1", "kappa": float("nan")}, "kappas must be"),
        ({"loss": "l1", "design": "layered"}, "cimf.prune"),
        ({"loss": "l1", "n_jobs": 0}, "n_jobs must not be 0"),
        ({"loss": "sensitivity", "sets": "box"}, "takes no sets"),
        ({"lam": 1.0}, "lam is the multiplier of a loss"),
        ({"kappa": None}, "kappa must be one number"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_captured(given, words):
    with pytest.raises(InputError, match=words) as caught:
        cimf.sparsify(None, None, **{"design": "causal", **given})
    assert isinstance(caught.value, UnknownNameError) == ("unknown" in words)


def test_sets_that_exclude_each_other_are_named(reference):
    with pytest.raises(FormulationError, match="infeasible"):
        solved(reference, 0.1, loss="l1", sets=lambda a, b: [b[0] >= 1.0])


def test_a_row_on_which_the_backend_fails_is_reported_or_raises(reference, monkeypatch):
    honest, rows = cvxpy_models._solve_piece, []

    def failing(problem, *arguments):
        rows.append(problem.record.index[0])
        if problem.record.index[0] == 3:
            raise cimf.errors.BackendError("planted")
        return honest(problem, *arguments)

    monkeypatch.setattr(cvxpy_models, "_solve_piece", failing)
    with pytest.raises(CertificateError, match=r"kappa = 0.5: 1 of 11 rows.*worst row 3") as caught:
        solved(reference, loss="robust")
    kept = solved(reference, loss="robust", keep_going=True).report
    assert kept.certified == 10
    assert kept.methods == {"clarabel": 10, "none": 1}
    np.testing.assert_array_equal(kept.solution.coef, caught.value.solution.coef)
    assert len(rows) == 22


def test_planted_mistakes_are_not_certified(reference):
    """The certificate is taken from the moments and the coefficients, whoever found them."""
    report = solved(reference, loss="l1", lam=2.0).report
    solution, gram = report.solution, Moments.of(reference).gram
    layout = reference.calibration.layout
    weights = column_weights(layout, DESIGNS["causal"].allowed(layout))
    columns = Columns(weights, np.zeros(layout.n_columns, dtype=np.int8))
    parts = [[i] for i in range(11)]

    def judged(coef, shift=0.0):
        cost = 2.0 * np.abs(coef[:, :-1]).sum(axis=1)
        bounds = solution.objective - shift
        return certify_bounds(gram, coef, columns, cost, bounds, np.zeros(11), parts, 1e-7)

    assert judged(solution.coef).passed.all()
    assert not judged(solution.coef, shift=1e-3 * gram.target_sq).passed.any()
    for wrong in (0.99 * solution.coef, np.where(solution.coef, solution.coef + 1e-2, 0.0)):
        assert not judged(wrong).passed.any()
    outside = solution.coef.copy()
    outside[:, 0] += 1e-3  # the last layer's first unit: no row may use it
    assert (judged(outside).violation >= 1e-3 * (1 - 1e-9)).all()
    together = certify_bounds(
        gram, solution.coef, columns, np.array([2.0 * np.abs(solution.coef[:, :-1]).sum()]),
        np.array([solution.objective.sum()]), np.zeros(1), [list(range(11))], 1e-7,
    )  # fmt: skip
    assert together.passed.all()


def test_a_direction_that_the_factor_leaves_out_is_not_certified_away():
    """Two columns that differ by 1e-8: only their difference, at weights of 1e8, fits the target.

    The eigenvalue of that direction, 5e-17, is rounding of the moments: the factor has lost it.
    """
    rng = np.random.default_rng(0)
    g, v = np.linalg.qr(rng.normal(size=(50, 2)))[0].T
    gram = cimf.Gram.from_arrays(np.stack([g, g + 1e-8 * v], axis=1), v[:, None])
    factored = loss_rows._Factored.of(gram, np.zeros(2, dtype=bool))
    kappa, allowed = 2e8, np.ones((1, 2), dtype=bool)
    record = StateRowsRecord.build(factored.fit, 1, allowed, kappa, "zero", (), 0.5)
    bound = float(factored.fit.value(np.zeros((1, 2)))[0])
    assert bound == pytest.approx(0.5), "by the factor nothing can be gained"
    shift = factored.shift(record, np.inf)
    assert bound - shift[0] <= 0.0, "and by the samples, everything"
    small = dataclasses.replace(record, kappa=np.array([0.5]))
    assert factored.shift(small, np.inf)[0] < 1e-7


def test_what_the_bias_leaves_is_the_centred_problem():
    rng = np.random.default_rng(0)
    M, z = 3.0 + rng.normal(size=(40, 5)), rng.normal(size=(40, 2)) - 1.0
    M[:, 4], M[:, 2] = 1.0, 7.0  # the bias, and a column that is constant as well
    gram, free = cimf.Gram.from_arrays(M, z), np.arange(5) == 4
    factored = loss_rows._Factored.of(gram, free)
    fit, centred = factored.fit, M - M.mean(axis=0)
    np.testing.assert_array_equal(fit.design[:, [2, 4]], 0.0)
    np.testing.assert_allclose(fit.design.T @ fit.design, centred.T @ centred, atol=1e-12)
    coef = np.where([True, True, False, True, False], rng.normal(size=(2, 5)), 0.0)
    wanted = 0.5 * np.square(z - z.mean(axis=0) - centred @ coef.T).sum(axis=0)
    np.testing.assert_allclose(fit.value(coef), wanted, rtol=1e-12)
    best = z.mean(axis=0) - coef @ M.mean(axis=0)
    np.testing.assert_allclose(factored.free_values(gram, coef)[:, 0], best, rtol=1e-12)


@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_a_mean_far_from_zero_costs_no_certificate(mean):
    inputs = mean + torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
    report = cimf.sparsify(network(), [inputs], 0.5, "causal", loss="l1").report
    assert report.certified == 11


def test_inputs_that_never_move_and_twins(net):
    inputs = torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
    inputs[:, 0], inputs[:, 1] = 0.7, inputs[:, 2]
    report = cimf.sparsify(net, [inputs], 0.5, "causal", loss="l1").report
    assert report.certified == 11
    np.testing.assert_array_equal(report.solution.coef[:, 11], 0.0)


def test_a_formulation_of_its_own(reference):
    """`StateRows` through `solve_cvxpy`, against the rows of (4) one by one, without dropping."""
    rng = np.random.default_rng(0)
    X, U, Z = (rng.normal(size=(k, 50)) for k in (3, 2, 3))
    fit = LeastSquares.from_arrays(np.vstack([X, U]).T, Z.T)
    allowed = rng.random((3, 5)) < 0.7
    allowed[1] = [False, False, False, True, False]
    rows = StateRows(fit, 3, allowed, kappa=[0.3, 2.0, 0.0], loss="l1", lam1=0.5)
    found = cimf.solve_cvxpy(rows).raise_if_failed()
    W = np.hstack([found.A, found.B])
    assert not W[~allowed].any()
    np.testing.assert_array_equal(rows.coefficients, W)
    pattern = SETS["pattern"](np.vstack([allowed, allowed[:1]]))  # and a row of (C, D)
    for i, kappa in enumerate((0.3, 2.0, 0.0)):
        sets = [pattern, SETS["l1-ball"](kappa)]
        row = StateRow(X, U, Z[i], row=i, kappa=None, loss="l1", sets=sets, lam1=0.5)
        wanted = cimf.solve_cvxpy(row)
        assert found.bounds[i] == pytest.approx(wanted.objective, rel=1e-6)
        np.testing.assert_allclose(np.hstack([wanted.A, wanted.B])[0], W[i], atol=1e-4)
    with pytest.raises(InputError, match="row 1 may use no column"):
        StateRows(fit, 3, allowed & (np.arange(5) != 3))
    with pytest.raises(InputError, match=r"boolean matrix \(3, 5\)"):
        StateRows(fit, 3, allowed[:2])
    with pytest.raises(InputError, match="n_jobs must not be 0"):
        cimf.solve_cvxpy(rows, n_jobs=0)


def test_moments_of_other_samples(reference, net, inputs):
    """Twice the samples weigh as much as half the multiplier."""
    own = Moments.of(reference)
    options = LossOptions(loss="l1", lam=4.0)
    twice = cimf.sparsify_path(reference, [0.5], "causal", options=options, moments=own.merge(own))[
        0
    ].report
    half = solved(reference, loss="l1", lam=2.0).report
    np.testing.assert_allclose(twice.solution.coef, half.solution.coef, atol=1e-4)
    with pytest.raises(InputError, match="moments of the states"):
        cimf.sparsify_path(reference, [0.5], options=SensitivityOptions(), moments=own)


def test_progress_counts_rows_of_every_level(reference):
    done = []
    results = cimf.sparsify_path(
        reference, [0.1, None], "causal", options=LossOptions(loss="robust"), progress=done.append
    )
    assert done == [*range(1, 12)] * 2
    assert [result.report.kappa for result in results] == [0.1, np.inf]


@pytest.mark.parametrize("bias", [0.0, 0.3, -0.3])
@pytest.mark.parametrize(("loss", "lam"), [("l1", 0.1), ("l1", 1e6), ("zero", 1.0), ("l1", 0.0)])
@pytest.mark.parametrize("kappa", [0.5, None])
def test_states_that_never_change_have_empty_rows(inputs, bias, loss, lam, kappa):
    """Beside the bias their target is nothing but rounding, which gives no scale."""
    net = network()
    with torch.no_grad():
        net[2].weight[1], net[2].bias[1] = 0.0, bias
    result = cimf.sparsify(net, [inputs], kappa, "causal", loss=loss, lam=lam)
    assert result.report.certified == 11
    still = [b.start + 1 for b in result.model.blocks if b.stop - b.start == 5]
    assert not result.model.A[still].any()
    assert not result.model.B[still, :-1].any()
    np.testing.assert_allclose(result.model.B[still, -1], bias, atol=1e-12)


def test_a_loss_that_may_be_negative_is_not_bounded_by_zero(reference):
    """-a_0 on a set: the bound comes from the solver alone."""
    options = LossOptions(loss=lambda a, b: -cp.sum(a), sets="nonnegative", lam=0.1)
    found = cimf.sparsify_path(reference, [0.5], "causal", True, options)[0].report
    assert found.certified == 11
    assert found.loss.value < 0.0


def broken(a, b):
    return a.nothing


def locked(lock):
    def loss(a, b):
        assert not lock.locked()
        return cp.norm1(a) + cp.norm1(b)

    return loss


def test_faults_of_a_users_function_are_named(reference):
    with pytest.raises(FormulationError, match="function broken raised AttributeError") as raised:
        solved(reference, loss=broken)
    assert isinstance(raised.value.__cause__, AttributeError)
    with pytest.raises(InputError, match="n_jobs=1"):
        solved(reference, loss=locked(threading.Lock()), n_jobs=2)


@pytest.mark.parametrize(("fit", "kappa"), [("huber", 0.3), ("absolute", None)])
def test_other_fits_against_cvxpy_by_hand(reference, fit, kappa):
    report = solved(reference, kappa, loss="l1", lam=0.5, fit=fit, sets="box").report
    (states,) = reference.calibration.chunks()
    states = states.scaled(reference.scale(True))
    for i in (0, 7):
        used = DESIGNS["causal"].allowed(states)[i] & ~states.free_columns
        a, bias = cp.Variable(int(used.sum())), cp.Variable()
        rest = states.Z[i] - np.concatenate([states.X, states.U]).T[:, used] @ a - bias
        cost = cp.sum(cp.huber(rest)) if fit == "huber" else cp.norm1(rest)
        inside = [cp.abs(a) <= 1] + ([] if kappa is None else [cp.norm1(a) <= kappa])
        problem = cp.Problem(cp.Minimize(0.5 * cost + 0.5 * cp.norm1(a)), inside)
        problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10)
        assert report.solution.objective[i] == pytest.approx(problem.value, rel=1e-6)
    assert report.certified == 11
    assert "fit HuberFit(knee=1.0)" in str(report) or "fit AbsoluteFit" in str(report)
    assert report.row()["fit"].startswith(("HuberFit", "AbsoluteFit"))


def test_a_wide_knee_is_least_squares(net, inputs, reference):
    wide = HuberFit(1e3)
    huber = cimf.sparsify(net, [inputs], 0.3, "causal", fit=wide).report.solution
    plain = cimf.sparsify_path(reference, [0.3], "causal")[0].report.solution
    np.testing.assert_allclose(huber.objective, plain.objective, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(huber.coef, plain.coef, atol=1e-3)


def test_bad_fits(reference):
    with pytest.raises(InputError, match="the states are no labels"):
        solved(reference, loss="l1", fit="logistic")
    options = LossOptions(loss="l1", fit="huber")
    with pytest.raises(InputError, match="needs the samples, not moments"):
        cimf.sparsify_path(
            reference, [0.5], "causal", options=options, moments=Moments.of(reference)
        )
    assert "fit" not in LossOptions(loss="l1").decisive
    assert options.decisive["fit"] == "HuberFit(knee=1.0)"
