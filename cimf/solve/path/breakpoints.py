"""Where a segment of the path ends: the breakpoints ahead, and columns already past theirs (numba).

Loops over all N columns hold no branch: they vectorise, and are most of a small row's time (a pass
over 897 columns takes 2.4 us with branches and 0.7 us without). They count first, a stretch of
columns at a time; stretches that hold nothing, which is most of them, are not looked at again.
"""

from __future__ import annotations

import numpy as np

from cimf.solve.compiled import Array, kernel
from cimf.solve.path.path_point import Point, Work
from cimf.solve.path.row_problem import Problem

# A column whose gradient follows lam at this relative rate depends on the support (a tie that stays
# one): its breakpoint is rounding.
_PARALLEL = 1e-8
# Columns that are looked at together before any is looked at alone.
_TOGETHER = 128


@kernel
def wrong_columns(problem: Problem, point: Point, work: Work) -> tuple[int, int]:
    """Find the columns that violate the optimality conditions at lam.

    work.drop[i] is set for support positions whose coefficient has the wrong sign; the columns off
    the support with |g_j| > lam w_j are listed in work.new, their signs in work.new_sign. Returns
    both counts.
    """
    support, sign, lam = point.support, point.sign, point.lam
    size = 0.0
    n_drop = 0
    for i in range(point.k):
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
def breakpoints(point: Point, limit: float, work: Work) -> int:
    """Collect the steps t in [0, limit) at which a column joins or leaves; return their number.

    limit is at most lam.
    """
    support, sign, lam = point.support, point.sign, point.lam
    steps = work.steps
    n = 0
    # Columns leave where their coefficient reaches zero ...
    for i in range(point.k):
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
def _kth_smallest(values: Array, n: int, q: int) -> float:
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
    return float(values[q])


@kernel
def choose_step(
    steps: Array, count: int, block: int, beyond: float, tie: float, limit: float
) -> tuple[float, float]:
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
