"""Certificates: bounds on the optimality gap, from the statistics, never from a solver's word.

The gaps are those of `cimf.judge.row_gaps`; here they become relative, and pass or do not.

A gap is relative to what F leaves of the target, e = 1/2 ||z||^2 - 1/2 c_F' P c_F (`energy`):
beside a free bias the mean of a target is no achievement, and relative to 1/2 ||z||^2 a target of
mean 1e6 and deviation 0.1 would be certified whatever the coefficients. e is a difference of
moments, known to about 16 units of rounding of 1/2 ||z||^2, its floor. Two kinds of rows are at
that limit:

* an objective below the floor: matched exactly to all that the moments say. Relative to
  1/2 ||z||^2, and passed;
* a gap that is rounding of 1/2 ||z||^2 and still more than tol e: *limited*. Nothing is certified,
  and no solver can do better from these moments; centred data can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cimf.errors import CertificateError, InputError
from cimf.judge.row_gaps import (
    CHUNK,
    FLOOR,
    energy_beside,
    gap_inside,
    judge_rows,
    least_squares_columns,
    shared_block,
    worth_a_step,
)
from cimf.statistics import Gram, check_gram
from formulations.columns import Columns, as_float64
from formulations.level import Penalty, Radius, stated

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
    block = shared_block(gram, columns)
    scale = energy_beside(gram, columns, block)
    if not (constrained or level.all()):
        columns = least_squares_columns(columns, level, coef)
        block = shared_block(gram, columns)
    parts = []
    for start in range(0, gram.n_targets, CHUNK):
        rows = slice(start, start + CHUNK)
        chunk = columns if columns.shared else Columns(columns.weights[rows], columns.signs)
        parts.append(
            judge_rows(gram, rows, coef[rows], norm[rows], chunk, level[rows], constrained, block)
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
        slack = open_[worth_a_step(gram, columns, lam_out[open_], tol * unit[open_])]
        inside = gap_inside(gram, slack, coef[slack], norm[slack], columns, level[slack])
        gap[slack] = np.minimum(gap[slack], inside)
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.where(gap == 0.0, 0.0, gap / unit)
    feasible = violation <= (tol * level if constrained else np.zeros_like(level))
    passed = (relative <= tol) & feasible
    limited = ~passed & feasible & (gap <= min(_LIMIT, tol) * half_sq)
    norm = np.where(finite, norm, np.inf)
    return Certificate(objective, relative, violation, lam_out, norm, float(tol), passed, limited)


def certify_bounds(
    gram: Gram,
    coef: NDArray[np.float64],
    columns: Columns,
    cost: NDArray[np.float64],
    bounds: NDArray[np.float64],
    violation: NDArray[np.float64],
    parts: Sequence[Sequence[int]],
    tol: float,
) -> Certificate:
    """Judge rows of h_i(a_i) + further costs by lower bounds that come from elsewhere.

    Parameters
    ----------
    gram, coef, columns
        As `certify_columns`; the weights say which columns are free and which count in `norm`.
    cost, bounds, violation : (parts,)
        What a part costs beside the h of its rows; no feasible point of it is below its bound;
        its violation, relative. What excluded columns hold is added here.
    parts : sequence of sequence of int
        The rows that were solved together, which pass or fail together.
    tol : float
        Relative gap and violation that pass.

    Returns
    -------
    Certificate
        Of a part, in each of its rows; `lam` is 0.
    """
    place = np.empty(len(coef), dtype=np.intp)
    for k, rows in enumerate(parts):
        place[list(rows)] = k
    half_sq = 0.5 * gram.target_sq
    square = np.einsum("ij,ij->i", coef @ gram.gram, coef)
    misfit = 0.5 * square - np.einsum("ij,ij->i", coef, gram.corr) + half_sq
    scale = energy_beside(gram, columns, shared_block(gram, columns))
    fit, unit, whole = (
        np.bincount(place, values, len(parts)).astype(np.float64)
        for values in (misfit, scale, half_sq)
    )
    objective = fit + cost
    unit = np.where(objective <= FLOOR * whole, whole, unit)
    excess = objective - bounds
    violation = violation.copy()
    np.maximum.at(violation, place, columns.off_pattern(coef))
    with np.errstate(invalid="ignore", divide="ignore"):
        # Below the bound by more than rounding is no better: one of the two is then wrong.
        gap = np.where(excess == 0.0, 0.0, np.abs(excess) / unit)
    gap = np.where(np.isnan(gap), np.inf, gap)
    feasible = violation <= tol
    passed = (gap <= tol) & feasible
    limited = ~passed & feasible & (gap * unit <= min(_LIMIT, tol) * whole)
    norm = columns.norm(coef)
    return Certificate(
        objective[place], gap[place], violation[place], np.zeros(len(coef)), norm, float(tol),
        passed[place], limited[place],
    )  # fmt: skip
