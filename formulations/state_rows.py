"""Rows of (A, B) over the columns that each may use, with any convex loss and sets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import cvxpy as cp
import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray

from formulations.columns import per_row, shrink
from formulations.errors import InputError
from formulations.fits import Misfit
from formulations.least_squares import LeastSquares
from formulations.matrix_rows import Rows
from formulations.problem import ModelRecord, RelaxedRecord
from formulations.registry import known_names
from formulations.relaxed import Relaxed, ball, checked

Array = NDArray[np.float64]


@dataclass(frozen=True)
class StateRowsRecord(RelaxedRecord):
    """Rows of (A, B) with entries at chosen places only, and a ball over all of them.

    Attributes
    ----------
    allowed : (r, N) bool
        Places that may be non-zero.
    """

    allowed: NDArray[np.bool_]

    @classmethod
    def build(
        cls,
        fit: LeastSquares,
        n_states: int,
        allowed: ArrayLike,
        kappa: ArrayLike | None,
        loss: Any,
        sets: Any,
        lam1: float,
        misfit: Misfit = Misfit(),  # noqa: B008
    ) -> Self:
        """Validate; parameters and errors as `StateRows`."""
        mask, shape = np.asarray(allowed), (n_states, fit.n_features)
        if mask.shape != shape or mask.dtype != np.bool_:
            raise InputError(f"allowed must be a boolean matrix {shape}, got {mask.shape}")
        if not mask.any(axis=1).all():
            raise InputError(f"row {int(mask.any(axis=1).argmin())} may use no column")
        fields = checked(fit, n_states, np.arange(n_states), kappa, loss, sets)
        return cls(*fields, per_row("lam1", lam1, n_states), misfit, mask)

    @property
    def support(self) -> NDArray[np.bool_]:
        """The places that may be non-zero."""
        return self.allowed

    def in_ball(self, rows: Rows) -> Any:
        """Return all columns."""
        return rows.values

    def nearest(self, values: Array) -> Array:
        """Return values moved inside the sets and the ball, zero where they must be."""
        for s in self.sets:
            values = s.nearest(self.rows(values))
        inside = np.where(self.allowed, values, 0.0)
        return shrink(inside, np.ones(inside.shape[1]), self.kappa)

    def take(self, rows: Any) -> Self:
        """Return the record of some of the rows."""
        return replace(super().take(rows), allowed=self.allowed[rows])


class StateRows(Relaxed):
    r"""(3), its rows of (A, B) alone, each with the columns that it may use as its variables.

    min l(W) + lam1 sum_i ||z_i - M w_i||^2 subject to sum_j |W_ij| <= kappa_i, W in C, and W_ij = 0
    where it is not `allowed`. The loss and the sets see whole rows, zeros included; columns that no
    row may use cost nothing.

    Parameters
    ----------
    fit : LeastSquares
        Design (X', U') and the targets z_i of the n rows.
    n_states : int
        n: the first columns are the states.
    allowed : (n, N) bool
    kappa : float, (n,) or None
        Bound on the l1 norm of a whole row. None: no ball.
    loss, sets, lam1
        As `Relaxed`.

    Raises
    ------
    InputError, FormulationError
        As `Relaxed`; a row that may use no column.
    """

    record: StateRowsRecord
    _entries: list[tuple[cp.Variable, NDArray[np.intp], Array]]

    @known_names
    def __init__(
        self,
        fit: LeastSquares,
        n_states: int,
        allowed: ArrayLike,
        *,
        kappa: ArrayLike | None = 0.99,
        loss: Any = "zero",
        sets: Any = (),
        lam1: float = 1.0,
    ) -> None:
        self._build(StateRowsRecord.build(fit, n_states, allowed, kappa, loss, sets, lam1))

    def _variables(self, record: ModelRecord, unit: Array | None) -> cp.Expression:
        assert isinstance(record, StateRowsRecord)
        unit = np.ones(record.fit.n_features) if unit is None else unit
        self._entries, rows = [], []
        for i, mask in zip(record.index, record.allowed, strict=True):
            columns = np.flatnonzero(mask)
            entries = cp.Variable((1, columns.size), name=f"row {i}")
            self._entries.append((entries, columns, unit[columns]))
            places = np.arange(columns.size), columns
            shape = columns.size, mask.size
            rows.append(entries @ scipy.sparse.csr_array((unit[columns], places), shape=shape))
        return cp.vstack(rows)

    def _ball(self, rows: Rows) -> list[cp.Constraint]:
        return [
            constraint
            for (entries, _, unit), kappa in zip(self._entries, self.record.kappa, strict=True)
            for constraint in ball(cp.multiply(entries, unit[None]), np.array([kappa]))
        ]

    def _settings(self, values: Array) -> list[tuple[cp.Variable, Array]]:
        return [
            (entries, row[None, columns])
            for (entries, columns, _), row in zip(self._entries, values, strict=True)
        ]

    def _squares(self, values: cp.Expression, scale: float) -> tuple[Any, list[cp.Constraint]]:
        fit, lam = self.record.fit, self.record.lam / scale
        residuals, lost = [], 0.0
        for i, (entries, columns, unit) in enumerate(self._entries):
            # Only the columns of the row: what is orthogonal to them is a constant.
            own = LeastSquares(fit.design[:, columns], fit.target[:, [i]], fit.remainder[[i]])
            own = own.reduced()
            lost += float(lam[i] * own.remainder[0])
            residual = (own.design * unit) @ entries[0] - own.target[:, 0]
            residuals.append(np.sqrt(lam[i]) * residual)
        return cp.sum_squares(cp.hstack(residuals)) + lost, []
