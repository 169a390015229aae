"""Certificates beside free columns: relative to what these leave of the target."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize

from cimf.errors import CertificateError
from cimf.judge import certify, energy
from cimf.solve.rows import solve_path, solve_rows
from cimf.statistics import Gram
from cimf.verification import Problem
from formulations.columns import Columns

BIAS = np.array([True, True, True, False])


def _offset(offset, noise=0.1, m=60):
    """A target that is linear in three columns, with noise, and a mean."""
    rng = np.random.default_rng(0)
    design = np.column_stack([rng.normal(size=(m, 3)), np.ones(m)])
    target = design[:, :3] @ [0.3, -0.2, 0.1] + noise * rng.normal(size=m)
    return design, target + offset


def test_the_unit_of_a_gap_is_what_the_free_columns_leave():
    design, target = _offset(3.0)
    free = design[:, 1:]
    left = target - free @ np.linalg.lstsq(free, target, rcond=None)[0]
    gram = Gram.from_arrays(design, target)
    weights = np.array([[1.0, 0.0, 0.0, 0.0]])
    columns = Columns.build(4, 1, weights=weights)
    np.testing.assert_allclose(energy(gram, columns), 0.5 * left @ left, rtol=1e-12)
    np.testing.assert_array_equal(energy(gram, Columns.build(4, 1)), 0.5 * gram.target_sq)
    problem = Problem("p", design, target, 0.5, weights[0])
    assert problem.scale == pytest.approx(0.5 * left @ left, rel=1e-12)
    # Rows with free columns of their own: each has its own energy.
    both = Gram.from_arrays(design, np.column_stack([target, target]))
    rows = Columns.build(4, 2, weights=[[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
    centred = target - target.mean()
    np.testing.assert_allclose(
        energy(both, rows), [0.5 * left @ left, 0.5 * centred @ centred], rtol=1e-12
    )


@pytest.mark.parametrize("lam", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4])
def test_a_relative_gap_does_not_depend_on_the_mean(offset, lam):
    design, target = _offset(offset)
    mean = np.array([0.0, 0.0, 0.0, target.mean()])
    level = {"lam": 0.1} if lam else {"kappa": 0.5}
    cert = certify(Gram.from_arrays(design, target), mean, bounded=BIAS, **level)
    plain = certify(
        Gram.from_arrays(design, target - offset),
        mean - [0.0, 0.0, 0.0, offset],
        bounded=BIAS,
        **level,
    )
    np.testing.assert_allclose(cert.gap, plain.gap, rtol=1e-6)
    assert not cert.passed[0]


@pytest.mark.parametrize("method", ["exact", "bisection", "torch"])
def test_solvers_aim_at_that_unit(method):
    """At 1/2 ||z||^2 an error of 1e-10 would be 1e-7 of what there is to explain."""
    design, target = _offset(10.0)
    gram = Gram.from_arrays(design, target)
    for kappa in (0.1, 0.5, 5.0):
        solution = solve_rows(gram, kappa, bounded=BIAS, method=method)
        assert solution.status.tolist() == ["optimal"]
        centred = design - [*design[:, :3].mean(axis=0), 0.0]
        truth = solve_rows(
            Gram.from_arrays(centred[:, :3], target - target.mean()), kappa, tol=1e-12
        )
        left = 0.5 * np.square(target - target.mean()).sum()
        assert abs(solution.objective[0] - truth.objective[0]) <= 2e-9 * left


def test_a_mean_of_1e6_certifies_nothing():
    """a = 0 was certified with gap 6e-12 at an excess of 75 % of the centred energy."""
    design, target = _offset(1e6)
    gram = Gram.from_arrays(design, target)
    nothing = certify(gram, [0.0, 0.0, 0.0, target.mean()], kappa=2.0, bounded=BIAS)
    assert not nothing.passed[0]
    assert nothing.gap[0] > 0.1
    best = solve_rows(gram, 2.0, bounded=BIAS)
    assert best.status[0] in ("limited", "inaccurate")


def test_a_target_at_the_limit_of_its_moments_is_named():
    design, target = _offset(1e6, noise=0.0)
    target = 1e6 + 0.3 * (target - 1e6)
    gram = Gram.from_arrays(design, target)
    cert = certify(gram, [0.09, -0.06, 0.03, 1e6], kappa=0.5, bounded=BIAS)
    if not cert.passed[0]:
        assert cert.limited[0]
        cert.raise_if_failed()
    wrong = certify(gram, [0.09, -0.06, 0.03, 1e6 + 1.0], kappa=0.5, bounded=BIAS)
    assert not (wrong.passed | wrong.limited).any()
    with pytest.raises(CertificateError):
        wrong.raise_if_failed()


@pytest.mark.parametrize("constant", [0.1, 1.0, -3.7e5])
@pytest.mark.parametrize("m", [10, 1000])
def test_a_constant_target_is_matched_by_the_bias(constant, m):
    design = _offset(0.0, m=m)[0]
    gram = Gram.from_arrays(design, np.full(m, constant))
    solution = solve_rows(gram, 0.5, bounded=BIAS)
    assert solution.status[0] in ("optimal", "limited")
    solution.raise_if_failed()
    np.testing.assert_allclose(
        solution.coef, [[0.0, 0.0, 0.0, constant]], atol=1e-12 * abs(constant)
    )
    if m == 10:
        assert solution.status[0] == "optimal"


def test_a_target_in_the_span_of_the_free_columns_passes():
    rng = np.random.default_rng(1)
    design = rng.normal(size=(50, 6))
    weights = np.array([1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    target = design[:, 2:] @ rng.normal(size=(4, 8))
    solution = solve_rows(Gram.from_arrays(design, target), 0.5, weights=weights)
    assert (solution.status == "optimal").all()
    assert solution.certificate.worst_gap <= 1e-12
    other = certify(Gram.from_arrays(design, target), 1.001 * solution.coef, 0.5, weights=weights)
    assert not (other.passed | other.limited).any()


def test_a_short_repr():
    design, target = _offset(0.0)
    solution = solve_rows(Gram.from_arrays(design, target), 0.5, bounded=BIAS)
    text = repr(solution)
    assert len(text) < 200
    assert "1 rows x 4 columns" in text
    assert "1 optimal" in text
    assert "1 of 1 rows passed" in repr(solution.certificate)


@pytest.mark.parametrize("m", [4, 50])
@pytest.mark.parametrize("apart", [1e-5, 3e-8, 1e-8, 1e-9])
def test_free_columns_that_are_almost_alike_certify_nothing_wrong(m, apart):
    """Their difference has a square that G rounds away, and may fit all of the target."""
    rng = np.random.default_rng(0)
    u, v, noise, z = rng.standard_normal((4, m))
    free = np.column_stack([u, u + apart * noise])
    basis = np.linalg.qr(free)[0]
    rest, left = (x - basis @ (basis.T @ x) for x in (v, z))
    best = np.clip(rest @ left / (rest @ rest), -0.3, 0.3)
    gram = Gram.from_arrays(np.column_stack([v, free]), z)
    pinv = np.linalg.lstsq(free, z - 0.3 * v, rcond=1e-7)[0]
    own = np.linalg.lstsq(free, z - best * v, rcond=None)[0]
    for a in ([0.3, *pinv], [best, *own]):
        excess = 0.5 * np.sum((np.column_stack([v, free]) @ a - z) ** 2) - 0.5 * np.sum(
            (left - best * rest) ** 2
        )
        found = certify(gram, np.array(a), 0.3, weights=[1.0, 0.0, 0.0])
        assert not found.passed[0] or excess <= 1e-6 * np.sum(left**2)
    twice = Gram.from_arrays(np.column_stack([v, u, u]), z)  # alike: passes as ever
    rest, left = (x - u * (u @ x) / (u @ u) for x in (v, z))
    best = np.clip(rest @ left / (rest @ rest), -0.3, 0.3)
    a = np.array([best, u @ (z - best * v) / (u @ u), 0.0])
    assert certify(twice, a, 0.3, weights=[1.0, 0.0, 0.0]).passed[0]


# Inside the ball: kappa does not magnify the rounding of the gradient

KINDS = ["full rank", "duplicates", "deficient", "wide", "scales", "nearly equal", "bias"]


def _design(kind, rng):
    design = rng.normal(size=(60, 20))
    if kind == "duplicates":
        design[:, 15:] = -design[:, :5]
    elif kind == "deficient":
        design[:, 12:] = design[:, :12] @ rng.normal(size=(12, 8))
    elif kind == "wide":
        design = rng.normal(size=(15, 20))
    elif kind == "scales":
        design *= 10.0 ** rng.uniform(-3, 3, 20)
    elif kind == "nearly equal":
        design[:, 15:] = design[:, :5] + 1e-5 * design[:, 15:]
    elif kind == "bias":
        design[:, 0] = 1.0
    return design


def _least_residual(design, target):
    """Return the residual of least squares, in long double: the basis is refined to orthonormal."""
    basis, size, _ = np.linalg.svd(design, full_matrices=False)
    basis = basis[:, size > 1e-12 * size[0]].astype(np.longdouble)
    for _ in range(3):  # Newton's iteration towards the polar factor
        basis = 1.5 * basis - 0.5 * basis @ (basis.T @ basis)
    return target - basis @ (basis.T @ target.astype(np.longdouble))


@pytest.mark.parametrize("kappa", [1e3, 1e9, 1e300])
@pytest.mark.parametrize("kind", KINDS)
def test_a_gap_inside_the_ball_is_a_bound_of_the_excess(kind, kappa):
    """Against the excess over least squares, from the data in long double."""
    rng = np.random.default_rng(KINDS.index(kind))
    for _ in range(8):
        design = _design(kind, rng)
        target = rng.normal(size=len(design))
        least = _least_residual(design, target)
        best = np.linalg.lstsq(design, target, rcond=1e-12)[0]
        gram = Gram.from_arrays(design, target)
        for step in (0.0, 1e-9, 1e-6, 1e-4, 1e-2):
            coef = best + step * rng.normal(size=20) / np.linalg.norm(design, axis=0)
            for weights in (np.ones(20), rng.choice([0.0, 0.5, 2.0], 20)):
                cert = certify(gram, coef, kappa, weights=weights)
                left = design.astype(np.longdouble) @ coef - target
                excess = 0.5 * (left @ left - least @ least)
                unit = energy(gram, Columns.build(20, 1, weights=weights))[0]
                rounding = 1e-15 * gram.target_sq[0]
                assert cert.gap[0] * unit >= excess - rounding or cert.violation[0] > 0
                if kind in ("full rank", "bias") and step <= 1e-6:
                    assert cert.passed[0]
                assert excess <= 1e-8 * unit or not cert.passed[0]


@pytest.mark.parametrize("method", ["exact", "bisection", "torch"])
def test_a_huge_radius_is_certified(method):
    """kappa = 1e9 on 60 x 20 ended `inaccurate`: kappa times the rounding of the gradient."""
    rng = np.random.default_rng(0)
    design, targets = rng.normal(size=(60, 20)), rng.normal(size=(60, 4))
    gram = Gram.from_arrays(design, targets)
    least = np.linalg.lstsq(design, targets, rcond=None)[0].T
    for kappa in (1e6, 1e9, 1e300):
        for weights in (None, np.where(np.arange(20) < 3, 0.0, 1e-3)):
            solution = solve_rows(gram, kappa, weights=weights, method=method)
            assert (solution.status == "optimal").all()
            np.testing.assert_allclose(solution.coef, least, atol=1e-10)
    signs = np.ones(20)
    solution = solve_rows(gram, 1e9, signs=signs, method=method)
    assert (solution.status == "optimal").all()
    expected = np.stack([scipy.optimize.nnls(design, z)[0] for z in targets.T])
    np.testing.assert_allclose(solution.coef, expected, atol=1e-9)
    wrong = certify(gram, expected + 1e-3, 1e9, signs=signs)
    assert not wrong.passed.any()


def test_a_path_ends_in_huge_radii():
    rng = np.random.default_rng(1)
    gram = Gram.from_arrays(rng.normal(size=(60, 20)), rng.normal(size=(60, 4)))
    kappas = [0.5, 1e9, 1e12]
    weights = rng.choice([0.5, 1.0, np.inf], (4, 20))  # each row has its own excluded columns
    for solution in solve_path(gram, kappas, weights=weights):
        assert (solution.status == "optimal").all()
    half = certify(gram, 0.5 * solution.coef, 1e12, weights=weights)
    assert not half.passed.any()


def test_what_the_moments_cannot_tell_from_dependent_is_bounded_by_kappa():
    """A column of 1e-9 beside its copy: its share of the target is within the reach of 1e9."""
    rng = np.random.default_rng(2)
    first, share, target = np.linalg.qr(rng.normal(size=(60, 3)))[0].T
    target = target + share
    design = np.column_stack([first, first + 1e-9 * share])
    coef = np.zeros(2)
    cert = certify(Gram.from_arrays(design, target), coef, 1e10)
    excess = 0.5 * target @ target - 0.5 * (target - share) @ (target - share)
    assert cert.gap[0] * 0.5 * target @ target >= excess


# Every field against the formulas of the module, one row at a time, from the data


def _by_hand(design, z, a, level, weights, signs, constrained):
    """Return objective, gap, violation, lam and norm; None for gaps that a larger ball has."""
    ball = (weights > 0) & np.isfinite(weights)
    free = design[:, weights == 0]
    norm = np.sum(weights[ball] * np.abs(a[ball]))
    gone = np.maximum(-signs * a, 0.0)
    gone[np.isinf(weights)] = np.abs(a[np.isinf(weights)])
    residual = design @ a - z
    loss = 0.5 * residual @ residual
    fitted = free @ np.linalg.lstsq(free, residual, rcond=None)[0]
    excess = 0.5 * fitted @ fitted
    g = design.T @ (residual - fitted)
    slope = np.where(signs == 0, np.abs(g), np.maximum(-signs * g, 0.0))
    steepest = (slope[ball] / weights[ball]).max()
    inner = g[ball] @ a[ball]
    unit = 0.5 * np.sum((z - free @ np.linalg.lstsq(free, z, rcond=None)[0]) ** 2)
    if constrained:
        gap = min(inner + level * steepest + excess, loss)
        return loss, gap / unit, max(gone.max(), norm - level, 0.0), steepest, norm
    s = np.clip(1.0 - inner / (2.0 * loss), 0.0, level / steepest if steepest > 0 else np.inf)
    gap = level * norm + s * inner + (1.0 - s) ** 2 * loss + excess
    return loss + level * norm, gap / unit, gone.max(), level, norm


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("form", ["ball", "penalty"])
def test_every_field_by_hand(form, own):
    """300 rows: more than are judged together. Some rows are not finite."""
    rng = np.random.default_rng(7)
    r, n = 300, 7
    design, targets = rng.normal(size=(25, n)), rng.normal(size=(25, r))
    weights = rng.choice([0.0, 0.5, 1.0, 3.0, np.inf], (r, n))
    weights[:, 0] = 2.0
    if not own:
        weights[:] = [2.0, 0.0, 1.0, np.inf, 0.5, 0.0, 1.0]
    signs = np.where((weights == 0).any(axis=0), 0, rng.integers(-1, 2, n))
    signs[0] = 1
    coef = rng.normal(size=(r, n)) * (rng.random((r, n)) < 0.7)
    coef[:, 0] = np.abs(coef[:, 0]) + 0.1
    coef[::2, 3] = 0.0
    ball = np.where(np.isfinite(weights), weights, 0.0)
    # At most the norm, so that the bound for points inside the ball is not asked for.
    level = (ball * np.abs(coef)).sum(axis=1) * rng.choice([0.5, 1.0], r)
    if form == "penalty":
        level = rng.choice([0.05, 3.0, 50.0], r)
    bad = coef.copy()
    bad[[3, 260], [1, 2]] = np.nan, np.inf
    found = certify(
        Gram.from_arrays(design, targets), bad, tol=0.1, weights=weights if own else weights[0],
        signs=signs, **{"kappa" if form == "ball" else "lam": level},
    )  # fmt: skip
    names = ("objective", "gap", "violation", "lam", "norm")
    for i in set(range(r)) - {3, 260}:
        expected = _by_hand(
            design, targets[:, i], coef[i], level[i], weights[i], signs, form == "ball"
        )
        for name, value in zip(names, expected, strict=True):
            here = getattr(found, name)[i]
            assert here == pytest.approx(value, rel=1e-9, abs=1e-12), (i, name)
        limit = 0.1 * level[i] if form == "ball" else 0.0
        assert found.passed[i] == (expected[1] <= 0.1 and found.violation[i] <= limit)
    assert found.tol == 0.1
    assert not found.limited.any()
    for i in (3, 260):
        assert np.isnan(found.objective[i])
        assert found.gap[i] == found.violation[i] == found.norm[i] == np.inf
        assert not found.passed[i]
    assert found.worst_gap == np.inf
    with pytest.raises(CertificateError, match=r"of 300 rows failed .* at tolerance 0.1; first"):
        found.raise_if_failed()


@pytest.mark.parametrize("weights", [[0.0, 0.0], [0.0, np.inf]])
def test_a_ball_without_columns_by_hand(weights):
    """Nothing is in the ball: least squares in the free columns, whatever kappa."""
    design = np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    gram = Gram.from_arrays(design, np.array([3.0, 4.0, 1.0]))
    for level in ({"kappa": 0.0}, {"kappa": 5.0}, {"lam": 2.0}):
        wrong = certify(gram, [2.0, 0.0], weights=weights, **level)
        # Of 1/2 (9 + 16 + 1) the free columns leave 1/2 (1), or 1/2 (16 + 1) of the first alone.
        left, excess = (0.5, 0.5 + 8.0) if weights[1] == 0.0 else (8.5, 0.5)
        assert wrong.objective[0] == 9.0
        assert wrong.gap[0] == pytest.approx(excess / left)
        assert (wrong.norm[0], wrong.violation[0]) == (0.0, 0.0)
        right = certify(gram, [3.0, 2.0 * (weights[1] == 0.0)], weights=weights, **level)
        assert right.passed[0]


def test_one_row_by_hand():
    """M = 2, z = 3: h(a) = 1/2 (2 a - 3)^2, so h(1/2) = 2, g = -4, 1/2 z^2 = 4.5."""
    gram = Gram.from_arrays(np.array([[2.0]]), np.array([3.0]))
    ball = certify(gram, [0.5], 0.5)
    assert (ball.objective[0], ball.gap[0], ball.violation[0]) == (2.0, 0.0, 0.0)
    assert (ball.lam[0], ball.norm[0], ball.tol) == (4.0, 0.5, 1e-9)
    assert ball.passed[0]
    half = certify(gram, [0.5], 1.0)  # -2 + 4 = 2 of 4.5
    assert half.gap[0] == pytest.approx(2.0 / 4.5)
    penalty = certify(gram, [0.5], lam=4.0)
    assert (penalty.objective[0], penalty.gap[0], penalty.lam[0]) == (4.0, 0.0, 4.0)
    wide = certify(gram, [0.7], 0.5, tol=0.5)
    assert wide.violation[0] == pytest.approx(0.2)
    assert wide.passed[0], "0.2 is within 0.5 of kappa"
    assert not certify(gram, [0.7], 0.5, tol=0.3).passed[0]
    assert not certify(gram, [1e-9], 0.0, tol=0.5).passed[0], "exactly zero where kappa is"
    nothing = certify(Gram.from_arrays(np.ones((2, 1)), np.ones((2, 0))), np.zeros((0, 1)), 1.0)
    assert nothing.worst_gap == 0.0
    assert nothing.passed.size == 0
    nothing.raise_if_failed()
