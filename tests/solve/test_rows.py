"""solve_rows, solve_path: against CVXPY, brute force, FISTA; degenerate cases; bits; properties."""

import itertools
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import joblib
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from cimf import Gram, certify, solve_cvxpy, solve_path, solve_rows
from cimf.errors import CertificateError, InputError, UnknownNameError
from cimf.verification.suites import mairal_yu_design, problems
from formulations import Constrained

SUITE = problems("default")
ROWS = 130  # above 64 rows chunks hold several rows: here three
IDS = [f"{p.family}: {p.name}" for p in SUITE]


def solve(problem, **options):
    return solve_rows(
        problem.gram, problem.kappa, weights=problem.weights, signs=problem.signs, **options
    )


# Ground truth


@pytest.mark.parametrize("problem", SUITE, ids=IDS)
def test_every_case_is_certified_with_exact_zeros(problem):
    solution = solve(problem, n_jobs=1).raise_if_failed()
    assert solution.gap[0] <= 1e-9
    assert solution.status[0] == "optimal"
    coef = solution.coef[0]
    assert (coef[np.isinf(problem.weights)] == 0.0).all()
    assert (coef[np.diagonal(problem.gram.gram) == 0.0] == 0.0).all()
    assert (problem.signs * coef >= 0).all()
    if problem.truth.support is not None:
        np.testing.assert_array_equal(coef != 0.0, problem.truth.support)
    # Judged on the data themselves, not on the moments.
    residual = problem.design @ coef - problem.target
    assert solution.objective[0] == pytest.approx(
        0.5 * residual @ residual, abs=1e-10 * problem.scale
    )


def test_every_case_agrees_with_cvxpy():
    """Both certified: the objectives differ by no more than the sum of the certified gaps."""
    accurate = 0
    for problem in SUITE:
        truth = problem.truth
        slow = solve_cvxpy(
            Constrained(
                problem.design, problem.target, problem.kappa,
                weights=problem.weights, signs=problem.signs,
            ),
            backend="clarabel",
        )  # fmt: skip
        excess = (float(slow.objective[0]) - truth.objective) / problem.scale
        assert excess >= -1e-9, problem.name
        # Where z = 0 the gap is relative to nothing; the optimal value is then 0.
        bound = float(slow.gap[0]) if problem.target.any() else 1e-9
        assert excess <= bound + 1e-9, problem.name
        accurate += bound <= 1e-7
    assert accurate >= 0.95 * len(SUITE)


