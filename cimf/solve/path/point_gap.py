"""How far a point of the path is from optimal: its duality gap, and its refinement (numba).

P(kappa) is told from Q(lam) by its radius: kappa is infinite for Q(lam). The gaps are absolute.
"""

from __future__ import annotations

import numpy as np

from cimf.solve.compiled import Array, finite_kernel, kernel
from cimf.solve.path.cholesky import add_columns, solve
from cimf.solve.path.path_point import Point, Work, at, recentre, write
from cimf.solve.path.row_problem import Problem
from cimf.solve.path.segment_lines import set_gradient, slopes

# A point that is not exact is accepted at this fraction of the tolerance: the goal.
MARGIN = 0.1
# The goal is a tenth of the tolerance. A point whose gap, judged, is not below nine tenths of the
# tolerance is refined, once or twice; the last tenth is left to the judge's own rounding (1e-12).
_JUDGED = 9.0
_REFINEMENTS = 3


@kernel
def norms(problem: Problem, point: Point, grad: Array, work: Work) -> tuple[float, float]:
    """Return sum w s a, and <g, a> on the bounded support."""
    support, sign = point.support, point.sign
    norm = 0.0
    inner = 0.0
    for i in range(point.k):
        j = support[i]
        norm += problem.weights[j] * sign[j] * work.a[i]
        if problem.weights[j] > 0.0:
            inner += work.a[i] * grad[j]
    return norm, inner


@finite_kernel
def steepest(problem: Problem, grad: Array) -> float:
    """Return max |g_j| / w_j over the bounded columns, in the directions their signs allow."""
    largest = 0.0
    for j in range(grad.shape[0]):
        largest = max(largest, max(grad[j] * problem.down[j], -grad[j] * problem.up[j]))
    return largest


@kernel
def _gap(
    problem: Problem, point: Point, grad: Array, kappa: float, work: Work
) -> tuple[float, float]:
    """Return the gap of P(kappa), or of Q(lam), for a gradient (N,), and the norm.

    For Q(lam) the residual is shrunk to a dual feasible point: the proximal term leaves gradients
    1e-12 above lam, which is much where lam is tiny.
    """
    lam = point.lam
    norm, inner = norms(problem, point, grad, work)
    largest = steepest(problem, grad)
    if kappa < np.inf:
        return inner + kappa * largest, norm
    shrunk = 1.0 - lam / largest if largest > lam and lam > 0.0 else 0.0
    half_sq = 0.5 * problem.root * problem.root
    return lam * norm + inner + shrunk * (shrunk * half_sq - inner), norm


@kernel
def gap_at(problem: Problem, point: Point, kappa: float, work: Work) -> tuple[float, float]:
    """Return the gap of P(kappa) or Q(lam), as if the free columns were exact, and the norm.

    What the path is steered by; a point is judged by `judged_gap`.
    """
    return _gap(problem, point, work.grad, kappa, work)


@kernel
def judged_gap(problem: Problem, point: Point, kappa: float, work: Work) -> float:
    """Return the gap as `cimf.judge.certificate` does, free columns eliminated from the gradient.

    On the support the gradient of a free column is zero but for the rounding of the linear system,
    and that rounding counts: it is the error of every column that correlates with the free one.
    With a bias and 400 columns of the states of a network it was 1e-9 of 1/2 ||z||^2 where
    `gap_at` saw 1e-10. Uses v and slope.
    """
    support = point.support
    f = 0  # the free columns come first, and their block of the factor is that of G_FF
    while f < point.k and problem.weights[support[f]] == 0.0:
        f += 1
    if f == 0:
        return gap_at(problem, point, kappa, work)[0]
    # One Newton step of the free columns, -(G_FF)^{-1} g_F: the objective falls by
    # 1/2 g_F' (G_FF)^{-1} g_F, which is the excess, and the gradient becomes what the judge sees.
    for i in range(f):
        work.v[i] = problem.scale[support[i]] * work.grad[support[i]]
    solve(point.factor, f, work.v)
    excess = 0.0
    for i in range(f):
        work.v[i] *= -problem.scale[support[i]]
        excess -= 0.5 * work.v[i] * work.grad[support[i]]
    work.slope[:] = work.grad
    add_columns(problem.gram, support, f, work.v, work.slope)
    return _gap(problem, point, work.slope, kappa, work)[0] + excess


@kernel
def rounding(problem: Problem) -> float:
    """Return the rounding of 1/2 ||z||^2: a gap is not expected to fall further below the goal."""
    return 1e-15 * (0.5 * problem.root * problem.root)


@kernel
def passes(problem: Problem, gap: float) -> bool:
    """Return whether a judged gap will be certified."""
    return gap <= _JUDGED * problem.goal


@kernel
def keep(problem: Problem, point: Point, kappa: float, work: Work, out: Array) -> float:
    """Write the point into out (N,); returns its gap as it will be judged."""
    write(problem, point, kappa, work, out)
    return judged_gap(problem, point, kappa, work)


@kernel
def refine(problem: Problem, point: Point, kappa: float, work: Work) -> Point:
    """Solve once more on the support, for the residual of the point held; returns the point.

    In exact arithmetic this is the proximal move of `recentre` and `solve_at`. Computed from the
    residual it also removes the rounding of the last system, which a factor of 400 columns leaves
    at 1e-9 of the gap's scale and no repetition of the same system would lower.
    """
    support, sign, k, lam = point.support, point.sign, point.k, point.lam
    recentre(problem, point, work)
    v = work.v
    for i in range(k):
        j = support[i]
        v[i] = -problem.scale[j] * (work.grad[j] + lam * problem.weights[j] * sign[j])
    solve(point.factor, k, v)
    norm = 0.0
    for i in range(k):
        j = support[i]
        work.a[i] += problem.scale[j] * v[i]
        norm += problem.weights[j] * sign[j] * work.a[i]
    if point.on_sphere:
        rate = slopes(problem, point, work)
        step = min((kappa - norm) / rate, lam) if rate > 0.0 else 0.0
        for i in range(k):
            work.a[i] += step * v[i]
        lam -= step
    set_gradient(problem, point, work)
    return at(point, lam, point.on_sphere)


@kernel
def keep_refined(
    problem: Problem, point: Point, kappa: float, kept: float, work: Work, out: Array
) -> tuple[Point, int]:
    """Refine until the point in out (N,), of judged gap `kept`, passes; each better one is written.

    Returns the point and the systems solved.
    """
    solves = 0
    while solves < _REFINEMENTS and not passes(problem, kept):
        point = refine(problem, point, kappa, work)
        solves += 1
        if judged_gap(problem, point, kappa, work) < kept:
            kept = keep(problem, point, kappa, work, out)
    return point, solves
