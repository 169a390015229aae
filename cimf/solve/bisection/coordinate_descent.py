"""Algorithm 1 of the paper for one row: bisection on lam over coordinate descent (numba)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cimf.solve.compiled import Array, kernel

# Passes over the columns for one Q(lam); an ill-conditioned one that needs more is left to the
# segment step.
_MAX_PASSES = 1000


class BoundedRow(NamedTuple):
    """A row without free columns.

    Attributes
    ----------
    gram : (N, N)
    corr, weights : (N,)
        An excluded column has weight infinity.
    signs : (N,)
    half_sq : float
        1/2 ||z||^2.
    """

    gram: Array
    corr: Array
    weights: Array
    signs: NDArray[np.int8]
    half_sq: float


class Iterate(NamedTuple):
    """Coefficients a (N,) and their gradient grad = G a - c, both changed in place."""

    a: Array
    grad: Array


class Search(NamedTuple):
    """How long a bisection goes on.

    Attributes
    ----------
    low, high : float
        The interval of lam.
    width : float
        Length at which it stops.
    goal : float
        Absolute gap at which a Q(lam) counts as solved.
    warm : bool
        Start each Q(lam) at the solution of the last one; otherwise at zero.
    """

    low: float
    high: float
    width: float
    goal: float
    warm: bool


@kernel
def steepest(row: BoundedRow, grad: Array) -> float:
    """Return max |g_j| / w_j in the directions that the signs allow."""
    largest = 0.0
    for j in range(grad.shape[0]):
        g = grad[j]
        if (g < 0.0 and row.signs[j] >= 0) or (g > 0.0 and row.signs[j] <= 0):
            largest = max(largest, abs(g) / row.weights[j])
    return largest


@kernel
def _judged(row: BoundedRow, lam: float, at: Iterate) -> tuple[float, float, float]:
    """Return the gap of Q(lam) at an iterate (as `cimf.judge.certificate`), the norm and h."""
    a, grad, corr, weights = at.a, at.grad, row.corr, row.weights
    norm = 0.0
    inner = 0.0
    cross = 0.0
    for j in range(a.shape[0]):
        if a[j] != 0.0:
            norm += weights[j] * abs(a[j])
            inner += grad[j] * a[j]
            cross += corr[j] * a[j]
    # h = 1/2 ||z||^2 + 1/2 (<g, a> - <c, a>)
    loss = max(row.half_sq + 0.5 * (inner - cross), 0.0)
    largest = steepest(row, grad)
    # The dual point is s times the residual: the best s, held to |g_j| s <= lam w_j.
    s = 1.0 - inner / (2.0 * loss) if loss > 0.0 else 1.0
    if largest > 0.0:
        s = min(s, lam / largest)
    s = max(s, 0.0)
    return lam * norm + s * inner + (1.0 - s) * (1.0 - s) * loss, norm, loss


@kernel
def descend(
    row: BoundedRow, lam: float, goal: float, at: Iterate
) -> tuple[int, float, float, float]:
    """Solve Q(lam) by cyclic coordinate descent from `at`, until the duality gap is at most `goal`.

    The gradient is kept up to date. An excluded or a zero column is never moved. Returns (passes
    over the columns, gap, norm, h).
    """
    gram, weights, signs = row.gram, row.weights, row.signs
    a, grad = at.a, at.grad
    n = a.shape[0]
    passes = 0
    while True:
        gap, norm, loss = _judged(row, lam, at)
        if gap <= goal or passes >= _MAX_PASSES:
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
                column = gram[j]
                for i in range(n):
                    grad[i] += change * column[i]


@kernel
def bisect(
    row: BoundedRow, kappa: float, search: Search, at: Iterate, steps: Array, points: Array
) -> tuple[float, float, float, int]:
    """Bisect an interval of lam until it is short enough, with steps.shape[0] steps at most.

    Parameters
    ----------
    row : BoundedRow
    kappa : float
    search : Search
    at : Iterate
        Start, and on return the solution at the last lam.
    steps (T, 5)
        Filled with lam, norm, passes, h, gap of each step.
    points (T, N) or (0, N)
        Filled with the solution of each step, if there is room.

    Returns
    -------
    low, high, lam, number of steps
    """
    low, high = search.low, search.high
    lam = high
    t = 0
    while high - low >= search.width and t < steps.shape[0]:
        lam = 0.5 * (low + high)
        if not search.warm:
            at.a[:] = 0.0
            at.grad[:] = -row.corr
        passes, gap, norm, loss = descend(row, lam, search.goal, at)
        steps[t] = np.array([lam, norm, float(passes), loss, gap])
        if t < points.shape[0]:
            points[t] = at.a
        t += 1
        if norm >= kappa:
            low = lam
        else:
            high = lam
    return low, high, lam, t