def many_rows():
    """200 rows: ties, opposite and zero columns, m < N; zero, constant and exact targets."""
    rng = np.random.default_rng(0)
    for seed in range(10):
        m, n = int(rng.integers(5, 40)), int(rng.integers(1, 16))
        design = rng.normal(size=(m, n))
        if seed % 3 == 1:
            design = design.round()  # ties
        if seed % 3 == 2:
            design[:, n // 2 :] = -design[:, : n - n // 2]  # opposite columns
        if seed % 5 == 4:
            design[:, 0] = 0.0
        targets = rng.normal(size=(m, 20)) + design @ rng.normal(size=(n, 20))
        targets[:, 3], targets[:, 4], targets[:, 5] = 0.0, 1.0, design[:, -1]
        yield design, targets, rng.uniform(0.0, 1.5, 20) * np.abs(targets).mean()


def test_200_rows_agree_with_cvxpy():
    for design, targets, kappa in many_rows():
        gram = Gram.from_arrays(design, targets)
        ours = solve_rows(gram, kappa, n_jobs=1).raise_if_failed()
        assert (ours.violation <= 1e-14 * kappa).all()
        slow = solve_cvxpy(Constrained(design, targets, kappa), backend="clarabel")
        assert slow.certificate.passed.all()
        half_sq = 0.5 * gram.target_sq
        assert (np.abs(ours.objective - slow.objective) <= 1e-7 * half_sq).all()
        wrong = certify(gram, 0.99 * ours.coef, kappa).objective
        assert not (np.abs(wrong - slow.objective) <= 1e-7 * half_sq).all()  # it can fail


def brute_force(design, target, kappa):
    """Best stationary point over every support and sign pattern of N <= 5 columns."""
    gram, corr = design.T @ design, design.T @ target
    best = 0.5 * float(target @ target)
    n = design.shape[1]
    for signs in itertools.product((-1.0, 0.0, 1.0), repeat=n):
        s = np.array(signs)
        on = np.flatnonzero(s)
        if not on.size:
            continue
        block = gram[np.ix_(on, on)]
        system = np.block([[block, s[on, None]], [s[None, on], np.zeros((1, 1))]])
        for part in (
            np.linalg.lstsq(system, np.append(corr[on], kappa), rcond=None)[0][:-1],
            np.linalg.lstsq(block, corr[on], rcond=None)[0],
        ):
            if np.abs(part).sum() <= kappa * (1 + 1e-12):
                best = min(best, 0.5 * float(np.sum((design[:, on] @ part - target) ** 2)))
    return best


@pytest.mark.parametrize("seed", range(12))
def test_against_brute_force(seed):
    rng = np.random.default_rng(seed)
    n = 1 + seed % 5
    design, target = rng.normal(size=(3 + seed % 4, n)), rng.normal(size=3 + seed % 4)
    if seed % 4 == 3 and n > 1:
        design[:, 0] = design[:, -1]
    kappa = float(rng.uniform(0.05, 2.0))
    solution = solve_rows(Gram.from_arrays(design, target), kappa, n_jobs=1)
    scale = 0.5 * float(target @ target)
    assert abs(solution.objective[0] - brute_force(design, target, kappa)) <= 1e-9 * scale
    if solution.lam[0] * kappa > 1e-3 * scale:  # it can fail
        assert abs(solution.objective[0] - brute_force(design, target, 0.99 * kappa)) > 1e-9 * scale


def fista(gram, corr, kappa, steps=30_000):
    """Accelerated projected gradient with restarts; returns the value and a lower bound."""

    def project(x):
        if np.abs(x).sum() <= kappa:
            return x
        u = np.sort(np.abs(x))[::-1]
        excess = np.cumsum(u) - kappa
        k = np.flatnonzero(u * np.arange(1, u.size + 1) > excess)[-1]
        return np.sign(x) * np.maximum(np.abs(x) - excess[k] / (k + 1), 0.0)

    lipschitz = np.linalg.eigvalsh(gram)[-1]
    a = y = np.zeros(corr.size)
    t = 1.0
    for _ in range(steps):
        new = project(y - (gram @ y - corr) / lipschitz)
        t = 1.0 if (y - new) @ (new - a) > 0 else t
        t_new = 0.5 * (1 + np.sqrt(1 + 4 * t * t))
        a, y, t = new, new + (t - 1) / t_new * (new - a), t_new
    gradient = gram @ a - corr
    value = 0.5 * a @ gram @ a - corr @ a
    return value, value - (gradient @ a + kappa * np.abs(gradient).max())


@pytest.mark.parametrize("name", ["gaussian 60x20", "autoregressive", "tied beside", "m < N"])
def test_against_projected_gradient_with_its_own_lower_bound(name):
    for problem in [p for p in SUITE if p.name.startswith(name)][:2]:
        value, bound = fista(problem.gram.gram, problem.gram.corr[0], problem.kappa)
        assert value - bound <= 1e-7 * problem.scale, "the slow solver has not converged"
        ours = float(solve(problem).objective[0]) - problem.scale
        assert bound - 1e-12 * problem.scale <= ours <= value + 1e-12 * problem.scale
        assert not bound <= ours + 1e-3 * problem.scale <= value


def rational_segments(design, target):
    """Count the linear segments of a LASSO path in exact arithmetic (unit ties excluded)."""
    n = design.shape[1]
    exact = [[Fraction(float(x)) for x in row] for row in design]
    z = [Fraction(float(x)) for x in target]
    gram = [[sum(r[i] * r[j] for r in exact) for j in range(n)] for i in range(n)]
    corr = [sum(r[i] * t for r, t in zip(exact, z, strict=True)) for i in range(n)]

    def solve_exactly(on, right):
        rows = [[gram[i][j] for j in on] + [right[k]] for k, i in enumerate(on)]
        for k in range(len(on)):
            pivot = next(i for i in range(k, len(on)) if rows[i][k] != 0)
            rows[k], rows[pivot] = rows[pivot], rows[k]
            rows[k] = [x / rows[k][k] for x in rows[k]]
            for i in range(len(on)):
                if i != k and rows[i][k] != 0:
                    rows[i] = [x - rows[i][k] * y for x, y in zip(rows[i], rows[k], strict=True)]
        return [row[-1] for row in rows]

    lam = max(abs(c) for c in corr)
    first = max(range(n), key=lambda j: abs(corr[j]))
    signs = {first: 1 if corr[first] > 0 else -1}
    segments = 1  # a = 0 above the first breakpoint
    while True:
        segments += 1
        on = sorted(signs)
        at_zero = solve_exactly(on, [corr[i] for i in on])
        slope = solve_exactly(on, [Fraction(signs[i]) for i in on])  # a = at_zero - lam slope
        best, event = Fraction(0), None
        for k, j in enumerate(on):
            if slope[k] != 0:
                step = at_zero[k] / slope[k]
                if best < step < lam:
                    best, event = step, ("drop", j, 0)
        for j in (j for j in range(n) if j not in signs):
            c = corr[j] - sum(gram[j][i] * at_zero[k] for k, i in enumerate(on))
            d = sum(gram[j][i] * slope[k] for k, i in enumerate(on))
            for s in (1, -1):
                if s - d != 0:
                    step = c / (s - d)
                    if best < step < lam:
                        best, event = step, ("join", j, s)
        if event is None:
            return segments
        lam = best
        if event[0] == "drop":
            del signs[event[1]]
        else:
            signs[event[1]] = event[2]


@pytest.mark.parametrize("p", [1, 2, 3, 4, 5])
def test_the_adversarial_path_has_exponentially_many_segments(p):
    assert rational_segments(*mairal_yu_design(p)) == (3**p + 1) // 2


def test_a_tame_path_has_few_segments():
    rng = np.random.default_rng(0)
    assert rational_segments(rng.normal(size=(9, 4)), rng.normal(size=9)) <= 8


# One call, many forms of the same question


def shared():
    rng = np.random.default_rng(3)
    design = rng.normal(size=(80, 30))
    design[:, 20:] = design[:, :10] + 1e-3 * rng.normal(size=(80, 10))
    targets = design @ rng.normal(size=(30, ROWS)) + rng.normal(size=(80, ROWS))
    return design, targets


def test_kappa_and_weights_per_row_are_those_of_single_rows():
    design, targets = shared()
    rng = np.random.default_rng(4)
    gram = Gram.from_arrays(design, targets)
    kappa = rng.uniform(0.0, 5.0, ROWS)
    weights = rng.uniform(0.2, 3.0, (ROWS, 30))
    weights[rng.random((ROWS, 30)) < 0.2] = np.inf
    weights[:, 29] = 0.0
    signs = np.where(np.arange(30) < 20, rng.integers(-1, 2, 30), 0)
    together = solve_rows(gram, kappa, weights=weights, signs=signs).raise_if_failed()
    for i in (0, 7, 70, ROWS - 1):
        alone = solve_rows(gram.rows(i), kappa[i], weights=weights[i], signs=signs)
        np.testing.assert_array_equal(alone.coef[0], together.coef[i])
    mask = np.arange(30) < 25
    by_mask = solve_rows(gram, kappa, bounded=mask)
    by_weight = solve_rows(gram, kappa, weights=mask.astype(float))
    np.testing.assert_array_equal(by_mask.coef, by_weight.coef)


def test_sparse_and_streamed_designs_give_the_same_solutions():
    rng = np.random.default_rng(5)
    design = np.where(rng.random((90, 25)) < 0.2, rng.normal(size=(90, 25)), 0.0)
    targets = rng.normal(size=(90, 6))
    dense = solve_rows(Gram.from_arrays(design, targets), 0.7).raise_if_failed()
    sparse = solve_rows(Gram.from_arrays(scipy.sparse.csr_array(design), targets), 0.7)
    streamed = Gram(25, 6)
    for start in range(0, 90, 7):
        streamed.update(design[start : start + 7], targets[start : start + 7])
    for other in (sparse, solve_rows(streamed, 0.7)):
        assert other.certificate.passed.all()
        np.testing.assert_allclose(other.coef, dense.coef, atol=1e-10)
        np.testing.assert_array_equal(other.coef == 0, dense.coef == 0)


def test_no_rows():
    gram = Gram.from_arrays(np.eye(4), np.zeros((4, 0)))
    solution = solve_rows(gram, 1.0)
    assert solution.coef.shape == (0, 4)
    assert solution.raise_if_failed() is solution
    assert [s.coef.shape for s in solve_path(gram, [1.0, 2.0])] == [(0, 4), (0, 4)]


def bits(solution):
    return (
        solution.coef.tobytes(),
        solution.certificate.gap.tobytes(),
        solution.iterations.tobytes(),
    )


@pytest.mark.parametrize("penalised", [False, True])
def test_bits_do_not_depend_on_threads_chunks_or_order(penalised):
    design, targets = shared()
    gram = Gram.from_arrays(design, targets)
    level = np.random.default_rng(6).uniform(0.1, 20.0, ROWS)

    def run(part, **options):
        values = level[part]
        pair = {"lam": values} if penalised else {"kappa": values}
        return solve_rows(gram.rows(part), **pair, **options)

    everything = np.arange(ROWS)
    one = run(everything, n_jobs=1)
    for n_jobs in (2, 3, -1):
        assert bits(run(everything, n_jobs=n_jobs)) == bits(one)
    with joblib.parallel_config(backend="threading", n_jobs=2):
        assert bits(run(everything)) == bits(one)
    order = np.random.default_rng(7).permutation(ROWS)
    np.testing.assert_array_equal(run(order).coef, one.coef[order])
    np.testing.assert_array_equal(run(order).gap, one.gap[order])
    for part in (everything[:1], everything[5:72], everything[::3]):
        np.testing.assert_array_equal(run(part).coef, one.coef[part])
    with pytest.raises(AssertionError):  # the comparison can fail
        np.testing.assert_array_equal(run(order).coef, one.coef)


def test_processes_give_the_same_bits():
    design, targets = shared()
    gram = Gram.from_arrays(design, targets)
    here = solve_rows(gram, 2.0, n_jobs=1)
    with joblib.parallel_config(backend="loky", n_jobs=2):
        assert bits(solve_rows(gram, 2.0)) == bits(here)


def test_progress_counts_rows_in_order():
    design, targets = shared()
    done = []
    solve_rows(Gram.from_arrays(design, targets), 1.0, progress=done.append)
    assert done == sorted(done)
    assert done[-1] == ROWS


# Paths


def test_a_path_has_the_solutions_of_its_radii():
    design, targets = shared()
    gram = Gram.from_arrays(design, targets)
    kappas = [5.0, 0.1, 0.0, 1e3, 2.0, 0.1]
    path = solve_path(gram, kappas)
    assert len(path) == 6
    for kappa, solution in zip(kappas, path, strict=True):
        solution.raise_if_failed()
        alone = solve_rows(gram, kappa)
        scale = 0.5 * gram.target_sq
        # Both gaps are far below the tolerance where the ball is active: these points are exact.
        tight = np.maximum(solution.gap, alone.gap) + 1e-12
        assert (np.abs(solution.objective - alone.objective) <= tight * scale).all()
    np.testing.assert_array_equal(path[1].coef, path[5].coef)
    assert not np.allclose(path[0].objective, path[1].objective, rtol=1e-3)


@pytest.mark.parametrize("family", ["ties", "duplicates", "deficient", "dead_units", "adversarial"])
def test_paths_of_degenerate_problems(family):
    for problem in [p for p in SUITE if p.family == family][::2]:
        fractions = (0.9, 0.3, 1.0, 0.01)
        path = solve_path(problem.gram, [f * problem.kappa for f in fractions])
        for fraction, solution in zip(fractions, path, strict=True):
            solution.raise_if_failed()
            alone = solve_rows(problem.gram, fraction * problem.kappa)
            difference = abs(float(solution.objective[0] - alone.objective[0])) / problem.scale
            assert difference <= 1e-12 + float(max(solution.gap[0], alone.gap[0])), problem.name


# Properties


def drawn(seed, m, n, degenerate):
    rng = np.random.default_rng(seed)
    design = rng.normal(size=(m, n))
    if degenerate == 1:
        design = design.round()
    elif degenerate == 2 and n > 1:
        design[:, -1] = -design[:, 0]
    elif degenerate == 3:
        design[:, 0] = 0.0
    return design, rng.normal(size=m), rng


cases = given(
    seed=st.integers(0, 10**6),
    m=st.integers(1, 12),
    n=st.integers(1, 10),
    degenerate=st.integers(0, 3),
    kappa=st.sampled_from([0.0, 1e-3, 0.3, 1.0, 10.0]),
)
steady = settings(derandomize=True, deadline=None, max_examples=60)


@cases
@steady
def test_no_feasible_point_is_below_the_certified_bound(seed, m, n, degenerate, kappa):
    design, target, rng = drawn(seed, m, n, degenerate)
    gram = Gram.from_arrays(design, target)
    ours = solve_rows(gram, kappa, n_jobs=1)
    assert ours.gap[0] <= 1e-9
    assert ours.violation[0] <= 1e-14 * kappa
    other = rng.normal(size=n)
    other *= kappa * rng.random() / max(np.abs(other).sum(), 1e-300)
    judged = certify(gram, other, kappa)
    assert judged.gap[0] >= 0.0
    scale = 0.5 * float(target @ target)
    assert judged.objective[0] >= ours.objective[0] - 1e-9 * scale
    # The bound of any feasible point holds for the optimum.
    assert ours.objective[0] >= judged.objective[0] - judged.gap[0] * scale - 1e-12 * scale


@cases
@steady
@example(seed=0, m=5, n=3, degenerate=0, kappa=0.3)
def test_scaling_target_and_radius_scales_the_solution(seed, m, n, degenerate, kappa):
    design, target, _ = drawn(seed, m, n, degenerate)
    base = solve_rows(Gram.from_arrays(design, target), kappa, n_jobs=1)
    for s in (1e-8, 1e8):
        scaled = solve_rows(Gram.from_arrays(design, s * target), s * kappa, n_jobs=1)
        assert scaled.certificate.passed[0]
        assert scaled.objective[0] / s**2 == pytest.approx(
            base.objective[0], abs=1e-9 * target @ target
        )
    power = solve_rows(Gram.from_arrays(design, 1024.0 * target), 1024.0 * kappa, n_jobs=1)
    np.testing.assert_allclose(power.coef, 1024.0 * base.coef, rtol=1e-6, atol=1e-6 * kappa)


@cases
@steady
def test_scaling_columns_and_weights_keeps_the_objective(seed, m, n, degenerate, kappa):
    """M_j d_j with weights d_j is the problem in a_j / d_j."""
    design, target, rng = drawn(seed, m, n, degenerate)
    d = 10.0 ** rng.uniform(-4, 4, n)
    base = solve_rows(Gram.from_arrays(design, target), kappa, n_jobs=1)
    scaled = solve_rows(Gram.from_arrays(design * d, target), kappa, weights=d, n_jobs=1)
    assert scaled.certificate.passed[0]
    half_sq = 0.5 * float(target @ target)
    assert abs(scaled.objective[0] - base.objective[0]) <= 2e-9 * half_sq
    back = certify(Gram.from_arrays(design, target), scaled.coef * d, kappa * (1 + 1e-12))
    assert back.gap[0] <= 2e-9


@cases
@steady
def test_a_larger_ball_is_no_worse_and_lam_solves_the_penalised_problem(
    seed, m, n, degenerate, kappa
):
    design, target, _ = drawn(seed, m, n, degenerate)
    gram = Gram.from_arrays(design, target)
    half_sq = 0.5 * float(target @ target)
    small, large = solve_path(gram, [kappa, 1.5 * kappa + 0.1], n_jobs=1)
    assert large.objective[0] <= small.objective[0] + 1e-9 * half_sq
    assert large.lam[0] <= small.lam[0] * (1 + 1e-6) + 1e-6 * np.sqrt(half_sq)
    lam = float(small.lam[0])
    assume(lam > 1e-6)
    assert certify(gram, small.coef, lam=lam, tol=1e-8).passed[0]
    penalised = solve_rows(gram, lam=lam, n_jobs=1).raise_if_failed()
    value = small.objective[0] + lam * np.abs(small.coef[0]).sum()
    assert penalised.objective[0] == pytest.approx(value, abs=1e-8 * half_sq)


# Wrong answers and wrong arguments


def test_planted_wrong_answers_fail_their_certificate():
    failed = 0
    for problem in [p for p in SUITE if p.truth.lam > 0]:
        coef = problem.truth.coef
        wrong = [0.999 * coef, 1.001 * coef, -coef, np.roll(coef, 1)]
        wrong.append(np.where(np.abs(coef) == np.abs(coef).max(), 0.0, coef))
        for answer in wrong:
            judged = certify(
                problem.gram, answer, problem.kappa,
                weights=problem.weights, signs=problem.signs, tol=1e-9,
            )  # fmt: skip
            if np.array_equal(answer, coef):  # a symmetric solution rolled onto itself
                continue
            failed += not judged.passed[0]
            worse = judged.objective[0] > problem.truth.objective + 1e-8 * problem.scale
            assert not (judged.passed[0] and worse), problem.name
    assert failed > 200


def test_an_uncertified_row_says_so():
    design, targets = shared()
    gram = Gram.from_arrays(design, targets)
    solution = solve_rows(gram, 1.0, tol=1e-30)
    bad = solution.gap > 1e-30
    assert bad.any()
    assert (solution.status[bad] == "inaccurate").all()
    with pytest.raises(CertificateError, match="rows failed their certificate") as caught:
        solution.raise_if_failed()
    assert caught.value.solution is solution


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "exactly one of kappa"),
        ({"kappa": 1.0, "lam": 1.0}, "exactly one of kappa"),
        ({"kappa": -1.0}, "must be >= 0"),
        ({"kappa": np.nan}, "NaN"),
        ({"kappa": [1.0, 2.0]}, "kappa has shape"),
        ({"kappa": 1.0, "weights": np.ones(3)}, "weights has shape"),
        ({"kappa": 1.0, "weights": [-1.0, 1.0]}, "weights must be >= 0"),
        ({"kappa": 1.0, "signs": [2, 0]}, "signs must have shape"),
        ({"kappa": 1.0, "bounded": [1, 0]}, "boolean mask"),
        ({"kappa": 1.0, "tol": 0.0}, "tol must be positive"),
    ],
)
def test_bad_arguments(arguments, words):
    gram = Gram.from_arrays(np.eye(2), np.ones(2))
    with pytest.raises(InputError, match=words):
        solve_rows(gram, **arguments)


