"""One linear segment of a row's solution path: its lines, its breakpoints, its violations (numba).

On a segment the coefficients and the gradient are lines in lam. The kernels share three records:

problem : (gram (N, N), corr (N,), weights (N,), signs (N,), scale (N,), ridge)
    scale is the diagonal of D (about 1/||M_j||; 0 for zero columns, which are never used).
state : (support (N,), sign (N,), k)
    The first k entries of support; sign by column, 0 off the support and for free columns.
lines : (a (N,), v (N,), grad (N,), slope (N,))
    a[:k] on the support and v = -da/dlam; grad = G a - c and slope = G v on all columns.
"""

from __future__ import annotations

import numpy as np

from cimf.solve.cholesky import combine_pair, solve
from cimf.solve.compiled import kernel

# A column whose gradient follows lam at this relative rate depends on the support (a tie that stays
# one): its breakpoint is rounding.
_PARALLEL = 1e-8


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
    """Return a step past the block-th breakpoint and its ties, and the first breakpoint.

    The step ends the fraction `beyond` of the way to the next breakpoint, so that no coefficient
    that enters sits within rounding of zero.
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
    if last >= limit:
        return limit, first
    return last + beyond * (following - last), first


@kernel
def refresh(problem, state, lam, centre, factor, lines):
    """Solve on the support at lam: a, its slope v = -da/dlam, and the gradients G a - c and G v."""
    gram, corr, weights, _, scale, ridge = problem
    support, sign, k = state
    a, v, grad, slope = lines
    for i in range(k):
        j = support[i]
        d = scale[j]
        push = weights[j] * sign[j]
        a[i] = d * (corr[j] - lam * push) + ridge * centre[j] / d
        v[i] = d * push
    solve(factor, k, a)
    solve(factor, k, v)
    for i in range(k):
        d = scale[support[i]]
        a[i] *= d
        v[i] *= d
    combine_pair(gram, support, k, a, v, grad, slope)
    for j in range(corr.shape[0]):
        grad[j] -= corr[j]


@kernel
def advance(problem, state, step, lines):
    """Move along the lines by lam -> lam - step."""
    k = state[2]
    a, v, grad, slope = lines
    for i in range(k):
        a[i] += step * v[i]
    for j in range(grad.shape[0]):
        grad[j] += step * slope[j]


@kernel
def norms(problem, state, lines):
    """Return sum w s a, its slope sum w s v, <g, a> on the bounded support, sum |a_j| / d_j."""
    weights, scale = problem[2], problem[4]
    support, sign, k = state
    a, v, grad, _ = lines
    norm = 0.0
    rate = 0.0
    inner = 0.0
    size = 0.0
    for i in range(k):
        j = support[i]
        push = weights[j] * sign[j]
        norm += push * a[i]
        rate += push * v[i]
        size += abs(a[i]) / scale[j]
        if weights[j] > 0.0:
            inner += a[i] * grad[j]
    return norm, rate, inner, size


@kernel
def steepest(problem, grad):
    """Return max |g_j| / w_j over the bounded columns, in the directions their signs allow."""
    weights, signs, scale = problem[2], problem[3], problem[4]
    largest = 0.0
    for j in range(grad.shape[0]):
        w = weights[j]
        if w > 0.0 and w < np.inf and scale[j] > 0.0:
            g = grad[j]
            if (g < 0.0 and signs[j] < 0) or (g > 0.0 and signs[j] > 0):
                continue
            largest = max(largest, abs(g) / w)
    return largest


@kernel
def wrong_columns(problem, state, lam, centre, noise, lines, inside, drop, new, new_sign):
    """Find the columns that violate the optimality conditions at lam.

    drop[i] is set for support positions whose coefficient has the wrong sign; the columns off the
    support with |g_j| > lam w_j are listed in new, their signs in new_sign. Returns both counts.
    """
    _, _, weights, signs, scale, ridge = problem
    support, sign, k = state
    a, _, grad, _ = lines
    n_drop = 0
    for i in range(k):
        drop[i] = a[i] * sign[support[i]] < 0.0
        n_drop += drop[i]
    n_new = 0
    for j in range(grad.shape[0]):
        w = weights[j]
        d = scale[j]
        if inside[j] or w == np.inf or d == 0.0:
            continue
        g = grad[j] - ridge * centre[j] / (d * d)
        if abs(g) > lam * w * (1.0 + 1e-12) + noise / d:
            s = -1.0 if g > 0.0 else 1.0
            if s * signs[j] < 0.0:
                continue
            new[n_new] = j
            new_sign[n_new] = s
            n_new += 1
    return n_drop, n_new


@kernel
def breakpoints(problem, state, lam, centre, lines, inside, steps):
    """Collect the steps t in (0, lam] at which a column joins or leaves; return their number."""
    _, _, weights, signs, scale, ridge = problem
    support, sign, k = state
    a, v, grad, slope = lines
    n = 0
    for i in range(k):
        s = sign[support[i]]
        if s * v[i] < 0.0:
            t = -a[i] / v[i]
            if t < lam:
                steps[n] = max(t, 0.0)
                n += 1
    for j in range(grad.shape[0]):
        w = weights[j]
        d = scale[j]
        if inside[j] or w == np.inf or d == 0.0:
            continue
        g = grad[j] - ridge * centre[j] / (d * d)
        h = slope[j]
        t = np.inf
        if signs[j] <= 0 and h + w > _PARALLEL * w:
            t = (lam * w - g) / (h + w)
        if signs[j] >= 0 and w - h > _PARALLEL * w:
            t = min(t, (lam * w + g) / (w - h))
        if t < lam:
            steps[n] = max(t, 0.0)
            n += 1
    return n


@kernel
def write(problem, state, lines, kappa, out):
    """Write the coefficients, shrunk into the ball where rounding left them outside."""
    weights = problem[2]
    support, _, k = state
    norm = 0.0
    for i in range(k):
        norm += weights[support[i]] * abs(lines[0][i])
    shrink = kappa / norm if norm > kappa else 1.0
    out[:] = 0.0
    for i in range(k):
        j = support[i]
        out[j] = lines[0][i] * (shrink if weights[j] > 0.0 else 1.0)
