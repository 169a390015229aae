"""Problems in A, B, C, D, or any CVXPY problem, certified by a bound of the cone program."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cvxpy as cp
import joblib
import numpy as np
import threadpoolctl
from numpy.typing import NDArray

from cimf.errors import BackendError, FormulationError, InputError
from cimf.judge.cone_certificate import Bound, lower_bound
from cimf.judge.fit_bound import fit_bound
from cimf.judge.model_solution import ModelSolution
from cimf.solve.conic.backends import Outcome, candidates, run, solve
from cimf.solve.conic.cvxpy_rows import GROUND_TRUTH, Progress
from formulations.problem import ModelRecord, RelaxedRecord
from formulations.relaxed import ModelProblem
from formulations.terms import largest_violation

Array = NDArray[np.float64]

# The bound of a cone program speaks of points up to this many times the solution's largest entry.
_RADIUS = 10.0

# A part whose gap and violations are within this fraction of the pass mark is left alone; another
# is solved once more at this fraction of the tolerance: exact matching of 10 columns had gap 9e-8
# at 1e-9 and 9e-10 at 1e-11, one iteration later.
_COMFORT = 0.1
_TIGHTER = 0.01

# Fractions of the largest |W_ij| up to which entries are tried as exact zeros, boldest first: 1 is
# W = 0, the solution where the loss dominates.
_CUTOFFS = (1.0, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10)


def solve_model(
    prob: ModelProblem,
    backend: str,
    tol: float,
    progress: Progress | None = None,
    n_jobs: int | None = None,
) -> ModelSolution:
    """Solve a problem as `solve_model_record`, and set its variables."""
    values, solution = solve_model_record(type(prob), prob.record, backend, tol, progress, n_jobs)
    prob.coefficients = values
    return solution


def solve_model_record(
    kind: type[ModelProblem],
    record: ModelRecord,
    backend: str,
    tol: float,
    progress: Progress | None = None,
    n_jobs: int | None = None,
) -> tuple[Array, ModelSolution]:
    """Solve the rows of a separable problem one by one, another whole; certify on the data.

    Parameters
    ----------
    kind : subclass of `ModelProblem`
        What writes the record in CVXPY.
    n_jobs : int, optional
        Processes for the rows, through joblib; CVXPY is not safe in threads. Default: what
        `joblib.parallel_config` says, else this one. The answer does not depend on it.
    backend, tol, progress
        As `cimf.solve_cvxpy`.

    Returns
    -------
    values : (r, N)
        W.
    solution : ModelSolution
        A row on which the backend fails does not end the run: it is zero, and its bound -infinity.
    """
    return next(solve_model_values(kind, record, None, [None], backend, tol, progress, n_jobs))


def solve_model_values(
    kind: type[ModelProblem],
    record: ModelRecord,
    parameter: cp.Parameter | None,
    settings: Sequence[Any],
    backend: str,
    tol: float,
    progress: Progress | None = None,
    n_jobs: int | None = None,
) -> Iterator[tuple[Array, ModelSolution]]:
    """Yield what `solve_model_record` returns for every value of a parameter.

    Each part is compiled once, by the process that solves it, for all values. The parameter is left
    at the last value.

    Parameters
    ----------
    parameter : cvxpy.Parameter or None
        Of the loss or the sets. None: there is one setting, the problem as it is.
    settings : sequence
        Values that the parameter takes.
    progress : function of int, optional
        Called with the number of rows done so far, for all values.
    """
    candidates(backend)
    work = record.reduced()
    everything = list(range(record.index.size))
    parts = [[i] for i in everything] if record.separable else [everything]
    mark = max(tol, GROUND_TRUTH)
    asked = _Asked(parameter, tuple(settings), backend, tol, mark, alone=len(parts) == 1)
    solved: list[list[_Piece]] = []
    pool = joblib.Parallel(n_jobs=n_jobs, return_as="generator")
    pieces = pool(joblib.delayed(_pieces)(kind, work.take(part), asked) for part in parts)
    try:
        for part, of_part in zip(parts, pieces, strict=True):
            solved.append(of_part)
            if progress is not None:
                progress(part[-1] + 1)
    except pickle.PicklingError as error:
        raise InputError(
            "the loss or a set holds something that cannot be sent to other processes (a lock, an "
            "open file): use n_jobs=1",
            options=["n_jobs"],
        ) from error
    for value, of_value in zip(settings, zip(*solved, strict=True), strict=True):
        if parameter is not None:
            parameter.value = value
        yield _solution(record, parts, of_value, mark)


def _solution(
    record: ModelRecord, parts: list[list[int]], solved: tuple[_Piece, ...], mark: float
) -> tuple[Array, ModelSolution]:
    """Return W and its solution from those of the parts, at the present value of parameters."""
    start = time.perf_counter()
    values = np.empty((record.index.size, record.fit.n_features))
    for part, piece in zip(parts, solved, strict=True):
        values[part] = piece.values
    outcomes = [outcome for piece in solved for outcome in piece.outcomes]
    bounds = tuple(piece.bound for piece in solved)
    objective, bound = record.objective(values), sum(bounds)
    violations = record.violations(values)
    build = sum(outcome.build for outcome in outcomes)
    solve_time = sum(outcome.solve for outcome in outcomes)
    certify = sum(piece.seconds for piece in solved) - build - solve_time
    return values, ModelSolution(
        values=record.split(values),
        objective=objective,
        bound=bound,
        gap=(objective - bound) / record.scale,
        scale=record.scale,
        violations=violations,
        radius=min(piece.radius for piece in solved),
        raw_objective=sum(piece.raw_objective for piece in solved),
        backend=tuple(piece.backend for piece in solved),
        status=tuple(piece.status for piece in solved),
        iterations=tuple(sum(o.iterations for o in piece.outcomes) for piece in solved),
        parts=tuple(tuple(part) for part in parts),
        bounds=bounds,
        seconds={
            "build": build,
            "solve": solve_time,
            "certify": certify + time.perf_counter() - start,
        },
        tol=mark,
    )


@dataclass(frozen=True)
class _Asked:
    """What a part is solved for: values of a parameter, by which backend, how exactly.

    Attributes
    ----------
    alone : bool
        The part is the whole problem: a failure of the backend is an error.
    """

    parameter: cp.Parameter | None
    settings: tuple[Any, ...]
    backend: str
    tol: float
    mark: float
    alone: bool


@dataclass(frozen=True)
class _Piece:
    """The solution of one part of a model: a row, or everything."""

    values: Array
    bound: float
    radius: float
    raw_objective: float
    outcomes: tuple[Outcome, ...]
    seconds: float = 0.0

    @property
    def backend(self) -> str:
        """Name and version."""
        return (
            f"{self.outcomes[-1].backend} {self.outcomes[-1].version}" if self.outcomes else "none"
        )

    @property
    def status(self) -> str:
        """The backend's own word."""
        return self.outcomes[-1].status if self.outcomes else "failed"


