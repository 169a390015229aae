"""The paper's Algorithms 1 and 2: bisection on lam, ended by the exact segment step.

Algorithm 1 solves P(kappa) for one row: bisect lam over (0, max_j |c_j| / w_j), solve Q(lam) at
each step, go right where the norm is at least kappa, until the interval is shorter than epsilon.
Algorithm 2 runs it row after row, each warm-started at the solution of the last. What they return
is within epsilon of the multiplier; here the segment of the last step is then solved exactly
(`cimf.solve.path.segment_step`), so that the returned point is certified. Where the segment cannot
be told yet the bisection goes on, and a row that still resists (or whose ball is inactive, where
lam = 0 is not in the open interval) is handed to the exact method.

Free columns are eliminated before the bisection, so the paper's (4) with b outside the ball is the
same problem.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray

from cimf.errors import InputError, UnknownNameError
from cimf.judge import Solution, certify_columns
from cimf.solve.bisection.coordinate_descent import (
    BoundedRow,
    Iterate,
    Search,
    bisect,
    descend,
    steepest,
)
from cimf.solve.path import exact_rows as exact
from cimf.solve.path.free_columns import BoundedPart
from cimf.solve.path.segment_step import Segments
from cimf.statistics import Gram
from formulations.columns import Columns, per_row
from formulations.level import Penalty, Radius

Array = NDArray[np.float64]

WARM_STARTS = ("rows", "steps", "none")

# At 1e-4 the segment step ends every row of real states at kappa 0.1 and 0.5 (at 1e-2: 101 of 112).
EPSILON = 1e-4
# Relative gap of each Q(lam).
INNER_TOL = 1e-4
# Rounds of bisection, each to 1/100 of the interval and the gap of the last, before the exact
# method; none is begun after this many passes (f897 states, kappa = 5: descent on lam -> 0 takes
# 100 times the exact method).
_ROUNDS = 3
_FINER = 1e-2
_BUDGET = 500
_MAX_STEPS = 60


@dataclass(frozen=True)
class Trace:
    """Every bisection step of every row, in the order taken; all arrays have the length T.

    Attributes
    ----------
    row, step : (T,) int
        Step counts from 0 within a row.
    lam : (T,)
    norm : (T,)
        g(lam) = sum_j w_j |a_j| at the solution of Q(lam).
    inner : (T,) int
        Passes of coordinate descent over the columns.
    objective : (T,)
        h(a) + lam sum_j w_j |a_j|.
    gap : (T,)
        Duality gap of Q(lam), relative to 1/2 ||z||^2.
    coef : (T, N) CSR
        The solution of Q(lam), free columns included.
    """

    row: NDArray[np.int64]
    step: NDArray[np.int64]
    lam: Array
    norm: Array
    inner: NDArray[np.int64]
    objective: Array
    gap: Array
    coef: scipy.sparse.csr_array


@dataclass(frozen=True)
class Bisection:
    """What `bisect_rows` returns.

    Attributes
    ----------
    solution : Solution
        Certified points; `method` is "exact" for rows that bisection could not end.
    steps : (r,) int
        Bisection steps, the outer iterations.
    inner : (r,) int
        Inner iterations over all steps: passes of coordinate descent over the columns.
    interval : (r, 2)
        The last interval of lam.
    trace : Trace or None
    """

    solution: Solution
    steps: NDArray[np.int64]
    inner: NDArray[np.int64]
    interval: Array
    trace: Trace | None


def bisect_rows(
    gram: Gram,
    kappa: ArrayLike,
    *,
    bounded: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    signs: ArrayLike | None = None,
    epsilon: ArrayLike = EPSILON,
    inner_tol: float = INNER_TOL,
    warm_start: str = "rows",
    trace: bool = False,
    tol: float = 1e-9,
) -> Bisection:
    """Solve P(kappa) for all rows in turn by the paper's Algorithm 2 and the exact segment step.

    Parameters
    ----------
    gram, kappa, bounded, weights, signs, tol
        As `cimf.solve.solve_rows`.
    epsilon : float or (r,)
        Length of the interval of lam at which the bisection stops, **relative to its first length**
        max_j |c_j| / w_j (||M'z||_inf for unit weights), so that it does not depend on the scale of
        the data or on the number of samples; 1/epsilon needs ceil(log2(1/epsilon)) steps. The
        paper's epsilon = 0.01 is absolute: pass ``0.01 / abs(gram.corr).max(axis=1)``.
    inner_tol : float
        Duality gap at which Q(lam) counts as solved, relative to 1/2 ||z||^2.
    warm_start : {"rows", "steps", "none"}
        "rows": Algorithm 2, the first Q(lam) of a row starts at the last solution of the row
        before; "steps": each row starts at zero, each further Q(lam) at the last one (Theorem 6);
        "none": every Q(lam) starts at zero.
    trace : bool
        Record every step.

    Returns
    -------
    Bisection

    Raises
    ------
    InputError
        As `solve_rows`; epsilon or inner_tol not in (0, 1).
    UnknownNameError
        For another warm start.

    Notes
    -----
    One row at a time in the order given, on one thread. With "steps" and "none", and in
    ``solve_rows(method="bisection")``, which uses "steps", a row's bits depend on its own
    statistics only. With "rows" the iterates depend on the row before, and so do the counts; the
    returned point does not where its support is unique, because the segment step computes it from
    the support alone.
    """
    if warm_start not in WARM_STARTS:
        raise UnknownNameError("warm start", warm_start, WARM_STARTS)
    width = per_row("epsilon", epsilon, gram.n_targets)
    for name, value in (("epsilon", width), ("inner_tol", np.asarray(inner_tol))):
        if not ((value > 0) & (value < 1)).all():
            raise InputError(f"{name} must be between 0 and 1")
    level = Radius(per_row("kappa", kappa, gram.n_targets)[:, None])
    columns = Columns.build(gram.n_features, gram.n_targets, bounded, weights, signs)
    start = time.perf_counter()
    rows = _Rows(gram, columns, level, tol, _How(width, inner_tol, warm_start, trace))
    for i in range(gram.n_targets):
        rows.solve(i)
    solved = time.perf_counter()
    coef = rows.coef[:, 0]
    certificate = certify_columns(gram, coef, columns, level.take((slice(None), 0)), tol)
    seconds = {"solve": solved - start, "certify": time.perf_counter() - solved}
    solution = Solution(coef, certificate, rows.method[:, 0], rows.inner[:, 0], seconds)
    return Bisection(
        solution,
        rows.steps[:, 0],
        rows.inner[:, 0],
        rows.interval,
        rows.recorded() if trace else None,
    )


def solve_chunk(
    gram: Gram, columns: Columns, level: Radius | Penalty, tol: float
) -> exact.SolvedRows:
    """Solve all rows for L levels; as `exact.solve_chunk`, counting inner iterations."""
    how = _How(np.full(gram.n_targets, EPSILON), INNER_TOL, "steps", False)
    rows = _Rows(gram, columns, level, tol, how)
    for i in range(gram.n_targets):
        rows.solve(i)
    return exact.SolvedRows(rows.coef, rows.lam, rows.inner, rows.method)


@dataclass(frozen=True)
class _How:
    """The parameters of the bisection itself, as `bisect_rows`; epsilon (r,)."""

    epsilon: Array
    inner_tol: float
    warm_start: str
    trace: bool


class _Rows:
    """Algorithm 2: what was found for the rows so far, and where the next one starts."""

    def __init__(
        self, gram: Gram, columns: Columns, level: Radius | Penalty, tol: float, how: _How
    ) -> None:
        self.gram, self.columns, self.level, self.tol, self.how = gram, columns, level, tol, how
        shape = level.values.shape
        self.coef = np.zeros((*shape, gram.n_features))
        self.lam = np.zeros(shape)
        self.inner, self.steps = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self.method = np.full(shape, "bisection")
        self.interval = np.zeros((gram.n_targets, 2))
        self._segments = Segments(gram, columns, level, tol)
        self._room = _MAX_STEPS if how.trace else 0
        self._records: list[tuple[int, Array, Array]] = []
        self._bounded: BoundedPart | None = None
        self._last = np.zeros(gram.n_features)

    def solve(self, row: int) -> None:
        """Solve one row for its levels, in order."""
        if self.how.warm_start != "rows":
            self._last[:] = 0.0
        weights = self.columns.row(row)
        if self._bounded is None or not self._bounded.fits(weights):
            self._bounded = BoundedPart(self.gram.gram, weights)
        part = self._bounded
        weights, signs = weights[part.index], self.columns.signs[part.index]
        corr, half_sq = part.reduce(self.gram.corr[row], 0.5 * self.gram.target_sq[row])
        start = self._last[part.index]
        start[np.isinf(weights) | (signs * start < 0.0)] = 0.0
        problem = BoundedRow(part.gram, corr, weights, signs, half_sq)
        at = Iterate(start, part.gram @ start - corr)
        for k in range(self.level.values.shape[1]):
            if not self._approach(row, k, problem, at):
                self._hand_over(row, k)
        self._last[part.index] = start

    def _approach(self, row: int, k: int, problem: BoundedRow, at: Iterate) -> bool:
        """Bisect (for Q(lam): descend) and finish, ever finer; return whether it is solved."""
        part = self._bounded
        assert part is not None
        level = float(self.level.values[row, k])
        low, high = 0.0, steepest(problem, -problem.corr)
        width = self.how.epsilon[row] * high
        goal = self.how.inner_tol * problem.half_sq
        guess = np.zeros(self.gram.n_features)
        for _ in range(_ROUNDS):
            if isinstance(self.level, Radius):
                steps = np.empty((_MAX_STEPS, 5))
                points = np.empty((self._room, problem.corr.size))
                search = Search(low, high, width, goal, self.how.warm_start != "none")
                low, high, lam, count = bisect(problem, level, search, at, steps, points)
                self.steps[row, k] += count
                self.inner[row, k] += int(steps[:count, 2].sum())
                self.interval[row] = low, high
                if self._room:
                    self._records.append(
                        (row, steps[:count], part.expand(points[:count], self.gram.corr[row]))
                    )
            else:
                lam = level
                self.inner[row, k] += descend(problem, lam, goal, at)[0]
            guess[part.index] = at.a
            done, self.lam[row, k], _ = self._segments.finish(row, k, guess, lam, self.coef[row, k])
            if done:
                return True
            if level == 0.0 or self.inner[row, k] > _BUDGET:
                return False
            width, goal = _FINER * width, _FINER * goal
        return False

    def _hand_over(self, row: int, k: int) -> None:
        """Solve one row by the exact method."""
        columns = Columns(self.columns.row(row), self.columns.signs)
        level = self.level.take(([[row]], [[k]]))
        done = exact.solve_chunk(self.gram.rows([row]), columns, level, self.tol)
        self.coef[row, k], self.lam[row, k] = done.coef[0, 0], done.lam[0, 0]
        self.method[row, k] = done.method[0, 0]

    def recorded(self) -> Trace:
        """Return the trace of all rows."""
        empty = scipy.sparse.csr_array((0, self.gram.n_features))
        row = np.array([r for r, steps, _ in self._records for _ in steps], dtype=np.int64)
        steps = np.concatenate([np.empty((0, 5)), *(steps for _, steps, _ in self._records)])
        coef = [scipy.sparse.csr_array(points) for _, _, points in self._records]
        lam, norm, inner, loss, gap = steps.T
        first = np.searchsorted(row, row)
        half_sq = 0.5 * self.gram.target_sq[row]
        return Trace(
            row,
            np.arange(row.size) - first,
            lam,
            norm,
            inner.astype(np.int64),
            loss + lam * norm,
            np.divide(gap, half_sq, out=np.zeros_like(gap), where=half_sq > 0),
            scipy.sparse.csr_array(scipy.sparse.vstack([empty, *coef])),
        )
