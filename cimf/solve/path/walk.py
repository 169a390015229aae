"""How the walk along a row's path stands, and how fast it goes (numba)."""

from __future__ import annotations

from typing import NamedTuple

from cimf.solve.compiled import kernel
from cimf.solve.path.path_end import Ends
from cimf.solve.path.path_point import Point


class Pace(NamedTuple):
    """How far the next step goes.

    Attributes
    ----------
    block : int
        Breakpoints to cross.
    beyond : float
        Share of the way from the last of them to the next.
    ceiling : int
        No block is larger: a refused block is approached slowly again (dense rows: 10 % less time).
    refused : int
        Steps in a row that led to no exact point.
    """

    block: int
    beyond: float
    ceiling: int
    refused: int


class Walk(NamedTuple):
    """How the walk along a row's path stands.

    Attributes
    ----------
    pace : Pace
    ends : Ends
    solves, predictions : int
        Linear systems so far, and points from which one more step was considered.
    stalled : bool
        No further step is made.
    lost : bool
        The point held is not exact any more.
    """

    pace: Pace
    ends: Ends
    solves: int
    predictions: int
    stalled: bool
    lost: bool


class Best(NamedTuple):
    """The best point on the way to a level, which stands in the output.

    Attributes
    ----------
    gap, kept : float
        Its gap as the path is steered by it, and as it is judged.
    futile : int
        Proximal moves in a row that did not halve the gap.
    """

    gap: float
    kept: float
    futile: int


@kernel
def faster(pace: Pace, point: Point, solves: int) -> Pace:
    """Return the pace after a step that crossed its block."""
    n = point.support.shape[0]
    # Breakpoints that changed nothing were rounding: cross more of them.
    largest = max(point.k // 6, 2) if solves > 0 else n
    block = min(2 * pace.block, largest, pace.ceiling)
    return Pace(block, 0.5, min(pace.ceiling + pace.ceiling // 4 + 1, n), 0)


@kernel
def slower(pace: Pace) -> Pace:
    """Return the pace after a refusal: a smaller block, in the end a homotopy step."""
    block = pace.block
    return Pace(max(block // 4, 1), pace.beyond * 0.1, max(block // 2, 1), pace.refused + 1)
