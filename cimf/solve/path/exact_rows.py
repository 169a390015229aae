"""The exact row solver: block pivoting along the path, row by row, each from a cold start.

A row's answer depends on its own statistics only: not on the other rows, their order, the chunking
or the number of threads. What the rows of a chunk share is storage, and nothing is read from it
before it is written.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cimf.solve.compiled import kernel
from cimf.solve.path.path_point import new_point, workspace
from cimf.solve.path.pivoting import Found, Level, solve_levels
from cimf.solve.path.point_gap import MARGIN
from cimf.solve.path.row_problem import Rows, row_problem, usable_columns
from cimf.statistics import Gram
from formulations.columns import Columns
from formulations.level import Penalty, Radius

# Columns that the first factor has room for, at least: growing it copies it, and doubles it.
_ROOM = 64


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
    shape = level.values.shape
    found = Found(np.zeros((*shape, gram.n_features)), np.zeros(shape), np.zeros(shape, np.int64))
    if gram.n_targets:
        solve_compiled(Rows.of(gram, columns), as_numbers(level), tol * MARGIN, found)
    return SolvedRows(*found, np.full(shape, "exact"))


def as_numbers(level: Radius | Penalty) -> Level:
    """Return the record that the kernels take: kappa and lam, both (r, L)."""
    if isinstance(level, Radius):
        return Level(level.values, np.zeros_like(level.values))
    return Level(np.full_like(level.values, np.inf), level.values)


@kernel
def solve_compiled(rows: Rows, levels: Level, goal: float, found: Found) -> None:
    """Solve rows one after another.

    Parameters
    ----------
    rows : Rows
    levels : Level of (r, L)
        As `pivoting.solve_levels`.
    goal : float
        Relative gap at which a point that is not exact is good enough.
    found : Found
        Filled with the solutions.
    """
    r, n = rows.corr.shape
    usable = usable_columns(rows, 0)
    work = workspace(n)
    point, saved = new_point(n, max(_ROOM, usable.free.shape[0] + _ROOM // 2)), new_point(n, 1)
    for i in range(r):
        # The factor of the free columns is most of a small row's set-up: made once where all rows
        # have the same weights (the paper's literal design, "full").
        if i > 0 and rows.weights.shape[0] > 1:
            usable = usable_columns(rows, i)
        point, saved = solve_levels(
            row_problem(rows, i, usable, goal), Level(levels.kappa[i], levels.lam[i]), point, saved,
            work, Found(found.coef[i], found.lam[i], found.solves[i]),
        )  # fmt: skip
