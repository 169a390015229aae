r"""Losses l(A, B, C, D) of the problems (2)-(5), paper section 2. A new one is a class and a line.

Each class states its formula, with W = [[A, B], [C, D]] of shape (n + q, n + p); gives it once as
a CVXPY expression and once in numpy; and says by `separable` whether it is a sum over the rows of
W. `docs/add_a_loss.md` goes through an example.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import cvxpy as cp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from formulations.columns import as_float64
from formulations.errors import InputError
from formulations.loss import FunctionLoss, Loss, Sum
from formulations.matrix_rows import Rows
from formulations.registry import Registry
from formulations.terms import as_term


@dataclass(frozen=True)
class Zero(Loss):
    """l = 0: only the matching terms count."""

    def expression(self, rows: Rows) -> cp.Expression:
        """Return 0."""
        return cp.Constant(0.0)

    def coordinates(self, rows: Rows) -> tuple[Any, Any]:
        """Return zeros."""
        return _filled(rows, 0.0), _filled(rows, 0.0)

    def value(self, rows: Rows) -> float:
        """Return 0."""
        return 0.0


@dataclass(frozen=True)
class L1(Loss):
    """l = weight * sum_ij |W_ij|."""

    weight: float = 1.0

    def __post_init__(self) -> None:
        _nonnegative(weight=self.weight)

    def expression(self, rows: Rows) -> cp.Expression:
        """Return weight * sum_ij |W_ij|."""
        total: cp.Expression = self.weight * cp.sum(cp.abs(rows.values))
        return total

    def coordinates(self, rows: Rows) -> tuple[Any, Any]:
        """Return the weight, and zeros."""
        return _filled(rows, self.weight), _filled(rows, 0.0)

    def value(self, rows: Rows) -> float:
        """Return weight * sum_ij |W_ij|."""
        return self.weight * float(np.abs(rows.values).sum())


@dataclass(frozen=True)
class WeightedL1(Loss):
    """l = sum_ij V_ij |W_ij|.

    Parameters
    ----------
    weights : (N,), or (n + q, N)
        V >= 0, one vector for all rows or one per row of W = [[A, B], [C, D]].
    """

    weights: ArrayLike

    def __post_init__(self) -> None:
        v = as_float64("weights", self.weights, (1, 2))
        if (v < 0).any():
            raise InputError("weights must be >= 0; for forbidden entries use the set 'pattern'")
        object.__setattr__(self, "weights", v)

    @classmethod
    def example(cls, n_states: int, n_inputs: int, n_outputs: int) -> Self:
        """Return weights that grow along the rows and the columns."""
        rows, columns = n_states + n_outputs, n_states + n_inputs
        return cls(np.linspace(0.5, 1.5, rows * columns).reshape(rows, columns))

    def _of(self, rows: Rows) -> NDArray[np.float64]:
        v = np.asarray(self.weights)
        return np.broadcast_to(v, rows.values.shape) if v.ndim == 1 else v[rows.index]

    def expression(self, rows: Rows) -> cp.Expression:
        """Return sum_ij V_ij |W_ij|."""
        total: cp.Expression = cp.sum(cp.multiply(self._of(rows), cp.abs(rows.values)))
        return total

    def coordinates(self, rows: Rows) -> tuple[Any, Any]:
        """Return V, and zeros."""
        return self._of(rows), _filled(rows, 0.0)

    def value(self, rows: Rows) -> float:
        """Return sum_ij V_ij |W_ij|."""
        return float((self._of(rows) * np.abs(rows.values)).sum())


@dataclass(frozen=True)
class ElasticNet(Loss):
    """l = l1 * sum_ij |W_ij| + 1/2 l2 * sum_ij W_ij^2."""

    l1: float = 1.0
    l2: float = 1.0

    def __post_init__(self) -> None:
        _nonnegative(l1=self.l1, l2=self.l2)

    def expression(self, rows: Rows) -> cp.Expression:
        """Return l1 * sum_ij |W_ij| + 1/2 l2 * sum_ij W_ij^2."""
        w = rows.values
        total: cp.Expression = self.l1 * cp.sum(cp.abs(w)) + 0.5 * self.l2 * cp.sum_squares(w)
        return total

    def coordinates(self, rows: Rows) -> tuple[Any, Any]:
        """Return l1 and l2."""
        return _filled(rows, self.l1), _filled(rows, self.l2)

    def value(self, rows: Rows) -> float:
        """Return l1 * sum_ij |W_ij| + 1/2 l2 * sum_ij W_ij^2."""
        w = rows.values
        return float(self.l1 * np.abs(w).sum() + 0.5 * self.l2 * np.square(w).sum())


@dataclass(frozen=True)
class Group(Loss):
    """l = weight * sum_i sum_g sqrt(|g|) ||W_ig||_2: sparse groups of columns in each row.

    Parameters
    ----------
    weight : float
    groups : (N,) int, optional
        The group of each column. Default: two groups, the states and the inputs.
    """

    weight: float = 1.0
    groups: ArrayLike | None = None

    def __post_init__(self) -> None:
        _nonnegative(weight=self.weight)

    def _split(self, rows: Rows) -> list[NDArray[np.intp]]:
        n_columns = rows.values.shape[1]
        if self.groups is None:
            label = (np.arange(n_columns) >= rows.n_states).astype(np.intp)
        else:
            label = np.asarray(self.groups)
            if label.shape != (n_columns,):
                raise InputError(f"groups has shape {label.shape}; ({n_columns},) needed")
        return [np.flatnonzero(label == g) for g in np.unique(label)]

    def expression(self, rows: Rows) -> cp.Expression:
        """Return weight * sum_i sum_g sqrt(|g|) ||W_ig||_2."""
        total: cp.Expression = self.weight * sum(
            np.sqrt(g.size) * cp.sum(cp.norm(rows.values[:, g], 2, axis=1))
            for g in self._split(rows)
        )
        return total

    def value(self, rows: Rows) -> float:
        """Return weight * sum_i sum_g sqrt(|g|) ||W_ig||_2."""
        return self.weight * sum(
            float(np.sqrt(g.size) * np.linalg.norm(rows.values[:, g], axis=1).sum())
            for g in self._split(rows)
        )


@dataclass(frozen=True)
class ColumnGroup(Loss):
    """l = weight * sum_j ||W_:j||_2: a column is a state or an input that nothing uses.

    Couples the rows, so problems with it are solved whole.
    """

    separable = False
    weight: float = 1.0

    def __post_init__(self) -> None:
        _nonnegative(weight=self.weight)

    def expression(self, rows: Rows) -> cp.Expression:
        """Return weight * sum_j ||W_:j||_2."""
        total: cp.Expression = self.weight * cp.sum(cp.norm(rows.values, 2, axis=0))
        return total

    def value(self, rows: Rows) -> float:
        """Return weight * sum_j ||W_:j||_2."""
        return self.weight * float(np.linalg.norm(rows.values, axis=0).sum())


@dataclass(frozen=True)
class RowSums(Loss):
    """l = weight * (||A||_inf + ||B||_inf + ||C||_inf + ||D||_inf), the largest row sums of |W_ij|.

    The induced l-infinity norms of state-driven implicit modelling (Tsai, Gao, El Ghaoui): with
    ||A||_inf < 1 they bound the outputs, ||dY|| <= (||C|| ||B|| / (1 - ||A||) + ||D||) ||dU|| in
    the l-infinity norm. Couples the rows, so problems with it are solved whole.
    """

    separable = False
    weight: float = 1.0

    def __post_init__(self) -> None:
        _nonnegative(weight=self.weight)

    def expression(self, rows: Rows) -> cp.Expression:
        """Return weight times the sum of the four norms."""
        norms = [
            cp.max(cp.sum(cp.abs(part), axis=1)) for part in rows.blocks if 0 not in part.shape
        ]
        total: cp.Expression = self.weight * cp.sum(cp.hstack(norms))
        return total

    def value(self, rows: Rows) -> float:
        """Return weight times the sum of the four norms."""
        sums = (np.abs(part).sum(axis=1).max(initial=0.0) for part in rows.blocks)
        return self.weight * float(sum(sums))


@dataclass(frozen=True)
class Perspective(Loss):
    """The perspective relaxation of l0 * ||W||_0 + 1/2 l2 * ||W||_F^2, the tightest convex one.

    l = sum_ij min_{0 < y <= 1} (l0 y + 1/2 l2 W_ij^2 / y); with t = sqrt(2 l0 / l2) that is
    l2 t |w| for |w| <= t and l0 + 1/2 l2 w^2 beyond (the reverse Huber function). The relaxation
    that the paper's baseline SPR uses (Cacciola et al. 2022). Where no |w| exceeds t it is the l1
    norm: rescaled rows, of l1 norm at most 0.99 over many columns, need t far below the default
    1.41, 0.01 for example.
    """

    l0: float = 1.0
    l2: float = 1.0

    def __post_init__(self) -> None:
        _nonnegative(l0=self.l0, l2=self.l2)
        if self.l2 == 0:
            raise InputError("l2 must be > 0: without it the relaxation of ||W||_0 is zero")

    @property
    def _knee(self) -> float:
        return float(np.sqrt(2.0 * self.l0 / self.l2))

    def expression(self, rows: Rows) -> cp.Expression:
        """Return l2 sum_ij (t |W_ij| + 1/2 max(|W_ij| - t, 0)^2), the same without y."""
        size = cp.abs(rows.values)
        total: cp.Expression = self.l2 * (
            self._knee * cp.sum(size) + 0.5 * cp.sum_squares(cp.pos(size - self._knee))
        )
        return total

    def value(self, rows: Rows) -> float:
        """Return the two cases of the formula."""
        size = np.abs(rows.values)
        beyond = self.l0 + 0.5 * self.l2 * np.square(size)
        return float(np.where(size <= self._knee, self.l2 * self._knee * size, beyond).sum())


@dataclass(frozen=True)
class StructuredPerspective(Loss):
    """The perspective relaxation of choosing whole groups: structured perspective regularisation.

    l = weight * sum_i sum_g |g| min_y (alpha ||W_ig||_2^2 / y + (1 - alpha) y) over the indicator
    0 <= y <= 1 of group g in row i, subject to |W_ij| <= bound * y for j in g (Cacciola, Frangioni,
    Li and Lodi 2022). Without y: y = max(||W_ig||_inf / bound, min(1, s ||W_ig||_2)) with
    s = sqrt(alpha / (1 - alpha)); infinity where an entry is larger than the bound.

    Parameters
    ----------
    weight : float
    alpha : float
        In (0, 1): the share of the squares beside that of the number of groups.
    bound : float
        > 0.
    groups : (N,) int, optional
        As `Group`.
    """

    weight: float = 1.0
    alpha: float = 0.5
    bound: float = 10.0
    groups: ArrayLike | None = None

    def __post_init__(self) -> None:
        _nonnegative(weight=self.weight, bound=self.bound)
        if not (0.0 < self.alpha < 1.0 and self.bound > 0.0):
            raise InputError(f"alpha in (0, 1) and bound > 0 are needed, got {self}")

    def expression(self, rows: Rows) -> tuple[cp.Expression, list[cp.Constraint]]:
        """Return the sum over the groups with an indicator y for each, and its constraints."""
        total: cp.Expression = cp.Constant(0.0)
        constraints: list[cp.Constraint] = []
        for group in Group(groups=self.groups)._split(rows):
            for i in range(rows.values.shape[0]):
                y, t, w = cp.Variable(nonneg=True), cp.Variable(), rows.values[i, group]
                cost = self.alpha * t + (1.0 - self.alpha) * y
                total = total + self.weight * group.size * cost
                # t y >= ||w||^2 as a cone: quad_over_lin has no value at w = 0, y = 0.
                cone = cp.norm(cp.hstack([2.0 * w, t - y]), 2) <= t + y
                constraints += [y <= 1, cp.abs(w) <= self.bound * y, cone]
        return total, constraints

    def value(self, rows: Rows) -> float:
        """Return the sum at the best indicators."""
        total = 0.0
        for group in Group(groups=self.groups)._split(rows):
            w = rows.values[:, group]
            square, largest = np.square(w).sum(axis=1), np.abs(w).max(axis=1)
            if (largest > self.bound).any():
                return np.inf
            slope = np.sqrt(self.alpha / (1.0 - self.alpha))
            y = np.maximum(largest / self.bound, np.minimum(1.0, slope * np.sqrt(square)))
            ratio = np.divide(square, y, out=np.zeros_like(y), where=y > 0)
            total += group.size * float((self.alpha * ratio + (1.0 - self.alpha) * y).sum())
        return self.weight * total

    def violation(self, rows: Rows) -> float:
        """Return by how much the largest entry exceeds the bound."""
        return max(float(np.abs(rows.values).max(initial=0.0)) - self.bound, 0.0)


@dataclass(frozen=True)
class Robust(Loss):
    """l = radius * sum_i ||W_i||_2: the worst change of each row's output, summed over the rows.

    W_i (x; u) changes by at most radius * ||W_i||_2 when (x; u) is off by at most `radius` in
    Euclidean norm; it is the penalty of robust least squares (El Ghaoui and Lebret 1997).
    """

    radius: float = 1.0

    def __post_init__(self) -> None:
        _nonnegative(radius=self.radius)

    def expression(self, rows: Rows) -> cp.Expression:
        """Return radius * sum_i ||W_i||_2."""
        total: cp.Expression = self.radius * cp.sum(cp.norm(rows.values, 2, axis=1))
        return total

    def value(self, rows: Rows) -> float:
        """Return radius * sum_i ||W_i||_2."""
        return self.radius * float(np.linalg.norm(rows.values, axis=1).sum())


LOSSES: Registry[type[Loss]] = Registry(
    "loss",
    {
        "zero": Zero,
        "l1": L1,
        "weighted-l1": WeightedL1,
        "elastic-net": ElasticNet,
        "group": Group,
        "column-group": ColumnGroup,
        "row-sums": RowSums,
        "perspective": Perspective,
        "structured-perspective": StructuredPerspective,
        "robust": Robust,
    },
)


def as_loss(given: Any) -> Loss:
    """Return a loss from an instance, a name in `LOSSES`, a function, or the sum of several.

    Raises
    ------
    InputError
        An empty list; as `as_term`.
    """
    if isinstance(given, list | tuple):
        if not given:
            raise InputError("an empty list of losses: give 'zero' for none")
        return Sum(tuple((1.0, as_loss(part)) for part in given))
    return as_term(given, Loss, LOSSES, FunctionLoss)


def _filled(rows: Rows, value: float) -> NDArray[np.float64]:
    return np.full(rows.values.shape, value)


def _nonnegative(**values: float) -> None:
    for name, value in values.items():
        if not (np.isfinite(value) and value >= 0):
            raise InputError(f"{name} must be >= 0 and finite, got {value}")
