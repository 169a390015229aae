"""What losses and constraint sets have in common: a name, separability, and a check of both."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

import cvxpy as cp
import numpy as np

from formulations.errors import FormulationError, InputError, UnknownNameError
from formulations.matrix_rows import Rows


@dataclass(frozen=True)
class Check:
    """What `Term.check` found.

    Attributes
    ----------
    name : str
        The term.
    separable : bool
        Whether it is declared to be a sum over (or a constraint on each of) the rows of W.
    cones : tuple of str
        The cones a solver needs for it.
    missing : Mapping of str to str
        Backends that cannot solve it, with what they lack.
    problems : tuple of str
        What is wrong, each naming the sub-expression; empty if nothing is.
    """

    name: str
    separable: bool
    cones: tuple[str, ...]
    missing: Mapping[str, str]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def raise_if_failed(self) -> None:
        """Raise `FormulationError` with every problem found, if there is one."""
        if self.problems:
            raise FormulationError(f"{self.name}: " + "; ".join(self.problems))


class Term:
    """Base of `Loss` and `ConstraintSet`.

    Attributes
    ----------
    separable : bool
        True: the term of many rows is the sum (loss) or the conjunction (set) of the terms of
        each, so that it may be given any subset of rows. False: it is only ever given all rows.
    """

    separable: bool = True
    kind: ClassVar[str] = "term"

    @classmethod
    def example(cls, n_states: int, n_inputs: int, n_outputs: int) -> Self:
        """Return an instance that fits these sizes; override it where the defaults do not."""
        return cls()

    @property
    def name(self) -> str:
        """The name used in messages."""
        return f"{self.kind} {type(self).__name__}"

    def _problems(self, rows: Rows, point: Rows) -> list[str]:
        """Say what is wrong with the term on the variables `rows` and at the numbers `point`."""
        raise NotImplementedError

    def _problem(self, rows: Rows) -> cp.Problem:
        """Return a CVXPY problem that holds the term and nothing else of interest."""
        raise NotImplementedError

    def check(self, n_states: int, n_inputs: int, n_outputs: int, *, cones: bool = True) -> Check:
        """Say whether the term is convex by CVXPY's rules, as separable as declared, and solvable.

        Parameters
        ----------
        n_states, n_inputs, n_outputs : int
            n, p, q: sizes of W = [[A, B], [C, D]] to check it on.
        cones : bool
            Whether to compile it as well (costs as much as building the problem) and to list
            the cones and the backends that lack them.
        """
        index = np.arange(n_states + n_outputs)
        shape = (index.size, n_states + n_inputs)
        rows = Rows(cp.Variable(shape, name="W"), index, n_states)
        point = Rows(np.random.default_rng(0).uniform(-1.0, 1.0, shape), index, n_states)
        needed: tuple[str, ...] = ()
        missing: dict[str, str] = {}
        problems = self._problems(rows, point)
        if cones and not problems:
            problem = self._problem(rows)
            with trial_values([problem]):
                needed, missing = _cones(problem)
        return Check(self.name, self.separable, needed, missing, tuple(dict.fromkeys(problems)))


@contextmanager
def trial_values(parts: Iterable[Any]) -> Iterator[None]:
    """Give the parameters in `parts` that have no value yet one of their kind (ones), for now."""
    empty = {p.id: p for part in parts for p in part.parameters() if p.value is None}
    for parameter in empty.values():
        parameter.value = parameter.project(np.ones(parameter.shape))
    try:
        yield
    finally:
        for parameter in empty.values():
            parameter.value = None


def one_row(rows: Rows, i: int) -> Rows:
    """Return row `i` of `rows` as a `Rows` of one."""
    return Rows(rows.values[i : i + 1], rows.index[i : i + 1], rows.n_states)


def number(expression: cp.Expression) -> float:
    """Return the value of a scalar expression whose arguments are numbers."""
    return float(np.asarray(expression.value).item())


def disagree(x: float, y: float, tolerance: float) -> bool:
    """Whether two values differ by more than rounding; infinity differs from every number."""
    return not math.isclose(x, y, rel_tol=tolerance, abs_tol=tolerance)


def largest_violation(constraint: cp.Constraint) -> float:
    """Return the largest violation of a constraint whose variables have values."""
    return float(np.max(constraint.violation(), initial=0.0))


def convexity_problems(expression: Any, what: str) -> list[str]:
    """Say why a scalar expression is not convex by the DCP rules, naming the smallest culprit."""
    if not isinstance(expression, cp.Expression):
        return [f"{what} is a {type(expression).__name__}; a CVXPY expression is needed"]
    if expression.size != 1:
        return [f"{what} has shape {expression.shape}; a scalar is needed"]
    problems = [
        f"{what} is not convex by the DCP rules because of the sub-expression {part}"
        for part in _smallest(expression, lambda e: e.is_dcp())
    ]
    if not problems and not expression.is_convex():
        problems.append(f"{what} is {expression.curvature.lower()}, not convex: {expression}")
    if not problems and expression.parameters():
        problems = [
            f"{what} is not DPP (it would be compiled again for every parameter value) because of "
            f"the sub-expression {part}"
            for part in _smallest(expression, lambda e: e.is_dpp())
        ]
    return problems


def constraint_problems(constraint: Any, what: str) -> list[str]:
    """Say why a constraint does not describe a convex set by the DCP rules."""
    if not isinstance(constraint, cp.Constraint):
        return [f"{what} holds a {type(constraint).__name__}; CVXPY constraints are needed"]
    if constraint.is_dcp():
        return []
    parts = [p for arg in constraint.args for p in _smallest(arg, lambda e: e.is_dcp())]
    if parts:
        return [f"{what}: {constraint} is not DCP because of the sub-expression {p}" for p in parts]
    sides = ", ".join(f"{arg} is {arg.curvature.lower()}" for arg in constraint.args)
    return [f"{what}: {constraint} is not DCP ({sides})"]


def own_variables(parts: list[Any], rows: Rows) -> list[str]:
    """Say which variables a function of a set brought with it: its violation is then undefined."""
    known = {v.id for v in rows.values.variables()}
    atoms: list[Any] = [part for part in parts if isinstance(part, cp.Expression | cp.Constraint)]
    own = sorted({v.name() for part in atoms for v in part.variables() if v.id not in known})
    if not own:
        return []
    return [
        f"it has variables of its own ({', '.join(own)}), so that its violation is a problem in "
        "itself: give it as a loss that returns (cvxpy.Constant(0), constraints), or write a class "
        "with constraints() and violation()"
    ]


def _smallest(expression: Any, good: Callable[[Any], bool]) -> list[Any]:
    """Return the sub-expressions that are not `good` although all their arguments are."""
    if good(expression):
        return []
    inner = [part for arg in expression.args for part in _smallest(arg, good)]
    return inner or [expression]


def _cones(problem: cp.Problem) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the cones that a problem compiles to, and which backends cannot take it."""
    missing = {}
    cones: tuple[str, ...] = ()
    for backend in ("CLARABEL", "MOSEK"):
        if backend not in cp.installed_solvers():
            continue
        try:
            data = problem.get_problem_data(backend)[0]
        except cp.SolverError as error:
            missing[backend.lower()] = str(error).splitlines()[0]
            continue
        if backend == "CLARABEL":
            names = ("zero", "nonneg", "soc", "psd", "exp", "p3d", "pnd")
            cones = tuple(name for name in names if getattr(data["dims"], name, None))
    return cones, missing


