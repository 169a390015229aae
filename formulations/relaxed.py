"""The relaxed problem (3) of the paper and its rows (4) and (5), with any convex loss and sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import cvxpy as cp
import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray

from formulations.columns import as_float64, per_row
from formulations.constraint_set import ConstraintSet
from formulations.errors import InputError
from formulations.fits import Misfit, as_fit
from formulations.least_squares import LeastSquares, sample_weights
from formulations.loss import Loss, minimum
from formulations.losses import as_loss
from formulations.matrix_rows import Rows
from formulations.problem import ModelRecord, RelaxedRecord
from formulations.registry import known_names
from formulations.sets import as_set

Array = NDArray[np.float64]


class ModelProblem(cp.Problem):
    """Base of the problems in A, B, C, D: a CVXPY problem with the record it was built from.

    Attributes
    ----------
    record : ModelRecord
    """

    record: ModelRecord
    _values: cp.Expression
    _blocks: dict[str, cp.Variable]
    _loss: tuple[Any, list[cp.Constraint]]

    @classmethod
    def from_record(cls, record: ModelRecord, *, normalised: bool = False) -> Self:
        """Return the problem of an existing record; nothing is checked again.

        Parameters
        ----------
        record : ModelRecord
        normalised : bool
            The same problem with variables W / unit and objective / scale, both of size about 1,
            which interior-point tolerances are meant for: with data of scale 1e8 Clarabel calls a
            feasible problem infeasible, with 1e-4 it stops 1e-5 from the optimum.
        """
        problem = cls.__new__(cls)
        if not normalised:
            problem._build(record)
        else:
            problem._build(record, record.unit, record.scale)
        return problem

    @property
    def coefficients(self) -> Array | None:
        """W as the variables have it now, shape (r, N); None before a solve."""
        return None if self._values.value is None else np.asarray(self._values.value)

    @coefficients.setter
    def coefficients(self, values: Array) -> None:
        """Set W, and the loss's own variables to their best for it; not if `normalised`."""
        settings = self._settings(values)
        own = {v for part in (self._loss[0], *self._loss[1]) for v in part.variables()}
        if own - {variable for variable, _ in settings}:
            fixed = [variable == block for variable, block in settings]
            minimum(self._loss[0], [*self._loss[1], *fixed])
        for variable, block in [*settings, *self._following(values)]:
            variable.value = block

    def _build(self, record: ModelRecord, unit: Array | None = None, scale: float = 1.0) -> None:
        """Write the record in CVXPY, with variables W / unit."""
        self.record = record
        values = self._variables(record, unit)
        self._values = values
        rows = record.rows(values)
        self._loss = loss, own = record.loss.lifted(rows)
        constraints = own + [c for s in record.sets for c in s.constraints(rows)]
        constraints += self._ball(rows)
        matching, more = self._matching(values, scale)
        super().__init__(cp.Minimize(loss / scale + matching), constraints + more)

    def _variables(self, record: ModelRecord, unit: Array | None) -> cp.Expression:
        """Make the variables, those that have rows among "A", "B", "C", "D"; return W (r, N)."""
        n = record.n_states
        k = record.rows(np.empty((record.index.size, 0))).n_state_rows
        blocks = []
        self._blocks = {}
        for left, right, size in (("A", "B", k), ("C", "D", record.index.size - k)):
            if size:
                pair = [cp.Variable((size, n), name=left)]
                if record.fit.n_features > n:
                    pair.append(cp.Variable((size, record.fit.n_features - n), name=right))
                self._blocks |= {variable.name(): variable for variable in pair}
                blocks.append(cp.hstack(pair))
        values = cp.vstack(blocks)
        return values if unit is None else values @ scipy.sparse.diags_array(unit)

    def _ball(self, rows: Rows) -> list[cp.Constraint]:
        """Return the constraints that bound the absolute sums by kappa."""
        return ball(rows.states, self.record.kappa)

    def _settings(self, values: Array) -> list[tuple[cp.Variable, Array]]:
        """Return what the variables are at W = values; not if `normalised`."""
        return [(self._blocks[name], block) for name, block in self.record.split(values).items()]

    @property
    def slopes(self) -> Array | None:
        """Slopes of the matching terms over the predictions, (m, r), where a solver has left them.

        Of a problem that is `normalised` those of its objective; None for least squares.
        """
        return None

    def _following(self, values: Array) -> list[tuple[cp.Variable, Array]]:
        """Return what further variables of the problem are at W = values."""
        return []

    def _matching(self, values: cp.Expression, scale: float) -> tuple[Any, list[cp.Constraint]]:
        """Return the matching terms of the objective, over scale, and the matching constraints."""
        raise NotImplementedError


