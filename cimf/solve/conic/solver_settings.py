"""What CVXPY calls each solver, and how it is told a tolerance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import cvxpy as cp

from cimf.errors import UnknownNameError


@dataclass(frozen=True)
class SolverSettings:
    """How CVXPY calls a solver, how it is told a tolerance, and what helps where it stalls.

    Attributes
    ----------
    cvxpy_name : str
    package : str
        Whose version is its version.
    options : tol -> options of ``Problem.solve``
    careful : mapping
        More options for a second attempt.
    """

    cvxpy_name: str
    package: str
    options: Callable[[float], dict[str, Any]]
    careful: Mapping[str, Any] = field(default_factory=dict)


def _clarabel(tol: float) -> dict[str, Any]:
    # accept_unknown: "insufficient progress" just short of a tight tolerance returns its point,
    # which the certificate judges, instead of nothing.
    return {
        "tol_gap_abs": tol,
        "tol_gap_rel": tol,
        "tol_feas": tol,
        "max_iter": 200,
        "accept_unknown": True,
    }


def _mosek(tol: float) -> dict[str, Any]:
    names = ("REL_GAP", "PFEAS", "DFEAS", "MU_RED")
    return {"mosek_params": {f"MSK_DPAR_INTPNT_CO_TOL_{name}": tol for name in names}}


def _first_order(tol: float, limit: str) -> dict[str, Any]:
    return {"eps_abs": tol, "eps_rel": tol, limit: 100_000}


def _highs(tol: float) -> dict[str, Any]:
    least = max(tol, 1e-10)  # the smallest that it takes
    return {"primal_feasibility_tolerance": least, "dual_feasibility_tolerance": least}


def _three(tol: float) -> dict[str, Any]:
    return {"abstol": tol, "reltol": tol, "feastol": tol}


# Clarabel's default, 0.99 of the way to the boundary, can stall on exponential cones: with CVXPY
# 1.8.0, 6 of 8 problems with a softplus loss stopped after 5 iterations, gap 0.13. Steps of 0.95
# and 0.9 solved all 8; where 0.99 does not stall they take 1.1 and 1.3 times its iterations.
_SHORT_STEPS = {"max_step_fraction": 0.95}

# In the order in which "auto" tries them.
DEFAULTS: Mapping[str, SolverSettings] = {
    "mosek": SolverSettings("MOSEK", "mosek", _mosek),
    "clarabel": SolverSettings("CLARABEL", "clarabel", _clarabel, _SHORT_STEPS),
}
# Packages that are not called like their solver.
_PACKAGES = {"HIGHS": "highspy", "GUROBI": "gurobipy", "SCIP": "pyscipopt", "GLPK": "cvxopt"}
# Solvers whose tolerance has a known name; any other that CVXPY has runs at its own.
_TOLERANCES: Mapping[str, Callable[[float], dict[str, Any]]] = {
    "SCS": lambda tol: _first_order(tol, "max_iters"),
    "OSQP": lambda tol: _first_order(tol, "max_iter"),
    "ECOS": _three,
    "CVXOPT": _three,
    "HIGHS": _highs,
}


def solver_named(name: str) -> SolverSettings:
    """Return a solver by its name in CVXPY, whatever its case.

    Raises
    ------
    UnknownNameError
        No such solver is installed.
    """
    lower, upper = str(name).lower(), str(name).upper()
    if lower in DEFAULTS:
        return DEFAULTS[lower]
    others = [known for known in cp.installed_solvers() if known.lower() not in DEFAULTS]
    if upper not in others:
        known = ["auto", *DEFAULTS, *(other.lower() for other in others)]
        raise UnknownNameError("backend", name, known)
    options = _TOLERANCES.get(upper, lambda tol: {})
    return SolverSettings(upper, _PACKAGES.get(upper, lower), options)
