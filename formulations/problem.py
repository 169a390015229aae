"""Frozen numpy records of what is minimised: shapes, objective, violation, scaling.

A record knows no solver. Every CVXPY problem of this package carries the record that it was built
from, and whoever solves it is judged by the record, in float64.

Scaling
-------
The toolkit's loss of one row is h(a) = 1/2 ||M a - z||^2, without 1/m. Equations (3), (4) and (5)
of the paper (Tsai, Gao, El Ghaoui 2024) have lam ||M a - z||^2 without the 1/2. `paper_weight` is
the one place that converts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from formulations.columns import Columns, shrink
from formulations.constraint_set import ConstraintSet
from formulations.fits import Group, Misfit
from formulations.least_squares import LeastSquares
from formulations.level import Penalty, Radius, stated
from formulations.loss import Loss
from formulations.matrix_rows import Rows

Array = NDArray[np.float64]


# Columns below this fraction of the largest norm are rounding noise and keep their small scale.
_NEGLIGIBLE = 1e-14

# A loss below this part of that of columns of typical size is rounding.
_ROUNDING = 1e-12


def paper_weight(lam: Array) -> Array:
    """Return w with w h(a) = lam ||M a - z||^2: the paper's lam_1, lam_2 as weights of our h."""
    return 2.0 * lam


def _column_scale(fit: LeastSquares) -> Array:
    """Return ||M_j||, (N,), and for negligible columns the largest of them."""
    norm = fit.column_norms
    return np.where(norm > _NEGLIGIBLE * norm.max(), norm, norm.max() or 1.0)


@dataclass(frozen=True)
class RowRecord:
    """Rows of P(kappa) or Q(lam), paper section 3, with any columns free, excluded or signed.

    P(kappa): min h_i(a) subject to sum_j w_j |a_j| <= kappa_i.
    Q(lam):   min h_i(a) + lam_i sum_j w_j |a_j|.

    Attributes
    ----------
    fit : LeastSquares
        Design (m, N) and targets (m, r).
    columns : Columns
        Weights (0: free, infinity: excluded) and signs.
    level : Radius or Penalty
        kappa or lam, (r,).
    """

    fit: LeastSquares
    columns: Columns
    level: Radius | Penalty

    @classmethod
    def build(
        cls,
        fit: LeastSquares,
        *,
        kappa: ArrayLike | None = None,
        lam: ArrayLike | None = None,
        bounded: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        signs: ArrayLike | None = None,
    ) -> RowRecord:
        """Validate; parameters as the attributes and as `Columns.build`.

        Raises
        ------
        InputError
            Wrong shapes, negative or non-finite kappa or lam, both or neither given.
        """
        r = fit.n_targets
        columns = Columns.build(fit.n_features, r, bounded, weights, signs)
        return cls(fit, columns, stated(kappa, lam, r))

    def objective(self, coef: Array) -> Array:
        """Return the objective of each row, shape (r,), for coef (r, N)."""
        return self.fit.value(coef) + self.level.cost(self.columns.norm(coef))

    def violation(self, coef: Array) -> Array:
        """Return the excess over the ball or the largest forbidden |a_j|, shape (r,)."""
        excess = self.level.excess(self.columns.norm(coef))
        return np.maximum(self.columns.off_pattern(coef), excess)

    def feasible(self, coef: Array) -> Array:
        """Return coef (r, N) with forbidden entries set to zero and the ball scaled into."""
        forbidden = np.isinf(self.columns.weights) | (self.columns.signs * coef < 0)
        out = np.where(forbidden, 0.0, coef)
        if isinstance(self.level, Radius):
            out = shrink(out, self.columns.weights, self.level.values)
        return out

    def row(self, i: int) -> RowRecord:
        """Return the record of row `i` alone."""
        columns = Columns(self.columns.row(i), self.columns.signs)
        return RowRecord(self.fit.rows([i]), columns, self.level.take([i]))

    def reduced(self) -> RowRecord:
        """Return the same problem on at most N samples (`LeastSquares.reduced`)."""
        return replace(self, fit=self.fit.reduced())

    def normalised(self) -> tuple[RowRecord, Array]:
        """Return an equivalent record of unit scale and the factors that map its solution back.

        With d_j = ||M_j||, t_i = ||z_i|| and v the largest finite w_j / d_j, the record has columns
        M_j / d_j, targets z_i / t_i and weights w_j / (d_j v); a_ij = (t_i / d_j) a'_ij.
        Interior-point tolerances are meant for such data: with columns of norm 1e-4 to 1e3 as they
        are, Clarabel called a point with relative gap 8e-3 optimal.

        Returns
        -------
        record : RowRecord
        factor : (r, N)
            coef = factor * coefficients of the returned record.
        """
        d = _column_scale(self.fit)
        t = np.sqrt(self.fit.target_sq)
        t = np.where(t > 0, t, 1.0)
        w = self.columns.weights / d
        v = float(w[np.isfinite(w)].max(initial=0.0)) or 1.0
        level = self.level.values
        level = level / (t * v) if isinstance(self.level, Radius) else level * v / t
        record = RowRecord(
            self.fit.scaled(d, t),
            Columns(w / v, self.columns.signs),
            replace(self.level, values=level),
        )
        return record, t[:, None] / d


