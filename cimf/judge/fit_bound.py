"""A lower bound on a relaxed problem with any data fit, from the data and slopes of the fit.

For slopes v_ik in the domain of phi* and g_i = M' v_i, every W satisfies

    sum_ik phi_ik(m_k' w_i) >= sum_i g_i' w_i - sum_ik phi*_ik(v_ik),

so the optimum is at least min_W l(W) + <G, W> - sum phi*, W in the ball, which has a closed form
for losses sum_ij c_ij |W_ij| + 1/2 d_ij W_ij^2. Constraint sets only raise the optimum. Nothing of
a solver is believed: its slopes are moved into the domain, and everything else is computed from
the data in float64.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from formulations.problem import RelaxedRecord

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

_BISECTIONS = 100


def fit_bound(record: RelaxedRecord, slopes: Array, radius: Array) -> float:
    """Return a lower bound on the optimal value; -infinity where the loss has no closed form.

    Parameters
    ----------
    record : RelaxedRecord
        With its data as given (not least squares that was reduced).
    slopes : (m, r)
        Of the matching terms over the predictions, about right.
    radius : (N,)
        The bound speaks of points with |W_ij| <= radius_j in the columns that nothing else bounds.
        Slopes are first moved to where this is not needed, as far as rounding allows.
    """
    shape = record.index.size, record.fit.n_features
    coordinates = record.loss.coordinates(record.rows(np.zeros(shape)))
    if coordinates is None or not np.isfinite(slopes).all():
        return -np.inf
    c, d = (np.broadcast_to(part, shape) for part in coordinates)
    inside = np.isin(np.arange(shape[1]), record.ball_columns) & np.isfinite(record.kappa)[:, None]
    found = []
    for v in (slopes, _moved(record, slopes, c, d, inside)):
        price, gradient = _priced(record, v)
        gain = np.where(record.support, np.maximum(np.abs(gradient) - c, 0.0), 0.0)
        least = sum(
            _least(gain[i], d[i], inside[i], float(record.kappa[i]), radius)
            for i in range(shape[0])
        )
        found.append(-price - least)
    return float(np.nanmax(found, initial=-np.inf))


def _priced(record: RelaxedRecord, slopes: Array) -> tuple[float, Array]:
    """Return sum phi*(v) and G (r, N) at the slopes moved into the domain."""
    price, moved, z = 0.0, np.zeros_like(slopes), record.fit.target
    for group in record.groups:
        weight, target = group.weight, z[:, group.rows]
        v = slopes[:, group.rows]
        v = np.divide(v, weight, out=np.zeros_like(v), where=weight > 0)
        v = group.fit.dual_point(v, target)
        price += float((weight * group.fit.conjugate(v, target)).sum())
        moved[:, group.rows] = weight * v
    return price, np.asarray(record.fit.design.T @ moved).T


def _moved(record: RelaxedRecord, slopes: Array, c: Array, d: Array, inside: Mask) -> Array:
    """Return slopes with |g_ij| <= c_ij in the columns that nothing else bounds.

    Where c = 0 by least squares over the samples, then by a factor on all: the domain holds 0.
    """
    bare = record.support & ~inside & (d == 0)
    v = slopes.copy()
    for i in range(len(c)):
        free = np.flatnonzero(bare[i] & (c[i] == 0))
        if free.size:
            basis = scipy.linalg.orth(record.fit.design[:, free])
            v[:, i] -= basis @ (basis.T @ v[:, i])
    _, gradient = _priced(record, v)
    costly = bare & (c > 0) & (np.abs(gradient) > c)
    factor = (c[costly] / np.abs(gradient[costly])).min(initial=1.0)
    return np.asarray(factor * v)


def _least(gain: Array, d: Array, inside: Mask, kappa: float, radius: Array) -> float:
    """Return the largest sum_j gain_j a_j - 1/2 d_j a_j^2 over a >= 0 in the ball, or more.

    More than the largest only where a column without a bound has gain: gain_j radius_j.
    """
    quadratic = d > 0
    outside = ~inside
    total = float((gain * radius)[outside & ~quadratic].sum())
    total += float((0.5 * np.square(gain) / np.where(quadratic, d, 1.0))[outside & quadratic].sum())
    if not inside.any():
        return total
    rough, smooth = gain[inside & ~quadratic], inside & quadratic
    low = float(rough.max(initial=0.0))
    high = max(low, float(gain[inside].max()))
    if not smooth.any():
        return total + kappa * low
    s, q = gain[smooth], d[smooth]
    # Any multiplier mu >= low gives an upper value; the best one fills the ball.
    for _ in range(_BISECTIONS):
        mu = 0.5 * (low + high)
        if float((np.maximum(s - mu, 0.0) / q).sum()) > kappa:
            low = mu
        else:
            high = mu
    start = float(rough.max(initial=0.0))
    values = [
        kappa * mu + float((0.5 * np.square(np.maximum(s - mu, 0.0)) / q).sum())
        for mu in (start, high)
    ]
    return total + min(values)
