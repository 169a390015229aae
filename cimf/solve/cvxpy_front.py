"""`solve_cvxpy`: a CVXPY problem of `formulations` (or any other) in, a certified solution out.

Backends see a reduced problem (at most N samples) of unit scale; what they return is mapped back,
moved inside the constraints, rounded to exact zeros where the certificate allows, and judged on
the data as given.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray

from cimf.errors import InputError
from cimf.judge import Solution, certify_columns
from cimf.judge.certificate import Certificate
from cimf.judge.cone_certificate import Bound, lower_bound
from cimf.judge.model_solution import ModelSolution
from cimf.solve.backends import Outcome, candidates, run, solve
from cimf.solve.polish import polished_points
from cimf.statistics import Gram
from formulations.columns import Columns
from formulations.constrained import RowProblem
from formulations.problem import ModelRecord, RowRecord
from formulations.relaxed import ModelProblem

Array = NDArray[np.float64]
Progress = Callable[[int], None]

# The pass mark of a CVXPY solution as ground truth. Its polished rows reach 1e-12 and better, the
# bound of a whole model 1e-8 to 1e-10 at solver tolerance 1e-9.
GROUND_TRUTH = 1e-7

# The bound of a cone program speaks of points up to this many times the solution's largest entry.
_RADIUS = 10.0

# A part whose gap and violations are within this fraction of the pass mark is left alone; another
# is solved once more at this fraction of the tolerance: exact matching of 10 columns had gap 9e-8
# at 1e-9 and 9e-10 at 1e-11, one iteration later.
_COMFORT = 0.1
_TIGHTER = 0.01

# Fractions of the largest |W_ij| below which entries are tried as exact zeros, boldest first.
_CUTOFFS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10)


@dataclass(frozen=True)
class CvxpySolution(Solution):
    """A `Solution` of row problems that also says what the backend itself returned.

    Attributes
    ----------
    raw : Certificate or None
        Certificate of the backend's point moved inside the constraints, before the polish.
    backend : str
        Name and version, one of them per row where they differ.
    backend_status : (r,) str
        The backend's own word: 'optimal' or 'inaccurate'.
    """

    raw: Certificate | None = None
    backend: NDArray[np.str_] = field(default_factory=lambda: np.zeros(0, dtype=str))
    backend_status: NDArray[np.str_] = field(default_factory=lambda: np.zeros(0, dtype=str))


def solve_cvxpy(
    prob: cp.Problem,
    backend: str = "auto",
    tol: float = 1e-9,
    *,
    progress: Progress | None = None,
) -> CvxpySolution | ModelSolution:
    """Solve a CVXPY problem with a named backend and certify what comes back.

    Parameters
    ----------
    prob : cvxpy.Problem
        A problem of `formulations.FORMULATIONS`, whose record then judges the solution; or any
        convex minimisation, judged by the bound of its cone program alone. Row-separable problems
        are solved row by row, others whole. Its variables are set to the solution.
    backend : {"auto", "mosek", "clarabel"}
        "auto": the first that works here, in the order mosek, clarabel.
    tol : float
        Asked of the backend, translated into its own settings. The certificate's pass mark is
        max(tol, 1e-7).
    progress : function of int, optional
        Called with the number of rows done so far.

    Returns
    -------
    CvxpySolution
        For `Constrained` and `Lasso`: Frank-Wolfe or dual gap of each row, polished and raw.
    ModelSolution
        For everything else.

    Raises
    ------
    BackendError
        The backend is missing, unlicensed, or failed; the vendor's error is the cause.
    FormulationError
        The problem is infeasible or unbounded, or not convex by the DCP rules.
    """
    if not isinstance(prob, cp.Problem):
        raise InputError(f"a cvxpy.Problem is needed, got {type(prob).__name__}")
    report = progress or (lambda done: None)
    if isinstance(prob, RowProblem):
        return _solve_rows(prob, backend, tol, report)
    if isinstance(prob, ModelProblem):
        return _solve_model(prob, backend, tol, report)
    return _solve_any(prob, backend, tol)


def _solve_rows(prob: RowProblem, backend: str, tol: float, report: Progress) -> CvxpySolution:
    """Solve every row of P or Q on its own, polish, and certify on the data as given."""
    record = prob.record
    start = time.perf_counter()
    work, factor = record.reduced().normalised()
    outcomes = []
    coef = np.empty((record.fit.n_targets, record.fit.n_features))
    for i in range(coef.shape[0]):
        row = type(prob).from_record(work.row(i))
        outcomes.append(solve(row, backend, tol))
        coef[i] = factor[i] * row.coefficients[0]
        report(i + 1)
    solved = time.perf_counter()
    gram = _gram(record)
    mark = max(tol, GROUND_TRUTH)
    coef = record.feasible(coef)
    raw = certify_columns(gram, coef, record.columns, record.kappa, record.lam, mark)
    polished = np.array([_polish(gram, record, coef[i], i, mark) for i in range(coef.shape[0])])
    certificate = certify_columns(gram, polished, record.columns, record.kappa, record.lam, mark)
    changed = (polished != coef).any(axis=1)
    prob.coefficients = polished
    names = np.array([outcome.backend for outcome in outcomes])
    build = sum(outcome.build for outcome in outcomes)
    seconds = {
        "build": build,
        "solve": solved - start - build,
        "certify": time.perf_counter() - solved,
    }
    return CvxpySolution(
        polished,
        certificate,
        np.where(changed, np.char.add(names, "+polish"), names),
        np.array([outcome.iterations for outcome in outcomes]),
        seconds,
        f"backend {backend!r}",
        raw,
        np.array([f"{outcome.backend} {outcome.version}" for outcome in outcomes]),
        np.array([outcome.status for outcome in outcomes]),
    )


def _gram(record: RowRecord) -> Gram:
    """Return the moments of the data as given, which certificates are computed from."""
    if record.fit.moments is not None:
        return Gram.from_moments(*record.fit.moments, n_samples=0)
    return Gram.from_arrays(record.fit.design, record.fit.target)


def _polish(gram: Gram, record: RowRecord, coef: Array, i: int, mark: float) -> Array:
    """Return the candidate with the smallest certified gap, `coef` itself among them."""
    row = record.row(i)
    weights = row.columns.weights
    kappa = None if row.kappa is None else float(row.kappa[0])
    lam = None if row.lam is None else float(row.lam[0])
    found = polished_points(gram.gram, gram.corr[i], weights, row.columns.signs, coef, kappa, lam)
    points = np.vstack([coef[None, :], found])
    copies = RowRecord(
        row.fit,
        Columns(weights, row.columns.signs),
        None if kappa is None else np.full(len(points), kappa),
        None if lam is None else np.full(len(points), lam),
    )
    points = copies.feasible(points)
    judged = certify_columns(
        gram.rows([i] * len(points)), points, copies.columns, copies.kappa, copies.lam, mark
    )
    # Among equally good points the sparsest: rounding decides below 1e-15.
    gap = np.where(judged.violation == 0.0, np.maximum(judged.gap, 1e-15), np.inf)
    return points[np.lexsort(((points != 0).sum(axis=1), gap))[0]]


def _solve_model(prob: ModelProblem, backend: str, tol: float, report: Progress) -> ModelSolution:
    """Solve the rows of a separable problem one by one, another whole; certify on the data."""
    record = prob.record
    start = time.perf_counter()
    work = record.reduced()
    everything = list(range(record.index.size))
    parts = [[i] for i in everything] if record.separable else [everything]
    mark = max(tol, GROUND_TRUTH)
    values = np.empty((record.index.size, record.fit.n_features))
    solved = []
    for part in parts:
        piece = _solve_piece(type(prob), work.take(part), backend, tol, mark)
        values[part] = piece.values
        solved.append(piece)
        report(part[-1] + 1)
    blocks = record.split(values)
    for name, variable in prob.var_dict.items():
        variable.value = blocks[name]
    outcomes = [outcome for piece in solved for outcome in piece.outcomes]
    last = [piece.outcomes[-1] for piece in solved]
    objective, bound = record.objective(values), sum(piece.bound for piece in solved)
    violations = record.violations(values)
    build = sum(outcome.build for outcome in outcomes)
    solve_time = sum(outcome.solve for outcome in outcomes)
    certify = time.perf_counter() - start - build - solve_time
    return ModelSolution(
        values=blocks,
        objective=objective,
        bound=bound,
        gap=(objective - bound) / record.scale,
        scale=record.scale,
        violations=violations,
        radius=min(piece.radius for piece in solved),
        raw_objective=sum(piece.raw_objective for piece in solved),
        backend=tuple(f"{outcome.backend} {outcome.version}" for outcome in last),
        status=tuple(outcome.status for outcome in last),
        iterations=tuple(sum(o.iterations for o in piece.outcomes) for piece in solved),
        parts=tuple(tuple(part) for part in parts),
        seconds={"build": build, "solve": solve_time, "certify": certify},
        tol=mark,
    )


@dataclass(frozen=True)
class _Piece:
    """The solution of one part of a model: a row, or everything."""

    values: Array
    bound: float
    radius: float
    raw_objective: float
    outcomes: tuple[Outcome, ...]


def _solve_piece(
    kind: type[ModelProblem], record: ModelRecord, backend: str, tol: float, mark: float
) -> _Piece:
    """Solve one part; once more at a tighter tolerance if the certificate asks for it."""
    outcomes: list[Outcome] = []
    best, best_cost = None, np.inf
    for asked in (tol, _TIGHTER * tol):
        problem = kind.from_record(record, normalised=True)
        outcomes.append(solve(problem, backend, asked))
        proved = _bound(problem, outcomes[-1], asked)
        raw = problem.coefficients
        assert raw is not None
        bound = proved.value * record.scale
        values = _exact_zeros(record, raw, bound, mark)
        cost = _cost(record, values, bound)
        if best is None or cost < best_cost:
            best_cost = cost
            best = _Piece(values, bound, proved.radius, record.objective(raw), tuple(outcomes))
        if cost <= _COMFORT * mark:
            break
    assert best is not None
    return replace(best, outcomes=tuple(outcomes))


def _solve_any(prob: cp.Problem, backend: str, tol: float) -> ModelSolution:
    """Solve a problem without a record; CVXPY evaluates its objective and constraints."""
    if not isinstance(prob.objective, cp.Minimize):
        raise InputError("write the problem as a minimisation")
    outcome = solve(prob, backend, tol)
    start = time.perf_counter()
    point = {variable.id: variable.value for variable in prob.variables()}
    proved = _bound(prob, outcome, tol)
    for variable in prob.variables():
        variable.value = point[variable.id]
    objective = float(np.asarray(prob.objective.value).item())
    scale = max(1.0, abs(objective))
    worst = [float(np.max(c.violation(), initial=0.0)) for c in prob.constraints]
    seconds = {"build": outcome.build, "solve": outcome.solve}
    return ModelSolution(
        values={name: np.asarray(variable.value) for name, variable in prob.var_dict.items()},
        objective=objective,
        bound=proved.value,
        gap=(objective - proved.value) / scale,
        scale=scale,
        violations={f"constraint {i}": value for i, value in enumerate(worst)},
        radius=proved.radius,
        raw_objective=objective,
        backend=(f"{outcome.backend} {outcome.version}",),
        status=(outcome.status,),
        iterations=(outcome.iterations,),
        parts=((),),
        seconds={**seconds, "certify": time.perf_counter() - start},
        tol=max(tol, GROUND_TRUTH),
    )


def _bound(problem: cp.Problem, outcome: Outcome, tol: float) -> Bound:
    """Return the lower bound of the dual point; from Clarabel where the backend gives none.

    A bound is true of the problem, whoever found the point that it is compared with.
    """
    if outcome.program is None:
        candidates("clarabel")
        outcome = run(problem, "clarabel", tol)
    assert outcome.program is not None
    assert outcome.primal is not None
    assert outcome.dual is not None
    size = float(np.abs(outcome.primal).max(initial=0.0))
    return lower_bound(outcome.program, outcome.primal, outcome.dual, _RADIUS * max(size, 1.0))


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