class RowFunction:
    """Calls a plain function of (a, b) row by row, or one of (A, B, C, D) with all of W.

    The number of parameters decides: l(a, b) or l(a, b, row), with a (n,) and b (p,) of one row and
    its place in W (0..n-1 in (A, B), from n on in (C, D)), is summed over the rows and separable by
    construction; l(A, B, C, D) may couple them.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        parameters = inspect.signature(function).parameters.values()
        positional = [
            p
            for p in parameters
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
        ]
        self.name = getattr(function, "__name__", type(function).__name__)
        if len(positional) not in (2, 3, 4):
            raise InputError(
                f"function {self.name} takes {len(positional)} arguments; (a, b) or (a, b, row) of "
                "one row, or (A, B, C, D) needed"
            )
        self.function = function
        self.by_rows = len(positional) < 4
        self.by_place = len(positional) == 3

    def __call__(self, rows: Rows) -> list[Any]:
        """Return the function's values: one per row, or a single one.

        Raises
        ------
        FormulationError
            The function raised something; it is the cause.
        """
        values = rows.values if isinstance(rows.values, cp.Expression) else cp.Constant(rows.values)
        rows = Rows(values, rows.index, rows.n_states)
        if not self.by_rows:
            return [self._value(*rows.blocks)]
        n = rows.n_states
        return [
            self._value(values[i, :n], values[i, n:], *([place] if self.by_place else []))
            for i, place in enumerate(rows.index.tolist())
        ]

    def _value(self, *blocks: Any) -> Any:
        try:
            return self.function(*blocks)
        except Exception as error:
            raise FormulationError(
                f"function {self.name} raised {type(error).__name__}: {error}"
            ) from error


T = TypeVar("T", bound=Term)


def as_term(given: Any, base: type[T], known: Mapping[str, type[T]], wrap: Callable[[Any], T]) -> T:
    """Return a term from an instance, a name, or a plain function.

    Raises
    ------
    InputError
        For anything else, and (`UnknownNameError`) for a name that is not in `known`.
    """
    if isinstance(given, base):
        return given
    if isinstance(given, str):
        if given not in known:
            raise UnknownNameError(base.kind, given, known)
        try:
            return known[given]()
        except TypeError as error:
            raise InputError(
                f"{base.kind} {given!r} needs data: pass "
                f"{known[given].__module__}.{known[given].__name__}(...)"
            ) from error
    if isinstance(given, type) or not callable(given):
        raise InputError(
            f"{given!r} is no {base.kind}: give a name ({', '.join(sorted(known))}), an instance "
            f"of {base.__name__}, or a function of CVXPY expressions"
        )
    return wrap(given)
