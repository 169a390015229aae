"""P(kappa), paper section 3: the row problem of implicit-model sparsification."""

from __future__ import annotations

from typing import Any, Self

import cvxpy as cp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from formulations.least_squares import LeastSquares
from formulations.level import Penalty, Radius
from formulations.problem import RowRecord
from formulations.registry import known_names


class RowProblem(cp.Problem):
    """Base of `Constrained` and `Lasso`: a CVXPY problem with the record it was built from.

    Attributes
    ----------
    record : RowRecord
    """

    record: RowRecord

    @classmethod
    def from_record(cls, record: RowRecord) -> Self:
        """Return the problem of an existing record."""
        problem = cls.__new__(cls)
        problem._build(record)
        return problem

    @property
    def coefficients(self) -> NDArray[np.float64]:
        """The variable "a" as it stands, shape (r, N); NaN before a solve."""
        value = self.var_dict["a"].value
        return np.full(self.var_dict["a"].shape, np.nan) if value is None else np.asarray(value)

    @coefficients.setter
    def coefficients(self, value: NDArray[np.float64]) -> None:
        self.var_dict["a"].value = value

    def _build(self, record: RowRecord) -> None:
        """Write the record in CVXPY: variable "a" (r, N) and, for P, one ball per row."""
        self.record = record
        fit, columns = record.fit, record.columns
        shape = (fit.n_targets, fit.n_features)
        a = cp.Variable(shape, name="a")
        weights = np.broadcast_to(columns.weights, shape)
        bounded = (weights > 0) & np.isfinite(weights)
        excluded = np.isinf(weights)
        # The ball of radius zero has no interior, which interior-point methods need: equalities.
        level = record.level.values
        if isinstance(record.level, Radius):
            excluded = excluded | (bounded & (level == 0)[:, None])
        residual = fit.design @ a.T - fit.target
        objective = 0.5 * cp.sum_squares(residual) + 0.5 * float(fit.remainder.sum())
        size = cp.multiply(np.where(bounded, weights, 0.0), cp.abs(a))
        constraints: list[cp.Constraint] = []
        if isinstance(record.level, Penalty):
            objective = objective + level @ cp.sum(size, axis=1)
        elif (some := np.flatnonzero((level > 0) & bounded.any(axis=1))).size:
            constraints.append(cp.sum(size[some], axis=1) <= level[some])
        if excluded.any():
            constraints.append(a[np.nonzero(excluded)] == 0)
        if columns.signs.any():
            signed = np.flatnonzero(columns.signs)
            constraints.append(a[:, signed] @ np.diag(columns.signs[signed].astype(float)) >= 0)
        super().__init__(cp.Minimize(objective), constraints)


class Constrained(RowProblem):
    r"""P(kappa): min 1/2 ||M a_i - z_i||^2 subject to sum_j w_j |a_ij| <= kappa_i, for every row i.

    A CVXPY problem (paper section 3.1) with one variable, "a" of shape (r, N), and `record`.

    Parameters
    ----------
    design : (m, N), dense or scipy.sparse
        M = (X', U').
    target : (m,) or (m, r)
        z_i in column i.
    kappa : float or (r,)
        kappa >= 0.
    bounded : (N,) bool, optional
        True: inside the ball; False: free. Default: all inside.
    weights : (N,) or (r, N), optional
        w_j >= 0; 0: free; infinity: excluded, a_j = 0. Default: ones.
    signs : (N,), optional
        +1: a_j >= 0; -1: a_j <= 0; 0: either.
    sample_weight : (m,), optional
        s_k >= 0: what the squared error of sample k counts. Integers are repeated samples.

    Raises
    ------
    InputError
        Wrong shapes, NaN, float16, negative kappa or weights.
    """

    @known_names
    def __init__(
        self,
        design: Any,
        target: ArrayLike,
        kappa: ArrayLike,
        *,
        bounded: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        signs: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> None:
        fit = LeastSquares.from_arrays(design, target, sample_weight)
        self._build(
            RowRecord.build(fit, kappa=kappa, bounded=bounded, weights=weights, signs=signs)
        )

    @classmethod
    def from_moments(
        cls,
        gram: ArrayLike,
        corr: ArrayLike,
        target_sq: ArrayLike,
        kappa: ArrayLike,
        **columns: Any,
    ) -> Self:
        """Return the problem with moments M'M (N, N), M'z_i (r, N), ||z_i||^2 (r,).

        Built on the eigenvalue factor of the Gram, see `LeastSquares.from_moments`.
        """
        fit = LeastSquares.from_moments(gram, corr, target_sq)
        return cls.from_record(RowRecord.build(fit, kappa=kappa, **columns))