@dataclass(frozen=True)
class ModelRecord:
    """Rows of W = [[A, B], [C, D]] with a loss and constraint sets: problems (2)-(5) of the paper.

    Attributes
    ----------
    fit : LeastSquares
        Design (X', U') (m, N), N = n + p, and the targets: rows of Z, then rows of Y.
    index : (r,) int, increasing
        The rows of W: 0..n-1 are rows of (A, B), from n on rows of (C, D).
    n_states : int
        n.
    kappa : (r,)
        Bound on sum_j |A_ij|; infinity: no bound (rows of (C, D) have none).
    loss : Loss
    sets : tuple of ConstraintSet
    """

    fit: LeastSquares
    index: NDArray[np.intp]
    n_states: int
    kappa: Array
    loss: Loss
    sets: tuple[ConstraintSet, ...]

    def rows(self, values: Any) -> Rows:
        """Return values (r, N) as the `Rows` that losses and sets take."""
        return Rows(values, self.index, self.n_states)

    def in_ball(self, rows: Rows) -> Any:
        """Return the entries whose absolute sum in each row is bounded by kappa."""
        return rows.states

    @property
    def ball_columns(self) -> NDArray[np.intp]:
        """The columns that count in the ball."""
        index = np.arange(self.fit.n_features)
        columns: NDArray[np.intp] = self.in_ball(self.rows(index[None]))[0]
        return columns

    @property
    def support(self) -> NDArray[np.bool_]:
        """Where W may be non-zero, (r, N)."""
        return np.ones((self.index.size, self.fit.n_features), dtype=bool)

    @property
    def separable(self) -> bool:
        """Whether the loss and every set separate over the rows."""
        return self.loss.separable and all(s.separable for s in self.sets)

    @property
    def coupling(self) -> tuple[str, ...]:
        """Names of the terms that couple the rows."""
        return tuple(term.name for term in (self.loss, *self.sets) if not term.separable)

    @property
    def scale(self) -> float:
        """What the objective and the gap are divided by: a typical size of the objective."""
        raise NotImplementedError

    @property
    def unit(self) -> Array:
        """A typical size of each column of W, (N,): the largest ||z_i|| over ||M_j||."""
        target = float(np.sqrt(self.fit.target_sq.max(initial=0.0))) or 1.0
        return target / _column_scale(self.fit)

    def objective(self, values: Array) -> float:
        """Return the objective at values (r, N)."""
        raise NotImplementedError

    def violations(self, values: Array) -> Mapping[str, float]:
        """Return the violation of every constraint at values (r, N), relative to its own size.

        "ball": excess of sum_j |A_ij| by kappa_i (by 1 where kappa_i = 0); a set: its violation by
        the largest |W_ij|, or by 1 where that is smaller; the same for a loss with constraints.
        """
        rows = self.rows(values)
        size = max(float(np.abs(values).max(initial=0.0)), 1.0)
        excess = np.abs(self.in_ball(rows)).sum(axis=1) - self.kappa
        ball = np.maximum(excess, 0.0) / np.where(self.kappa > 0, self.kappa, 1.0)
        found = {s.name: s.violation(rows) / size for s in self.sets}
        if (unmet := self.loss.violation(rows)) > 0:
            found[self.loss.name] = unmet / size
        return {"ball": float(ball.max(initial=0.0)), **found}

    def nearest(self, values: Array) -> Array:
        """Return values (r, N) moved inside the sets and the ball, as far as that is defined."""
        out = values
        for s in self.sets:
            out = s.nearest(self.rows(out))
        in_ball = np.where(np.arange(out.shape[1]) < self.n_states, 1.0, 0.0)
        return shrink(out, in_ball, self.kappa)

    def take(self, rows: Sequence[int]) -> Self:
        """Return the record of some of the rows; of a coupled problem only all make sense."""
        return replace(
            self, fit=self.fit.rows(rows), index=self.index[rows], kappa=self.kappa[rows]
        )

    def reduced(self) -> Self:
        """Return the same problem on at most N samples (`LeastSquares.reduced`)."""
        return replace(self, fit=self.fit.reduced())

    def split(self, values: Array) -> dict[str, Array]:
        """Return values (r, N) as the blocks "A", "B", "C", "D" that have rows."""
        blocks = zip("ABCD", self.rows(values).blocks, strict=True)
        return {name: block for name, block in blocks if block.shape[0]}