class Relaxed(ModelProblem):
    r"""(3): min l(A,B,C,D) + lam1 ||Z - A X - B U||_F^2 + lam2 ||Y - C X - D U||_F^2.

    Subject to ||A||_inf <= kappa (row sums) and (A, B, C, D) in C. A CVXPY problem with variables
    "A", "B", "C", "D" and `record`. No factor 1/2, as in the paper.

    Parameters
    ----------
    X, U, Z, Y : (n, m), (p, m), (n, m), (q, m)
        States after and inputs of the activation, network inputs, states before it, outputs;
        samples in columns.
    kappa : float, (n,) or None
        None: no ball.
    loss : str, Loss, function, or a list of these
        A name in `LOSSES`, an instance, or a function l(a, b) or l(a, b, row) of one row or
        l(A, B, C, D) of all, of CVXPY expressions (see `Loss.expression`); a list is their sum.
    sets : the same for `SETS`, one or several
        A function returns CVXPY constraints.
    lam1, lam2 : float
        >= 0.
    fit : str or Fit, or a pair of these
        What the predictions A X + B U and C X + D U cost beside Z and Y, summed over the samples: a
        name in `FITS` or an instance; a pair is for Z and for Y. "least-squares" as above; "huber",
        "absolute", "quantile"; "logistic" and "softmax" for outputs that are classes.
    sample_weight : (m,), optional
        s_k >= 0: what sample k counts. Integers are repeated samples.

    Raises
    ------
    InputError
        Wrong shapes, NaN, unknown names, targets that the fit has no meaning for.
    FormulationError
        A loss or set that is not convex by the DCP rules, whose numpy value does not agree with
        its expression, or that is declared separable and is not. The message names the part.
    """

    record: RelaxedRecord
    _matched: cp.Constraint | None
    _predictions: cp.Variable
    _sizes: Array

    @known_names
    def __init__(
        self,
        X: ArrayLike,
        U: ArrayLike,
        Z: ArrayLike,
        Y: ArrayLike,
        *,
        kappa: ArrayLike | None = 0.99,
        loss: Any = "zero",
        sets: Any = (),
        lam1: float = 1.0,
        lam2: float = 1.0,
        fit: Any = "least-squares",
        sample_weight: ArrayLike | None = None,
    ) -> None:
        data, n, index = states_and_targets(X, U, Z, Y)
        lam = np.where(index < n, _weight("lam1", lam1), _weight("lam2", lam2))
        data, misfit = fitted(data, n, fit, sample_weight)
        self._build(RelaxedRecord(*checked(data, n, index, kappa, loss, sets), lam, misfit))

    def _following(self, values: Array) -> list[tuple[cp.Variable, Array]]:
        if self._matched is None:
            return []
        return [(self._predictions, np.asarray(self.record.fit.design @ values.T) / self._sizes)]

    @property
    def slopes(self) -> Array | None:
        """As `ModelProblem.slopes`."""
        found = None if self._matched is None else self._matched.dual_value
        return None if found is None else -np.asarray(found) / self._sizes

    def _matching(self, values: cp.Expression, scale: float) -> tuple[Any, list[cp.Constraint]]:
        record, self._matched = self.record, None
        if record.misfit.is_squares:
            return self._squares(values, scale)
        # Predictions as variables of size 1: the design is written once, and the multiplier of
        # the equation is the dual point of the fit.
        z, self._sizes = record.fit.target, np.ones(record.index.size)
        self._predictions = p = cp.Variable(z.shape, name="predictions")
        terms = []
        for group in record.groups:
            fit, size, factor = group.fit.scaled(z[:, group.rows])
            self._sizes[group.rows] = size
            each = fit.terms(p[:, group.rows], z[:, group.rows] / size)
            terms.append(cp.sum(cp.multiply(factor / scale * group.weight, each)))
        self._matched = p == record.fit.design @ values.T @ np.diag(1.0 / self._sizes)
        return cp.sum(cp.hstack(terms)), [self._matched]

    def _squares(self, values: cp.Expression, scale: float) -> tuple[Any, list[cp.Constraint]]:
        fit, lam = self.record.fit, self.record.lam / scale
        # Row weights go on the residual: one quadratic form instead of one per row.
        root = np.sqrt(lam)
        residual = fit.design @ values.T @ np.diag(root) - fit.target * root
        return cp.sum_squares(residual) + float(lam @ fit.remainder), []


