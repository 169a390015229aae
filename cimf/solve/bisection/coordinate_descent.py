"""Algorithm 1 of the paper for one row: bisection on lam over coordinate descent (numba)."""

from __future__ import annotations

import numpy as np

from cimf.solve.compiled import kernel


@kernel
def steepest(weights, signs, grad):
    """Return max |g_j| / w_j in the directions that the signs allow."""
    largest = 0.0
    for j in range(grad.shape[0]):
        g = grad[j]
        if (g < 0.0 and signs[j] >= 0) or (g > 0.0 and signs[j] <= 0):
            largest = max(largest, abs(g) / weights[j])
    return largest


@kernel
def _judged(corr, half_sq, weights, signs, lam, a, grad):
    """Return the gap of Q(lam) at a (as `cimf.judge.certificate`), the norm and h."""
    norm = 0.0
    inner = 0.0
    cross = 0.0
    for j in range(a.shape[0]):
        if a[j] != 0.0:
            norm += weights[j] * abs(a[j])
            inner += grad[j] * a[j]
            cross += corr[j] * a[j]
    loss = max(half_sq + 0.5 * (inner - cross), 0.0)  # h = 1/2 ||z||^2 + 1/2 (<g, a> - <c, a>)
    largest = steepest(weights, signs, grad)
    s = 1.0 - inner / (2.0 * loss) if loss > 0.0 else 1.0
    if largest > 0.0:
        s = min(s, lam / largest)
    s = max(s, 0.0)
    return lam * norm + s * inner + (1.0 - s) * (1.0 - s) * loss, norm, loss


@kernel
def descend(gram, corr, half_sq, weights, signs, lam, goal, max_passes, a, grad):
    """Solve Q(lam) by cyclic coordinate descent from a, until the duality gap is at most `goal`.

    grad = G a - c is kept up to date with a. An excluded column has weight infinity; a zero column
    is never moved. Returns (passes over the columns, gap, norm, h).
    """
    n = a.shape[0]
    passes = 0
    while True:
        gap, norm, loss = _judged(corr, half_sq, weights, signs, lam, a, grad)
        if gap <= goal or passes >= max_passes:
            return passes, gap, norm, loss
        passes += 1
        for j in range(n):
            curvature = gram[j, j]
            if curvature <= 0.0 or weights[j] == np.inf:
                continue
            # Soft thresholding of the minimiser along column j; the gradient follows exactly, so a
            # pass costs N operations per coefficient that moved, not per column.
            push = curvature * a[j] - grad[j]
            bound = lam * weights[j]
            value = 0.0
            if push > bound and signs[j] >= 0:
                value = (push - bound) / curvature
            elif push < -bound and signs[j] <= 0:
                value = (push + bound) / curvature
            change = value - a[j]
            if change != 0.0:
                a[j] = value
                row = gram[j]
                for i in range(n):
                    grad[i] += change * row[i]


@kernel
def bisect(
    gram, corr, half_sq, weights, signs, kappa, low, high, width, goal, max_passes, warm, a, grad,
    steps, points,
):  # fmt: skip
    """Bisect (low, high) until it is shorter than `width`, with steps.shape[0] steps at most.

    Parameters
    ----------
    gram (N, N), corr (N,), half_sq, weights (N,), signs (N,), kappa
        P(kappa) without free columns.
    goal, max_passes
        Of each Q(lam), as `descend`.
    warm : bool
        Start each Q(lam) at the solution of the last one; otherwise at zero.
    a, grad (N,)
        Start, and on return the solution at the last lam; grad = G a - c.
    steps (T, 5)
        Filled with lam, norm, passes, h, gap of each step.
    points (T, N) or (0, N)
        Filled with the solution of each step, if there is room.

    Returns
    -------
    low, high, lam, number of steps
    """
    lam = high
    t = 0
    while high - low >= width and t < steps.shape[0]:
        lam = 0.5 * (low + high)
        if not warm:
            a[:] = 0.0
            grad[:] = -corr
        passes, gap, norm, loss = descend(
            gram, corr, half_sq, weights, signs, lam, goal, max_passes, a, grad
        )
        steps[t] = np.array([lam, norm, float(passes), loss, gap])
        if t < points.shape[0]:
            points[t] = a
        t += 1
        if norm >= kappa:
            low = lam
        else:
            high = lam
    return low, high, lam, t
