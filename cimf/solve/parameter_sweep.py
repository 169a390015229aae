"""`sweep`: one problem of `formulations` for many values of a CVXPY parameter.

A relaxed problem is compiled once for all values (DPP), a row at a time by the process that solves
it: on moments where there are more samples than columns, each value with its certificate from the
program that was solved.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import cvxpy as cp

from cimf.errors import InputError
from cimf.judge.model_solution import ModelSolution
from cimf.solve.conic.cvxpy_front import check_solvable, solve_cvxpy
from cimf.solve.conic.cvxpy_models import solve_model_values
from cimf.solve.conic.cvxpy_rows import CvxpySolution, Progress
from formulations.relaxed import Relaxed


def sweep(
    problem: cp.Problem, parameter: cp.Parameter, values: Iterable[Any], **options: Any
) -> list[CvxpySolution | ModelSolution]:
    """Solve a problem for each value of one of its parameters, as `solve_cvxpy` would.

    The solutions are the same; a bound that passes as it is is not refined further.

    Parameters
    ----------
    problem : cvxpy.Problem
        As `solve_cvxpy`; afterwards its variables are the solution for the last value.
    parameter : cvxpy.Parameter
        Keeps its own value afterwards.
    values : iterable
        All are checked against the parameter's shape and sign before the first solve.
    **options
        Of `solve_cvxpy`: backend, tol, n_jobs (rows are shared between processes), progress (rows
        done, for all values).

    Returns
    -------
    list of CvxpySolution or ModelSolution
        One per value, in their order, each with its own certificate.

    Raises
    ------
    InputError
        The problem does not have the parameter, or a value is none of its kind.
    """
    if not isinstance(parameter, cp.Parameter):
        raise InputError(f"a cvxpy.Parameter is needed, got {type(parameter).__name__}")
    if parameter.id not in {known.id for known in problem.parameters()}:
        raise InputError(f"the problem does not depend on the parameter {parameter.name()}")
    chosen, before = list(values), parameter.value
    solutions = []
    try:
        for value in chosen:
            _set(parameter, value)
        if isinstance(problem, Relaxed) and chosen:
            return _compiled(problem, parameter, chosen, **options)
        for value in chosen:
            _set(parameter, value)
            solutions.append(solve_cvxpy(problem, **options))
    finally:
        parameter.save_value(before)
    return solutions


def _compiled(
    problem: Relaxed,
    parameter: cp.Parameter,
    values: list[Any],
    backend: str = "auto",
    tol: float = 1e-9,
    *,
    progress: Progress | None = None,
    n_jobs: int | None = None,
) -> list[CvxpySolution | ModelSolution]:
    """Solve for all values at once; the options as `solve_cvxpy`."""
    check_solvable(problem, n_jobs)
    found = list(
        solve_model_values(
            type(problem), problem.record, parameter, values, backend, tol, progress, n_jobs
        )
    )
    problem.coefficients = found[-1][0]
    return [solution for _, solution in found]


def _set(parameter: cp.Parameter, value: Any) -> None:
    if value is None:
        raise InputError(f"None is no value of the parameter {parameter.name()}")
    try:
        parameter.value = value
    except (ValueError, TypeError) as error:
        raise InputError(f"{value!r} is no value of {parameter.name()}: {error}") from error
