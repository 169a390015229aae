"""The floor: what a row costs if its support and signs are known (gather, factor, solve, certify).

Compiled, with the kernels of the exact solver, so that the ratio to it counts only the search.
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from cimf.solve.cholesky import add_columns, append, solve
from cimf.solve.compiled import finite_kernel, kernel
from cimf.solve.exact import column_scale
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
    append(gram, scale, ridge, support, 0, on, k, factor)
    a, v = np.empty(k), np.empty(k)
    for t in range(k):
        a[t] = scale[on[t]] * corr[on[t]]
        v[t] = scale[on[t]] * sign[t]
    solve(factor, k, a)
    lam = 0.0
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


def floor_seconds(gram: Gram, coef: Array, kappa: Array, repeats: int = 5) -> Array:
    """Return the smallest wall clock per row, shape (r,), at the supports of coef (r, N)."""
    scale, seconds = column_scale(gram), np.zeros(gram.n_targets)
    out = np.empty(gram.n_features)
    for i, a in enumerate(coef):
        on = np.flatnonzero(a)
        active = bool(np.abs(a).sum() >= kappa[i] * (1 - 1e-9))
        arguments = (
            gram.gram,
            gram.corr[i],
            scale,
            1e-12,
            kappa[i],
            active,
            on,
            np.sign(a[on]),
            out,
        )
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            known_support(*arguments)
            times.append(time.perf_counter() - start)
        seconds[i] = min(times)
    return seconds
