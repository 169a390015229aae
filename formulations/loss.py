"""What a loss is: a class, a plain function, or a sum of them, with variables of its own or not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import cvxpy as cp
import numpy as np

from formulations.errors import InputError
from formulations.matrix_rows import Rows
from formulations.terms import (
    RowFunction,
    Term,
    constraint_problems,
    convexity_problems,
    disagree,
    largest_violation,
    number,
    one_row,
    trial_values,
)

# Relative disagreement of a numpy value with its CVXPY expression, or of a loss with the sum of its
# rows, that is a mistake and not rounding: both are computed from O(1) numbers, rounding is 1e-13.
_MISMATCH = 1e-8

# Asked of the solver that minimises a loss over its own variables; and what two such minima may
# differ by: with exponential cones Clarabel ends near 1e-8 whatever it is asked for.
_MINIMUM = 1e-10
_SAME_MINIMUM = 1e-6


class Loss(Term):
    """A convex function of (some rows of) W, possibly a minimum over variables of its own."""

    kind: ClassVar[str] = "loss"
    __array_ufunc__ = None  # numpy scalars leave `number * loss` to __rmul__

    def expression(self, rows: Rows) -> Any:
        """Return the loss as a convex scalar; `rows.values` is a CVXPY expression (r, N).

        Or (expression, list of constraints): the loss is then the minimum of the expression over
        the variables that are made here, subject to the constraints (an epigraph form). Make the
        variables anew in every call: one that many rows share couples them.
        """
        raise NotImplementedError

    def value(self, rows: Rows) -> float:
        """Return the loss in float64; `rows.values` is an array (r, N).

        By default the expression's value, minimised over variables of its own; infinity where its
        constraints cannot be met.
        """
        return minimum(*self.lifted(_constant(rows)))[0]

    def violation(self, rows: Rows) -> float:
        """Return how far the constraints of the expression are from being met at that minimum."""
        expression, constraints = self.lifted(_constant(rows))
        return minimum(expression, constraints)[1] if constraints else 0.0

    def coordinates(self, rows: Rows) -> tuple[Any, Any] | None:
        """Return c, d >= 0, (r, N), with l = sum_ij c_ij |W_ij| + 1/2 d_ij W_ij^2, if it has them.

        A bound on the optimum can then be computed from the data alone.
        """
        return None

    def lifted(self, rows: Rows) -> tuple[Any, list[Any]]:
        """Return `expression` as a pair (expression, constraints)."""
        return _pair(self.expression(rows))

    def __add__(self, other: Any) -> Sum:
        if isinstance(other, Loss):
            return Sum((*_parts(self), *_parts(other)))
        if callable(other) and not isinstance(other, type):
            return Sum((*_parts(self), (1.0, FunctionLoss(other))))
        return NotImplemented

    def __radd__(self, other: Any) -> Loss:
        if isinstance(other, (int, float)) and other == 0:  # the start of sum()
            return self
        total: Sum = self + other
        return total

    def __mul__(self, weight: Any) -> Sum:
        if isinstance(weight, cp.Parameter) and weight.is_scalar():
            if not weight.is_nonneg():
                raise InputError(f"the parameter {weight.name()} must be declared nonneg=True")
        elif isinstance(weight, (int, float, np.number)):
            if not (np.isfinite(weight) and weight >= 0):
                raise InputError(f"a loss is scaled by a finite number >= 0, got {weight}")
        else:
            return NotImplemented
        return Sum(tuple((weight * inner, loss) for inner, loss in _parts(self)))

    __rmul__ = __mul__

    def _problem(self, rows: Rows) -> cp.Problem:
        expression, constraints = self.lifted(rows)
        return cp.Problem(cp.Minimize(expression + cp.sum(rows.values)), constraints)

    def _problems(self, rows: Rows, point: Rows) -> list[str]:
        expression, constraints = self.lifted(rows)
        found = convexity_problems(expression, "the expression")
        found += [p for c in constraints for p in constraint_problems(c, "the loss")]
        if found:
            return found
        with trial_values((expression, *constraints)):
            return self._disagreements(expression, constraints, rows, point)

    def _disagreements(
        self, expression: Any, constraints: list[Any], rows: Rows, point: Rows
    ) -> list[str]:
        """Say where value(), expression() and `separable` differ at the numbers `point`."""
        known = {v.id for v in rows.values.variables()}
        parts = (expression, *constraints)
        own = any(v.id not in known for part in parts for v in part.variables())
        tolerance = _SAME_MINIMUM if own else _MISMATCH
        value = self.value(point)
        written = minimum(*self.lifted(_constant(point)))[0]
        if written == -np.inf:
            return ["it is unbounded below over its own variables"]
        found = []
        if disagree(value, written, tolerance):
            found.append(f"value() gives {value:.10g} where expression() gives {written:.10g}")
        if (pair := self.coordinates(point)) is not None:
            w = point.values
            closed = float((pair[0] * np.abs(w) + 0.5 * pair[1] * np.square(w)).sum())
            if disagree(value, closed, tolerance):
                found.append(f"value() gives {value:.10g} where coordinates() give {closed:.10g}")
        if self.separable:
            total = sum(self.value(one_row(point, i)) for i in range(len(point.index)))
            if disagree(value, total, tolerance):
                found.append(
                    f"it is declared separable, but the loss of all rows is {value:.10g} and the "
                    f"sum over the rows {total:.10g}: set separable = False, or make its variables "
                    "anew in every call"
                )
        return found


class Sum(Loss):
    """l = sum_k weight_k l_k, as `loss + loss`, `loss + function` and `2.0 * loss` make it.

    Parameters
    ----------
    parts : tuple of (float or cvxpy.Parameter >= 0, Loss)
    """

    def __init__(self, parts: tuple[tuple[Any, Loss], ...]) -> None:
        self.parts = parts
        self.separable = all(loss.separable for _, loss in parts)

    @property
    def name(self) -> str:
        """The names of the parts."""
        return "loss " + " + ".join(loss.name.removeprefix("loss ") for _, loss in self.parts)

    def expression(self, rows: Rows) -> Any:
        """Return the sum, and the constraints of all parts."""
        lifted = [(weight, *loss.lifted(rows)) for weight, loss in self.parts]
        total = sum(weight * expression for weight, expression, _ in lifted)
        return total, [c for _, _, constraints in lifted for c in constraints]

    def value(self, rows: Rows) -> float:
        """Return the sum of the values."""
        # A part of weight 0 counts where it is infinite: it is then a constraint alone.
        return sum(
            _number(weight) * value if np.isfinite(value := loss.value(rows)) else value
            for weight, loss in self.parts
        )

    def coordinates(self, rows: Rows) -> tuple[Any, Any] | None:
        """Return the sums of c and d, if all parts have them."""
        found = [(_number(weight), loss.coordinates(rows)) for weight, loss in self.parts]
        pairs = [(weight * c[0], weight * c[1]) for weight, c in found if c is not None]
        if len(pairs) < len(found):
            return None
        return sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)

    def violation(self, rows: Rows) -> float:
        """Return the largest of the violations."""
        return max(loss.violation(rows) for _, loss in self.parts)

    def _problems(self, rows: Rows, point: Rows) -> list[str]:
        for _, loss in self.parts:
            found = loss._problems(rows, point)
            if found:
                return [f"{loss.name}: {text}" for text in found]
        return super()._problems(rows, point)


class FunctionLoss(Loss):
    """A loss given as a plain function of CVXPY expressions.

    l(a, b) or l(a, b, row), with a (n,) and b (p,) of one row and its place in W, is summed over
    the rows; l(A, B, C, D) is taken to couple them. It returns an expression, or (expression,
    constraints) as `Loss.expression`.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._call = RowFunction(function)
        self.separable = self._call.by_rows

    @property
    def name(self) -> str:
        """The function's name."""
        return f"loss {self._call.name}"

    def expression(self, rows: Rows) -> Any:
        """Return what the function returns, summed over the rows where it takes one row."""
        pairs = [_pair(returned) for returned in self._call(rows)]
        total = cp.sum(cp.hstack([cp.Constant(0.0), *(expression for expression, _ in pairs)]))
        return total, [c for _, constraints in pairs for c in constraints]

    def _problems(self, rows: Rows, point: Rows) -> list[str]:
        for returned in self._call(rows):
            found = convexity_problems(_pair(returned)[0], "the expression")
            if found:
                return found
        return super()._problems(rows, point)


