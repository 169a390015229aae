"""Least squares of all rows of a layer at once, each on its own support."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
import threadpoolctl
from numpy.typing import NDArray

from cimf.methods.layered.admm import unit_columns
from cimf.methods.layered.cost import affordable_steps
from cimf.methods.layered.elimination import Mask, Matrix, polished
from cimf.statistics import Gram

# Relative excess at which a row is done; rows that do not get there are factorised.
_TOLERANCE = 1e-12
# Fewer steps than this are not begun: 30 to 40 are needed on correlated ReLU columns.
_WORTH = 40
# Rows that are carried at a time.
_ROWS = 512


def conjugate_gradients(
    H: NDArray[Any],
    corr: NDArray[Any],
    mask: Mask,
    start: NDArray[Any],
    steps: int,
    enough: NDArray[Any] | float = 0.0,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Minimise 1/2 x'Hx - corr'x of every row on its support.

    Parameters
    ----------
    H : (N, N)
        Of about unit diagonal: there is no preconditioner.
    corr, start : (r, N)
    mask : (r, N) bool
        The supports; `start` is zero outside.
    enough : (r,)
        Squared norm of a residual at which its row is done; stops when all are.

    Returns
    -------
    coef, residual : (r, N)
        The residual corr - H x on the support, 0 elsewhere.
    """
    coef = start.copy()
    residual = np.where(mask, corr - coef @ H, 0.0).astype(H.dtype)
    direction, square = residual.copy(), np.square(residual).sum(axis=1)
    for _ in range(steps):
        if (square <= enough).all():
            break
        moved = np.where(mask, direction @ H, 0.0)
        curvature = np.einsum("ij,ij->i", direction, moved)
        length = np.divide(square, curvature, out=np.zeros_like(square), where=curvature > 0)
        coef += length[:, None] * direction
        residual -= length[:, None] * moved
        new = np.square(residual).sum(axis=1)
        ratio = np.divide(new, square, out=np.zeros_like(new), where=square > 0)
        direction, square = residual + ratio[:, None] * direction, new
    return coef, residual


def fitted(
    gram: Gram, mask: Mask, n_free: int, n_jobs: int | None = None
) -> tuple[Matrix, NDArray[np.float64]]:
    """Solve least squares on the supports of wide rows, by the cheaper of two ways.

    Conjugate gradients of all rows together where a factorisation per row costs more; rows that
    they do not finish are factorised, see `polished`.

    Returns
    -------
    coef : (r, N')
    gap : (r,)
        As `polished`: excess of ||M a - z||^2 over its least value, relative to ||z||^2. After
        conjugate gradients a bound on it: the eigenvalues of G on a support, in columns of unit
        norm, are at least the smallest one of G.
    """
    n = gram.n_features - n_free
    steps = affordable_steps(n, float(mask.sum(axis=1).mean()))
    if steps < _WORTH:
        return polished(gram, mask, n_jobs)
    coef, gap = np.zeros(mask.shape), np.empty(len(mask))
    with threadpoolctl.threadpool_limits(n_jobs, user_api="blas"):
        unit = unit_columns(gram, n_free)
        least = float(scipy.linalg.eigh(unit.gram, eigvals_only=True, subset_by_index=[0, 0])[0])
        if least <= 0.0:
            return polished(gram, mask, n_jobs)
        energy = np.maximum(gram.target_sq, 1e-300)
        for k in range(0, len(mask), _ROWS):
            part = slice(k, k + _ROWS)
            bounded, enough = mask[part, :n], _TOLERANCE * least * energy[part]
            zero = np.zeros(bounded.shape)
            found, _ = conjugate_gradients(
                unit.gram, unit.corr[part], bounded, zero, steps, 0.1 * enough
            )
            residual = np.where(bounded, unit.corr[part] - found @ unit.gram, 0.0)
            gap[part] = np.square(residual).sum(axis=1) / (least * energy[part])
            coef[part, :n] = found / unit.norm
        if n_free:
            rest = gram.corr[:, n:] - coef[:, :n] @ gram.gram[:n, n:]
            coef[:, n:] = np.linalg.lstsq(gram.gram[n:, n:], rest.T, rcond=None)[0].T
    late = np.flatnonzero(~(gap <= _TOLERANCE))
    if late.size:
        part_of = Gram.from_moments(
            gram.gram, gram.corr[late], gram.target_sq[late], gram.n_samples
        )
        coef[late], gap[late] = polished(part_of, mask[late], n_jobs)
    return coef, gap
