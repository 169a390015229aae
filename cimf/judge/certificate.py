"""Certificates: bounds on the optimality gap, from the statistics, never from a solver's word.

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

A gap is relative to what F leaves of the target, e = 1/2 ||z||^2 - 1/2 c_F' P c_F (`energy`):
beside a free bias the mean of a target is no achievement, and relative to 1/2 ||z||^2 a target of
mean 1e6 and deviation 0.1 would be certified whatever the coefficients. e is a difference of
moments, known to about 16 units of rounding of 1/2 ||z||^2, its floor. Two kinds of rows are at
that limit:

* an objective below the floor: matched exactly to all that the moments say. Relative to
  1/2 ||z||^2, and passed;
* a gap that is rounding of 1/2 ||z||^2 and still more than tol e: *limited*. Nothing is certified,
  and no solver can do better from these moments; centred data can.

All this is computed from G and c, in float64. The rounding of g, about eps ||M_j|| (||z|| +
sum_k ||M_k|| |a_k|), is not added to the bound: it is far below 1e-9 unless column norms differ by
ten orders of magnitude. Eigenvalues of G below its rounding are not inverted: a direction that the
moments cannot tell from none is bounded by kappa alone, and a huge kappa is then not certified.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray

from cimf.errors import CertificateError, InputError
from cimf.judge.free_block import FreeBlock
from cimf.statistics import Gram, check_gram
from formulations.columns import Columns, as_float64
from formulations.level import Penalty, Radius, stated

# Rows judged together: bounds the memory of the gradient to 256 x N.
_CHUNK = 256
# Rounding of the moments of a target, in units of ||z||^2: 3 to 15e-15 where deviations of 1e-7 of
# the mean (1e-14) are to be told from none.
FLOOR = 16 * float(np.finfo(np.float64).eps)
# Rounding of a gap, in the same units: of the gradient times kappa, and of sums over samples of
# equal values (a constant target: 3e-14 after 1,000 samples).
_LIMIT = 1e-13


@dataclass(frozen=True, repr=False)
class Certificate:
    """What was recomputed in float64 from the statistics, one entry per row.

    Attributes
    ----------
    objective : (r,)
        h(a) = 1/2 ||M a - z||^2, plus lam sum_j w_j |a_j| for Q(lam).
    gap : (r,)
        Bound on the objective's excess over the optimum, divided by what the free columns leave of
        1/2 ||z||^2 (relative gap; see the module).
    violation : (r,)
        max(0, sum_j w_j |a_j| - kappa), or the largest |a_j| that an excluded column or a sign
        forbids where that is larger. In the units of kappa and of the coefficients.
    lam : (r,)
        max_j |g_j| / w_j, the smallest multiplier for which a would be dual feasible (P(kappa)),
        or the given lam (Q(lam)).
    norm : (r,)
        sum_j w_j |a_j| over the bounded columns.
    tol : float
        Tolerance that `passed` refers to: gap <= tol, and violation <= tol * kappa (for kappa = 0
        and for forbidden columns: exactly zero).
    passed : (r,) bool
    limited : (r,) bool
        Not passed, but the gap is rounding of 1/2 ||z||^2: the target is so near to the span of the
        free columns that moments in float64 certify nothing more. Centre the data for that.
    """

    objective: NDArray[np.float64]
    gap: NDArray[np.float64]
    violation: NDArray[np.float64]
    lam: NDArray[np.float64]
    norm: NDArray[np.float64]
    tol: float
    passed: NDArray[np.bool_]
    limited: NDArray[np.bool_]

    def __repr__(self) -> str:
        limited = f", {self.limited.sum()} at the limit of float64" if self.limited.any() else ""
        return (
            f"Certificate({self.passed.sum()} of {self.passed.size} rows passed{limited}, "
            f"worst gap {self.worst_gap:.1e}, tol={self.tol:g})"
        )

    @property
    def worst_gap(self) -> float:
        """The largest relative gap over all rows (0 for no rows)."""
        return float(self.gap.max(initial=0.0))

    def raise_if_failed(self) -> None:
        """Raise `CertificateError` naming the rows that failed, if any did.

        Rows that are `limited` neither failed nor are certified: no error can be told from none.
        """
        failed = np.flatnonzero(~(self.passed | self.limited))
        if failed.size:
            worst = failed[np.argmax(self.gap[failed])]
            raise CertificateError(
                f"{failed.size} of {self.passed.size} rows failed their certificate at tolerance "
                f"{self.tol:g}; first rows {failed[:5].tolist()}, worst row {worst}: gap "
                f"{self.gap[worst]:.3g}, violation {self.violation[worst]:.3g}"
            )


def certify(
    gram: Gram,
    coef: ArrayLike,
    kappa: ArrayLike | None = None,
    *,
    lam: ArrayLike | None = None,
    bounded: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    signs: ArrayLike | None = None,
    tol: float = 1e-9,
) -> Certificate:
    """Judge coefficients, whoever produced them, for P(kappa) or Q(lam).

    Parameters
    ----------
    gram : Gram
        Statistics of the design (m, N) and the targets (m, r).
    coef : (r, N), or (N,) where r = 1
        NaN or infinite coefficients are judged (gap and violation infinite), not refused.
    kappa, lam : float or (r,)
        Exactly one: the radius of P(kappa) or the penalty of Q(lam).
    bounded, weights, signs
        As `formulations.columns.Columns.build`.
    tol : float
        Relative gap and violation that pass.

    Returns
    -------
    Certificate

    Raises
    ------
    InputError
        Wrong shapes, neither or both of kappa and lam, negative values, float16, no `Gram`, or one
        without samples.
    """
    check_gram(gram)
    a = as_float64("coef", coef, (1, 2), finite=False)
    a = a[None, :] if a.ndim == 1 else a
    if a.shape != (gram.n_targets, gram.n_features):
        raise InputError(f"coef has shape {a.shape}; ({gram.n_targets}, {gram.n_features}) needed")
    columns = Columns.build(gram.n_features, gram.n_targets, bounded, weights, signs)
    return certify_columns(gram, a, columns, stated(kappa, lam, gram.n_targets), tol)


def certify_columns(
    gram: Gram,
    coef: NDArray[np.float64],
    columns: Columns,
    problem: Radius | Penalty,
    tol: float,
) -> Certificate:
    """`certify` for merged `columns`, coefficients (r, N) and levels (r,)."""
    constrained, level = isinstance(problem, Radius), problem.values
    finite = np.asarray(np.isfinite(coef).all(axis=1))
    if not finite.all():
        coef = np.where(finite[:, None], coef, 0.0)
    norm = columns.norm(coef)
    block = _shared_block(gram, columns)
    scale = _energy(gram, columns, block)
    if not (constrained or level.all()):
        columns = _least_squares_columns(columns, level, coef)
        block = _shared_block(gram, columns)
    parts = []
    for start in range(0, gram.n_targets, _CHUNK):
        rows = slice(start, start + _CHUNK)
        chunk = columns if columns.shared else Columns(columns.weights[rows], columns.signs)
        parts.append(
            _judge(gram, rows, coef[rows], norm[rows], chunk, level[rows], constrained, block)
        )
    objective, gap, violation, lam_out = (
        np.concatenate([part[k] for part in parts]) if parts else np.zeros(0) for k in range(4)
    )
    objective = np.where(finite, objective, np.nan)
    gap, violation = np.where(finite, gap, np.inf), np.where(finite, violation, np.inf)
    half_sq = 0.5 * gram.target_sq
    exact = np.isfinite(objective) & (objective <= FLOOR * half_sq)
    unit = np.where(exact, half_sq, scale)
    if constrained:
        open_ = np.flatnonzero(finite & (norm < level) & (gap > tol * unit))
        slack = open_[_worth_a_step(gram, columns, lam_out[open_], tol * unit[open_])]
        inside = _gap_inside(gram, slack, coef[slack], norm[slack], columns, level[slack])
        gap[slack] = np.minimum(gap[slack], inside)
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.where(gap == 0.0, 0.0, gap / unit)
    feasible = violation <= (tol * level if constrained else np.zeros_like(level))
    passed = (relative <= tol) & feasible
    limited = ~passed & feasible & (gap <= min(_LIMIT, tol) * half_sq)
    norm = np.where(finite, norm, np.inf)
    return Certificate(objective, relative, violation, lam_out, norm, float(tol), passed, limited)


def energy(gram: Gram, columns: Columns) -> NDArray[np.float64]:
    """Return what the free columns leave of 1/2 ||z_i||^2, and not less than its rounding: (r,)."""
    return _energy(gram, columns, _shared_block(gram, columns))


def _energy(gram: Gram, columns: Columns, block: FreeBlock | None) -> NDArray[np.float64]:
    half_sq = 0.5 * gram.target_sq
    reached = np.zeros_like(half_sq)
    for i, corr in enumerate(gram.corr):
        own = block if block is not None else FreeBlock(gram.gram, columns.row(i) == 0.0)
        half = own.half(corr)
        reached[i] = 0.5 * float(half @ half)
    return np.maximum(half_sq - reached, FLOOR * half_sq)


def _shared_block(gram: Gram, columns: Columns) -> FreeBlock | None:
    """Return one elimination for all rows; None where their free columns differ."""
    free = np.atleast_2d(columns.weights == 0.0)
    return FreeBlock(gram.gram, free[0]) if (free == free[:1]).all() and len(free) else None


def _least_squares_columns(
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


def _worth_a_step(
    gram: Gram, columns: Columns, steepest: NDArray[np.float64], goal: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return the rows that one column alone does not improve by more than the goal, g_j^2 / 2 G_jj.

    Others fail `_gap_inside` as well, and a factorisation of G is saved.
    """
    bounded = columns.weights[(columns.weights > 0) & np.isfinite(columns.weights)]
    least = steepest * bounded.min(initial=np.inf) if bounded.size else steepest
    return np.asarray(np.square(least) <= 2.0 * goal * np.diagonal(gram.gram).max())


def _gap_inside(
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
    free = _least_squares_columns(columns, np.zeros(rows.size), coef)
    block = _shared_block(gram, free)
    gap = np.zeros(rows.size)
    size = _CHUNK if block is not None else 1
    for start in range(0, rows.size, size):
        part = slice(start, start + size)
        own = block if block is not None else FreeBlock(gram.gram, free.row(start) == 0.0)
        # Of full rank g - G q is zero but for the rounding of q: kappa bounds no more than what a
        # sign holds.
        judged = free if own.full_rank else columns
        chunk = judged if judged.shared else Columns(judged.weights[part], columns.signs)
        gap[part] = _judge(gram, rows[part], coef[part], norm[part], chunk, level[part], True, own)[
            1
        ]
    return gap


def _judge(
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
