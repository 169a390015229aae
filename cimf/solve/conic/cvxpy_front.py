"""`solve_cvxpy`: a CVXPY problem of `formulations` (or any other) in, a certified solution out.

Backends see a reduced problem (at most N samples) of unit scale; what they return is mapped back,
moved inside the constraints, rounded to exact zeros where the certificate allows, and judged on
the data as given.
"""

from __future__ import annotations

import cvxpy as cp

from cimf.errors import InputError
from cimf.judge.model_solution import ModelSolution
from cimf.solve.conic.cvxpy_models import solve_any, solve_model
from cimf.solve.conic.cvxpy_rows import CvxpySolution, Progress, solve_record
from formulations.constrained import RowProblem
from formulations.relaxed import ModelProblem


def solve_cvxpy(
    prob: cp.Problem,
    backend: str = "auto",
    tol: float = 1e-9,
    *,
    progress: Progress | None = None,
    n_jobs: int | None = None,
) -> CvxpySolution | ModelSolution:
    """Solve a CVXPY problem with a named backend and certify what comes back.

    Parameters
    ----------
    prob : cvxpy.Problem
        A problem of `formulations.FORMULATIONS`, whose record then judges the solution; or any
        convex minimisation, judged by the bound of its cone program alone. Row-separable problems
        are solved row by row, others whole. Its variables are set to the solution.
    backend : str
        "auto": the first that works here, in the order mosek, clarabel. Or the name of any solver
        that CVXPY has installed (scs, osqp, ...), in any case; all are judged by the same
        certificates, and `raw` and `backend` of the solution say what each reached.
    tol : float
        Asked of the backend, translated into its own settings. The certificate's pass mark is
        max(tol, 1e-7).
    progress : function of int, optional
        Called with the number of rows done so far.
    n_jobs : int, optional
        Processes for the rows of a separable problem in A, B, C, D, through joblib (CVXPY is not
        safe in threads). Default: what `joblib.parallel_config` says, else this process. The
        answer does not depend on it.

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
    InputError
        Not a minimisation, a parameter without a value, or no processes.
    FormulationError
        The problem is infeasible or unbounded, or not convex by the DCP rules.
    """
    check_solvable(prob, n_jobs)
    if isinstance(prob, RowProblem):
        solution = solve_record(type(prob), prob.record, backend, tol, progress)
        prob.coefficients = solution.coef
        return solution
    if isinstance(prob, ModelProblem):
        return solve_model(prob, backend, tol, progress, n_jobs)
    return solve_any(prob, backend, tol)


def check_solvable(prob: cp.Problem, n_jobs: int | None) -> None:
    """Refuse what is no problem, parameters without a value, and no processes.

    Raises
    ------
    InputError
    """
    if not isinstance(prob, cp.Problem):
        raise InputError(f"a cvxpy.Problem is needed, got {type(prob).__name__}")
    unset = [parameter.name() for parameter in prob.parameters() if parameter.value is None]
    if unset:
        raise InputError(f"the parameters {', '.join(unset)} have no value: set .value first")
    if n_jobs == 0:
        raise InputError("n_jobs must not be 0: a number of processes, -1 for all cores, or None")
