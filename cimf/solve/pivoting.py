"""Exact solution of P(kappa) and Q(lam) for one row: block pivoting along its path (numba).

The solution a(lam) of Q(lam) is piecewise linear in lam, and the solution of P(kappa) is the point
of that path whose norm is kappa (Osborne, Presnell and Turlach, 2000). A homotopy walks it one
breakpoint at a time; here a step crosses many:

* predict: on the present segment a and the gradient are lines in lam; order the breakpoints that
  they predict and go to a lam between the q-th and the next, exchanging all crossed columns;
* correct: exchange every column that violates the optimality conditions until none does (block
  principal pivoting, the semismooth Newton method of the problem); once the norm passes kappa,
  lam becomes an unknown and the ball an equation of the same linear system;
* if the correction fails, return to the last exact point with q/4; q doubles after a success. At
  q = 1 this is the homotopy, so progress never depends on the block steps being good.

Columns are scaled to a unit diagonal inside the factor and a proximal term ridge ||a - centre||^2
makes each subproblem strictly convex, so duplicate columns and m < N are no special case; the
centre is moved (proximal point method) until the gap of the problem itself is below the goal.
"""

from __future__ import annotations

import numpy as np

from cimf.solve.cholesky import append, remove
from cimf.solve.compiled import kernel
from cimf.solve.segment import (
    advance,
    breakpoints,
    choose_step,
    norms,
    refresh,
    steepest,
    write,
    wrong_columns,
)

# Statuses of a row.
EXACT = 0
EARLY = 1
ROUNDED = 2
STALLED = 3

_MAX_CORRECTIONS = 24
_MAX_REFUSALS = 16
_MAX_CENTRES = 30
# Share of the usable columns on the support at which the least-squares solution is tried: a dense
# path is left for it (1.2 s -> 0.05 s at N = 897), a sparse one ends sparse.
_DENSE = 0.6


@kernel
def _grown(factor, size):
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
def _exchange(problem, state, factor, inside, drop, n_drop, new, new_sign, n_new):
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
        factor = _grown(factor, k + n_new)
        for i in range(n_new):
            inside[new[i]] = True
            sign[new[i]] = new_sign[i]
        k = append(gram, scale, ridge, support, k, new, n_new, factor)
    return (support, sign, k), factor


@kernel
def _correct(
    problem, state, lam, kappa, at_kappa, allowed, root, centre, factor, lines, inside, work
):
    """Exchange all violating columns until none is left, at fixed lam or on the ball.

    Returns (done, at_kappa, lam, state, factor, systems solved). Gives up after four exchanges that
    do not lower the number of violations, or when it exceeds `allowed`.
    """
    drop, new, new_sign = work
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
        state, factor = _exchange(
            problem, state, factor, inside, drop, n_drop, new, new_sign, n_new
        )
        refresh(problem, state, lam, centre, factor, lines)
        solves += 1
    return done, at_kappa, lam, state, factor, solves


@kernel
def _restore(problem, state, f, saved, saved_sign, saved_k, free_factor, factor, inside, new):
    """Return to a saved support: rebuild the factor behind its free columns."""
    support, sign, _ = state
    inside[:] = False
    sign[:] = saved_sign
    for i in range(saved_k):
        support[i] = saved[i]
        inside[saved[i]] = True
    for i in range(f):
        factor[i, i:f] = free_factor[i, i:]
    k = f
    if saved_k > f:
        factor = _grown(factor, saved_k)
        new[: saved_k - f] = saved[f:saved_k]
        k = append(problem[0], problem[4], problem[5], support, f, new, saved_k - f, factor)
    return (support, sign, k), factor


