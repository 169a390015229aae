"""The exact row solver: block pivoting along the path, row by row, each from a cold start.

A row's answer depends on its own statistics only: not on the other rows, their order, the chunking
or the number of threads.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cimf.solve.cholesky import append
from cimf.solve.compiled import kernel
from cimf.solve.pivoting import solve_levels
from cimf.statistics import Gram
from formulations.columns import Columns

# Proximal weight on unit-diagonal columns: 10 times the rounding of a factor with 1,000 columns.
RIDGE = 1e-12
# A point that is not exact is accepted at this fraction of the tolerance.
MARGIN = 0.1
# Linear systems per row. Real states need 5 to 650 (N = 897), the design of Mairal and Yu
# 1,060 at N = 7; past this a row is reported as it stands.
BUDGET = 10_000


def column_scale(gram: Gram) -> NDArray[np.float64]:
    """Return D (N,): powers of two near 1 / ||M_j|| (no rounding), 0 for zero columns."""
    diagonal = np.diagonal(gram.gram)
    positive = diagonal > 0
    exponent = np.round(-0.5 * np.log2(np.where(positive, diagonal, 1.0)))
    return np.where(positive, np.exp2(exponent), 0.0)


class SolvedRows(NamedTuple):
    """What a chunk solver returns for r rows and L levels each.

    Attributes
    ----------
    coef : (r, L, N)
    lam : (r, L)
        Multipliers; 0 where the ball is inactive.
    iterations : (r, L)
        In the unit of the method.
    method : (r, L) str
        Who solved the row: a method may hand rows over to another.
    """

    coef: NDArray[np.float64]
    lam: NDArray[np.float64]
    iterations: NDArray[np.int64]
    method: NDArray[np.str_]


def solve_chunk(
    gram: Gram, columns: Columns, levels: NDArray[np.float64], ball: bool, tol: float
) -> SolvedRows:
    """Solve all rows of `gram` for L levels each.

    Parameters
    ----------
    gram : Gram
        r targets.
    columns : Columns
    levels : (r, L)
        Per row ascending kappa (`ball`) or descending lam.
    ball : bool
    tol : float
        Relative gap aimed at.

    Returns
    -------
    SolvedRows
        Iterations: linear systems solved, counted from the first level of the row.
    """
    # A copy: a read-only view would be another type to the compiler, and 10 s of compilation.
    weights = np.array(np.broadcast_to(columns.weights, gram.corr.shape), order="C")
    shape = (*levels.shape, gram.n_features)
    coef, lam = np.zeros(shape), np.zeros(levels.shape)
    status, solves = np.zeros(levels.shape, np.int64), np.zeros(levels.shape, np.int64)
    solve_compiled(
        gram.gram, gram.corr, 0.5 * gram.target_sq, weights, columns.signs, columns.shared,
        column_scale(gram), RIDGE, levels, ball, tol * MARGIN, BUDGET, coef, lam, status, solves,
    )  # fmt: skip
    return SolvedRows(coef, lam, solves, np.full(levels.shape, "exact"))


@kernel
def free_columns(gram, weights, scale, ridge):
    """Return the free columns and the factor of their block."""
    free = np.flatnonzero((weights == 0.0) & (scale > 0.0))
    factor = np.zeros((free.shape[0], free.shape[0]))
    if free.shape[0] > 0:
        append(gram, scale, ridge, np.empty_like(free), 0, free, free.shape[0], factor)
    return free, factor


@kernel
def solve_compiled(
    gram, corr, half_sq, weights, signs, shared, scale, ridge, levels, ball, goal, budget,
    coef, lam, status, solves,
):  # fmt: skip
    """Solve rows one after another: as `solve_chunk` and `pivoting.solve_levels`, for r rows."""
    if corr.shape[0] == 0:
        return
    free, factor = free_columns(gram, weights[0], scale, ridge)
    for i in range(corr.shape[0]):
        if i > 0 and not shared:
            free, factor = free_columns(gram, weights[i], scale, ridge)
        solve_levels(
            gram, corr[i], half_sq[i], weights[i], signs, scale, ridge, free, factor, levels[i],
            ball, goal * half_sq[i], budget, coef[i], lam[i], status[i], solves[i],
        )  # fmt: skip
