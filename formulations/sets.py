r"""Constraint sets C of the problems (2)-(5), paper section 2. A new one is a class and a line.

Each class gives the set once as CVXPY constraints and once as a numpy violation, in the units of
the coefficients, on (some rows of) W = [[A, B], [C, D]]. `nearest` moves a point that is outside
by rounding inside; where it is not defined the point is judged as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import cvxpy as cp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from formulations.balls import L1Ball, L2Ball, LargestSum, LInfBall, SortedL1Ball, WeightedL1Ball
from formulations.constraint_set import ConstraintSet, FunctionSet
from formulations.errors import InputError
from formulations.matrix_rows import Rows
from formulations.registry import Registry
from formulations.terms import as_term

Array = NDArray[np.float64]


class _Mask(ConstraintSet):
    """W_ij = 0 wherever `allowed` is False."""

    def allowed_in(self, rows: Rows) -> NDArray[np.bool_]:
        """Return where these rows may be non-zero, shape (r, N)."""
        raise NotImplementedError

    def constraints(self, rows: Rows) -> list[cp.Constraint]:
        """Return W_ij == 0 for the forbidden entries."""
        forbidden = np.nonzero(~self.allowed_in(rows))
        return [rows.values[forbidden] == 0] if forbidden[0].size else []

    def violation(self, rows: Rows) -> float:
        """Return the largest forbidden |W_ij|."""
        return float(np.abs(np.where(self.allowed_in(rows), 0.0, rows.values)).max(initial=0.0))

    def nearest(self, rows: Rows) -> Array:
        """Return the values with forbidden entries set to zero."""
        return np.where(self.allowed_in(rows), rows.values, 0.0)


@dataclass(frozen=True)
class Pattern(_Mask):
    """W_ij = 0 wherever `allowed` is False.

    Parameters
    ----------
    allowed : (n + q, N) bool
    """

    allowed: ArrayLike

    def __post_init__(self) -> None:
        mask = np.asarray(self.allowed)
        if mask.dtype != np.bool_ or mask.ndim != 2:
            raise InputError(f"allowed must be a boolean matrix, got {mask.dtype} {mask.shape}")
        object.__setattr__(self, "allowed", mask)

    @classmethod
    def example(cls, n_states: int, n_inputs: int, n_outputs: int) -> Self:
        """Return a chequerboard."""
        i, j = np.indices((n_states + n_outputs, n_states + n_inputs))
        return cls((i + j) % 2 == 0)

    def allowed_in(self, rows: Rows) -> NDArray[np.bool_]:
        """Return these rows of `allowed`."""
        mask = np.asarray(self.allowed)
        if mask.shape[1] != rows.values.shape[1] or mask.shape[0] <= rows.index.max(initial=0):
            raise InputError(
                f"pattern {mask.shape} does not fit W with {rows.values.shape[1]} columns and at "
                f"least {rows.index.max(initial=0) + 1} rows"
            )
        return mask[rows.index]


@dataclass(frozen=True)
class NoSelfLoop(_Mask):
    """A_ii = 0: no state feeds itself."""

    def allowed_in(self, rows: Rows) -> NDArray[np.bool_]:
        """Return everything but the diagonal of A."""
        row = rows.index[:, None]
        off_diagonal: NDArray[np.bool_] = np.arange(rows.values.shape[1]) != row
        return off_diagonal | (row >= rows.n_states)


@dataclass(frozen=True)
class Causal(_Mask):
    """A strictly block upper triangular: a state is fed by earlier layers and inputs only.

    Parameters
    ----------
    sizes : sequence of int
        Sizes of the diagonal blocks of A from the top (the last layer) to the bottom (the first),
        summing to n.
    """

    sizes: Sequence[int]

    def __post_init__(self) -> None:
        if len(self.sizes) == 0 or min(self.sizes) < 1:
            raise InputError(f"sizes must be positive block sizes, got {list(self.sizes)}")

    @classmethod
    def example(cls, n_states: int, n_inputs: int, n_outputs: int) -> Self:
        """Return two blocks."""
        return cls((1, n_states - 1) if n_states > 1 else (1,))

    def allowed_in(self, rows: Rows) -> NDArray[np.bool_]:
        """Return the blocks to the right of each state's own, all inputs, and all of (C, D)."""
        if sum(self.sizes) != rows.n_states:
            raise InputError(f"blocks {self.sizes} do not sum to n = {rows.n_states} states")
        block = np.repeat(np.arange(len(self.sizes)), self.sizes)
        allowed = np.ones(rows.values.shape, dtype=bool)
        k = rows.n_state_rows
        allowed[:k, : rows.n_states] = block > block[rows.index[:k], None]
        return allowed


@dataclass(frozen=True)
class Box(ConstraintSet):
    """lower <= W_ij <= upper."""

    lower: float = -1.0
    upper: float = 1.0

    def __post_init__(self) -> None:
        if not self.lower <= self.upper:
            raise InputError(f"lower <= upper needed, got {self.lower} and {self.upper}")

    def constraints(self, rows: Rows) -> list[cp.Constraint]:
        """Return the finite sides."""
        sides = []
        if np.isfinite(self.lower):
            sides.append(rows.values >= self.lower)
        if np.isfinite(self.upper):
            sides.append(rows.values <= self.upper)
        return sides

    def violation(self, rows: Rows) -> float:
        """Return the largest distance of an entry from the interval."""
        return float(np.abs(rows.values - self.nearest(rows)).max(initial=0.0))

    def nearest(self, rows: Rows) -> Array:
        """Return the values clipped."""
        clipped: Array = np.clip(rows.values, self.lower, self.upper)
        return clipped


@dataclass(frozen=True)
class Nonnegative(Box):
    """W_ij >= 0."""

    lower: float = 0.0
    upper: float = np.inf


SETS: Registry[type[ConstraintSet]] = Registry(
    "constraint set",
    {
        "l1-ball": L1Ball,
        "weighted-l1-ball": WeightedL1Ball,
        "l2-ball": L2Ball,
        "l-infinity-ball": LInfBall,
        "largest-sum": LargestSum,
        "sorted-l1-ball": SortedL1Ball,
        "causal": Causal,
        "no-self-loop": NoSelfLoop,
        "pattern": Pattern,
        "nonnegative": Nonnegative,
        "box": Box,
    },
)


def as_set(given: Any) -> ConstraintSet:
    """Return a set from an instance, a name in `SETS`, or a function of CVXPY expressions."""
    return as_term(given, ConstraintSet, SETS, FunctionSet)