@kernel
def _least_squares(problem, state, whole, kappa, goal, centre, factor, lines, inside, new):
    """Solve at lam = 0 on the support, or (whole) on all usable columns.

    Returns (certified, norm, state, factor). Certified: this solution lies in the ball, so that the
    ball is inactive, and its signs are allowed, and that its gap is below the goal.
    """
    gram, _, weights, signs, scale, ridge = problem
    support, sign, k = state
    if whole:
        n_new = 0
        for j in range(weights.shape[0]):
            if not inside[j] and weights[j] < np.inf and scale[j] > 0.0:
                new[n_new] = j
                n_new += 1
                inside[j] = True
        factor = _grown(factor, k + n_new)
        if n_new > 0:
            k = append(gram, scale, ridge, support, k, new, n_new, factor)
    state = (support, sign, k)
    norm = np.inf
    for _ in range(_MAX_CENTRES):
        refresh(problem, state, 0.0, centre, factor, lines)
        norm = 0.0
        for i in range(k):
            j = support[i]
            centre[j] = lines[0][i]
            if weights[j] > 0.0:
                sign[j] = 1.0 if lines[0][i] > 0.0 else -1.0
                norm += weights[j] * abs(lines[0][i])
                if sign[j] * signs[j] < 0.0:
                    norm = np.inf
        if norm > kappa:
            break
        if norms(problem, state, lines)[2] + kappa * steepest(problem, lines[2]) <= goal:
            return True, norm, state, factor
    return False, norm, state, factor


