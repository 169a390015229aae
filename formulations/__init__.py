"""What is minimised: convex problems in CVXPY, with numpy records that judge their solutions.

`FORMULATIONS`, `LOSSES` and `SETS` map names to classes. A leaf package: numpy, scipy and CVXPY,
nothing else of this project. CVXPY is imported when a problem, loss or set is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from formulations.columns import Columns
from formulations.errors import CimfError, FormulationError, InputError, UnknownNameError

if TYPE_CHECKING:
    from formulations.catalogue import FORMULATIONS
    from formulations.constrained import Constrained, RowProblem
    from formulations.constraint_set import ConstraintSet
    from formulations.exact import Exact
    from formulations.fits import FITS, Fit
    from formulations.lasso import Lasso
    from formulations.least_squares import LeastSquares
    from formulations.level import Penalty, Radius
    from formulations.loss import Loss
    from formulations.losses import LOSSES
    from formulations.matrix_rows import Rows
    from formulations.problem import ExactRecord, ModelRecord, RelaxedRecord, RowRecord
    from formulations.relaxed import ModelProblem, OutputRow, Relaxed, StateRow
    from formulations.sets import SETS
    from formulations.state_rows import StateRows
    from formulations.terms import Check

_MODULES = {
    "FITS": "fits",
    "FORMULATIONS": "catalogue",
    "LOSSES": "losses",
    "SETS": "sets",
    "Check": "terms",
    "Constrained": "constrained",
    "ConstraintSet": "constraint_set",
    "Exact": "exact",
    "ExactRecord": "problem",
    "Fit": "fits",
    "Lasso": "lasso",
    "LeastSquares": "least_squares",
    "Loss": "loss",
    "ModelProblem": "relaxed",
    "ModelRecord": "problem",
    "OutputRow": "relaxed",
    "Penalty": "level",
    "Radius": "level",
    "Relaxed": "relaxed",
    "RelaxedRecord": "problem",
    "RowProblem": "constrained",
    "RowRecord": "problem",
    "Rows": "matrix_rows",
    "StateRow": "relaxed",
    "StateRows": "state_rows",
}

__all__ = [
    "FITS",
    "FORMULATIONS",
    "LOSSES",
    "SETS",
    "Check",
    "CimfError",
    "Columns",
    "Constrained",
    "ConstraintSet",
    "Exact",
    "ExactRecord",
    "Fit",
    "FormulationError",
    "InputError",
    "Lasso",
    "LeastSquares",
    "Loss",
    "ModelProblem",
    "ModelRecord",
    "OutputRow",
    "Penalty",
    "Radius",
    "Relaxed",
    "RelaxedRecord",
    "RowProblem",
    "RowRecord",
    "Rows",
    "StateRow",
    "StateRows",
    "UnknownNameError",
]


def __getattr__(name: str) -> Any:
    """Import the module of a public name on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module 'formulations' has no attribute {name!r}")
    return getattr(importlib.import_module(f"formulations.{_MODULES[name]}"), name)