def test_bad_paths_and_methods():
    gram = Gram.from_arrays(np.eye(2), np.ones(2))
    with pytest.raises(InputError, match="kappas is empty"):
        solve_path(gram, [])
    with pytest.raises(UnknownNameError, match="unknown method 'magic'"):
        solve_rows(gram, 1.0, method="magic")


def random_problem(rng):
    """A small design of one of five degenerate kinds, with weights and signs."""
    m, n = int(rng.integers(1, 20)), int(rng.integers(1, 30))
    design = rng.normal(size=(m, n))
    kind = rng.integers(0, 5)
    if kind == 0:
        design = rng.integers(-1, 2, size=(m, n)).astype(float)
    elif kind == 1:
        design = rng.integers(0, 2, size=(m, n)).astype(float)
    elif kind == 2:
        design = np.maximum(design, 0.0)
    elif kind == 3:
        design[:, rng.integers(0, n, n)] = design * rng.choice([-1, 1], n)
    else:
        design = design.round()
    targets = rng.integers(-2, 3, size=(m, 4)) + rng.choice([0.0, 1.0]) * rng.normal(size=(m, 4))
    weights = rng.choice([0.0, 0.5, 1.0, np.inf], n, p=[0.1, 0.2, 0.6, 0.1])
    signs = np.where(weights > 0, rng.integers(-1, 2, n), 0)
    plain = rng.random() < 0.7
    structure = {} if plain else {"weights": weights, "signs": signs}
    return Gram.from_arrays(design, targets), float(10 ** rng.uniform(-3, 3)), structure


