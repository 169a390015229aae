"""Absolute optimality gaps of row problems, from the statistics alone.

With h(a) = 1/2 ||M a - z||^2, g = G a - c its gradient and w the column weights,

* P(kappa): every a' in the ball has h(a') >= h(a) + <g, a' - a>, so
  ``gap = <g, a> + kappa max_j |g_j| / w_j`` bounds h(a) - h* (the Frank-Wolfe gap);
  As h* >= 0, the objective itself is a bound too: it certifies rows that are matched exactly, where
  a large kappa magnifies the rounding of g;
* P(kappa) inside the ball, where that has not passed: for every q, 1/2 (d + q)' G (d + q) >= 0
  gives h(a + d) - h(a) = <g, d> + 1/2 d' G d >= <g - G q, d> - 1/2 q' G q, so
  ``gap = 1/2 q' G q + <g - G q, a> + kappa max_j |(g - G q)_j| / w_j`` bounds h(a) - h* too, and
  q = pinv(G) g leaves kappa nothing to magnify but what of g is outside the range of G;
* Q(lam): the residual r = z - M a scaled by s is dual feasible when s |g_j| <= lam w_j, so
  ``gap = lam sum_j w_j |a_j| + s <g, a> + (1 - s)^2 h(a)`` bounds the objective's excess.
  (Primal minus dual, written so that nothing cancels at s = 1.) Q(0) is least squares: all columns
  count as free, but for those that a sign holds at zero.

Free columns F (w = 0) are eliminated first: with P = pinv(G_FF), the excess 1/2 g_F' P g_F is added
and g_B is replaced by g_B - G_BF P g_F; at a least-squares optimum of a_F both are zero. P leaves
out directions v of F whose square v' G v is rounding (columns that are alike to 1e-8). Where they
depend on each other exactly, v' g_F is rounding too; where it is more, G does not tell how much v
could gain, and nothing is certified. A column with a sign constraint counts in the maximum only in
the direction in which it may move.

All this is computed from G and c, in float64. The rounding of g, about eps ||M_j|| (||z|| +
sum_k ||M_k|| |a_k|), is not added to the bound: it is far below 1e-9 unless column norms differ by
ten orders of magnitude. Eigenvalues of G below its rounding are not inverted: a direction that the
moments cannot tell from none is bounded by kappa alone, and a huge kappa is then not certified.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from cimf.judge.free_block import FreeBlock
from cimf.statistics import Gram
from formulations.columns import Columns

# Rows judged together: bounds the memory of the gradient to 256 x N.
CHUNK = 256
# Rounding of the moments of a target, in units of ||z||^2: 3 to 15e-15 where deviations of 1e-7 of
# the mean (1e-14) are to be told from none.
FLOOR = 16 * float(np.finfo(np.float64).eps)


def energy(gram: Gram, columns: Columns) -> NDArray[np.float64]:
    """Return what the free columns leave of 1/2 ||z_i||^2, and not less than its rounding: (r,)."""
    return energy_beside(gram, columns, shared_block(gram, columns))


def energy_beside(gram: Gram, columns: Columns, block: FreeBlock | None) -> NDArray[np.float64]:
    """Return `energy` with the free columns' elimination of all rows, None where they differ."""
    half_sq = 0.5 * gram.target_sq
    reached = np.zeros_like(half_sq)
    for i, corr in enumerate(gram.corr):
        own = block if block is not None else FreeBlock(gram.gram, columns.row(i) == 0.0)
        half = own.half(corr)
        reached[i] = 0.5 * float(half @ half)
    return np.maximum(half_sq - reached, FLOOR * half_sq)


def shared_block(gram: Gram, columns: Columns) -> FreeBlock | None:
    """Return one elimination for all rows; None where their free columns differ."""
    free = np.atleast_2d(columns.weights == 0.0)
    return FreeBlock(gram.gram, free[0]) if (free == free[:1]).all() and len(free) else None


def least_squares_columns(
    columns: Columns, level: NDArray[np.float64], coef: NDArray[np.float64]
) -> Columns:
    """Return the columns with weights set to zero in the rows with lam = 0: least squares.

    A column with a sign keeps its weight where its coefficient is zero; where it is not, the sign
    is dropped, which can only lower the bound.
    """
    free = np.where(np.isinf(columns.weights), np.inf, 0.0)
    if columns.signs.any():
        held = (columns.signs != 0) & (coef == 0)
        free = np.where(held, columns.weights, free)
    elif columns.shared and not level.any():
        return Columns(free, columns.signs)
    return Columns(np.where(level[:, None] == 0.0, free, columns.weights), columns.signs)


