"""A layer-wise pruner by FISTA: l1-penalised matching, then hard thresholding.

Zhao et al. 2024, "A convex-optimization-based layer-wise post-training pruner for large language
models": minimise 1/2 ||M a - z||^2 + lam ||a||_1 by FISTA (Beck and Teboulle 2009), keep the
largest entries, and search lam for the least error after rounding.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cimf.methods.layered import elimination as rows
from cimf.methods.layered.elimination import Matrix, losses
from cimf.methods.layered.supports import Choice
from cimf.statistics import Gram

# Iterations per lam, each lam starting from the solution of the one before.
_ITERATIONS = 50
# lam as a share of the smallest one that empties a row.
_GRID = np.geomspace(1e-4, 0.3, 9)


def fista(
    gram: Gram, dense: Matrix, counts: NDArray[np.int64], n_free: int, n_jobs: int | None = None
) -> Choice:
    """Return supports and coefficients of the best lam of a grid, per row."""
    width = gram.n_features - n_free
    step = 1.0 / float(np.linalg.eigvalsh(gram.gram)[-1])
    coef = dense.copy()
    top = np.abs(gram.corr[:, :width]).max(axis=1, keepdims=True)
    best = np.full(len(dense), np.inf)
    mask = np.zeros(dense.shape, dtype=bool)
    found = np.zeros_like(dense)
    for share in _GRID:
        coef = _descend(gram, coef, share * top, step, width)
        kept = rows.largest(np.abs(coef[:, :width]), counts, n_free)
        rounded = np.where(kept, coef, 0.0)
        loss = losses(gram, rounded)
        better = loss < best
        best[better], mask[better], found[better] = loss[better], kept[better], rounded[better]
    return Choice(mask, found)


def _descend(gram: Gram, start: Matrix, lam: Matrix, step: float, width: int) -> Matrix:
    """Run FISTA on 1/2 ||M a - z||^2 + lam ||a||_1 for all rows; free columns are not penalised."""
    a = y = start
    t = 1.0
    for _ in range(_ITERATIONS):
        new = y - step * (y @ gram.gram - gram.corr)
        part = new[:, :width]
        new[:, :width] = np.sign(part) * np.maximum(np.abs(part) - step * lam, 0.0)
        following = (1.0 + np.sqrt(1.0 + 4.0 * t * t)) / 2.0
        y = new + ((t - 1.0) / following) * (new - a)
        a, t = new, following
    return a