def _pieces(kind: type[ModelProblem], record: ModelRecord, asked: _Asked) -> list[_Piece]:
    """Solve one part for every value, in whatever process this is, to the same bits.

    A part that fails is zero, unless it is alone.
    """
    start = time.perf_counter()
    found = []
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        problem = kind.from_record(record, normalised=True)
        written = time.perf_counter() - start
        for value in asked.settings:
            if asked.parameter is not None:
                asked.parameter.value = value
            try:
                piece = _solve_piece(problem, asked, written)
            except BackendError:
                if asked.alone:
                    raise
                nothing = np.zeros((record.index.size, record.fit.n_features))
                piece = _Piece(nothing, -np.inf, 0.0, np.inf, ())
            now = time.perf_counter()
            found.append(replace(piece, seconds=now - start))
            start, written = now, 0.0
    return found


def _solve_piece(problem: ModelProblem, asked: _Asked, written: float) -> _Piece:
    """Solve one part; once more, tighter and with care, if the certificate asks for it.

    Parameters
    ----------
    written : float
        Seconds that it took to write the problem.
    """
    record, mark = problem.record, asked.mark
    outcomes: list[Outcome] = []
    best, best_cost = None, np.inf
    for tol, careful in ((asked.tol, False), (_TIGHTER * asked.tol, True)):
        try:
            outcome = solve(problem, asked.backend, tol, careful=careful)
        except (BackendError, FormulationError):
            if best is None:
                raise
            break  # the first attempt's point, judged as it is
        outcomes.append(replace(outcome, build=outcome.build + written))
        written = 0.0
        raw, slopes = problem.coefficients, problem.slopes
        assert raw is not None
        # Of many values, the refinement of a bound that passes as it is would take longest.
        enough = np.inf
        if len(asked.settings) > 1:
            enough = record.objective(raw) / record.scale - _COMFORT * mark
        proved = _bound(problem, outcome, tol, enough)
        bound = proved.value * record.scale
        if slopes is not None:
            assert isinstance(record, RelaxedRecord)
            reach = proved.radius * record.unit
            bound = max(bound, fit_bound(record, slopes * record.scale, reach))
        values = _exact_zeros(record, raw, bound, mark)
        cost = _cost(record, values, bound)
        if best is None or cost < best_cost:
            best_cost = cost
            best = _Piece(values, bound, proved.radius, record.objective(raw), tuple(outcomes))
        if cost <= _COMFORT * mark:
            break
    assert best is not None
    return replace(best, outcomes=tuple(outcomes))


