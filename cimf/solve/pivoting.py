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

from cimf.solve.cholesky import append
from cimf.solve.compiled import kernel
from cimf.solve.exchange import correct, grown, rebuild
from cimf.solve.segment import (
    advance,
    breakpoints,
    choose_step,
    norms,
    refresh,
    steepest,
    write,
)

# How a row ended; whether it is solved, its certificate says.
EXACT = 0  # at its level, every optimality condition met
EARLY = 1  # on the path before its level, where the gap is below the goal already
ROUNDED = 2  # rounding keeps the gap above the goal: the best point is kept
STALLED = 3  # out of systems or of ways back: the point as it stands

_MAX_REFUSALS = 16
_MAX_CENTRES = 30
# Share of the usable columns on the support at which the least-squares solution is tried: a dense
# path is left for it (1.2 s -> 0.05 s at N = 897), a sparse one ends sparse.
_DENSE = 0.6


@kernel
def _resume(problem, saved, lam, kappa, support, sign, free_factor, factor, row):
    """Return to a saved point: rebuild the factor behind its free columns, solve, and correct.

    Where the support is as large as the rank, rounding alone can turn signs in the new solution.
    Returns (done, state, factor, systems solved).
    """
    _, centre, lines, _, _, _, _ = row
    listed, saved_sign, k = saved
    sign[:] = saved_sign
    state, factor = rebuild(problem, listed, k, (support, sign, k), free_factor, factor, row)
    refresh(problem, state, lam, centre, factor, lines)
    n = sign.shape[0]
    done, _, _, state, factor, solves = correct(problem, state, lam, kappa, False, n, factor, row)
    return done, state, factor, solves + 1


@kernel
def _least_squares(problem, state, whole, kappa, goal, factor, row):
    """Solve at lam = 0 on the support, or (whole) on all usable columns.

    Returns (certified, norm, state, factor). Certified: this solution lies in the ball, so that the
    ball is inactive, its signs are allowed, and its gap is below the goal.
    """
    gram, _, weights, signs, scale, ridge = problem
    _, centre, lines, inside, _, new, _ = row
    support, sign, k = state
    if whole:
        n_new = 0
        for j in range(weights.shape[0]):
            if not inside[j] and weights[j] < np.inf and scale[j] > 0.0:
                new[n_new] = j
                n_new += 1
                inside[j] = True
        factor = grown(factor, k + n_new)
        if n_new > 0:
            k = append(gram, scale, ridge, support, k, new, n_new, factor)
    state = (support, sign, k)
    norm = np.inf
    for _ in range(_MAX_CENTRES):
        refresh(problem, state, 0.0, centre, factor, lines)
        norm = 0.0
        allowed = True
        for i in range(k):
            j = support[i]
            centre[j] = lines[0][i]
            if weights[j] > 0.0:
                sign[j] = 1.0 if lines[0][i] > 0.0 else -1.0
                norm += weights[j] * abs(lines[0][i])
                allowed = allowed and sign[j] * signs[j] >= 0.0
        if norm > kappa or not allowed:
            break
        if norms(problem, state, lines)[2] + kappa * steepest(problem, lines[2]) <= goal:
            return True, norm, state, factor
    return False, norm, state, factor


