"""Exchanges of columns between support and complement: block principal pivoting (numba).

At a given lam the solution is the one support on which every coefficient has its sign and off which
no gradient exceeds lam. Block pivoting exchanges *all* columns that violate this at once, and after
an exchange solves again: the semismooth Newton method of the problem, two or three systems from a
good guess where single exchanges need one per column.
"""

from __future__ import annotations

import numpy as np

from cimf.solve.compiled import Ints, kernel
from cimf.solve.path.breakpoints import wrong_columns
from cimf.solve.path.cholesky import append, remove
from cimf.solve.path.path_point import Point, Work, at, copy_upper, grown
from cimf.solve.path.row_problem import Problem
from cimf.solve.path.segment_lines import solve_at

_MAX_CORRECTIONS = 24


@kernel
def exchange(problem: Problem, point: Point, n_drop: int, n_new: int, work: Work) -> Point:
    """Remove the positions in work.drop and append the columns in work.new; returns the point."""
    support, sign, k, factor = point.support, point.sign, point.k, point.factor
    # Removal first: the factor is smaller when the new columns are appended, and a column that only
    # depends on one that leaves does not meet it.
    if n_drop:
        for i in range(k):
            if work.drop[i]:
                j = support[i]
                sign[j] = 0.0
                work.open_up[j] = problem.up[j]
                work.open_down[j] = problem.down[j]
        k = remove(problem.gram, problem.scale, problem.ridge, support, k, work.drop, factor)
    if n_new:
        factor = grown(factor, k + n_new)
        for i in range(n_new):
            j = work.new[i]
            sign[j] = work.new_sign[i]
            work.open_up[j] = 0.0
            work.open_down[j] = 0.0
        k = append(
            problem.gram, problem.scale, problem.ridge, support, k, work.new, n_new, factor
        )  # fmt: skip
    return Point(support, sign, k, factor, point.lam, point.on_sphere)


@kernel
def _occupy(problem: Problem, point: Point, listed: Ints, k: int, work: Work) -> None:
    """Let listed[:k] be the support of the point, whose signs are kept; its factor is not set."""
    work.open_up[:] = problem.up
    work.open_down[:] = problem.down
    for i in range(k):
        j = listed[i]
        point.support[i] = j
        work.open_up[j] = 0.0
        work.open_down[j] = 0.0


@kernel
def rebuild(problem: Problem, point: Point, listed: Ints, k: int, work: Work) -> Point:
    """Factor the support listed[:k], free columns first; the signs of the point are kept.

    Returns the point. The factor depends on the order of the list alone, not on how the support
    was reached: bits that shall not depend on the way come from here.
    """
    f = problem.free.shape[0]
    _occupy(problem, point, listed, k, work)
    factor = copy_upper(problem.free_factor, f, point.factor)
    # In one block, not column by column: the same bits whatever came before.
    if k > f:
        factor = grown(factor, k)
        work.new[: k - f] = listed[f:k]
        append(
            problem.gram, problem.scale, problem.ridge, point.support, f, work.new, k - f, factor
        )  # fmt: skip
    return Point(point.support, point.sign, k, factor, point.lam, point.on_sphere)


@kernel
def correct(
    problem: Problem, point: Point, kappa: float, allowed: int, work: Work
) -> tuple[bool, Point, int]:
    """Exchange all violating columns until none is left, at fixed lam or on the sphere.

    Starts from a point with its gradient. Returns (done, point, systems solved). Gives up after two
    exchanges that do not lower the number of violations, or when it exceeds `allowed`.
    """
    best = point.support.shape[0] + 1
    since = 0
    solves = 0
    for attempt in range(_MAX_CORRECTIONS):
        n_drop, n_new = wrong_columns(problem, point, work)
        wrong = n_drop + n_new
        if wrong == 0:
            return True, point, solves
        # The first exchange may be large, it was predicted; more violators than the step crossed
        # after it mean that the guess is no guess, and larger factors would be built for nothing.
        if attempt > 0 and wrong > allowed:
            break
        # Exchanging all violators at once may cycle; their number falls where it converges (the
        # safeguard of Judice and Pires for block pivoting), else the caller takes a smaller step.
        since = 0 if wrong < best else since + 1
        best = min(best, wrong)
        if since > 1:
            break
        point = exchange(problem, point, n_drop, n_new, work)
        possible, point = solve_at(problem, point, kappa, work)
        solves += 1
        if not possible:
            break
    return False, point, solves


@kernel
def correct_at(
    problem: Problem, point: Point, kappa: float, allowed: int, work: Work
) -> tuple[bool, Point, int]:
    """Solve on the support, then `correct`; returns the same."""
    possible, point = solve_at(problem, point, kappa, work)
    if not possible:
        return False, point, 1
    done, point, solves = correct(problem, point, kappa, allowed, work)
    return done, point, solves + 1


@kernel
def _returned(problem: Problem, point: Point, saved: Point, work: Work) -> Point:
    """Return the point moved back to a saved one; its coefficients are not solved for."""
    point.sign[:] = saved.sign
    _occupy(problem, point, saved.support, saved.k, work)
    factor = copy_upper(saved.factor, saved.k, point.factor)
    return Point(point.support, point.sign, saved.k, factor, saved.lam, False)


@kernel
def reopen(problem: Problem, point: Point, saved: Point, work: Work) -> Point:
    """Return to a saved point as it is: solve there, correct nothing. Returns the point."""
    return solve_at(problem, _returned(problem, point, saved, work), np.inf, work)[1]


@kernel
def resume(problem: Problem, point: Point, saved: Point, work: Work) -> tuple[bool, Point, int]:
    """Return to a saved point: solve there, and correct. Returns as `correct`.

    Where the support is as large as the rank, rounding alone can turn signs in the new solution.
    """
    point = _returned(problem, point, saved, work)
    # The point is on the path: its norm needs no attention.
    done, point, solves = correct_at(problem, point, np.inf, point.support.shape[0], work)
    return done, at(point, saved.lam, False), solves
