"""Norm balls of the rows of W: one norm per class, in CVXPY and in numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import cvxpy as cp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from formulations.columns import as_float64, shrink
from formulations.constraint_set import ConstraintSet
from formulations.errors import InputError
from formulations.matrix_rows import Rows

Array = NDArray[np.float64]


@dataclass(frozen=True)
class NormBall(ConstraintSet):
    """||W_i|| <= radius in every row i: base of the balls of this module.

    Parameters
    ----------
    radius : float
        >= 0.
    columns : {"all", "states", "inputs"}
        Which columns count.
    """

    radius: float = 1.0
    columns: str = "all"

    def __post_init__(self) -> None:
        as_float64("radius", self.radius, 0)
        if self.radius < 0 or self.columns not in ("all", "states", "inputs"):
            raise InputError("radius >= 0 and columns 'all', 'states' or 'inputs' needed")

    def written(self, values: cp.Expression) -> cp.Expression:
        """Return the norm of each row of values (r, k) as a convex expression (r,)."""
        raise NotImplementedError

    def norm(self, values: Array) -> Array:
        """Return the norm of each row of values (r, k), shape (r,)."""
        raise NotImplementedError

    def _part(self, rows: Rows) -> Any:
        return rows.values if self.columns == "all" else getattr(rows, self.columns)

    def constraints(self, rows: Rows) -> list[cp.Constraint]:
        """Return one ball per row; of radius zero as equalities, which leave no empty interior."""
        part = self._part(rows)
        if 0 in part.shape:
            return []
        return [part == 0] if self.radius == 0 else [self.written(part) <= self.radius]

    def violation(self, rows: Rows) -> float:
        """Return the largest excess over the radius."""
        return float(np.maximum(self.norm(self._part(rows)) - self.radius, 0.0).max(initial=0.0))

    def nearest(self, rows: Rows) -> Array:
        """Return the rows scaled into the ball."""
        out: Array = rows.values.copy()
        part = self._part(Rows(out, rows.index, rows.n_states))
        given, norm = part.copy(), self.norm(part)
        outside = norm > self.radius
        factor = np.divide(self.radius, norm, out=np.ones_like(norm), where=outside)
        while outside.any():
            part[outside] = (factor[:, None] * given)[outside]
            # Rounding can leave the norm an ulp above the radius: shrink again until it is not.
            factor = np.nextafter(factor, 0.0)
            outside = outside & (self.norm(part) > self.radius)
        return out


@dataclass(frozen=True)
class L1Ball(NormBall):
    """sum_j |W_ij| <= radius in every row i of (A, B) and (C, D).

    The well-posedness ball ||A||_inf <= kappa is an argument of the problems; this set is for
    balls beyond it: over the inputs too, or over the rows of (C, D).
    """

    def written(self, values: cp.Expression) -> cp.Expression:
        """Return the sums of |W_ij|."""
        sums: cp.Expression = cp.sum(cp.abs(values), axis=1)
        return sums

    def norm(self, values: Array) -> Array:
        """Return the sums of |W_ij|."""
        return np.asarray(np.abs(values).sum(axis=1))

    def nearest(self, rows: Rows) -> Array:
        """Return the rows scaled into the ball, as the balls of the problems are."""
        out: Array = rows.values.copy()
        part = self._part(Rows(out, rows.index, rows.n_states))
        part[:] = shrink(part, np.ones(part.shape[1]), np.full(part.shape[0], self.radius))
        return out


@dataclass(frozen=True)
class WeightedL1Ball(NormBall):
    """sum_j v_j |W_ij| <= radius.

    Parameters
    ----------
    weights : (k,)
        v >= 0, one for each of the columns that count.
    """

    weights: ArrayLike = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        v = as_float64("weights", self.weights, 1)
        if not v.size or (v < 0).any():
            raise InputError("weights >= 0 are needed, one per column")
        # With radius zero the equalities would hold columns of weight 0 as well.
        if self.radius == 0 and not v.all():
            raise InputError("radius 0 needs weights > 0; for forbidden entries use 'pattern'")
        object.__setattr__(self, "weights", v)

    @classmethod
    def example(cls, n_states: int, n_inputs: int, n_outputs: int) -> Self:
        """Return weights that grow along the columns."""
        return cls(weights=np.linspace(0.5, 1.5, n_states + n_inputs))

    def _of(self, values: Any) -> Array:
        v = np.asarray(self.weights)
        if v.shape != values.shape[1:]:
            raise InputError(f"weights {v.shape} for {values.shape[1]} columns")
        return v

    def written(self, values: cp.Expression) -> cp.Expression:
        """Return |W| v."""
        weighted: cp.Expression = cp.abs(values) @ self._of(values)
        return weighted

    def norm(self, values: Array) -> Array:
        """Return |W| v."""
        # Not a product of matrices, whose last bit depends on how many rows there are.
        return np.asarray((np.abs(values) * self._of(values)).sum(axis=1))


@dataclass(frozen=True)
class L2Ball(NormBall):
    """||W_i||_2 <= radius."""

    def written(self, values: cp.Expression) -> cp.Expression:
        """Return the Euclidean norms."""
        norms: cp.Expression = cp.norm(values, 2, axis=1)
        return norms

    def norm(self, values: Array) -> Array:
        """Return the Euclidean norms."""
        return np.asarray(np.linalg.norm(values, axis=1))


@dataclass(frozen=True)
class LInfBall(NormBall):
    """max_j |W_ij| <= radius."""

    def written(self, values: cp.Expression) -> cp.Expression:
        """Return the largest |W_ij|."""
        return cp.max(cp.abs(values), axis=1)

    def norm(self, values: Array) -> Array:
        """Return the largest |W_ij|."""
        return np.asarray(np.abs(values).max(axis=1, initial=0.0))


@dataclass(frozen=True)
class LargestSum(NormBall):
    """The sum of the k largest |W_ij| is at most radius: between l-infinity (k = 1) and l1.

    Parameters
    ----------
    k : int
        >= 1.
    """

    k: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.k, int | np.integer) and self.k >= 1):
            raise InputError(f"k must be a whole number >= 1, got {self.k!r}")

    def written(self, values: cp.Expression) -> cp.Expression:
        """Return the sums, a row at a time."""
        k = min(int(self.k), values.shape[1])
        return cp.hstack([cp.sum_largest(cp.abs(values[i]), k) for i in range(values.shape[0])])

    def norm(self, values: Array) -> Array:
        """Return the sums."""
        return np.asarray(np.sort(np.abs(values), axis=1)[:, -int(self.k) :].sum(axis=1))


@dataclass(frozen=True)
class SortedL1Ball(NormBall):
    """sum_j v_j |W_i|_(j) <= radius, |W_i|_(1) >= |W_i|_(2) >= ...: the ball of SLOPE.

    Parameters
    ----------
    weights : (k,)
        v_1 >= v_2 >= ... >= 0, v_1 > 0; columns beyond them have weight 0.

    References
    ----------
    Bogdan et al., SLOPE: adaptive variable selection via convex optimization (2015).
    """

    weights: ArrayLike = (1.0, 0.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        v = as_float64("weights", self.weights, 1)
        if not v.size or v[-1] < 0 or v[0] <= 0 or (np.diff(v) > 0).any():
            raise InputError("weights must not increase, be >= 0, and the first > 0")
        object.__setattr__(self, "weights", v)

    def _of(self, values: Any) -> Array:
        v = np.asarray(self.weights)[: values.shape[1]]
        return np.concatenate([v, np.zeros(values.shape[1] - v.size)])

    def written(self, values: cp.Expression) -> cp.Expression:
        """Return the sorted sums, a row at a time."""
        v = self._of(values)
        return cp.hstack([cp.dotsort(cp.abs(values[i]), v) for i in range(values.shape[0])])

    def norm(self, values: Array) -> Array:
        """Return the sorted sums."""
        return np.asarray((-np.sort(-np.abs(values), axis=1) * self._of(values)).sum(axis=1))
