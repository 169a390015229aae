"""The end of a row's path: the least-squares solution, where the ball is inactive (numba).

The path ends at lam = 0, after as many breakpoints as it takes; a jump there saves them where the
ball turns out to be inactive, and costs one system where it does not. `Ends` remembers what the
jumps of a row have shown, so that few are made in vain.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cimf.solve.compiled import kernel
from cimf.solve.path.cholesky import append
from cimf.solve.path.path_point import Point, Work, grown, recentre
from cimf.solve.path.point_gap import gap_at
from cimf.solve.path.row_problem import Problem
from cimf.solve.path.segment_lines import solve_at

_MAX_CENTRES = 30
# Share of the usable columns on the support at which the least-squares solution is tried: a dense
# path is left for it (1.2 s -> 0.05 s at N = 897), a sparse one ends sparse.
_DENSE = 0.6
# Points with as many columns as there are samples before the least-squares solution is tried: they
# span the samples, so it fits the target exactly, while the path may have a thousand breakpoints
# left on which nothing is gained (states of a residual network, 512 samples of 1,089 columns: up to
# 2,300 systems per row without, 730 with). Most rows with m < N end before.
_SPANNING = 32


class Ends(NamedTuple):
    """What is known about the end of a row's path.

    Attributes
    ----------
    tried : bool
        The least-squares solution was tried since the last step along the path.
    inactive_from : float
        No smaller kappa is inactive.
    spanning, next_try : int
        Points so far whose support spans the samples, and how many there must be for a try.
    """

    tried: bool
    inactive_from: float
    spanning: int
    next_try: int


@kernel
def unknown_ends() -> Ends:
    """Return the `Ends` of a row that nothing is known about."""
    return Ends(False, 0.0, 0, _SPANNING)


@kernel
def stepped(ends: Ends) -> Ends:
    """Return the record after a step along the path."""
    return Ends(False, ends.inactive_from, ends.spanning, ends.next_try)


@kernel
def watched(problem: Problem, point: Point, kappa: float, ends: Ends) -> tuple[bool, bool, Ends]:
    """Return (whole, full, ends): whether the path is dense, and its support spans the samples.

    Either way the walk would be long from here: the least-squares solution on all columns (whole),
    or on the support, is worth a try.
    """
    whole = point.k > _DENSE * problem.n_usable and kappa >= ends.inactive_from
    spanning = ends.spanning + (problem.rank <= point.k < problem.n_usable)
    return (
        whole,
        spanning >= ends.next_try,
        Ends(ends.tried, ends.inactive_from, spanning, ends.next_try),
    )


@kernel
def try_end(
    problem: Problem, point: Point, kappa: float, whole: bool, ends: Ends, work: Work
) -> tuple[bool, Point, Ends]:
    """Jump to the least-squares solution. Returns (certified, point, ends).

    Where it is not certified the proximal centre is what it was, but the support is not.
    """
    next_try = 2 * ends.spanning if ends.spanning >= ends.next_try else ends.next_try
    inactive_from = ends.inactive_from
    centre, tilt = work.centre.copy(), work.tilt.copy()
    done, norm, point = _least_squares(problem, point, kappa, whole, work)
    if not done:
        if whole:
            inactive_from = max(norm, np.nextafter(kappa, np.inf))
        work.centre[:] = centre
        work.tilt[:] = tilt
    return done, point, Ends(True, inactive_from, ends.spanning, next_try)


@kernel
def _least_squares(
    problem: Problem, point: Point, kappa: float, whole: bool, work: Work
) -> tuple[bool, float, Point]:
    """Solve at lam = 0 on the support, or (whole) on all usable columns.

    Returns (certified, norm, point). Certified: this solution lies in the ball, so that the ball is
    inactive, its signs are allowed, and its gap is below the goal.
    """
    support, sign, k, factor = point.support, point.sign, point.k, point.factor
    if whole:
        n_new = 0
        for j in range(sign.shape[0]):
            if work.open_up[j] + work.open_down[j] > 0.0:
                work.new[n_new] = j
                n_new += 1
                work.open_up[j] = 0.0
                work.open_down[j] = 0.0
        factor = grown(factor, k + n_new)
        if n_new > 0:
            k = append(
                problem.gram, problem.scale, problem.ridge, support, k, work.new, n_new, factor
            )
    point = Point(support, sign, k, factor, 0.0, False)
    # At lam = 0 a sign is whatever the coefficient has: nothing is exchanged, only looked at.
    norm = np.inf
    for _ in range(_MAX_CENTRES):
        solve_at(problem, point, np.inf, work)
        norm = 0.0
        allowed = True
        for i in range(k):
            j = support[i]
            w = problem.weights[j]
            if w > 0.0:
                sign[j] = 1.0 if work.a[i] > 0.0 else -1.0
                norm += w * abs(work.a[i])
                allowed = allowed and (problem.up[j] if sign[j] > 0.0 else problem.down[j]) > 0.0
        recentre(problem, point, work)
        if norm > kappa or not allowed:
            break
        if gap_at(problem, point, kappa, work)[0] <= problem.goal:
            return True, norm, point
    return False, norm, point
