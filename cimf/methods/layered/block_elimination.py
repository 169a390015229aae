"""Loss curves of wide rows: columns dropped in blocks, all rows of a layer at once."""

from __future__ import annotations

import numpy as np
import threadpoolctl
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from cimf.methods.layered.admm import unit_columns
from cimf.methods.layered.conjugate_gradients import conjugate_gradients
from cimf.methods.layered.elimination import Mask, Matrix, inverse
from cimf.statistics import Gram

# Share of the columns that goes at a time, and steps of conjugate gradients after it. Loss over
# that of exact elimination at 50, 70, 80, 90 % dropped (problems of `benchmarks.wide_layers`, 288
# columns, mean of 64 rows; the rows differ by 2 to 4 %): 1.14, 1.06, 1.03, 1.02; with a share of .2
# 1.23, 1.13, 1.07, 1.04; with 6 steps 1.07, 1.03, 1.02, 1.02, at twice the time.
_SHARE, _STEPS = 0.1, 3


def block_elimination(
    gram: Gram, n_free: int, n_jobs: int | None = None
) -> tuple[NDArray[np.int64], Matrix]:
    """Drop the columns of every row, the cheapest tenth at a time.

    What `elimination` returns, approximately: between two blocks the loss is interpolated. Float32.

    Returns
    -------
    order : (r, N) int64
        Columns of each row, the one dropped first in front.
    increase : (r, N)
        By about how much ||M a - z||^2 rises at each drop, the other columns refitted.
    """
    with threadpoolctl.threadpool_limits(n_jobs, user_api="blas"):
        unit = unit_columns(gram, n_free)
        r, n = unit.corr.shape
        inverted = inverse(unit.gram)
        fit = unit.corr @ inverted
        size = np.sqrt(np.maximum((fit * unit.corr).sum(axis=1), np.finfo(float).tiny))[:, None]
        H, corr, coef = (x.astype(np.float32) for x in (unit.gram, unit.corr / size, fit / size))
        log_variance = np.log(np.maximum(np.diagonal(inverted), 1.0))
        mask: Mask = np.ones((r, n), dtype=bool)
        order, left = np.empty((r, n), np.int64), n
        places, losses = [0], [np.zeros(r)]
        while left:
            new = int((1.0 - _SHARE) * left)
            # A_jj falls from that of all columns to 1 as the others go; in between, geometrically.
            cost = np.where(mask, coef**2 * np.exp(-log_variance * left / n), np.inf)
            ranked = np.argsort(cost, axis=1)[:, : left - new]
            order[:, n - left : n - new] = ranked
            np.put_along_axis(mask, ranked, False, axis=1)
            left = new
            coef, residual = conjugate_gradients(H, corr, mask, np.where(mask, coef, 0.0), _STEPS)
            places.append(n - left)
            losses.append(1.0 - (coef * (corr + residual)).sum(axis=1, dtype=np.float64))
    curve = np.maximum.accumulate(np.stack(losses, axis=1), axis=1)
    smooth = PchipInterpolator(places, curve, axis=1)(np.arange(n + 1))
    return order, np.diff(smooth, axis=1) * size**2
