"""SparseGPT: one pass over the columns, the rest corrected after each.

Frantar and Alistarh 2023, "SparseGPT: massive language models can be accurately pruned in one
shot". With H = M'M + damping and the Cholesky factor of H^-1, the columns are fixed from the first
to the last: what column j loses is made up for by the columns behind it.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from cimf.methods.layered.elimination import Matrix, largest
from cimf.methods.layered.supports import Choice
from cimf.statistics import Gram

# The published settings: damping as a share of the mean diagonal, columns that choose together.
_DAMPING = 0.01
_BLOCK = 128


def sparsegpt(
    gram: Gram, dense: Matrix, counts: NDArray[np.int64], n_free: int, n_jobs: int | None = None
) -> Choice:
    """Return supports and coefficients.

    The published rule, with the number of kept columns given row by row, spread evenly over the
    blocks. Free columns come last, so they are corrected for all others and never dropped.
    """
    G = gram.gram
    width = len(G) - n_free
    H = G + _DAMPING * float(np.diagonal(G).mean() or 1.0) * np.eye(len(G))
    inverse = scipy.linalg.cho_solve(scipy.linalg.cho_factor(H), np.eye(len(G)))
    factor = np.linalg.cholesky(inverse).T  # upper, inverse = factor' factor
    diagonal = np.diagonal(factor)
    coef = dense.copy()
    mask = np.ones(dense.shape, dtype=bool)
    for start in range(0, width, _BLOCK):
        stop = min(start + _BLOCK, width)
        kept = counts * stop // width - counts * start // width
        score = np.abs(coef[:, start:stop]) / diagonal[start:stop]
        mask[:, start:stop] = largest(score, np.minimum(kept, stop - start), 0)
        for j in range(start, stop):
            lost = np.where(mask[:, j], 0.0, coef[:, j]) / diagonal[j]
            coef[:, j:] -= np.outer(lost, factor[j, j:])
            coef[:, j] = np.where(mask[:, j], coef[:, j], 0.0)
    return Choice(mask, coef)
