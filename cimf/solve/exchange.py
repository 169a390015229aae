"""Exchanges of columns between support and complement: block principal pivoting (numba)."""

from __future__ import annotations

import numpy as np

from cimf.solve.cholesky import append, remove
from cimf.solve.compiled import kernel
from cimf.solve.segment import advance, norms, refresh, wrong_columns

_MAX_CORRECTIONS = 24


@kernel
def grown(factor, size):
    """Return a factor with capacity for `size` columns, keeping its content."""
    if factor.shape[0] >= size:
        return factor
    capacity = max(size, 2 * factor.shape[0])
    larger = np.empty((capacity, capacity))
    k = factor.shape[0]
    for i in range(k):
        larger[i, i:k] = factor[i, i:]
    return larger


@kernel
def exchange(problem, state, factor, inside, drop, n_drop, new, new_sign, n_new):
    """Remove the dropped positions and append the new columns. Returns the state and the factor."""
    gram, scale, ridge = problem[0], problem[4], problem[5]
    support, sign, k = state
    if n_drop:
        for i in range(k):
            if drop[i]:
                inside[support[i]] = False
                sign[support[i]] = 0.0
        k = remove(gram, scale, ridge, support, k, drop, factor)
    if n_new:
        factor = grown(factor, k + n_new)
        for i in range(n_new):
            inside[new[i]] = True
            sign[new[i]] = new_sign[i]
        k = append(gram, scale, ridge, support, k, new, n_new, factor)
    return (support, sign, k), factor


@kernel
def rebuild(problem, listed, k, state, free_factor, factor, row):
    """Factor the support listed[:k], free columns first; the signs of the state are kept.

    Returns (state, factor).
    """
    _, _, _, inside, _, new, _ = row
    support, sign, _ = state
    f = free_factor.shape[0]
    inside[:] = False
    for i in range(k):
        support[i] = listed[i]
        inside[listed[i]] = True
    for i in range(f):
        factor[i, i:f] = free_factor[i, i:]
    if k > f:
        factor = grown(factor, k)
        new[: k - f] = listed[f:k]
        append(problem[0], problem[4], problem[5], support, f, new, k - f, factor)
    return (support, sign, k), factor


@kernel
def correct(problem, state, lam, kappa, at_kappa, allowed, factor, row):
    """Exchange all violating columns until none is left, at fixed lam or on the ball.

    row : (||z||, centre (N,), lines, inside (N,), drop (N,), new (N,), new_sign (N,))
        Proximal centre, `segment` lines, membership of the support, and scratch.

    Returns (done, at_kappa, lam, state, factor, systems solved). Gives up after four exchanges that
    do not lower the number of violations, or when it exceeds `allowed`.
    """
    root, centre, lines, inside, drop, new, new_sign = row
    best = state[0].shape[0] + 1
    since = 0
    solves = 0
    done = False
    for attempt in range(_MAX_CORRECTIONS):
        norm, rate, _, size = norms(problem, state, lines)
        at_kappa = at_kappa or norm > kappa
        if at_kappa:
            step = (kappa - norm) / rate if rate > 0.0 else np.inf
            if step > lam:
                break
            advance(problem, state, step, lines)
            lam -= step
        noise = 4e-16 * (root + size)
        n_drop, n_new = wrong_columns(
            problem, state, lam, centre, noise, lines, inside, drop, new, new_sign
        )
        wrong = n_drop + n_new
        if wrong == 0:
            done = True
            break
        if attempt > 0 and wrong > allowed:
            break
        since = 0 if wrong < best else since + 1
        best = min(best, wrong)
        if since > 3:
            break
        state, factor = exchange(problem, state, factor, inside, drop, n_drop, new, new_sign, n_new)
        refresh(problem, state, lam, centre, factor, lines)
        solves += 1
    return done, at_kappa, lam, state, factor, solves