def solve_any(prob: cp.Problem, backend: str, tol: float) -> ModelSolution:
    """Solve a problem without a record; CVXPY evaluates its objective and constraints."""
    if not isinstance(prob.objective, cp.Minimize):
        raise InputError("write the problem as a minimisation")
    if not prob.variables():
        return _without_variables(prob, max(tol, GROUND_TRUTH))
    outcome = solve(prob, backend, tol)
    start = time.perf_counter()
    point = {variable.id: variable.value for variable in prob.variables()}
    proved = _bound(prob, outcome, tol)
    for variable in prob.variables():
        variable.save_value(point[variable.id])
    objective = float(np.asarray(prob.objective.value).item())
    scale = max(1.0, abs(objective))
    seconds = {"build": outcome.build, "solve": outcome.solve}
    return ModelSolution(
        values={name: np.asarray(variable.value) for name, variable in prob.var_dict.items()},
        objective=objective,
        bound=proved.value,
        gap=(objective - proved.value) / scale,
        scale=scale,
        violations=_violations(prob),
        radius=proved.radius,
        raw_objective=objective,
        backend=(f"{outcome.backend} {outcome.version}",),
        status=(outcome.status,),
        iterations=(outcome.iterations,),
        parts=((),),
        bounds=(proved.value,),
        seconds={**seconds, "certify": time.perf_counter() - start},
        tol=max(tol, GROUND_TRUTH),
    )


def _without_variables(prob: cp.Problem, mark: float) -> ModelSolution:
    """Return the value of a problem with nothing to choose; CVXPY gives it to no backend."""
    objective = float(np.asarray(prob.objective.value).item())
    violations = _violations(prob)
    if max(violations.values(), default=0.0) > mark:
        raise FormulationError("infeasible: the problem has no variables and a constraint is false")
    return ModelSolution(
        values={},
        objective=objective,
        bound=objective,
        gap=0.0,
        scale=max(1.0, abs(objective)),
        violations=violations,
        radius=np.inf,
        raw_objective=objective,
        backend=("none",),
        status=("optimal",),
        iterations=(0,),
        parts=((),),
        bounds=(objective,),
        seconds={"build": 0.0, "solve": 0.0, "certify": 0.0},
        tol=mark,
    )


def _violations(prob: cp.Problem) -> dict[str, float]:
    """Return the violation of every constraint, and of what variables are declared to be."""
    found = {f"constraint {i}": largest_violation(c) for i, c in enumerate(prob.constraints)}
    for variable in prob.variables():
        if any(variable.attributes.values()):
            off = np.abs(variable.value - variable.project(variable.value)).max(initial=0.0)
            found[f"declared {variable.name()}"] = float(off)
    return found


def _bound(problem: cp.Problem, outcome: Outcome, tol: float, enough: float = np.inf) -> Bound:
    """Return the lower bound of the dual point; from Clarabel where the backend gives none.

    A bound is true of the problem, whoever found the point that it is compared with. One of at
    least `enough` is not refined.
    """
    if outcome.program is None:
        candidates("clarabel")
        outcome = run(problem, "clarabel", tol)
    assert outcome.program is not None
    assert outcome.primal is not None
    assert outcome.dual is not None
    size = float(np.abs(outcome.primal).max(initial=0.0))
    reach = _RADIUS * max(size, 1.0)
    return lower_bound(outcome.program, outcome.primal, outcome.dual, reach, enough)


def _exact_zeros(record: ModelRecord, raw: Array, bound: float, mark: float) -> Array:
    """Return `raw` inside the constraints, with as many exact zeros as cost nothing.

    Costing nothing: gap and violations stay within a tenth of the pass mark, or where the point
    itself does not reach that, no worse than its own.
    """
    inside = record.nearest(raw)
    if _cost(record, inside, bound) > _cost(record, raw, bound):
        inside = raw
    allowed = max(_cost(record, inside, bound), _COMFORT * mark)
    largest = np.abs(inside).max(initial=0.0)
    for cutoff in _CUTOFFS:
        rounded = record.nearest(np.where(np.abs(inside) > cutoff * largest, inside, 0.0))
        if _cost(record, rounded, bound) <= allowed:
            return rounded
    return inside


def _cost(record: ModelRecord, values: Array, bound: float) -> float:
    """Return the larger of the relative gap and the relative violations."""
    gap = abs(record.objective(values) - bound) / record.scale
    return max(gap, *record.violations(values).values())
