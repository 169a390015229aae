"""Exact solution of P(kappa) and Q(lam) for one row: block pivoting along its path (numba).

The solution a(lam) of Q(lam) is piecewise linear in lam, and the solution of P(kappa) is the point
of that path whose norm is kappa (Osborne, Presnell and Turlach, 2000). A homotopy walks it one
breakpoint at a time; here a step crosses many:

* predict: on the present segment a and the gradient are lines in lam; order the breakpoints that
  they predict and go to a lam between the q-th and the next, exchanging all crossed columns;
* correct: exchange every column that violates the optimality conditions until none does (block
  principal pivoting, the semismooth Newton method of the problem); once the norm passes kappa,
  lam becomes an unknown and the ball an equation of the same linear system;
* if the correction fails, return to the last exact point, kept with its factor, with q/4; q doubles
  after a success. At q = 1 this is the homotopy, so progress never depends on good block steps.

Columns are scaled to a unit diagonal inside the factor and a proximal term ridge ||a - centre||^2
makes each subproblem strictly convex, so duplicate columns and m < N are no special case; the
centre is moved (proximal point method) until the gap of the problem itself is below the goal.
"""

from __future__ import annotations

import numpy as np

from cimf.solve.compiled import kernel
from cimf.solve.path.cholesky import append
from cimf.solve.path.exchange import correct, correct_at, grown, occupy
from cimf.solve.path.segment_lines import (
    JUDGED,
    REFINEMENTS,
    advance,
    begin,
    breakpoints,
    choose_step,
    gap_at,
    gradient_slopes,
    judged_gap,
    recentre,
    refine,
    slopes,
    solve_at,
    steepest,
    write,
)

_MAX_REFUSALS = 16
_MAX_CENTRES = 30
# Share of the usable columns on the support at which the least-squares solution is tried: a dense
# path is left for it (1.2 s -> 0.05 s at N = 897), a sparse one ends sparse.
_DENSE = 0.6
# Points with as many columns as there are samples before the least-squares solution is tried: they
# span the samples, so it fits the target exactly, while the path may have a thousand breakpoints
# left on which nothing is gained (states of a residual network, 512 samples of 1,089 columns: up to
# 2,300 systems per row without, 730 with). Most rows with m < N end before.
_SPANNING = 32
# Share of the way to the limit in which breakpoints are looked for first: most steps end there.
_NEAR = 0.25


@kernel
def _copy_upper(source, k, out):
    """Copy the upper triangle of source[:k, :k] into out, grown where needed; returns out."""
    out = grown(out, k)
    for i in range(k):
        out[i, i:k] = source[i, i:k]
    return out


@kernel
def _save(state, factor, saved):
    """Copy a state and its factor into the saved ones; returns them.

    Cheap: with 800 columns a hundredth of the time of a new factor.
    """
    support, sign, k = state
    listed, saved_sign, _, copy = saved
    listed[:k] = support[:k]
    saved_sign[:] = sign
    return listed, saved_sign, k, _copy_upper(factor, k, copy)


@kernel
def _reopen(problem, saved, lam, state, factor, work):
    """Return to a saved point as it is: solve there, correct nothing. Returns (state, factor)."""
    listed, saved_sign, k, copy = saved
    state[1][:] = saved_sign
    state = occupy(problem, listed, k, state, work)
    factor = _copy_upper(copy, k, factor)
    solve_at(problem, state, lam, np.inf, False, factor, work)
    return state, factor


@kernel
def _keep(problem, state, lam, kappa, ball, factor, work, out):
    """Write the point into out (N,); returns its gap as it will be judged."""
    write(problem, state, kappa, work, out)
    return judged_gap(problem, state, lam, kappa, ball, factor, work)


@kernel
def _resume(problem, saved, lam, state, factor, work):
    """Return to a saved point: solve there, and correct.

    Where the support is as large as the rank, rounding alone can turn signs in the new solution.
    Returns (done, state, factor, systems solved).
    """
    listed, saved_sign, k, copy = saved
    state[1][:] = saved_sign
    state = occupy(problem, listed, k, state, work)
    factor = _copy_upper(copy, k, factor)
    # The point is on the path: its norm needs no attention.
    done, _, _, state, factor, solves = correct_at(
        problem, state, lam, np.inf, False, listed.shape[0], factor, work
    )
    return done, state, factor, solves


