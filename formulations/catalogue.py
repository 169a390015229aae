"""FORMULATIONS: name -> class; a class is called with data and is a CVXPY problem."""

from __future__ import annotations

from formulations.constrained import Constrained, RowProblem
from formulations.exact import Exact
from formulations.lasso import Lasso
from formulations.registry import Registry
from formulations.relaxed import ModelProblem, OutputRow, Relaxed, StateRow

FORMULATIONS: Registry[type[RowProblem] | type[ModelProblem]] = Registry(
    "formulation",
    {
        "constrained": Constrained,
        "lasso": Lasso,
        "relaxed": Relaxed,
        "state-row": StateRow,
        "output-row": OutputRow,
        "exact": Exact,
    },
)
