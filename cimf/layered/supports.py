"""Rules that choose which columns a row keeps, given how many.

A rule takes the statistics of a layer's rows, the network's own rows, the counts and the number of
free columns, and returns a `Choice`. New rules are one function and one line in `SUPPORTS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cimf.judge import Solution
from cimf.layered import rows
from cimf.layered.rows import Mask, Matrix
from cimf.solve import solve_rows
from cimf.statistics import Gram

# Halvings of the interval of each row's ball; 2^-10 of the row's own norm.
_HALVINGS = 10


@dataclass(frozen=True)
class Choice:
    """Supports of the rows of one layer.

    Attributes
    ----------
    mask : (r, N') bool
        Columns that are kept; exactly the counts, plus the free columns.
    coef : (r, N') or None
        Coefficients where the rule fixes them; None: least squares on the support is meant.
    solution : Solution or None
        The certified convex problem behind the rule, where there is one.
    """

    mask: Mask
    coef: Matrix | None = None
    solution: Solution | None = None


Counts = NDArray[np.int64]
Rule = Callable[[Gram, Matrix, Counts, int], Choice]


def obs(gram: Gram, dense: Matrix, counts: Counts, n_free: int) -> Choice:
    """Exact Optimal Brain Surgeon per row: drop the cheapest column, refit, repeat."""
    order, _ = rows.elimination(gram, n_free)
    return Choice(rows.last_columns(order, counts, n_free))


def magnitude(gram: Gram, dense: Matrix, counts: Counts, n_free: int) -> Choice:
    """Keep the largest weights of the network."""
    return Choice(rows.largest(np.abs(dense[:, : dense.shape[1] - n_free]), counts, n_free))


def ball(gram: Gram, dense: Matrix, counts: Counts, n_free: int) -> Choice:
    """Solve P(kappa) in the weighted l1 ball sum_j |a_j| / |w_j| <= kappa, kappa by halving.

    Each row gets the largest kappa found whose solution has at most its count of non-zeros. What
    is missing is filled in by the order of Optimal Brain Surgeon.
    """
    width = gram.n_features - n_free
    weights = np.zeros(dense.shape)
    size = np.abs(dense[:, :width])
    weights[:, :width] = 1.0 / np.maximum(size, 1e-6 * size.max(axis=1, keepdims=True, initial=1e-12))
    low, high = np.zeros(len(dense)), np.full(len(dense), float(width))
    best = solve_rows(gram, low, weights=weights)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found = solve_rows(gram, middle, weights=weights)
        fits = np.count_nonzero(found.coef[:, :width], axis=1) <= counts
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    best = solve_rows(gram, low, weights=weights)
    order, _ = rows.elimination(gram, n_free)
    rank = np.argsort(order, axis=1)
    chosen = best.coef[:, :width] != 0
    score = rank + np.where(chosen, width, 0)
    return Choice(rows.largest(score, counts, n_free), solution=best)


SUPPORTS: dict[str, Rule] = {"obs": obs, "magnitude": magnitude, "ball": ball}
