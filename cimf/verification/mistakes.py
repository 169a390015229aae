"""Classes of wrong solvers: an answer that fails is tested for being right for another problem.

Each class is one function (problem, coef) -> error: how far the answer is from optimal for the
problem that such a solver would have solved by mistake (relative gap or relative violation,
infinity where the mistake makes no difference to the question). A new class is one function and
one line in `MISTAKES`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cimf.judge import certify
from cimf.statistics import Gram
from cimf.verification.graded_problem import Problem

Array = NDArray[np.float64]

# The same mistake must leave at most this part of the error that it explains.
EXPLAINED = 1e-2

# Part of kappa within which an answer is on the sphere: interior-point solvers stay 1e-7 inside.
_ON_SPHERE = 1e-6


def error_of(
    problem: Problem,
    coef: Array,
    *,
    gram: Gram | None = None,
    kappa: float | None = None,
    lam: float | None = None,
    weights: ArrayLike | None = None,
    signs: ArrayLike | None = None,
) -> float:
    """Return the larger of relative gap and relative violation of `coef` for a varied problem.

    Infinity where zeros do nearly as well: with a negligible radius any answer would be right.
    """
    level = problem.kappa if kappa is None else kappa
    errors = []
    for a in (coef, 0.0 * coef):
        with np.errstate(all="ignore"):
            judged = certify(
                problem.gram if gram is None else gram,
                a,
                level if lam is None else None,
                lam=lam,
                weights=problem.weights if weights is None else weights,
                signs=problem.signs if signs is None else signs,
            )
        gap, violation = abs(float(judged.gap[0])), float(judged.violation[0])
        size = level if lam is None and level > 0 else float(np.abs(a).max(initial=0.0)) or 1.0
        found = max(gap, violation / size)
        errors.append(found if np.isfinite(found) else np.inf)
    own, of_zeros = errors
    return own if own <= EXPLAINED * of_zeros or not coef.any() else np.inf


def _norm(problem: Problem, coef: Array) -> float:
    return float((np.where(np.isfinite(problem.weights), problem.weights, 0) * np.abs(coef)).sum())


def _moments(problem: Problem, gram: Array, corr: Array, square: float) -> Gram:
    return Gram.from_moments(gram, corr[None, :], np.array([square]), problem.gram.n_samples)


def sign_flipped(problem: Problem, coef: Array) -> float:
    """Optimal after a change of sign: the gradient was taken as c - G a."""
    return error_of(problem, -coef)


def ignores_the_ball(problem: Problem, coef: Array) -> float:
    """Outside the ball, with the residual of the least-squares solution."""
    if _norm(problem, coef) <= problem.kappa * (1.0 + 1e-9):
        return np.inf
    design = problem.design[:, np.isfinite(problem.weights)]
    best = np.linalg.lstsq(design, problem.target, rcond=1e-12)[0]
    excess = np.sum((problem.design @ coef - problem.target) ** 2)
    excess -= np.sum((design @ best - problem.target) ** 2)
    return 0.5 * abs(float(excess)) / problem.scale


def kappa_is_lam(problem: Problem, coef: Array) -> float:
    """Optimal for Q(lam) at lam = kappa."""
    return error_of(problem, coef, lam=problem.kappa)


def wrong_scaling(problem: Problem, coef: Array) -> float:
    """1/m or 1/2 missing or added, in the penalty or in one of the two terms of the gradient."""
    m = max(problem.design.shape[0], 1)
    kappa, g = problem.kappa, problem.gram
    errors = [error_of(problem, coef, lam=kappa * c) for c in (m, 0.5, m / 2, 2.0, 2.0 * m, 1 / m)]
    for c in (0.5, 2.0, 1.0 / m, float(m), m**0.5, m**-0.5):
        errors.append(error_of(problem, coef, kappa=kappa * c))
        other = _moments(problem, g.gram, c * g.corr[0], c * c * float(g.target_sq[0]))
        errors.append(error_of(problem, coef, gram=other))
    return min(errors)


def squared_radius(problem: Problem, coef: Array) -> float:
    """Optimal for the radius kappa^2, or its square root."""
    kappa = problem.kappa
    return min(error_of(problem, coef, kappa=kappa**2), error_of(problem, coef, kappa=kappa**0.5))


def l2_ball(problem: Problem, coef: Array) -> float:
    """Optimal in the ball ||a||_2 <= kappa: the gradient is parallel to the answer."""
    size = float(np.linalg.norm(coef))
    gradient = problem.gram.gram @ coef - problem.gram.corr[0]
    gap = float(gradient @ coef) + problem.kappa * float(np.linalg.norm(gradient))
    if not problem.kappa or problem.design.shape[1] < 2:
        return np.inf
    return max(abs(gap) / problem.scale, max(size / problem.kappa - 1.0, 0.0))


def nonnegative_only(problem: Problem, coef: Array) -> float:
    """Optimal among the answers without negative coefficients."""
    open_ = (problem.signs == 0) & (problem.weights > 0)
    return error_of(problem, coef, signs=np.where(open_, 1, problem.signs))


def penalises_free_columns(problem: Problem, coef: Array) -> float:
    """Optimal with the free columns inside the ball at weight 1."""
    if not (problem.weights == 0.0).any():
        return np.inf
    return error_of(problem, coef, weights=np.where(problem.weights == 0.0, 1.0, problem.weights))


def ignores_weights(problem: Problem, coef: Array) -> float:
    """Optimal with all weights of the ball equal to 1."""
    weights = problem.weights
    plain = np.where(np.isfinite(weights) & (weights > 0), 1.0, weights)
    if np.array_equal(plain, weights):
        return np.inf
    return error_of(problem, coef, weights=plain)


def uses_excluded_columns(problem: Problem, coef: Array) -> float:
    """Optimal with the excluded columns inside the ball at weight 1."""
    if np.isfinite(problem.weights).all():
        return np.inf
    weights = np.where(np.isfinite(problem.weights), problem.weights, 1.0)
    return error_of(problem, coef, weights=weights)


def ignores_signs(problem: Problem, coef: Array) -> float:
    """Optimal without the sign constraints."""
    return error_of(problem, coef, signs=0 * problem.signs) if problem.signs.any() else np.inf


def centres_the_data(problem: Problem, coef: Array) -> float:
    """Optimal after subtracting the means, as with an intercept."""
    design = problem.design - problem.design.mean(axis=0)
    return error_of(
        problem, coef, gram=Gram.from_arrays(design, problem.target - problem.target.mean())
    )


def normalises_columns(problem: Problem, coef: Array) -> float:
    """Columns of unit norm or unit variance, coefficients not scaled back."""
    root = np.sqrt(np.diagonal(problem.gram.gram))
    scale = np.divide(1.0, root, out=np.zeros_like(root), where=root > 0)
    gram, corr = problem.gram.gram * np.outer(scale, scale), problem.gram.corr[0] * scale
    square, m = float(problem.gram.target_sq[0]), problem.design.shape[0]
    unit = _moments(problem, gram, corr, square)
    variance = _moments(problem, m * gram, m**0.5 * corr, square)
    return min(error_of(problem, coef, gram=unit), error_of(problem, coef, gram=variance))


def transposed_design(problem: Problem, coef: Array) -> float:
    """Optimal for the transposed design, where that has the same shape.

    A solver whose answer to a design that is not square is right does not transpose: see
    `cimf.verification.verdict.settled`.
    """
    if problem.design.shape[0] != problem.design.shape[1]:
        return np.inf
    return error_of(problem, coef, gram=Gram.from_arrays(problem.design.T, problem.target))


def loses_ties(problem: Problem, coef: Array) -> float:
    """Optimal without the columns that should join but tie with a column in use."""
    gradient = problem.gram.gram @ coef - problem.gram.corr[0]
    ratio = np.abs(problem.gram.corr[0])
    used = coef != 0
    level = float(np.abs(gradient[used]).max(initial=0.0))
    lost = ~used & (np.abs(gradient) > level * (1.0 + 1e-9)) & (problem.weights == 1.0)
    tied = np.isclose(ratio[lost, None], ratio[None, used], rtol=1e-12).any(axis=1)
    if not lost.any() or not tied.all():
        return np.inf
    return error_of(problem, coef, weights=np.where(lost, np.inf, problem.weights))


def rounds_small_entries(problem: Problem, coef: Array) -> float:
    """Be the solution without its smallest entries, the others as they are."""
    truth = problem.truth.coef
    lost, kept = (coef == 0) & (truth != 0), coef != 0
    if not (lost.any() and kept.any()):
        return np.inf
    size = np.abs(truth)
    if size[lost].max() >= size[kept].min():
        return np.inf
    return float((np.abs(coef - truth)[~lost] / size[kept].max()).max())


def sphere_not_ball(problem: Problem, coef: Array) -> float:
    """On the sphere although a smaller multiple is better: sum_j w_j |a_j| = kappa was asked for.

    Either a multiple of the solution, or optimal on its own face of the sphere.
    """
    if not abs(_norm(problem, coef) / (problem.kappa or np.inf) - 1.0) <= _ON_SPHERE:
        return np.inf
    gram, corr = problem.gram.gram, problem.gram.corr[0]
    square = float(coef @ gram @ coef)
    multiple = float(corr @ coef) / square if square > 0 else 0.0
    if not multiple < 1.0 - _ON_SPHERE:
        return np.inf
    used = (coef != 0) & np.isfinite(problem.weights) & (problem.weights > 0)
    slope = (gram @ coef - corr)[used] * np.sign(coef[used]) / problem.weights[used]
    weight = problem.weights[used] * np.abs(coef[used])
    mean = float(slope @ weight) / float(weight.sum())
    off_face = float(weight @ np.abs(slope - mean)) / problem.scale
    return min(off_face, error_of(problem, multiple * coef))


def _ignores(problem: Problem, coef: Array, column: int) -> float:
    """Optimal without one of the columns."""
    if coef[column] != 0 or np.isinf(problem.weights[column]):
        return np.inf
    weights = problem.weights.copy()
    weights[column] = np.inf
    return error_of(problem, coef, weights=weights)


def ignores_the_first(problem: Problem, coef: Array) -> float:
    """Optimal without the first column."""
    return _ignores(problem, coef, 0)


def ignores_the_last(problem: Problem, coef: Array) -> float:
    """Optimal without the last column."""
    return _ignores(problem, coef, -1)


def misses_the_radius(problem: Problem, coef: Array) -> float:
    """Optimal for another radius: a point of the path, not the one asked for."""
    norm = _norm(problem, coef)
    return error_of(problem, coef, kappa=norm) if norm > 0 else np.inf


# Class -> test; among classes that explain equally many failures of a solver the first is named.
MISTAKES: dict[str, Callable[[Problem, Array], float]] = {
    "sign flipped": sign_flipped,
    "kappa treated as lam": kappa_is_lam,
    "squared radius": squared_radius,
    "penalises the free columns": penalises_free_columns,
    "ignores the weights": ignores_weights,
    "uses excluded columns": uses_excluded_columns,
    "ignores the signs": ignores_signs,
    "ignores the ball": ignores_the_ball,
    "wrong scaling": wrong_scaling,
    "ignores the first column": ignores_the_first,
    "ignores the last column": ignores_the_last,
    "rounds small entries to zero": rounds_small_entries,
    "sphere instead of the ball": sphere_not_ball,
    "loses ties": loses_ties,
    "non-negative only": nonnegative_only,
    "centres the data": centres_the_data,
    "normalises the columns": normalises_columns,
    "transposed design": transposed_design,
    "l2 ball": l2_ball,
    "misses the radius": misses_the_radius,
}
