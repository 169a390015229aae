"""Exchanges of columns between support and complement: block principal pivoting (numba)."""

from __future__ import annotations

import numpy as np

from cimf.solve.compiled import kernel
from cimf.solve.path.cholesky import append, remove
from cimf.solve.path.segment_lines import solve_at, wrong_columns

_MAX_CORRECTIONS = 24


@kernel
def grown(factor, size):
    """Return a factor with capacity for `size` columns, keeping its content."""
    if factor.shape[0] >= size:
        return factor
    capacity = max(size, 2 * factor.shape[0])  # doubling: a path copies its factor log k times
    larger = np.empty((capacity, capacity))
    k = factor.shape[0]
    for i in range(k):
        larger[i, i:k] = factor[i, i:]
    return larger


@kernel
def exchange(problem, state, factor, n_drop, n_new, work):
    """Remove the positions in work.drop and append the columns in work.new.

    Returns the state and the factor.
    """
    support, sign, k = state
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
    return (support, sign, k), factor


@kernel
def occupy(problem, listed, k, state, work):
    """Let listed[:k] be the support; the signs of the state are kept. Returns the state."""
    support, sign, _ = state
    work.open_up[:] = problem.up
    work.open_down[:] = problem.down
    for i in range(k):
        j = listed[i]
        support[i] = j
        work.open_up[j] = 0.0
        work.open_down[j] = 0.0
    return support, sign, k


@kernel
def rebuild(problem, listed, k, state, free_factor, factor, work):
    """Factor the support listed[:k], free columns first; the signs of the state are kept.

    Returns (state, factor).
    """
    f = free_factor.shape[0]
    state = occupy(problem, listed, k, state, work)
    for i in range(f):
        factor[i, i:f] = free_factor[i, i:]
    if k > f:
        factor = grown(factor, k)
        work.new[: k - f] = listed[f:k]
        append(problem.gram, problem.scale, problem.ridge, state[0], f, work.new, k - f, factor)
    return state, factor


@kernel
def correct(problem, state, lam, kappa, at_kappa, allowed, factor, work):
    """Exchange all violating columns until none is left, at fixed lam or on the ball.

    Starts from a point with its gradient. Returns (done, at_kappa, lam, state, factor, systems
    solved). Gives up after two exchanges that do not lower the number of violations, or when it
    exceeds `allowed`.
    """
    best = state[0].shape[0] + 1
    since = 0
    solves = 0
    for attempt in range(_MAX_CORRECTIONS):
        n_drop, n_new = wrong_columns(problem, state, lam, work)
        wrong = n_drop + n_new
        if wrong == 0:
            return True, at_kappa, lam, state, factor, solves
        if attempt > 0 and wrong > allowed:
            break
        # Exchanging all violators at once may cycle; their number falls where it converges (the
        # safeguard of Judice and Pires for block pivoting), else the caller takes a smaller step.
        since = 0 if wrong < best else since + 1
        best = min(best, wrong)
        if since > 1:
            break
        state, factor = exchange(problem, state, factor, n_drop, n_new, work)
        possible, at_kappa, lam = solve_at(problem, state, lam, kappa, at_kappa, factor, work)
        solves += 1
        if not possible:
            break
    return False, at_kappa, lam, state, factor, solves


@kernel
def correct_at(problem, state, lam, kappa, at_kappa, allowed, factor, work):
    """Solve on the support, then `correct`; returns the same."""
    possible, at_kappa, lam = solve_at(problem, state, lam, kappa, at_kappa, factor, work)
    if not possible:
        return False, at_kappa, lam, state, factor, 1
    done, at_kappa, lam, state, factor, solves = correct(
        problem, state, lam, kappa, at_kappa, allowed, factor, work
    )
    return done, at_kappa, lam, state, factor, solves + 1