def test_thousands_of_degenerate_rows_are_certified():
    rng = np.random.default_rng(15)
    failed: list[float] = []
    limited = 0
    for k in range(600):
        gram, level, structure = random_problem(rng)
        pair = {"kappa": level} if k % 3 else {"lam": level}
        solution = solve_rows(gram, **pair, **structure, n_jobs=1)
        known = {"optimal", "limited", "inaccurate", "infeasible"}
        assert set(solution.status) <= known
        limited += int(solution.certificate.limited.sum())
        certificate = solution.certificate
        failed += solution.gap[~(certificate.passed | certificate.limited)].tolist()
    # As many free columns as samples: what they leave of a target is rounding.
    assert limited <= 3
    # Rounding ends 1 row in 10,000 a little above 1e-9.
    assert len(failed) <= 1, failed
    assert max(failed, default=0.0) <= 1e-7


BOUNDS = """
import numpy as np
from cimf import Gram, solve_rows
from cimf.verification.suites import problems
for p in problems("degenerate") + problems("adversarial"):
    pair = dict(weights=p.weights, signs=p.signs, n_jobs=1)
    solve_rows(p.gram, p.kappa, **pair)
    solve_rows(p.gram, lam=p.truth.lam, **pair)
    solve_rows(p.gram, lam=0.0, **pair)
rng = np.random.default_rng(0)
design = rng.integers(-1, 2, size=(6, 25)).astype(float)
weights = rng.choice([0.0, 1.0], 25, p=[0.2, 0.8])
gram = Gram.from_arrays(design, rng.integers(-2, 3, size=(6, 200)).astype(float))
solve_rows(gram, lam=0.0, weights=weights, n_jobs=1)
print("within bounds")
"""