@kernel
def _least_squares(problem, state, whole, kappa, goal, factor, work):
    """Solve at lam = 0 on the support, or (whole) on all usable columns.

    Returns (certified, norm, state, factor). Certified: this solution lies in the ball, so that the
    ball is inactive, its signs are allowed, and its gap is below the goal.
    """
    support, sign, k = state
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
    state = (support, sign, k)
    norm = np.inf
    for _ in range(_MAX_CENTRES):
        solve_at(problem, state, 0.0, np.inf, False, factor, work)
        norm = 0.0
        allowed = True
        for i in range(k):
            j = support[i]
            w = problem.weights[j]
            if w > 0.0:
                sign[j] = 1.0 if work.a[i] > 0.0 else -1.0
                norm += w * abs(work.a[i])
                allowed = allowed and (problem.up[j] if sign[j] > 0.0 else problem.down[j]) > 0.0
        recentre(problem, state, work)
        if norm > kappa or not allowed:
            break
        if gap_at(problem, state, 0.0, kappa, True, work)[0] <= goal:
            return True, norm, state, factor
    return False, norm, state, factor


@kernel
def _step(problem, state, lam, kappa, norm, limit, block, beyond, factor, work):
    """Predict a step past `block` breakpoints, at most `limit` or to norm kappa; go and correct.

    Returns (done, at_kappa, lam, state, factor, systems solved, whether a breakpoint was crossed).
    """
    rate = slopes(problem, state, factor, work)
    gradient_slopes(problem, state, work)
    reach = max((kappa - norm) / rate, 0.0) if rate > 0.0 else np.inf
    if norm >= kappa:
        reach = 0.0
    limit = min(limit, reach)
    near = _NEAR * limit
    count = breakpoints(problem, state, lam, near, work)
    if count > block:
        limit = near
    else:
        count = breakpoints(problem, state, lam, limit, work)
    step, first = choose_step(work.steps, count, block, beyond, 1e-12 * lam, limit)
    at_kappa = reach <= step
    advance(state, step, work)
    lam -= step
    if first >= step:
        return True, at_kappa, lam, state, factor, 0, False
    allowed = 16 + 2 * block + state[2] // 2
    done, at_kappa, lam, state, factor, solves = correct(
        problem, state, lam, kappa, at_kappa, allowed, factor, work
    )
    return done, at_kappa, lam, state, factor, solves, True


