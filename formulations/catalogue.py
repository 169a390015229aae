"""FORMULATIONS: name -> class; a class is called with data and is a CVXPY problem."""

from __future__ import annotations

from formulations.constrained import Constrained, RowProblem
from formulations.exact import Exact
from formulations.lasso import Lasso
from formulations.relaxed import ModelProblem, OutputRow, Relaxed, StateRow

FORMULATIONS: dict[str, type[RowProblem] | type[ModelProblem]] = {
    "constrained": Constrained,
    "lasso": Lasso,
    "relaxed": Relaxed,
    "state-row": StateRow,
    "output-row": OutputRow,
    "exact": Exact,
}
