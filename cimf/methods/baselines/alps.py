"""ALPS: ADMM on the number of non-zeros, then conjugate gradients on the support.

Meng, Behdin, Wang and Mazumder 2024, "ALPS: improved optimization for highly sparse one-shot
pruning for large language models". Written from the paper, its settings below.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cimf.methods.layered.conjugate_gradients import conjugate_gradients
from cimf.methods.layered.elimination import Mask, Matrix, largest
from cimf.methods.layered.supports import Choice
from cimf.statistics import Gram

# Ridge as a share of the mean diagonal; first rho, for columns of unit diagonal.
_RIDGE, _RHO = 0.01, 0.1
# Every _EVERY iterations rho grows by the first factor whose share of the kept entries has changed.
_EVERY, _GROWTH = 3, ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
_ITERATIONS = 300
_STEPS = 10


def alps(
    gram: Gram, dense: Matrix, counts: NDArray[np.int64], n_free: int, n_jobs: int | None = None
) -> Choice:
    """Return supports and coefficients; free columns are never dropped."""
    width = gram.n_features - n_free
    unit = np.sqrt(np.diagonal(gram.gram))
    unit = np.where(unit > 0, unit, 1.0)
    H = gram.gram / np.outer(unit, unit)
    H += _RIDGE * np.eye(len(H))
    corr = gram.corr / unit + _RIDGE * dense * unit  # the ridge draws to the network's own weights
    values, vectors = np.linalg.eigh(H)

    def kept(weights: Matrix) -> Mask:
        return largest(np.abs(weights[:, :width]), counts, n_free)

    rho, dual = _RHO, np.zeros_like(dense)
    mask = kept(dense * unit)
    sparse = np.where(mask, dense * unit, 0.0)
    before = mask
    for step in range(1, _ITERATIONS + 1):
        right = corr - dual + rho * sparse
        weights = ((right @ vectors) / (values + rho)) @ vectors.T
        mask = kept(weights + dual / rho)
        sparse = np.where(mask, weights + dual / rho, 0.0)
        dual += rho * (weights - sparse)
        if step % _EVERY == 0:
            share = float((mask != before).sum()) / max(int(counts.sum()), 1)
            if share == 0.0:
                break
            rho *= next(factor for least, factor in _GROWTH if share >= least)
            before = mask
    coef, _ = conjugate_gradients(H, corr, mask, sparse, _STEPS)
    return Choice(mask, coef / unit)
