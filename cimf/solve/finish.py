"""The exact segment step: from a guess of the support and signs to the exact point of a row's path.

On one segment of the path the solution of Q(lam) is known in closed form, and so is the point of
norm kappa. An approximate solution guesses the segment; columns that violate the optimality
conditions are exchanged until none does (`cimf.solve.exchange`), and the point is computed once
more from the sorted support alone. Its bits therefore depend on the support, not on the guess or on
who made it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cimf.solve.compiled import kernel
from cimf.solve.exact import MARGIN, RIDGE, column_scale, free_columns
from cimf.solve.exchange import correct, rebuild
from cimf.solve.segment import norms, refresh, steepest, write
from cimf.statistics import Gram
from formulations.columns import Columns

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
    gram, corr, half_sq, weights, signs, scale, ridge, free, free_factor, guess, lam, kappa, ball,
    goal, out,
):  # fmt: skip
    """Solve one row from a guess; returns whether `out` is exact, lam, and the systems solved.

    Parameters
    ----------
    gram, corr, half_sq, weights, signs, scale, ridge, free, free_factor, goal
        As `pivoting.solve_levels`.
    guess : (N,)
        -1, 0, +1: signs on the guessed support.
    lam : float
        Q(lam), or near the multiplier of P(kappa).
    kappa : float
        Radius of the ball; not used without one.
    out : (N,)
        Filled where exact.
    """
    n = corr.shape[0]
    f = free.shape[0]
    problem = (gram, corr, weights, signs, scale, ridge)
    kappa = kappa if ball else np.inf
    sign = np.zeros(n)
    for j in range(n):
        if 0.0 < weights[j] < np.inf and scale[j] > 0.0 and guess[j] * signs[j] >= 0.0:
            sign[j] = guess[j]
    inside = np.zeros(n, np.bool_)
    centre = np.zeros(n)
    lines = (np.empty(n), np.empty(n), np.empty(n), np.empty(n))
    root = np.sqrt(2.0 * half_sq)
    drop, new, new_sign = np.zeros(n, np.bool_), np.empty(n, np.int64), np.empty(n)
    row = (root, centre, lines, inside, drop, new, new_sign)
    support = np.empty(n, np.int64)
    listed = np.empty(n, np.int64)
    state = (support, sign.copy(), f)
    factor = np.empty((f + 1, f + 1))
    # A guess that is further off than this is no guess; the exchanges would cycle (as in
    # `pivoting`).
    allowed = 16 + n // 8
    solves = 0
    # Once from the guess, then from the support that this led to: the second pass exchanges
    # nothing.
    for _ in range(3):
        k = _sorted_support(weights, sign, free, listed)
        state[1][:] = sign
        state, factor = rebuild(problem, listed, k, state, free_factor, factor, row)
        at_kappa = ball and k > f and kappa > 0.0
        if at_kappa:
            refresh(problem, state, 0.0, centre, factor, lines)
            norm, rate, _, _ = norms(problem, state, lines)
            lam = (norm - kappa) / rate if rate > 0.0 else 0.0
            solves += 1
            if lam <= 0.0:
                return False, lam, solves
        refresh(problem, state, lam, centre, factor, lines)
        done, _, lam, state, factor, used = correct(
            problem, state, lam, kappa, at_kappa, allowed, factor, row
        )
        solves += 1 + used
        if not done:
            return False, lam, solves
        sign[:] = state[1]
        if used == 0:
            break
    for _ in range(_MOVES):
        norm, _, inner, _ = norms(problem, state, lines)
        gap = inner + kappa * steepest(problem, lines[2]) if ball else lam * norm + inner
        if gap <= goal + 1e-15 * half_sq:
            write(problem, state, lines, kappa, out)
            return True, lam, solves
        centre[:] = 0.0
        for i in range(state[2]):
            centre[state[0][i]] = lines[0][i]
        refresh(problem, state, lam, centre, factor, lines)
        done, _, lam, state, factor, used = correct(
            problem, state, lam, kappa, at_kappa, allowed, factor, row
        )
        solves += 1 + used
        if not done:
            return False, lam, solves
    return False, lam, solves


class Segments:
    """The exact segment step for the rows of one set of statistics.

    Parameters
    ----------
    gram : Gram
    columns : Columns
    ball : bool
        P(kappa) or Q(lam).
    tol : float
        Relative gap aimed at.
    """

    def __init__(self, gram: Gram, columns: Columns, ball: bool, tol: float) -> None:
        self.gram, self.columns, self.ball = gram, columns, ball
        self.scale = column_scale(gram)
        self.goal = tol * MARGIN
        self._matrix = gram.gram
        self._free = self._factor(0) if columns.shared else None

    def _factor(self, row: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        weights = np.ascontiguousarray(self.columns.row(row))
        return free_columns(self._matrix, weights, self.scale, RIDGE)

    def finish(
        self,
        row: int,
        guess: NDArray[np.float64],
        lam: float,
        kappa: float,
        out: NDArray[np.float64],
    ) -> tuple[bool, float, int]:
        """Write the exact solution of a row into `out` (N,), if the guess leads to it.

        Parameters
        ----------
        row : int
        guess : (N,)
            An approximate solution; only its signs are used.
        lam : float
            Its multiplier.
        kappa : float
            Ignored for Q(lam).

        Returns
        -------
        exact : bool
            False also where the ball is inactive: whoever calls solves the row from the start.
        lam : float
        solves : int
            Linear systems.
        """
        free, factor = self._free if self._free is not None else self._factor(row)
        half_sq = 0.5 * self.gram.target_sq[row]
        return _solve_segment(
            self._matrix, self.gram.corr[row], half_sq, np.ascontiguousarray(self.columns.row(row)),
            self.columns.signs, self.scale, RIDGE, free, factor, np.sign(guess), lam, kappa,
            self.ball, self.goal * half_sq, out,
        )  # fmt: skip
