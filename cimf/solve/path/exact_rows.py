"""The exact row solver: block pivoting along the path, row by row, each from a cold start.

A row's answer depends on its own statistics only: not on the other rows, their order, the chunking
or the number of threads.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cimf.solve.compiled import kernel
from cimf.solve.path.cholesky import append
from cimf.solve.path.exchange import grown
from cimf.solve.path.pivoting import solve_levels
from cimf.solve.path.segment_lines import Problem, workspace
from cimf.statistics import Gram
from formulations.columns import Columns
from formulations.level import Penalty, Radius

# Proximal weight on unit-diagonal columns: 10 times the rounding of a factor with 1,000 columns.
RIDGE = 1e-12
# A point that is not exact is accepted at this fraction of the tolerance.
MARGIN = 0.1
# Linear systems per row. Real states need 5 to 650 (N = 897), the design of Mairal and Yu
# 1,600 at N = 7; past this a row is reported as it stands.
BUDGET = 10_000


def column_scale(gram: Gram) -> NDArray[np.float64]:
    """Return D (N,): powers of two near 1 / ||M_j|| (no rounding), 0 for zero columns."""
    diagonal = np.diagonal(gram.gram)
    exponent = np.frexp(diagonal)[1]
    return np.where(diagonal > 0, np.ldexp(1.0, -(exponent // 2)), 0.0)


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


def solve_chunk(gram: Gram, columns: Columns, level: Radius | Penalty, tol: float) -> SolvedRows:
    """Solve all rows of `gram` for L levels each.

    Parameters
    ----------
    gram : Gram
        r targets.
    columns : Columns
    level : Radius or Penalty
        (r, L): per row ascending kappa or descending lam.
    tol : float
        Relative gap aimed at.

    Returns
    -------
    SolvedRows
        Iterations: linear systems solved, counted from the first level of the row.
    """
    # A copy: a read-only view would be another type to the compiler, and 10 s of compilation.
    weights = np.array(np.atleast_2d(columns.weights), order="C")
    levels, ball = level.values, isinstance(level, Radius)
    shape = (*levels.shape, gram.n_features)
    coef, lam = np.zeros(shape), np.zeros(levels.shape)
    solves = np.zeros(levels.shape, np.int64)
    scale = column_scale(gram)
    if gram.n_targets:
        solve_compiled(
            gram.gram, gram.corr, gram.target_sq, weights, columns.signs, scale, RIDGE,
            *column_records(gram.gram, weights[0], columns.signs, scale, RIDGE), gram.n_samples,
            levels, ball, tol * MARGIN, BUDGET, coef, lam, solves,
        )  # fmt: skip
    return SolvedRows(coef, lam, solves, np.full(levels.shape, "exact"))


@kernel
def column_records(gram, weights, signs, scale, ridge):
    """Return the free columns, the factor of their block, and up, down, fuzz of `Problem`."""
    n = weights.shape[0]
    up, down, fuzz = np.zeros(n), np.zeros(n), np.zeros(n)
    free = np.empty(n, np.int64)
    f = 0
    for j in range(n):
        w = weights[j]
        if scale[j] == 0.0 or w == np.inf:
            continue
        if w == 0.0:
            free[f] = j
            f += 1
            continue
        up[j] = 1.0 / w if signs[j] >= 0 else 0.0
        down[j] = 1.0 / w if signs[j] <= 0 else 0.0
        fuzz[j] = 1.0 / (w * scale[j])
    factor = np.zeros((f, f))
    if f > 0:
        append(gram, scale, ridge, np.empty_like(free), 0, free, f, factor)
    return free[:f], factor, up, down, fuzz


@kernel
def solve_compiled(
    gram, corr, target_sq, weights, signs, scale, ridge, free, free_factor, up, down, fuzz,
    rank, levels, ball, goal, budget, coef, lam, solves,
):  # fmt: skip
    """Solve rows one after another: as `solve_chunk` and `pivoting.solve_levels`, for r rows.

    weights (1, N) for all rows, or (r, N); free, free_factor, up, down, fuzz are the
    `column_records` of the first.
    """
    r, n = corr.shape
    work = workspace(n)
    saved = (np.empty(n, np.int64), np.empty(n), 0, np.empty((1, 1)))
    factor = np.empty((max(64, free.shape[0] + 32), max(64, free.shape[0] + 32)))
    for i in range(r):
        own = i if weights.shape[0] > 1 else 0
        if own > 0:
            free, free_factor, up, down, fuzz = column_records(
                gram, weights[i], signs, scale, ridge
            )
        factor = grown(factor, free.shape[0] + 1)
        problem = Problem(
            gram, corr[i], np.sqrt(target_sq[i]), weights[own], scale, ridge, up, down, fuzz
        )
        factor, saved = solve_levels(
            problem, free, free_factor, rank, levels[i], ball, goal * 0.5 * target_sq[i], budget,
            factor, saved, work, coef[i], lam[i], solves[i],
        )  # fmt: skip
