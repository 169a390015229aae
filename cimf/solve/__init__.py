"""How row problems are solved, and by whom: the front doors, loaded on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cimf.solve.conic.cvxpy_front import solve_cvxpy as solve_cvxpy
    from cimf.solve.conic.cvxpy_rows import solve_path_cvxpy as solve_path_cvxpy
    from cimf.solve.rows import solve_path as solve_path
    from cimf.solve.rows import solve_rows as solve_rows

# Public name -> module that defines it: whoever solves rows on a Gram does not wait for CVXPY.
_HOMES = {
    "solve_cvxpy": "cimf.solve.conic.cvxpy_front",
    "solve_path": "cimf.solve.rows",
    "solve_path_cvxpy": "cimf.solve.conic.cvxpy_rows",
    "solve_rows": "cimf.solve.rows",
}

__all__ = ["solve_cvxpy", "solve_path", "solve_path_cvxpy", "solve_rows"]


def __getattr__(name: str) -> Any:
    """Import the module of a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'cimf.solve' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