@dataclass(frozen=True)
class RelaxedRecord(ModelRecord):
    """Problem (3) and its rows (4), (5): min l(W) + sum_i lam_i ||z_i - M w_i||^2, W in C, ball.

    With another fit, lam_i sum_k s_k phi(m_k' w_i; z_ik) in the place of the squares (`fits`).

    Attributes
    ----------
    lam : (r,)
        lam_1 for rows of (A, B), lam_2 for rows of (C, D); in the paper's scaling, without 1/2.
    misfit : Misfit
        Which fit, and what each sample counts.
    """

    lam: Array
    misfit: Misfit

    @property
    def groups(self) -> list[Group]:
        """The rows of each fit, with the weights of their samples."""
        k = self.rows(np.empty((self.index.size, 0))).n_state_rows
        return self.misfit.groups(k, self.lam, self.fit.target)

    @property
    def separable(self) -> bool:
        """Whether the loss, every set and the fits separate over the rows."""
        return super().separable and all(group.fit.separable for group in self.groups)

    @property
    def scale(self) -> float:
        """The matching term at W = 0 (1 where that is 0): sum_i lam_i ||z_i||^2 for squares."""
        if self.misfit.is_squares:
            return float(self.lam @ self.fit.target_sq) or 1.0
        return self.matching(np.zeros_like(self.fit.target)) or 1.0

    def matching(self, predictions: Array) -> float:
        """Return sum_i lam_i sum_k s_k phi(p_ik; z_ik) at predictions p (m, r)."""
        z = self.fit.target
        return sum(
            float((g.weight * g.fit.values(predictions[:, g.rows], z[:, g.rows])).sum())
            for g in self.groups
        )

    def objective(self, values: Array) -> float:
        """Return l(W) + sum_i lam_i ||z_i - M w_i||^2, or with the fits in its place."""
        if self.misfit.is_squares:
            matching = float(paper_weight(self.lam) @ self.fit.value(values))
        else:
            matching = self.matching(np.asarray(self.fit.design @ values.T))
        return self.loss.value(self.rows(values)) + matching

    def take(self, rows: Sequence[int]) -> Self:
        """Return the record of some of the rows."""
        return replace(super().take(rows), lam=self.lam[rows])

    def reduced(self) -> Self:
        """Return the same problem on at most N samples; of another fit the problem itself."""
        return super().reduced() if self.misfit.is_squares else self


@dataclass(frozen=True)
class ExactRecord(ModelRecord):
    """Problem (2): min l(W) subject to Z = A X + B U, Y = C X + D U, W in C, ball.

    Attributes
    ----------
    tolerance : float
        Each row may miss its target by tolerance * ||z_i||; 0: exact matching.
    """

    tolerance: float

    @property
    def scale(self) -> float:
        """The absolute loss at the least-squares solution of least norm.

        Where that is rounding (a loss of the states, of a row that uses none: 1e-15 as a unit made
        Clarabel call the row unbounded) or infinite, the loss at columns of typical size; else 1.
        """
        least = np.linalg.lstsq(self.fit.design, self.fit.target, rcond=None)[0].T
        value = abs(self.objective(least))
        typical = abs(self.objective(np.tile(self.unit, (self.index.size, 1))))
        if not np.isfinite(typical):
            typical = 0.0
        if np.isfinite(value) and value > _ROUNDING * typical:
            return value
        return typical or 1.0

    def objective(self, values: Array) -> float:
        """Return l(W)."""
        return self.loss.value(self.rows(values))

    def violations(self, values: Array) -> Mapping[str, float]:
        """Return also "matching": the largest ||z_i - M w_i|| / ||z_i|| beyond the tolerance."""
        norm = np.sqrt(self.fit.target_sq)
        missed = np.sqrt(2.0 * self.fit.value(values)) / np.where(norm > 0, norm, 1.0)
        matching = float(np.maximum(missed - self.tolerance, 0.0).max(initial=0.0))
        return {**super().violations(values), "matching": matching}
