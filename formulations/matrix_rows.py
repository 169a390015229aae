"""The rows of W = [[A, B], [C, D]] that a loss or a constraint set is asked about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Rows:
    """Some or all rows of W = [[A, B], [C, D]], as numbers or as a CVXPY expression.

    Attributes
    ----------
    values : (r, N)
        The rows, N = n + p; numpy array or CVXPY expression.
    index : (r,) int, increasing
        Their places in W: 0..n-1 are rows of (A, B), n..n+q-1 rows of (C, D).
    n_states : int
        n.
    """

    values: Any
    index: NDArray[np.intp]
    n_states: int

    @property
    def states(self) -> Any:
        """The columns that multiply the states, shape (r, n): rows of A or C."""
        return self.values[:, : self.n_states]

    @property
    def inputs(self) -> Any:
        """The columns that multiply the inputs, shape (r, p): rows of B or D."""
        return self.values[:, self.n_states :]

    @property
    def n_state_rows(self) -> int:
        """How many of the rows belong to (A, B)."""
        return int((self.index < self.n_states).sum())

    @property
    def blocks(self) -> tuple[Any, Any, Any, Any]:
        """A (n, n), B (n, p), C (q, n), D (q, p); of only some rows, those rows of each."""
        k, n = self.n_state_rows, self.n_states
        top, bottom = self.values[:k], self.values[k:]
        return top[:, :n], top[:, n:], bottom[:, :n], bottom[:, n:]