class StateRow(Relaxed):
    r"""(4): min l(a, b) + lam1 ||z - M (a; b)||^2 subject to ||a||_1 <= kappa, M = (X', U').

    Variables "A" (1, n) and "B" (1, p), row `row` of A and B in the sets and losses that hold data
    per row. Parameters as `Relaxed`; z has shape (m,).
    """

    @known_names
    def __init__(
        self,
        X: ArrayLike,
        U: ArrayLike,
        z: ArrayLike,
        *,
        row: int = 0,
        kappa: float | None = 0.99,
        loss: Any = "zero",
        sets: Any = (),
        lam1: float = 1.0,
        fit: Any = "least-squares",
        sample_weight: ArrayLike | None = None,
    ) -> None:
        data, n = states_and_row(X, U, z)
        if not 0 <= row < n:
            raise InputError(f"row {row} of A does not exist: it has {n} rows")
        lam = np.array([_weight("lam1", lam1)])
        data, misfit = fitted(data, 1, fit, sample_weight)
        fields = checked(data, n, np.array([row]), kappa, loss, sets, by_rows="a row of (A, B)")
        self._build(RelaxedRecord(*fields, lam, misfit))


class OutputRow(Relaxed):
    r"""(5): min l(c, d) + lam2 ||y - M (c; d)||^2, M = (X', U').

    Variables "C" (1, n) and "D" (1, p), row `row` of C and D. Parameters as `Relaxed`; y has shape
    (m,).
    """

    @known_names
    def __init__(
        self,
        X: ArrayLike,
        U: ArrayLike,
        y: ArrayLike,
        *,
        row: int = 0,
        loss: Any = "zero",
        sets: Any = (),
        lam2: float = 1.0,
        fit: Any = "least-squares",
        sample_weight: ArrayLike | None = None,
    ) -> None:
        data, n = states_and_row(X, U, y)
        if row < 0:
            raise InputError(f"row {row} of C does not exist")
        lam = np.array([_weight("lam2", lam2)])
        data, misfit = fitted(data, 0, fit, sample_weight)
        fields = checked(data, n, np.array([n + row]), None, loss, sets, by_rows="a row of (C, D)")
        self._build(RelaxedRecord(*fields, lam, misfit))


def states_and_targets(
    X: ArrayLike, U: ArrayLike, Z: ArrayLike, Y: ArrayLike
) -> tuple[LeastSquares, int, NDArray[np.intp]]:
    """Return the data with targets (Z', Y'), n, and the index of all rows of W."""
    design, n = _design(X, U)
    z, y = as_float64("Z", Z, 2), as_float64("Y", Y, 2)
    m = design.shape[0]
    if z.shape != (n, m) or y.shape[1:] != (m,):
        raise InputError(
            f"Z {z.shape} and Y {y.shape} do not fit X: ({n}, {m}) and (q, {m}) needed"
        )
    fit = LeastSquares.from_arrays(design, np.vstack([z, y]).T)
    return fit, n, np.arange(n + y.shape[0])