@kernel
def solve_levels(
    gram, corr, half_sq, weights, signs, scale, ridge, free, free_factor,
    levels, ball, goal, max_solves, out, out_lam, out_status, out_solves,
):  # fmt: skip
    """Solve one row for several levels in one pass along its path.

    Parameters
    ----------
    gram (N, N), corr (N,), half_sq = 1/2 ||z||^2
    weights (N,), signs (N,)
        As `formulations.columns.Columns`; a column with scale 0 is excluded.
    scale (N,), ridge
        Diagonal of D (about 1/||M_j||; 0 for zero columns) and proximal weight.
    free (f,), free_factor (f, f)
        Columns of weight 0 and the factor of their block.
    levels (L,), ball
        Ascending kappa (ball) or descending lam.
    goal
        Absolute gap at which a point that is not exact is good enough.
    max_solves
        Linear systems to solve for the row before it counts as stalled.
    out (L, N), out_lam (L,), out_status (L,), out_solves (L,)
        Filled with the solutions.
    """
    n = corr.shape[0]
    problem = (gram, corr, weights, signs, scale, ridge)
    f = free.shape[0]
    factor = np.empty((max(64, f + 32), max(64, f + 32)))
    support = np.empty(n, np.int64)
    sign = np.zeros(n)
    inside = np.zeros(n, np.bool_)
    for i in range(f):
        support[i] = free[i]
        inside[free[i]] = True
        factor[i, i:f] = free_factor[i, i:]
    centre = np.zeros(n)
    lines = (np.empty(n), np.empty(n), np.empty(n), np.empty(n))
    work = (np.zeros(n, np.bool_), np.empty(n, np.int64), np.empty(n))
    steps = np.empty(n)
    state = (support, sign, f)
    refresh(problem, state, 0.0, centre, factor, lines)
    lam = steepest(problem, lines[2])
    saved = support.copy()
    saved_sign = sign.copy()
    saved_k, saved_lam = f, lam
    root = np.sqrt(2.0 * half_sq)
    solves = 1
    block = 1
    beyond = 0.5
    refused = 0
    passes = 0
    usable = 0
    for j in range(n):
        usable += weights[j] < np.inf and scale[j] > 0.0
    dense = _DENSE * usable
    inactive_from = 0.0
    stalled = False
    for level in range(levels.shape[0]):
        kappa = levels[level] if ball else np.inf
        stop = 0.0 if ball else levels[level]
        status = STALLED
        arrived = False
        futile = 0
        best_gap = np.inf
        while not stalled:
            # An exact point of the path is held here: (lam, state, lines), its norm at most kappa.
            norm, rate, inner, _ = norms(problem, state, lines)
            steep = steepest(problem, lines[2])
            gap = inner + kappa * steep if ball else lam * norm + inner
            if (ball and gap <= goal) or (arrived and gap <= goal + 1e-15 * half_sq):
                status = EXACT if arrived else EARLY
                break
            passes += 1
            if solves + passes > max_solves:
                stalled = True
                break
            # Where the ball is inactive the path is left at a lam that certifies the goal.
            floor = 0.25 * goal / (kappa - norm) if ball and kappa > norm else stop
            limit = lam - max(floor, stop)
            whole = state[2] > dense and kappa >= inactive_from
            if ball and not arrived and (whole or limit <= 0.0 or refused == 3):
                # The ball may be inactive, beyond a dense path or one that ends in rounding.
                refused += 1
                saved_centre = centre.copy()
                done, norm, state, factor = _least_squares(
                    problem, state, whole, kappa, goal, centre, factor, lines, inside, work[1]
                )
                solves += 1
                if done:
                    lam = 0.0
                    continue
                if whole:
                    inactive_from = max(norm, np.nextafter(kappa, np.inf))
                centre[:] = saved_centre
                state, factor = _restore(
                    problem,
                    state,
                    f,
                    saved,
                    saved_sign,
                    saved_k,
                    free_factor,
                    factor,
                    inside,
                    work[1],
                )
                refresh(problem, state, lam, centre, factor, lines)
                norm, rate, inner, _ = norms(problem, state, lines)
            if arrived or limit <= 0.0:
                # Exact for the problem with the proximal term, but that term shows in the gap.
                if gap < 0.5 * best_gap:
                    futile = 0
                    best_gap = gap
                    write(problem, state, lines, kappa, out[level])
                else:
                    futile += 1
                    if futile > 3:
                        status = ROUNDED
                        break
                centre[:] = 0.0
                for i in range(state[2]):
                    centre[support[i]] = lines[0][i]
                refresh(problem, state, lam, centre, factor, lines)
                solves += 1
                done, at_kappa, lam, state, factor, used = _correct(
                    problem,
                    state,
                    lam,
                    kappa,
                    arrived and ball,
                    n,
                    root,
                    centre,
                    factor,
                    lines,
                    inside,
                    work,
                )
                solves += used
                arrived = at_kappa or not ball
                if done:
                    saved_k, saved_lam = state[2], lam
                    saved[:saved_k] = support[:saved_k]
                    saved_sign[:] = sign
                else:
                    refused += 4
                    stalled = refused > _MAX_REFUSALS
                    arrived = False
                    state, factor = _restore(
                        problem,
                        state,
                        f,
                        saved,
                        saved_sign,
                        saved_k,
                        free_factor,
                        factor,
                        inside,
                        work[1],
                    )
                    lam = saved_lam
                    refresh(problem, state, lam, centre, factor, lines)
                continue
            count = breakpoints(problem, state, lam, centre, lines, inside, steps)
            step, first = choose_step(steps, count, block, beyond, 1e-12 * lam, limit)
            reach = max((kappa - norm) / rate, 0.0) if rate > 0.0 else np.inf
            if norm >= kappa:
                reach = 0.0
            at_kappa = reach <= step
            step = min(step, reach)
            advance(problem, state, step, lines)
            lam -= step
            if first >= step:
                arrived = at_kappa or (not ball and lam <= stop)
                saved_lam = lam
                continue
            allowed = 16 + 2 * block + state[2] // 2
            done, at_kappa, lam, state, factor, used = _correct(
                problem,
                state,
                lam,
                kappa,
                at_kappa,
                allowed,
                root,
                centre,
                factor,
                lines,
                inside,
                work,
            )
            solves += used
            if done and lam <= saved_lam * (1.0 + 1e-9):
                saved_k, saved_lam = state[2], lam
                saved[:saved_k] = support[:saved_k]
                saved_sign[:] = sign
                # Breakpoints that changed nothing were rounding: cross more of them.
                block = min(2 * block, max(saved_k // 6, 2) if used > 0 else n)
                beyond = 0.5
                refused = 0
                arrived = at_kappa or (not ball and lam <= stop)
                continue
            # Back to the last exact point with a smaller block, in the end a homotopy step.
            refused += 1
            stalled = refused > _MAX_REFUSALS
            beyond *= 0.1
            block = max(block // 4, 1)
            state, factor = _restore(
                problem, state, f, saved, saved_sign, saved_k, free_factor, factor, inside, work[1]
            )
            lam = saved_lam
            refresh(problem, state, lam, centre, factor, lines)
            solves += 1
        if stalled:
            norm, _, inner, _ = norms(problem, state, lines)
            steep = steepest(problem, lines[2])
            gap = inner + kappa * steep if ball else lam * norm + inner
        if status != ROUNDED and gap <= best_gap:
            write(problem, state, lines, kappa, out[level])
        out_lam[level] = lam
        out_status[level] = status
        out_solves[level] = solves