@pytest.mark.slow
def test_compiled_kernels_stay_within_their_arrays(tmp_path):
    """Compiled code reads past an array in silence, unless numba is asked to check."""
    environment = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", BOUNDS], env=environment, cwd=root, capture_output=True, text=True
    )
    assert done.stdout.strip() == "within bounds", done.stderr[-2000:]


@pytest.mark.parametrize(
    "solve",
    [
        lambda gram: solve_rows(gram, kappa=0.5),
        lambda gram: solve_path(gram, [0.5]),
        lambda gram: certify(gram, np.zeros((1, 3)), kappa=0.5),
    ],
)
def test_only_statistics_of_samples_are_taken(solve):
    with pytest.raises(InputError, match=r"a cimf.Gram is needed: cimf.Gram.from_arrays"):
        solve(np.eye(3))
    empty = Gram(3, 1)
    with pytest.raises(InputError, match="no samples: call update first"):
        solve(empty)
    with pytest.raises(InputError, match="no samples"):
        solve(empty.rows([0]))
    solve(Gram(3, 1).merge(Gram(3, 1).update(np.eye(3), np.ones(3))))
    solve(Gram.from_moments(np.eye(3), np.ones((1, 3)), [3.0], n_samples=0))


def test_no_workers_are_refused():
    gram = Gram.from_arrays(np.eye(3), np.ones(3))
    with pytest.raises(InputError, match="n_jobs must not be 0"):
        solve_rows(gram, kappa=0.5, n_jobs=0)