@kernel
def _save(state, saved):
    """Copy a state into the saved one; returns it."""
    support, sign, k = state
    saved[0][:k] = support[:k]
    saved[1][:] = sign
    return saved[0], saved[1], k


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
    new, new_sign = np.empty(n, np.int64), np.empty(n)
    root = np.sqrt(2.0 * half_sq)
    row = (root, centre, lines, inside, np.zeros(n, np.bool_), new, new_sign)
    steps = np.empty(n)
    state = (support, sign, f)
    refresh(problem, state, 0.0, centre, factor, lines)
    lam = steepest(problem, lines[2])
    saved = (support.copy(), sign.copy(), f)
    saved_lam = lam
    usable = 0
    for j in range(n):
        usable += weights[j] < np.inf and scale[j] > 0.0
    inactive_from = 0.0  # no smaller kappa is inactive
    block, beyond = 1, 0.5
    solves, passes, refused = 1, 0, 0
    tried = False
    stalled = False
    lost = False  # the point held is not exact any more
    for level in range(levels.shape[0]):
        kappa = levels[level] if ball else np.inf
        stop = 0.0 if ball else levels[level]
        status = STALLED
        arrived = False
        futile = 0
        best_gap = np.inf
        while True:
            # An exact point of the path is held here: (lam, state, lines), its norm at most kappa.
            norm, rate, inner, _ = norms(problem, state, lines)
            steep = steepest(problem, lines[2])
            gap = inner + kappa * steep if ball else lam * norm + inner
            if (ball and gap <= goal) or (arrived and gap <= goal + 1e-15 * half_sq):
                status = EXACT if arrived else EARLY
                break
            passes += 1
            if stalled or solves + passes > max_solves:
                stalled = True
                break
            # Where the ball is inactive the path is left at a lam that certifies the goal.
            floor = 0.25 * goal / (kappa - norm) if ball and kappa > norm else stop
            limit = lam - max(floor, stop)
            whole = state[2] > _DENSE * usable and kappa >= inactive_from
            failed = False
            if ball and not arrived and (whole or (not tried and (limit <= 0.0 or refused == 3))):
                # The ball may be inactive, beyond a dense path or one that ends in rounding.
                tried = True
                if gap < best_gap:
                    best_gap = gap
                    write(problem, state, lines, kappa, out[level])
                saved_centre = centre.copy()
                done, norm, state, factor = _least_squares(
                    problem, state, whole, kappa, goal, factor, row
                )
                solves += 1
                if done:
                    lam = 0.0
                    continue
                if whole:
                    inactive_from = max(norm, np.nextafter(kappa, np.inf))
                centre[:] = saved_centre
                failed = True
            elif arrived or limit <= 0.0:
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
                done, at_kappa, lam, state, factor, used = correct(
                    problem, state, lam, kappa, arrived and ball, n, factor, row
                )
                solves += used + 1
                if done:
                    arrived = at_kappa or not ball
                    saved, saved_lam = _save(state, saved), lam
                else:
                    arrived = False
                    failed = True
                    refused += 4
            else:
                count = breakpoints(problem, state, lam, centre, lines, inside, steps)
                step, first = choose_step(steps, count, block, beyond, 1e-12 * lam, limit)
                reach = max((kappa - norm) / rate, 0.0) if rate > 0.0 else np.inf
                if norm >= kappa:
                    reach = 0.0
                at_kappa = reach <= step
                step = min(step, reach)
                advance(problem, state, step, lines)
                lam -= step
                done, used = True, 0
                if first < step:
                    allowed = 16 + 2 * block + state[2] // 2
                    done, at_kappa, lam, state, factor, used = correct(
                        problem, state, lam, kappa, at_kappa, allowed, factor, row
                    )
                    solves += used
                if done and lam <= saved_lam * (1.0 + 1e-9):
                    arrived = at_kappa or (not ball and lam <= stop)
                    if first < step:
                        saved = _save(state, saved)
                        # Breakpoints that changed nothing were rounding: cross more of them.
                        block = min(2 * block, max(state[2] // 6, 2) if used > 0 else n)
                        beyond = 0.5
                        refused = 0
                    saved_lam = lam
                    tried = False
                else:
                    # A smaller block from the last exact point; in the end a homotopy step.
                    failed = True
                    refused += 1
                    beyond *= 0.1
                    block = max(block // 4, 1)
            if failed:
                lam = saved_lam
                done, state, factor, used = _resume(
                    problem, saved, lam, kappa, support, sign, free_factor, factor, row
                )
                solves += used
                lost = not done
                stalled = lost or refused > _MAX_REFUSALS
                if lost and best_gap < np.inf:
                    status = ROUNDED
                    break
        if lost and level > 0 and best_gap == np.inf:
            out[level] = out[level - 1]
        elif status != ROUNDED and gap <= best_gap:
            write(problem, state, lines, kappa, out[level])
        out_lam[level] = lam
        out_status[level] = status
        out_solves[level] = solves