def worth_a_step(
    gram: Gram, columns: Columns, steepest: NDArray[np.float64], goal: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return the rows that one column alone does not improve by more than the goal, g_j^2 / 2 G_jj.

    Others fail `gap_inside` as well, and a factorisation of G is saved.
    """
    bounded = columns.weights[(columns.weights > 0) & np.isfinite(columns.weights)]
    least = steepest * bounded.min(initial=np.inf) if bounded.size else steepest
    return np.asarray(np.square(least) <= 2.0 * goal * np.diagonal(gram.gram).max())


def gap_inside(
    gram: Gram,
    rows: NDArray[np.intp],
    coef: NDArray[np.float64],
    norm: NDArray[np.float64],
    columns: Columns,
    level: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the gap inside the ball of some rows: q moves all columns but those a sign holds."""
    if not columns.shared:
        columns = Columns(columns.weights[rows], columns.signs)
    free = least_squares_columns(columns, np.zeros(rows.size), coef)
    block = shared_block(gram, free)
    gap = np.zeros(rows.size)
    size = CHUNK if block is not None else 1
    for start in range(0, rows.size, size):
        part = slice(start, start + size)
        own = block if block is not None else FreeBlock(gram.gram, free.row(start) == 0.0)
        # Of full rank g - G q is zero but for the rounding of q: kappa bounds no more than what a
        # sign holds.
        judged = free if own.full_rank else columns
        chunk = judged if judged.shared else Columns(judged.weights[part], columns.signs)
        gap[part] = judge_rows(
            gram, rows[part], coef[part], norm[part], chunk, level[part], True, own
        )[1]
    return gap


def judge_rows(
    gram: Gram,
    rows: slice | NDArray[np.intp],
    coef: NDArray[np.float64],
    norm: NDArray[np.float64],
    columns: Columns,
    level: NDArray[np.float64],
    constrained: bool,
    block: FreeBlock | None,
) -> tuple[NDArray[np.float64], ...]:
    """Return objective, absolute gap, violation and lam of a chunk of rows."""
    # A sparse product works row by row: its bits do not depend on which rows are judged together.
    index = np.flatnonzero(coef != 0)
    row, column = np.divmod(index, coef.shape[1])
    value = coef.ravel()[index]
    starts = np.searchsorted(row, np.arange(len(coef) + 1))
    gradient = scipy.sparse.csr_array((value, column, starts), shape=coef.shape) @ gram.gram
    corr, target_sq = gram.corr[rows], gram.target_sq[rows]
    gradient -= corr

    def dot(other: NDArray[np.float64]) -> NDArray[np.float64]:
        sums = np.bincount(row, weights=value * other.ravel()[index], minlength=len(coef))
        return np.asarray(sums, dtype=np.float64)

    loss = np.maximum(0.5 * (target_sq + dot(gradient) - dot(corr)), 0.0)
    size = np.sqrt(target_sq) + np.abs(coef) @ np.sqrt(np.diagonal(gram.gram))
    if block is None:
        reduced, excess = gradient.copy(), np.zeros(coef.shape[0])
        for i in range(coef.shape[0]):
            own = FreeBlock(gram.gram, columns.row(i) == 0.0)
            part, excess[i : i + 1] = own.eliminate(gradient[i : i + 1], size[i : i + 1])
            reduced[i] = part[0]
    else:
        reduced, excess = block.eliminate(gradient, size)
    in_ball = (columns.weights > 0) & np.isfinite(columns.weights)
    inner = dot(np.where(in_ball, reduced, 0.0)) if not in_ball.all() else dot(reduced)
    if columns.signs.any():  # a column may move along -g_j only where its sign allows
        slope = np.where(
            columns.signs == 0, np.abs(reduced), np.maximum(-columns.signs * reduced, 0.0)
        )
    else:
        slope = np.abs(reduced)
    weights = np.where(in_ball, columns.weights, np.inf)
    if not (weights == 1.0).all():
        with np.errstate(over="ignore"):
            slope /= weights
    steepest = slope.max(axis=1, initial=0.0)
    violation = columns.off_pattern(coef)
    if constrained:
        objective = loss
        gap = np.minimum(inner + level * steepest + excess, loss)
        violation = np.maximum(violation, np.maximum(norm - level, 0.0))
        lam = steepest
    else:
        objective = loss + level * norm
        with np.errstate(divide="ignore", invalid="ignore"):
            largest = np.where(steepest > 0, level / steepest, np.inf)
            best = np.where(loss > 0, 1.0 - inner / (2.0 * loss), 1.0)
        s = np.clip(best, 0.0, largest)
        gap = level * norm + s * inner + (1.0 - s) ** 2 * loss + excess
        lam = level
    # Rounding can leave a gap of -1e-17 at the optimum; a clearly negative one means infeasible.
    gap = np.where((gap < 0) & (violation == 0.0), 0.0, gap)
    return objective, gap, violation, lam