def minimum(expression: cp.Expression, constraints: list[cp.Constraint]) -> tuple[float, float]:
    """Return the minimum of an expression over its variables, and what it violates.

    Returns
    -------
    value : float
        At the solver's point, in float64; infinity if there is none, -infinity if unbounded.
    violation : float
        The largest violation of a constraint at that point: the value is an upper bound of the
        minimum up to it.
    """
    own = {v.id: v for part in (expression, *constraints) for v in part.variables()}
    if own:
        asked = {f"tol_{name}": _MINIMUM for name in ("gap_abs", "gap_rel", "feas")}
        problem = cp.Problem(cp.Minimize(expression), [c for c in constraints if c.variables()])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "may be inaccurate": the violation says how much
                problem.solve(solver=cp.CLARABEL, accept_unknown=True, **asked)
        except cp.SolverError:
            return np.inf, np.inf
        if "unbounded" in problem.status:
            return -np.inf, np.inf
        if problem.status not in (cp.OPTIMAL, cp.OPTIMAL_INACCURATE):
            return np.inf, np.inf
        for variable in own.values():
            variable.save_value(variable.project(variable.value))
    return number(expression), max((largest_violation(c) for c in constraints), default=0.0)


def _constant(rows: Rows) -> Rows:
    return Rows(cp.Constant(rows.values), rows.index, rows.n_states)


def _pair(returned: Any) -> tuple[Any, list[Any]]:
    """Return (expression, constraints) of what a loss returned: these, or an expression."""
    if not isinstance(returned, tuple):
        return returned, []
    if len(returned) != 2:
        raise InputError(
            f"a loss returns an expression or (expression, constraints), got {len(returned)} parts"
        )
    expression, more = returned
    return expression, list(more) if isinstance(more, (list, tuple)) else [more]


def _parts(loss: Loss) -> tuple[tuple[Any, Loss], ...]:
    return loss.parts if isinstance(loss, Sum) else ((1.0, loss),)


def _number(weight: Any) -> float:
    return number(weight) if isinstance(weight, cp.Expression) else float(weight)