def states_and_row(X: ArrayLike, U: ArrayLike, z: ArrayLike) -> tuple[LeastSquares, int]:
    """Return the data with the one target z (m,), and n."""
    design, n = _design(X, U)
    return LeastSquares.from_arrays(design, as_float64("target", z, 1)), n


def fitted(
    data: LeastSquares, n_state_rows: int, fit: Any, sample_weight: ArrayLike | None
) -> tuple[LeastSquares, Misfit]:
    """Return the data and the misfit of `fit` and `sample_weight`, as `Relaxed` takes them.

    Raises
    ------
    InputError
        Unknown names, targets that a fit has no meaning for, a fit that couples a row alone; as
        `sample_weights`.
    """
    pair = tuple(fit) if isinstance(fit, tuple | list) else (fit, fit)
    if len(pair) != 2:
        raise InputError(f"fit is one, or a pair for Z and for Y, got {len(pair)}")
    states, outputs = as_fit(pair[0]), as_fit(pair[1])
    weight = None
    if Misfit(states, outputs).is_squares:
        if sample_weight is not None:
            data = LeastSquares.from_arrays(data.design, data.target, sample_weight)
        return data, Misfit(states, outputs)
    if sample_weight is not None:
        weight, kept = sample_weights(sample_weight, data.design.shape[0])
        data = data.samples(kept)
    k, z = n_state_rows, data.target.copy()
    if k:
        z[:, :k] = states.targets("Z", z[:, :k])
    if k < z.shape[1]:
        z[:, k:] = outputs.targets("Y", z[:, k:])
    return replace(data, target=z), Misfit(states, outputs, weight)


def _design(X: ArrayLike, U: ArrayLike) -> tuple[Array, int]:
    x, u = as_float64("X", X, 2), as_float64("U", U, 2)
    if x.shape[1] != u.shape[1]:
        raise InputError(f"X {x.shape} and U {u.shape} must have the same samples (columns)")
    return np.vstack([x, u]).T, x.shape[0]


def checked(
    fit: LeastSquares,
    n: int,
    index: NDArray[np.intp],
    kappa: ArrayLike | None,
    loss: Any,
    sets: Any,
    by_rows: str = "",
) -> tuple[LeastSquares, NDArray[np.intp], int, Array, Loss, tuple[ConstraintSet, ...]]:
    """Return the fields of a `ModelRecord`, checked: what problems (2) to (5) have in common.

    kappa becomes one radius per row of W, infinity for rows of (C, D) and where it is None.

    Raises
    ------
    InputError
        kappa that is negative, NaN or of another shape, unknown names.
    FormulationError
        As `Term.check`; where `by_rows` is given, also for a term that couples the rows.
    """
    radius = np.full(index.size, np.inf)
    if kappa is not None:
        radius[index < n] = per_row("kappa", kappa, int((index < n).sum()))
    given = sets if isinstance(sets, Sequence) and not isinstance(sets, str) else (sets,)
    terms = as_loss(loss), tuple(as_set(s) for s in given)
    n_outputs = max(int(index.max(initial=0)) + 1 - n, int(by_rows != ""))
    for term in (terms[0], *terms[1]):
        if by_rows and not term.separable:
            raise InputError(
                f"{term.name} couples the rows, so {by_rows} alone is not a problem; use "
                "'relaxed', which solves it whole"
            )
        term.check(n, fit.n_features - n, n_outputs, cones=False).raise_if_failed()
    return fit, index, n, radius, *terms


def ball(states: cp.Expression, kappa: Array) -> list[cp.Constraint]:
    """Return sum_j |A_ij| <= kappa_i; of radius zero as equalities, as it has no interior."""
    found: list[cp.Constraint] = []
    zero = np.flatnonzero(kappa == 0)
    some = np.flatnonzero((kappa > 0) & np.isfinite(kappa))
    if zero.size:
        found.append(states[zero] == 0)
    if some.size:
        found.append(cp.sum(cp.abs(states[some]), axis=1) <= kappa[some])
    return found


def _weight(name: str, value: float) -> float:
    return float(per_row(name, value, 1)[0])