@kernel
def solve_levels(
    problem, free, free_factor, rank, levels, ball, goal, max_solves, factor, saved, work,
    out, out_lam, out_solves,
):  # fmt: skip
    """Solve one row for several levels in one pass along its path.

    Parameters
    ----------
    problem : Problem
    free (f,), free_factor (f, f)
        Columns of weight 0 and the factor of their block.
    rank
        The rank of the design is at most this: its number of samples.
    levels (L,), ball
        Ascending kappa (ball) or descending lam.
    goal
        Absolute gap at which a point that is not exact is good enough.
    max_solves
        Linear systems and predictions for the row before it counts as stalled.
    factor (c, c), saved, work
        Storage; c >= f.
    out (L, N), out_lam (L,), out_solves (L,)
        Filled with the solutions.

    Returns
    -------
    factor, saved
        The storage, grown where it was needed.
    """
    n = problem.corr.shape[0]
    half_sq = 0.5 * problem.root * problem.root
    f = free.shape[0]
    for i in range(f):
        factor[i, i:f] = free_factor[i, i:]
    state = begin(problem, work, free)
    solve_at(problem, state, 0.0, np.inf, False, factor, work)
    lam = steepest(problem, work.grad)
    saved, saved_lam = _save(state, factor, saved), lam
    usable = f
    for j in range(n):
        usable += problem.up[j] + problem.down[j] > 0.0
    inactive_from = 0.0  # no smaller kappa is inactive
    spanning, next_try = 0, _SPANNING
    # A refused block is approached slowly again: ceiling (dense rows: 10 % less time).
    block, beyond, ceiling = 1, 0.5, n
    solves, passes, refused = 1, 0, 0
    tried = False
    stalled = False
    lost = False  # the point held is not exact any more
    for level in range(levels.shape[0]):
        kappa = levels[level] if ball else np.inf
        stop = 0.0 if ball else levels[level]
        rounded = False  # rounding keeps the gap above the goal: the best point is kept
        arrived = False
        futile = 0
        best_gap = np.inf
        kept = np.inf  # gap, judged, of the point in out[level]
        while True:
            # An exact point of the path is held here: (lam, state, a, grad), its norm at most
            # kappa.
            gap, norm = gap_at(problem, state, lam, kappa, ball, work)
            if (ball and gap <= goal) or (arrived and gap <= goal + 1e-15 * half_sq):
                break
            passes += 1
            if stalled or solves + passes > max_solves:
                stalled = True
                break
            # Where the ball is inactive the path is left at a lam that certifies the goal.
            floor = 0.25 * goal / (kappa - norm) if ball and kappa > norm else stop
            limit = lam - max(floor, stop)
            whole = state[2] > _DENSE * usable and kappa >= inactive_from
            spanning += rank <= state[2] < usable
            full = spanning >= next_try
            failed = False
            if (
                ball
                and not arrived
                and (whole or full or (not tried and (limit <= 0.0 or refused == 3)))
            ):
                # The ball may be inactive, beyond a dense path, one that ends in rounding, or one
                # whose support spans all samples.
                tried = True
                if full:
                    next_try = 2 * spanning
                if gap < best_gap:
                    best_gap = gap
                    kept = _keep(problem, state, lam, kappa, ball, factor, work, out[level])
                saved_centre, saved_tilt = work.centre.copy(), work.tilt.copy()
                done, norm, state, factor = _least_squares(
                    problem, state, whole, kappa, goal, factor, work
                )
                solves += 1
                if done:
                    lam = 0.0
                    continue
                if whole:
                    inactive_from = max(norm, np.nextafter(kappa, np.inf))
                work.centre[:] = saved_centre
                work.tilt[:] = saved_tilt
                failed = True
            elif arrived or limit <= 0.0:
                # Exact for the problem with the proximal term, but that term shows in the gap.
                if gap < 0.5 * best_gap:
                    futile = 0
                    best_gap = gap
                    kept = _keep(problem, state, lam, kappa, ball, factor, work, out[level])
                else:
                    futile += 1
                    if futile > 3:
                        rounded = True
                        break
                recentre(problem, state, work)
                done, at_kappa, lam, state, factor, used = correct_at(
                    problem, state, lam, kappa, arrived and ball, n, factor, work
                )
                solves += used
                if done:
                    arrived = at_kappa or not ball
                    saved, saved_lam = _save(state, factor, saved), lam
                else:
                    arrived = False
                    failed = True
                    refused += 4
            else:
                done, at_kappa, lam, state, factor, used, crossed = _step(
                    problem, state, lam, kappa, norm, limit, block, beyond, factor, work
                )
                solves += used
                if done and lam <= saved_lam * (1.0 + 1e-9):
                    arrived = at_kappa or (not ball and lam <= stop)
                    if crossed:
                        saved = _save(state, factor, saved)
                        # Breakpoints that changed nothing were rounding: cross more of them.
                        largest = max(state[2] // 6, 2) if used > 0 else n
                        block = min(2 * block, largest, ceiling)
                        ceiling = min(ceiling + ceiling // 4 + 1, n)
                        beyond = 0.5
                        refused = 0
                    saved_lam = lam
                    tried = False
                else:
                    # A smaller block from the last exact point; in the end a homotopy step.
                    failed = True
                    refused += 1
                    beyond *= 0.1
                    ceiling = max(block // 2, 1)
                    block = max(block // 4, 1)
            if failed:
                lam = saved_lam
                done, state, factor, used = _resume(problem, saved, lam, state, factor, work)
                solves += used
                if not done:
                    lost = True
                    rounded = kept <= JUDGED * goal
                stalled = lost or refused > _MAX_REFUSALS
        if not rounded and gap <= best_gap:
            kept = _keep(problem, state, lam, kappa, ball, factor, work, out[level])
        # Rounding ended the path between two points: the last exact one is still held, and better
        # than what was written before (by six orders of magnitude on the states of a ResNet).
        if lost and kept > JUDGED * goal:
            state, factor = _reopen(problem, saved, lam, state, factor, work)
            if judged_gap(problem, state, lam, kappa, ball, factor, work) < kept:
                kept = _keep(problem, state, lam, kappa, ball, factor, work, out[level])
        for _ in range(REFINEMENTS):
            if kept <= JUDGED * goal:
                break
            lam = refine(problem, state, lam, kappa, arrived and ball, factor, work)
            solves += 1
            if judged_gap(problem, state, lam, kappa, ball, factor, work) < kept:
                kept = _keep(problem, state, lam, kappa, ball, factor, work, out[level])
        out_lam[level] = lam
        out_solves[level] = solves
    return factor, saved
