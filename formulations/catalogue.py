"""FORMULATIONS: name -> class; a class is called with data and is a CVXPY problem."""

from __future__ import annotations

from formulations.constrained import Constrained, RowProblem
from formulations.exact import Exact
from formulations.lasso import Lasso
from formulations.registry import Registry
from formulations.relaxed import ModelProblem, OutputRow, Relaxed, StateRow
from formulations.robust import RobustRow

FORMULATIONS: Registry[type[RowProblem] | type[ModelProblem] | type[RobustRow]] = Registry(
    "formulation",
    {
        "constrained": Constrained,  # P(kappa), paper section 3
        "lasso": Lasso,  # Q(lam)
        "relaxed": Relaxed,  # (3)
        "state-row": StateRow,  # (4)
        "output-row": OutputRow,  # (5)
        "exact": Exact,  # (2)
        "robust-row": RobustRow,  # a row whose data are uncertain
    },
)
