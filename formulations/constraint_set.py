"""What a constraint set is: a class, or a plain function that returns CVXPY constraints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray

from formulations.matrix_rows import Rows
from formulations.terms import (
    RowFunction,
    Term,
    constraint_problems,
    largest_violation,
    one_row,
    own_variables,
    trial_values,
)

Array = NDArray[np.float64]


class ConstraintSet(Term):
    """A convex set of (some rows of) W."""

    kind: ClassVar[str] = "set"

    def constraints(self, rows: Rows) -> list[cp.Constraint]:
        """Return CVXPY constraints; `rows.values` is a CVXPY expression (r, N)."""
        raise NotImplementedError

    def violation(self, rows: Rows) -> float:
        """Return how far outside the point is; `rows.values` is an array (r, N).

        0 inside; of a separable set the largest over the rows.
        """
        raise NotImplementedError

    def nearest(self, rows: Rows) -> Array:
        """Return the values (r, N) moved inside the set; unchanged where a set has no such map."""
        values: Array = rows.values
        return values

    def _problem(self, rows: Rows) -> cp.Problem:
        return cp.Problem(cp.Minimize(cp.sum(rows.values)), self.constraints(rows))

    def _problems(self, rows: Rows, point: Rows) -> list[str]:
        found = [p for c in self.constraints(rows) for p in constraint_problems(c, "the set")]
        if found:
            return found
        with trial_values(self.constraints(rows)):
            return self._disagreements(point)

    def _disagreements(self, point: Rows) -> list[str]:
        """Say where violation(), constraints() and `separable` differ at `point` and near it."""
        found = []
        moved = Rows(self.nearest(point), point.index, point.n_states)
        for here in (point, moved):
            constant = Rows(cp.Constant(here.values), here.index, here.n_states)
            written = self.constraints(constant)
            own = any(c.variables() for c in written)
            outside = 0.0 if own else max((largest_violation(c) for c in written), default=0.0)
            value = self.violation(here)
            if not own and (value > 1e-9) != (outside > 1e-9):
                found.append(
                    f"violation() gives {value:.3g} where the constraints give {outside:.3g}"
                )
            if self.separable:
                worst = max(self.violation(one_row(here, i)) for i in range(len(here.index)))
                if abs(worst - value) > 1e-9:
                    found.append(
                        f"it is declared separable, but all rows violate it by {value:.3g} and the "
                        f"worst row by {worst:.3g}: set separable = False"
                    )
        return found


class FunctionSet(ConstraintSet):
    """A set given as a plain function that returns a CVXPY constraint or a list of them.

    Called with (a, b) or (a, b, row) of each row, or once with (A, B, C, D); see `FunctionLoss`.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._call = RowFunction(function)
        self.separable = self._call.by_rows

    @property
    def name(self) -> str:
        """The function's name."""
        return f"set {self._call.name}"

    def constraints(self, rows: Rows) -> list[cp.Constraint]:
        """Return the function's constraints on every row or on all of W."""
        found: list[cp.Constraint] = []
        for part in self._call(rows):
            found += part if isinstance(part, (list, tuple)) else [part]
        return found

    def violation(self, rows: Rows) -> float:
        """Return the largest violation of a constraint, as CVXPY measures it."""
        return max((largest_violation(c) for c in self.constraints(rows)), default=0.0)

    def _problems(self, rows: Rows, point: Rows) -> list[str]:
        return own_variables(self.constraints(rows), rows) or super()._problems(rows, point)
