"""SparseGPT: one pass over the columns, the rest corrected after each.

Frantar and Alistarh 2023, "SparseGPT: massive language models can be accurately pruned in one
shot". With H = M'M + damping and the Cholesky factor of H^-1, the columns are fixed from the first
to the last: what column j loses is made up for by the columns behind it.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from cimf.methods.layered.elimination import Groups, Matrix, largest
from cimf.methods.layered.supports import Choice
from cimf.statistics import Gram

# The published settings: damping as a share of the mean diagonal, columns that choose together.
_DAMPING = 0.01
_BLOCK = 128


def sparsegpt(
    gram: Gram,
    dense: Matrix,
    counts: NDArray[np.int64],
    n_free: int,
    n_jobs: int | None = None,
    groups: Groups | None = None,
) -> Choice:
    """Return supports and coefficients.

    The published rule, with the number of kept columns given row by row, spread evenly over the
    blocks; in an N:M pattern the groups are the blocks, one after the other. Free columns come
    last, so they are corrected for all others and never dropped.
    """
    width = gram.n_features - n_free
    order, block = np.arange(gram.n_features), _BLOCK
    if groups is not None:
        order[:width], block = groups.members.ravel(), groups.members.shape[1]
    G = gram.gram[np.ix_(order, order)]
    H = G + _DAMPING * float(np.diagonal(G).mean() or 1.0) * np.eye(len(G))
    inverse = scipy.linalg.cho_solve(scipy.linalg.cho_factor(H), np.eye(len(G)))
    factor = np.linalg.cholesky(inverse).T  # upper, inverse = factor' factor
    diagonal = np.diagonal(factor)
    coef = dense[:, order]
    mask = np.ones(dense.shape, dtype=bool)
    for start in range(0, width, block):
        stop = min(start + block, width)
        kept = counts * stop // width - counts * start // width
        score = np.abs(coef[:, start:stop]) / diagonal[start:stop]
        mask[:, start:stop] = largest(score, np.minimum(kept, stop - start), 0)
        for j in range(start, stop):
            lost = np.where(mask[:, j], 0.0, coef[:, j]) / diagonal[j]
            coef[:, j:] -= np.outer(lost, factor[j, j:])
            coef[:, j] = np.where(mask[:, j], coef[:, j], 0.0)
    back = np.argsort(order)
    return Choice(mask[:, back], coef[:, back])