@pytest.mark.parametrize("share", [1e-3, 1e-6, 1e-8, 1e-9])
@pytest.mark.parametrize("method", ["exact", "torch"])
def test_tiny_penalties_are_certified(share, method):
    """The proximal term leaves gradients 1e-12 above lam, which is much where lam is tiny."""
    rng = np.random.default_rng(0)
    gram = Gram.from_arrays(rng.standard_normal((60, 20)), rng.standard_normal((60, 8)))
    lam = share * np.abs(gram.corr).max(axis=1)
    solution = solve_rows(gram, lam=lam, method=method)
    solution.raise_if_failed()
    assert (certify(gram, solution.coef, lam=1.01 * lam).gap > solution.gap).any()


def test_non_negative_least_squares_is_certified():
    """Q(0) with signs: scipy's active-set method agrees, and a point beside it fails."""
    rng = np.random.default_rng(1)
    design, targets = rng.standard_normal((40, 15)), rng.standard_normal((40, 10))
    gram, signs = Gram.from_arrays(design, targets), np.ones(15)
    solution = solve_rows(gram, lam=0.0, signs=signs)
    solution.raise_if_failed()
    expected = np.stack([scipy.optimize.nnls(design, z)[0] for z in targets.T])
    assert np.abs(solution.coef - expected).max() < 1e-9
    assert certify(gram, expected, lam=0.0, signs=signs).passed.all()
    beside = certify(gram, expected + 1e-3, lam=0.0, signs=signs)
    assert not beside.passed.any()
    half_sq = 0.5 * gram.target_sq
    excess = [
        0.5 * np.sum((design @ (a + 1e-3) - z) ** 2) - 0.5 * np.sum((design @ a - z) ** 2)
        for a, z in zip(expected, targets.T, strict=True)
    ]
    assert (beside.gap * half_sq >= np.array(excess) - 1e-12).all()


