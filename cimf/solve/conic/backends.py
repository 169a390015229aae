"""Backends: which conic solvers really work here, and one strict way to run them.

A backend counts as working only if it has just solved a tiny program: `cvxpy.installed_solvers()`
lists MOSEK without a licence, and its `mosek.Error` is no `cvxpy.SolverError`, so CVXPY's own
fallback (`solver_path`) does not catch it.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from cimf.errors import BackendError, FormulationError, InputError
from cimf.judge.cone_certificate import ConeProgram, Cones, infeasible_within
from cimf.solve.conic.solver_settings import DEFAULTS, solver_named

Array = NDArray[np.float64]

# A verdict "infeasible" is passed on only if its proof excludes every point of this size.
_INFEASIBLE_RADIUS = 1e4
# By how much a solver may miss 2 in its probe: first-order methods stop at about 1e-5.
_NEAR = 1e-4


# The only statuses that come with a point worth judging. `user_limit` has one as well; it has been
# seen 3e-2 outside the ball.
_ACCEPTED: Mapping[str, str] = {cp.OPTIMAL: "optimal", cp.OPTIMAL_INACCURATE: "inaccurate"}
_INFEASIBLE = (cp.INFEASIBLE, cp.INFEASIBLE_INACCURATE)


@dataclass(frozen=True)
class BackendState:
    """What the probe of a backend found.

    Attributes
    ----------
    name : str
    version : str
        Of its package; empty where it is not installed.
    works : bool
        It has just solved a program.
    detail : str
        In words; where it does not work, exactly what is missing.
    """

    name: str
    version: str
    works: bool
    detail: str


@dataclass(frozen=True)
class Outcome:
    """What a backend did; the solution itself is in the problem's variables.

    Attributes
    ----------
    backend, version : str
    status : {"optimal", "inaccurate"}
        The solver's word.
    iterations : int
    build, solve : float
        Wall-clock seconds: compiling the problem, and the solver itself.
    program : ConeProgram or None
        What was solved, where the backend gives a dual point of it (Clarabel).
    primal, dual : (k,), (l,) or None
        That primal-dual point.
    """

    backend: str
    version: str
    status: str
    iterations: int
    build: float
    solve: float
    program: ConeProgram | None
    primal: Array | None
    dual: Array | None


def backend_report() -> list[BackendState]:
    """Return the state of the backends that "auto" tries, in that order."""
    return [probe(name) for name in DEFAULTS]


@functools.cache
def probe(name: str) -> BackendState:
    """Solve a tiny program with the backend, once per process, and say how it went.

    Raises
    ------
    UnknownNameError
        CVXPY has no such solver installed.
    """
    backend = solver_named(name)
    version = _version(backend.package)
    if not version and name in DEFAULTS:
        hint = "pip install 'cimf[mosek]'" if name == "mosek" else f"pip install {backend.package}"
        return BackendState(name, "", False, f"package {backend.package} is not installed: {hint}")
    x = cp.Variable()
    problem = cp.Problem(cp.Minimize(cp.square(x - 1.0)), [x >= 2.0])
    try:
        run(problem, name, 1e-8)
    except (BackendError, FormulationError) as error:
        cause = error.__cause__
        return BackendState(name, version, False, _why(name, version, cause or error))
    if x.value is None or abs(float(x.value.item()) - 2.0) > _NEAR:
        return BackendState(name, version, False, f"solved a test program wrongly: {x.value}")
    return BackendState(name, version, True, "solved a test program")


def candidates(backend: str) -> list[str]:
    """Return the backends to try, in order: those that work for "auto", else the one named.

    Names are those of CVXPY's installed solvers, whatever their case.

    Raises
    ------
    UnknownNameError
        For an unknown name.
    BackendError
        If the named backend (or, for "auto", every one) does not work; says what is missing.
    """
    if backend == "auto":
        working = [state.name for state in backend_report() if state.works]
        if not working:
            details = "; ".join(f"{s.name}: {s.detail}" for s in backend_report())
            raise BackendError(f"no backend works: {details}")
        return working
    solver_named(backend)
    name = backend.lower()
    state = probe(name)
    if not state.works:
        raise BackendError(f"{name} does not work here: {state.detail}")
    return [name]


def solve(problem: cp.Problem, backend: str, tol: float, *, careful: bool = False) -> Outcome:
    """Solve with the first backend of `candidates(backend)` that returns a point.

    `careful` is for a second attempt: slower settings that stall less.

    Raises
    ------
    BackendError
        If none does; the last one's error is the cause.
    FormulationError
        If the problem is proved infeasible, or is unbounded, or not convex.
    """
    if not 0 < tol < 1:
        raise InputError(f"tol must be between 0 and 1, got {tol}")
    names = candidates(backend)
    for name in names[:-1]:
        try:
            return run(problem, name, tol, careful=careful)
        except BackendError:
            continue
    return run(problem, names[-1], tol, careful=careful)


def run(problem: cp.Problem, name: str, tol: float, *, careful: bool = False) -> Outcome:
    """Solve with one backend, without probing it; `careful` as in `solve`.

    Raises
    ------
    BackendError
        The vendor's error is the cause.
    FormulationError
        As `solve`.
    """
    backend = solver_named(name)
    options = {**backend.options(tol), **(backend.careful if careful else {})}
    start = time.perf_counter()
    try:
        data, chain, inverse = problem.get_problem_data(
            backend.cvxpy_name, solver_opts=dict(options)
        )
    except cp.DCPError as error:
        raise FormulationError(f"the problem is not convex by the DCP rules: {error}") from error
    except Exception as error:
        raise BackendError(f"{name} cannot take this problem: {_first_line(error)}") from error
    built = time.perf_counter()
    try:
        raw = chain.solve_via_data(problem, data, solver_opts=dict(options))
        solution = chain.invert(raw, inverse)
    except Exception as error:
        # Vendors raise their own classes: mosek.Error derives from Exception directly.
        raise BackendError(f"{name} failed: {_first_line(error)}") from error
    seconds = (built - start, time.perf_counter() - built)
    program = primal = dual = None
    if name == "clarabel":
        primal, dual = np.array(raw.x), np.array(raw.z)
        offset = 0.0 if solution.opt_val is None else float(solution.opt_val) - raw.obj_val
        program = _cone_program(data, offset if np.isfinite(offset) else 0.0)
    if solution.status not in _ACCEPTED:
        _refuse(name, solution.status, program, dual)
    with np.errstate(invalid="ignore", divide="ignore"):
        # CVXPY evaluates the objective here: sqrt(-1e-12) is NaN, which no certificate passes.
        problem.unpack(solution)
    iterations = int(solution.attr.get("num_iters") or 0)
    status = _ACCEPTED[solution.status]
    version = _version(backend.package)
    return Outcome(name, version, status, iterations, *seconds, program, primal, dual)


def _refuse(name: str, status: str, program: ConeProgram | None, dual: Array | None) -> None:
    """Raise the error that a status without a usable point deserves."""
    if status in _INFEASIBLE:
        radius = np.inf if program is None or dual is None else infeasible_within(program, dual)
        if radius >= _INFEASIBLE_RADIUS:
            raise FormulationError(
                f"infeasible because the constraints exclude each other ({name}; proof checked for "
                f"all points of size up to {radius:.1g}): loosen kappa, the sets or the tolerance"
            )
        raise BackendError(
            f"{name} reports infeasible, but its proof excludes only points of size {radius:.1g}"
        )
    if "unbounded" in status:
        raise FormulationError(f"unbounded below ({name}): the loss must be bounded on the sets")
    raise BackendError(
        f"{name} stopped with status {status!r}, which is not accepted; a larger tol or another "
        "scaling of the data may help"
    )


def _cone_program(data: Mapping[str, Any], offset: float) -> ConeProgram:
    dims = data["dims"]
    if getattr(dims, "pnd", None):
        raise FormulationError("power cones of more than three entries have no certificate")
    cones = Cones(
        int(dims.zero),
        int(dims.nonneg),
        tuple(int(size) for size in dims.soc),
        tuple(int(order) for order in dims.psd),
        int(dims.exp),
        tuple(float(alpha) for alpha in dims.p3d),
    )
    q = np.asarray(data["c"], dtype=np.float64)
    quadratic = data.get("P")
    if quadratic is None:
        quadratic = scipy.sparse.csc_array((q.size, q.size))
    return ConeProgram(quadratic, q, data["A"], np.asarray(data["b"]), cones, offset)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _why(name: str, version: str, error: BaseException) -> str:
    """Say in words why a backend failed its probe."""
    text = _first_line(error)
    if name == "mosek" and "licen" in text.lower():
        named = os.environ.get("MOSEKLM_LICENSE_FILE")
        home = Path.home() / "mosek" / "mosek.lic"
        return (
            f"package mosek {version} is installed, but without a usable licence. MOSEK looks at "
            f"MOSEKLM_LICENSE_FILE ({f'set to {named}' if named else 'not set'}) and at {home} "
            f"({'present' if home.exists() else 'absent'}). Its own words: {text}"
        )
    return text


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
