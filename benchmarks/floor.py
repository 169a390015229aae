"""The floor: what a row costs if its support and signs are known (gather, factor, solve, certify).

Once compiled, with the kernels of the exact solver, so that the ratio to it counts only the search;
once in numpy and LAPACK.
"""

from __future__ import annotations

import time

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from benchmarks.contestants import quiet
from cimf.solve.compiled import finite_kernel, kernel
from cimf.solve.path.cholesky import add_columns, append, solve
from cimf.solve.path.row_problem import RIDGE, column_scale
from cimf.statistics import Gram

Array = NDArray[np.float64]


@finite_kernel
def steepest(grad):
    largest = 0.0
    for j in range(grad.shape[0]):
        largest = max(largest, abs(grad[j]))
    return largest


@kernel
def known_support(gram, corr, scale, ridge, kappa, active, on, sign, out):
    """Solve on the support `on` with signs; the ball holds with equality if `active`.

    Returns the certified absolute gap, which is what a solver that knew the support would compute.
    """
    k = on.shape[0]
    support, factor = np.empty(k, np.int64), np.empty((k, k))
    if k > 0:
        append(gram, scale, ridge, support, 0, on, k, factor)
    a, v = np.empty(k), np.empty(k)
    for t in range(k):
        a[t] = scale[on[t]] * corr[on[t]]
        v[t] = scale[on[t]] * sign[t]
    lam = 0.0
    if k > 0:
        solve(factor, k, a)
    if active:
        solve(factor, k, v)
        norm = 0.0
        rate = 0.0
        for t in range(k):
            norm += scale[on[t]] * sign[t] * a[t]
            rate += scale[on[t]] * sign[t] * v[t]
        lam = (norm - kappa) / rate
    for t in range(k):
        a[t] = scale[on[t]] * (a[t] - lam * v[t]) if active else scale[on[t]] * a[t]
    grad = -corr
    add_columns(gram, on, k, a, grad)
    inner = 0.0
    largest = steepest(grad)
    out[:] = 0.0
    for t in range(k):
        out[on[t]] = a[t]
        inner += a[t] * grad[on[t]]
    return inner + kappa * largest


def in_numpy(
    gram: Array, corr: Array, kappa: float, active: bool, on: NDArray[np.int64], sign: Array
) -> float:
    """As `known_support`, with numpy and LAPACK calls: what a solver in Python could reach."""
    block = gram[np.ix_(on, on)]
    block[np.diag_indices(on.size)] *= 1.0 + RIDGE
    solved = scipy.linalg.solve(
        block, np.stack([corr[on], sign], axis=1), assume_a="pos", check_finite=False
    )
    lam = (sign @ solved[:, 0] - kappa) / (sign @ solved[:, 1]) if active else 0.0
    a = solved[:, 0] - lam * solved[:, 1]
    gradient = a @ gram[on] - corr
    return float(a @ gradient[on] + kappa * np.abs(gradient).max())


def floor_seconds(
    gram: Gram, coef: Array, kappa: Array, compiled: bool = True, repeats: int = 5
) -> Array:
    """Return the smallest wall clock per row, shape (r,), at the supports of coef (r, N)."""
    scale, seconds = column_scale(gram), np.zeros(gram.n_targets)
    out = np.empty(gram.n_features)
    for i, a in enumerate(coef):
        on = np.flatnonzero(a)
        active = on.size > 0 and bool(np.abs(a).sum() >= kappa[i] * (1 - 1e-9))
        known = (kappa[i], active, on, np.sign(a[on]))
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            if compiled:
                known_support(gram.gram, gram.corr[i], scale, RIDGE, *known, out)
            else:
                quiet(in_numpy, gram.gram, gram.corr[i], *known)
            times.append(time.perf_counter() - start)
        seconds[i] = min(times)
    return seconds
