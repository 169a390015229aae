"""The exact segment step: from a guess of the support and signs to the exact point of a row's path.

On one segment of the path the solution of Q(lam) is known in closed form, and so is the point of
norm kappa. An approximate solution guesses the segment; columns that violate the optimality
conditions are exchanged until none does (`cimf.solve.path.exchange`), and the point is computed
once more from the sorted support alone. Its bits therefore depend on the support, not on the guess
or on who made it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cimf.solve.compiled import kernel
from cimf.solve.path.exact_rows import MARGIN, RIDGE, column_records, column_scale
from cimf.solve.path.exchange import correct_at, rebuild
from cimf.solve.path.segment_lines import (
    JUDGED,
    REFINEMENTS,
    Problem,
    begin,
    gap_at,
    judged_gap,
    recentre,
    refine,
    solve_at,
    workspace,
    write,
)
from cimf.statistics import Gram
from formulations.columns import Columns
from formulations.level import Penalty, Radius

# Proximal moves; one or two close a gap that the ridge leaves.
_MOVES = 30


@kernel
def _sorted_support(weights, sign, free, support):
    """List the free columns, then those with a sign, ascending; returns their number."""
    k = free.shape[0]
    support[:k] = free
    for j in range(sign.shape[0]):
        if sign[j] != 0.0 and weights[j] > 0.0:
            support[k] = j
            k += 1
    return k


@kernel
def _solve_segment(
    gram, corr, target_sq, weights, scale, ridge, free, free_factor, up, down, fuzz, guess, lam,
    kappa, ball, goal, out,
):  # fmt: skip
    """Solve one row from a guess; returns whether `out` is exact, lam, and the systems solved.

    Parameters
    ----------
    gram, corr, target_sq, weights, scale, ridge, free, free_factor, up, down, fuzz
        As `segment.Problem` and `pivoting.solve_levels`.
    guess : (N,)
        -1, 0, +1: signs on the guessed support.
    lam : float
        Q(lam), or near the multiplier of P(kappa).
    kappa : float
        Radius of the ball; not used without one.
    goal : float
        Absolute gap.
    out : (N,)
        Filled where exact.
    """
    n = corr.shape[0]
    f = free.shape[0]
    problem = Problem(gram, corr, np.sqrt(target_sq), weights, scale, ridge, up, down, fuzz)
    kappa = kappa if ball else np.inf
    sign = np.zeros(n)
    for j in range(n):
        if (up[j] if guess[j] > 0.0 else down[j]) > 0.0:
            sign[j] = guess[j]
    work = workspace(n)
    state = begin(problem, work, free)
    listed = np.empty(n, np.int64)
    factor = np.empty((f + 1, f + 1))
    # A guess that is further off than this is no guess; the exchanges would cycle.
    allowed = 16 + n // 8
    solves = 0
    at_kappa = False
    # From the guess, then from the sorted support that this led to: its pass exchanges nothing.
    for _ in range(3):
        k = _sorted_support(weights, sign, free, listed)
        state[1][:] = sign
        state, factor = rebuild(problem, listed, k, state, free_factor, factor, work)
        at_kappa = ball and k > f and kappa > 0.0
        if at_kappa:
            possible, _, lam = solve_at(problem, state, 0.0, kappa, True, factor, work)
            solves += 1
            if not possible:
                return False, lam, solves
        done, _, lam, state, factor, used = correct_at(
            problem, state, lam, kappa, at_kappa, allowed, factor, work
        )
        solves += used
        if not done:
            return False, lam, solves
        sign[:] = state[1]
        if used == 1:
            break
    for _ in range(_MOVES):
        gap, _ = gap_at(problem, state, lam, kappa, ball, work)
        if gap <= goal + 0.5e-15 * target_sq:
            for _ in range(REFINEMENTS):
                if judged_gap(problem, state, lam, kappa, ball, factor, work) <= JUDGED * goal:
                    break
                lam = refine(problem, state, lam, kappa, at_kappa, factor, work)
                solves += 1
            write(problem, state, kappa, work, out)
            return True, lam, solves
        recentre(problem, state, work)
        done, _, lam, state, factor, used = correct_at(
            problem, state, lam, kappa, at_kappa, allowed, factor, work
        )
        solves += used
        if not done:
            return False, lam, solves
    return False, lam, solves


class Segments:
    """The exact segment step for the rows of one set of statistics.

    Parameters
    ----------
    gram : Gram
    columns : Columns
    level : Radius or Penalty
        P(kappa) or Q(lam), (r, L).
    tol : float
        Relative gap aimed at.
    """

    def __init__(self, gram: Gram, columns: Columns, level: Radius | Penalty, tol: float) -> None:
        self.gram, self.columns, self.level = gram, columns, level
        self.scale = column_scale(gram)
        self.goal = tol * MARGIN
        self._matrix = gram.gram
        self._shared = self._records(0) if columns.shared else None

    def _records(self, row: int) -> tuple[NDArray[Any], ...]:
        weights = np.ascontiguousarray(self.columns.row(row))
        return column_records(self._matrix, weights, self.columns.signs, self.scale, RIDGE)

    def finish(
        self,
        row: int,
        k: int,
        guess: NDArray[np.float64],
        lam: float,
        out: NDArray[np.float64],
    ) -> tuple[bool, float, int]:
        """Write the exact solution of a row into `out` (N,), if the guess leads to it.

        Parameters
        ----------
        row, k : int
            The row and its level.
        guess : (N,)
            An approximate solution; only its signs are used.
        lam : float
            Its multiplier.

        Returns
        -------
        exact : bool
            False also where the ball is inactive: whoever calls solves the row from the start.
        lam : float
        solves : int
            Linear systems.
        """
        target_sq = self.gram.target_sq[row]
        return _solve_segment(
            self._matrix, self.gram.corr[row], target_sq,
            np.ascontiguousarray(self.columns.row(row)), self.scale, RIDGE,
            *(self._shared or self._records(row)), np.sign(guess), lam,
            self.level.values[row, k], isinstance(self.level, Radius),
            self.goal * 0.5 * target_sq, out,
        )  # fmt: skip
