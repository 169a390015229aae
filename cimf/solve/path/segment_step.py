"""The exact segment step: from a guess of the support and signs to the exact point of a row's path.

On one segment of the path the solution of Q(lam) is known in closed form, and so is the point of
norm kappa. An approximate solution guesses the segment; columns that violate the optimality
conditions are exchanged until none does (`cimf.solve.path.exchange`), and the point is computed
once more from the sorted support alone. Its bits therefore depend on the support, not on the guess
or on who made it: bisection started from zero, or from the row before, returns the same point.

What it costs, on the states of an MLP on digits (112 rows, N = 177, bisection to 1e-4): 109 rows at
kappa = 0.1 are ended by one factor and two systems, and 63 at kappa = 0.5, where the other 49 need
an exchange or more and a second factor, of the sorted support.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cimf.solve.compiled import Array, Ints, kernel
from cimf.solve.path.exact_rows import as_numbers
from cimf.solve.path.exchange import correct_at, rebuild
from cimf.solve.path.path_point import at, begin, new_point, recentre, workspace
from cimf.solve.path.point_gap import MARGIN, gap_at, keep, keep_refined, rounding
from cimf.solve.path.row_problem import Problem, Rows, row_problem, usable_columns
from cimf.solve.path.segment_lines import solve_at
from cimf.statistics import Gram
from formulations.columns import Columns
from formulations.level import Penalty, Radius

# Proximal moves; one or two close a gap that the ridge leaves. Each solves the same system with
# another right side, so that thirty are cheap beside the row that is handed over otherwise.
_MOVES = 30


@kernel
def _sorted_support(problem: Problem, sign: Array, support: Ints) -> int:
    """List the free columns, then those with a sign, ascending; returns their number."""
    k: int = problem.free.shape[0]
    support[:k] = problem.free
    for j in range(sign.shape[0]):
        if sign[j] != 0.0 and problem.weights[j] > 0.0:
            support[k] = j
            k += 1
    return k


@kernel
def _allowed_signs(problem: Problem, guess: Array) -> Array:
    """Return the guess (N,) of -1, 0, +1 with zeros where a column may not have that sign."""
    sign = np.zeros(guess.shape[0])
    for j in range(guess.shape[0]):
        if (problem.up[j] if guess[j] > 0.0 else problem.down[j]) > 0.0:
            sign[j] = guess[j]
    return sign


@kernel
def _solve_segment(
    problem: Problem, guess: Array, lam: float, kappa: float, out: Array
) -> tuple[bool, float, int]:
    """Solve one row from a guess; returns whether `out` is exact, lam, and the systems solved.

    Parameters
    ----------
    problem : Problem
    guess : (N,)
        -1, 0, +1: signs on the guessed support.
    lam : float
        Q(lam), or near the multiplier of P(kappa).
    kappa : float
        Radius of the ball; infinite for Q(lam).
    out : (N,)
        Filled where exact.
    """
    n = guess.shape[0]
    f = problem.free.shape[0]
    # A guess may hold a column that its sign or an infinite weight excludes: never believed.
    sign = _allowed_signs(problem, guess)
    work = workspace(n)
    point = begin(problem, new_point(n, f + 1), work)
    listed = np.empty(n, np.int64)
    # A guess that is further off than this is no guess; the exchanges would cycle.
    allowed = 16 + n // 8
    solves = 0
    on_sphere = False
    # From the guess, then from the sorted support that this led to: its pass exchanges nothing,
    # and the factor is that of the sorted support, which the bits then depend on alone.
    for _ in range(3):
        k = _sorted_support(problem, sign, listed)
        point.sign[:] = sign
        point = rebuild(problem, point, listed, k, work)
        # Without a bounded column there is no direction along which the norm would change.
        on_sphere = kappa < np.inf and k > f and kappa > 0.0
        if on_sphere:
            # From lam = 0 along the line to the sphere: the guess of lam is not in the bits either.
            possible, point = solve_at(problem, at(point, 0.0, True), kappa, work)
            lam = point.lam
            solves += 1
            if not possible:
                return False, lam, solves
        done, point, used = correct_at(problem, at(point, lam, on_sphere), kappa, allowed, work)
        lam = point.lam
        solves += used
        if not done:
            return False, lam, solves
        sign[:] = point.sign
        if used == 1:
            break
    for _ in range(_MOVES):
        point = at(point, lam, on_sphere)
        gap, _ = gap_at(problem, point, kappa, work)
        if gap <= problem.goal + rounding(problem):
            kept = keep(problem, point, kappa, work, out)
            point, used = keep_refined(problem, point, kappa, kept, work, out)
            return True, point.lam, solves + used
        recentre(problem, point, work)
        done, point, used = correct_at(problem, point, kappa, allowed, work)
        lam = point.lam
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
        self._rows, self._level, self._goal = (
            Rows.of(gram, columns),
            as_numbers(level),
            tol * MARGIN,
        )
        self._shared = usable_columns(self._rows, 0) if columns.shared else None

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
        usable = self._shared or usable_columns(self._rows, row)
        return _solve_segment(
            row_problem(self._rows, row, usable, self._goal), np.sign(guess),
            lam, self._level.kappa[row, k], out,
        )  # fmt: skip