def test_a_radius_given_twice_has_one_solution():
    rng = np.random.default_rng(2)
    gram = Gram.from_arrays(rng.standard_normal((30, 12)), rng.standard_normal((30, 3)))
    first, other, again = solve_path(gram, [1.0, 0.5, 1.0])
    assert np.array_equal(first.coef, again.coef)
    assert not np.array_equal(first.coef, other.coef)


@pytest.mark.parametrize("extreme", [5e-324, 1e-120, 1e120])
def test_weights_beyond_the_range_are_refused(extreme):
    gram = Gram.from_arrays(np.eye(3), np.ones((3, 1)))
    with pytest.raises(InputError, match="rescale them"):
        solve_rows(gram, 1.0, weights=[1.0, extreme, 0.0])


def test_above_the_largest_multiplier_nothing_is_left():
    """The first column was left with 1e-16, which a lam of 1e8 times the largest one costs."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        design = np.column_stack([rng.normal(1.0, 0.3, (200, 12)), np.ones(200)])
        targets = 0.01 * rng.normal(size=(200, 5))
        gram, weights = Gram.from_arrays(design, targets), np.array([1.0] * 12 + [0.0])
        largest = np.abs(design[:, :12].T @ (targets - targets.mean(axis=0))).max(axis=0)
        found = solve_rows(gram, lam=1e8 * largest, weights=weights, n_jobs=1)
        assert not found.coef[:, :12].any()
        np.testing.assert_allclose(found.coef[:, 12], targets.mean(axis=0), rtol=1e-9)
        assert found.gap.max() <= 1e-12
        below = solve_rows(gram, lam=0.9 * largest, weights=weights, n_jobs=1)
        assert below.coef[:, :12].any(axis=1).all()
