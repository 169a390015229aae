"""One linear segment of a row's solution path: its lines, its breakpoints, its violations (numba).

On a segment the coefficients and the gradient are lines in lam. The kernels share a `Problem`, a
`Work` and the state (support, sign, k): the first k entries of support (N,), and sign (N,) by
column, 0 off the support and for free columns.

Loops over all N columns hold no branch: they vectorise, and are most of a small row's time (a pass
over 897 columns takes 2.4 us with branches and 0.7 us without).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from cimf.solve.compiled import finite_kernel, kernel
from cimf.solve.path.cholesky import add_columns, solve

# A column whose gradient follows lam at this relative rate depends on the support (a tie that stays
# one): its breakpoint is rounding.
_PARALLEL = 1e-8
# The goal is a tenth of the tolerance. A point whose gap, judged, is not below nine tenths of the
# tolerance is refined, once or twice; the last tenth is left to the judge's own rounding (1e-12).
JUDGED = 9.0
REFINEMENTS = 3
# Columns that are looked at together before any is looked at alone.
_TOGETHER = 128


class Problem(NamedTuple):
    """One row's data: statistics, columns, and what follows from them.

    Attributes
    ----------
    gram : (N, N)
    corr : (N,)
    root : float
        ||z||.
    weights : (N,)
    scale : (N,)
        Diagonal of D (about 1/||M_j||; 0 for zero columns, which are never used).
    ridge : float
        Proximal weight, on columns of unit norm.
    up, down : (N,)
        1 / weight of the columns that may become positive, negative; else 0, as for free,
        excluded and zero columns.
    fuzz : (N,)
        1 / (weight * scale), 0 where up and down are: turns rounding into units of lam.
    """

    gram: Any
    corr: Any
    root: Any
    weights: Any
    scale: Any
    ridge: Any
    up: Any
    down: Any
    fuzz: Any


class Work(NamedTuple):
    """Arrays (N,) that one row after another uses.

    Attributes
    ----------
    centre, tilt
        Proximal centre, and ridge * centre / scale^2: the proximal term's gradient off the support.
    a, v
        The first k entries: coefficients on the support and v = -da/dlam.
    grad, slope
        G a - c and G v on all columns.
    open_up, open_down
        `Problem.up` and `down`, 0 on the support.
    support, sign, drop, new, new_sign, steps
        Storage of the state, and of a step.
    """

    centre: Any
    tilt: Any
    a: Any
    v: Any
    grad: Any
    slope: Any
    open_up: Any
    open_down: Any
    support: Any
    sign: Any
    drop: Any
    new: Any
    new_sign: Any
    steps: Any


@kernel
def workspace(n):
    """Return a `Work` for n columns."""
    return Work(
        np.empty(n), np.empty(n), np.empty(n), np.empty(n), np.empty(n), np.empty(n), np.empty(n),
        np.empty(n), np.empty(n, np.int64), np.empty(n), np.empty(n, np.bool_),
        np.empty(n, np.int64), np.empty(n), np.empty(n),
    )  # fmt: skip


@kernel
def begin(problem, work, free):
    """Reset the work arrays to a support of the free columns; returns the state."""
    work.centre[:] = 0.0
    work.tilt[:] = 0.0
    work.sign[:] = 0.0
    work.open_up[:] = problem.up
    work.open_down[:] = problem.down
    f = free.shape[0]
    work.support[:f] = free
    return work.support, work.sign, f


@kernel
def _kth_smallest(values, n, q):
    """Return the q-th (from 0) smallest of values[:n]; values is permuted (quickselect)."""
    low, high = 0, n - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if q <= j:
            high = j
        elif q >= i:
            low = i
        else:
            break
    return values[q]


@kernel
def choose_step(steps, count, block, beyond, tie, limit):
    """Return a step past the block-th of the breakpoints below `limit`, and the first breakpoint.

    The step passes ties and ends the fraction `beyond` of the way to the next breakpoint, so that
    no coefficient that enters sits within rounding of zero.
    """
    if count == 0:
        return limit, np.inf
    q = min(block, count)
    last = _kth_smallest(steps, count, q - 1)
    first = np.inf
    for i in range(q):
        first = min(first, steps[i])
    following = limit
    for i in range(q, count):
        if steps[i] > last + tie:
            following = min(following, steps[i])
    return last + beyond * (following - last), first


@kernel
def slopes(problem, state, factor, work):
    """Set v = -da/dlam and its gradient G v; return sum w s v, the rate at which the norm grows."""
    support, sign, k = state
    v = work.v
    for i in range(k):
        j = support[i]
        v[i] = problem.scale[j] * problem.weights[j] * sign[j]
    solve(factor, k, v)
    rate = 0.0
    for i in range(k):
        j = support[i]
        v[i] *= problem.scale[j]
        rate += problem.weights[j] * sign[j] * v[i]
    return rate


@kernel
def gradient_slopes(problem, state, work):
    """Set the slope of the gradient, G v."""
    work.slope[:] = 0.0
    add_columns(problem.gram, state[0], state[2], work.v, work.slope)


@kernel
def set_gradient(problem, state, work):
    """Set the gradient G a - c."""
    for j in range(work.grad.shape[0]):
        work.grad[j] = -problem.corr[j]
    add_columns(problem.gram, state[0], state[2], work.a, work.grad)


@kernel
def solve_at(problem, state, lam, kappa, at_kappa, factor, work):
    """Solve on the support at lam; where the norm passes kappa (or at_kappa), where it is kappa.

    Sets a and its gradient. Returns (possible, at_kappa, lam); not possible: no lam >= 0 has this
    norm, and the gradient is not set.
    """
    support, sign, k = state
    a, v = work.a, work.v
    for i in range(k):
        j = support[i]
        d = problem.scale[j]
        push = lam * problem.weights[j] * sign[j]
        a[i] = d * (problem.corr[j] - push) + problem.ridge * work.centre[j] / d
    solve(factor, k, a)
    norm = 0.0
    for i in range(k):
        j = support[i]
        a[i] *= problem.scale[j]
        norm += problem.weights[j] * sign[j] * a[i]
    at_kappa = at_kappa or norm > kappa
    # The system with the ball as an equation is bordered by (w s): instead of factoring it, move
    # along the line of the segment, on which the norm grows by `rate` per unit of lam.
    if at_kappa:
        rate = slopes(problem, state, factor, work)
        step = (kappa - norm) / rate if rate > 0.0 else np.inf
        if step > lam:
            return False, at_kappa, lam
        for i in range(k):
            a[i] += step * v[i]
        lam -= step
    set_gradient(problem, state, work)
    return True, at_kappa, lam


@kernel
def advance(state, step, work):
    """Move along the lines by lam -> lam - step."""
    for i in range(state[2]):
        work.a[i] += step * work.v[i]
    for j in range(work.grad.shape[0]):
        work.grad[j] += step * work.slope[j]


@kernel
def norms(problem, state, grad, work):
    """Return sum w s a, and <g, a> on the bounded support."""
    support, sign, k = state
    norm = 0.0
    inner = 0.0
    for i in range(k):
        j = support[i]
        norm += problem.weights[j] * sign[j] * work.a[i]
        if problem.weights[j] > 0.0:
            inner += work.a[i] * grad[j]
    return norm, inner


@finite_kernel
def steepest(problem, grad):
    """Return max |g_j| / w_j over the bounded columns, in the directions their signs allow."""
    largest = 0.0
    for j in range(grad.shape[0]):
        largest = max(largest, max(grad[j] * problem.down[j], -grad[j] * problem.up[j]))
    return largest


@kernel
def _gap(problem, state, grad, lam, kappa, ball, work):
    """Return the gap of P(kappa) (ball) or Q(lam) for a gradient (N,), and the norm.

    For Q(lam) the residual is shrunk to a dual feasible point: the proximal term leaves gradients
    1e-12 above lam, which is much where lam is tiny.
    """
    norm, inner = norms(problem, state, grad, work)
    largest = steepest(problem, grad)
    if ball:
        return inner + kappa * largest, norm
    shrunk = 1.0 - lam / largest if largest > lam and lam > 0.0 else 0.0
    half_sq = 0.5 * problem.root * problem.root
    return lam * norm + inner + shrunk * (shrunk * half_sq - inner), norm


@kernel
def gap_at(problem, state, lam, kappa, ball, work):
    """Return the gap of P(kappa) (ball) or Q(lam), as if the free columns were exact, and the norm.

    What the path is steered by; a point is judged by `judged_gap`.
    """
    return _gap(problem, state, work.grad, lam, kappa, ball, work)


@kernel
def judged_gap(problem, state, lam, kappa, ball, factor, work):
    """Return the gap as `cimf.judge.certificate` does, free columns eliminated from the gradient.

    On the support the gradient of a free column is zero but for the rounding of the linear system,
    and that rounding counts: it is the error of every column that correlates with the free one.
    With a bias and 400 columns of the states of a network it was 1e-9 of 1/2 ||z||^2 where
    `gap_at` saw 1e-10. Uses v and slope.
    """
    support = state[0]
    f = 0  # the free columns come first, and their block of the factor is that of G_FF
    while f < state[2] and problem.weights[support[f]] == 0.0:
        f += 1
    if f == 0:
        return gap_at(problem, state, lam, kappa, ball, work)[0]
    for i in range(f):
        work.v[i] = problem.scale[support[i]] * work.grad[support[i]]
    solve(factor, f, work.v)
    excess = 0.0
    for i in range(f):
        work.v[i] *= -problem.scale[support[i]]
        excess -= 0.5 * work.v[i] * work.grad[support[i]]
    work.slope[:] = work.grad
    add_columns(problem.gram, support, f, work.v, work.slope)
    return _gap(problem, state, work.slope, lam, kappa, ball, work)[0] + excess


@kernel
def refine(problem, state, lam, kappa, at_kappa, factor, work):
    """Solve once more on the support, for the residual of the point held; returns lam.

    In exact arithmetic this is the proximal move of `recentre` and `solve_at`. Computed from the
    residual it also removes the rounding of the last system, which a factor of 400 columns leaves
    at 1e-9 of the gap's scale and no repetition of the same system would lower.
    """
    support, sign, k = state
    recentre(problem, state, work)
    v = work.v
    for i in range(k):
        j = support[i]
        v[i] = -problem.scale[j] * (work.grad[j] + lam * problem.weights[j] * sign[j])
    solve(factor, k, v)
    norm = 0.0
    for i in range(k):
        j = support[i]
        work.a[i] += problem.scale[j] * v[i]
        norm += problem.weights[j] * sign[j] * work.a[i]
    if at_kappa:
        rate = slopes(problem, state, factor, work)
        step = min((kappa - norm) / rate, lam) if rate > 0.0 else 0.0
        for i in range(k):
            work.a[i] += step * v[i]
        lam -= step
    set_gradient(problem, state, work)
    return lam


@kernel
def wrong_columns(problem, state, lam, work):
    """Find the columns that violate the optimality conditions at lam.

    work.drop[i] is set for support positions whose coefficient has the wrong sign; the columns off
    the support with |g_j| > lam w_j are listed in work.new, their signs in work.new_sign. Returns
    both counts.
    """
    support, sign, k = state
    size = 0.0
    n_drop = 0
    for i in range(k):
        j = support[i]
        size += abs(work.a[i]) / problem.scale[j]
        work.drop[i] = work.a[i] * sign[j] < 0.0
        n_drop += work.drop[i]
    # Rounding of g_j is eps ||M_j|| (||z|| + sum_k ||M_k|| |a_k|): what is not beyond it is a tie,
    # and exchanging ties would cycle.
    noise = 4e-16 * (problem.root + size)
    level = lam * (1.0 + 1e-12)
    n_new = 0
    for start in range(0, work.grad.shape[0], _TOGETHER):
        # Views from zero: an index from `start` on could be negative to the compiler.
        part = slice(start, min(start + _TOGETHER, work.grad.shape[0]))
        grad, tilt, fuzz = work.grad[part], work.tilt[part], problem.fuzz[part]
        up, down = work.open_up[part], work.open_down[part]
        found = 0
        for j in range(grad.shape[0]):
            g = grad[j] - tilt[j]
            limit = level + noise * fuzz[j]
            found += (g * down[j] > limit) | (-g * up[j] > limit)
        if found == 0:
            continue
        for j in range(grad.shape[0]):
            g = grad[j] - tilt[j]
            limit = level + noise * fuzz[j]
            if g * down[j] > limit or -g * up[j] > limit:
                work.new[n_new] = start + j
                work.new_sign[n_new] = -1.0 if g > 0.0 else 1.0
                n_new += 1
    return n_drop, n_new


@kernel
def breakpoints(problem, state, lam, limit, work):
    """Collect the steps t in [0, limit) at which a column joins or leaves; return their number.

    limit is at most lam.
    """
    support, sign, k = state
    steps = work.steps
    n = 0
    # Columns leave where their coefficient reaches zero ...
    for i in range(k):
        if sign[support[i]] * work.v[i] < 0.0:
            t = -work.a[i] / work.v[i]
            if t < limit:
                steps[n] = max(t, 0.0)
                n += 1
    # ... and join where their gradient meets lam, which falls at rate one. The first loop only
    # counts and has no division; most stretches of columns hold no breakpoint.
    for start in range(0, work.grad.shape[0], _TOGETHER):
        part = slice(start, min(start + _TOGETHER, work.grad.shape[0]))
        grad, slope, tilt = work.grad[part], work.slope[part], work.tilt[part]
        up, down = work.open_up[part], work.open_down[part]
        found = 0
        for j in range(grad.shape[0]):
            g = grad[j] - tilt[j]
            falls = 1.0 + slope[j] * down[j]
            rises = 1.0 - slope[j] * up[j]
            found += ((lam - g * down[j] < limit * falls) & (falls > _PARALLEL)) | (
                (lam + g * up[j] < limit * rises) & (rises > _PARALLEL)
            )
        if found == 0:
            continue
        for j in range(grad.shape[0]):
            g = grad[j] - tilt[j]
            falls = 1.0 + slope[j] * down[j]
            rises = 1.0 - slope[j] * up[j]
            t = limit
            if falls > _PARALLEL:
                t = min(t, (lam - g * down[j]) / falls)
            if rises > _PARALLEL:
                t = min(t, (lam + g * up[j]) / rises)
            if t < limit:
                steps[n] = max(t, 0.0)
                n += 1
    return n


@kernel
def recentre(problem, state, work):
    """Move the proximal centre to the present point."""
    support, _, k = state
    work.centre[:] = 0.0
    work.tilt[:] = 0.0
    for i in range(k):
        j = support[i]
        work.centre[j] = work.a[i]
        work.tilt[j] = problem.ridge * work.a[i] / (problem.scale[j] * problem.scale[j])


@kernel
def write(problem, state, kappa, work, out):
    """Write the coefficients, shrunk into the ball where rounding left them outside."""
    support, _, k = state
    norm = 0.0
    for i in range(k):
        norm += problem.weights[support[i]] * abs(work.a[i])
    shrink = kappa / norm if norm > kappa else 1.0
    out[:] = 0.0
    for i in range(k):
        j = support[i]
        out[j] = work.a[i] * (shrink if problem.weights[j] > 0.0 else 1.0)
