"""Convex objectives for the rows of (A, B), each with one level, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from cimf.methods.stacked.assemble import Sparsified
from cimf.methods.stacked.captured import FEASIBLE_AT, Reference, Rescale
from cimf.methods.stacked.designs import DESIGNS
from cimf.methods.stacked.loss_options import LossOptions
from cimf.methods.stacked.moments import Moments
from cimf.methods.stacked.path_options import PathOptions
from cimf.methods.stacked.row_problems import RowProblems
from cimf.methods.stacked.sensitivity_options import SensitivityOptions
from cimf.methods.stacked.sparsify import sparsify_path
from cimf.model.constant_states import without_constant_states
from cimf.solve import solve_rows
from formulations import LOSSES

# Below the knee t the perspective is |w|, beyond it the squares of the ridge that it stands beside:
# l0 = t/2, l2 = 1/t. Rescaled rows have l1 norm <= 0.99 over some hundred columns: with the default
# knee, 1.41, no weight is beyond it, and the loss is the l1 norm, multiplied. At 0.01 of the
# digits' layered teacher 1,008 of 1,656 weights of (A, B) are beyond it (l1, lam 0.65), of the
# implicit one, whose rows have norms below 0.2, 7 of 1,572 (lam 0.00156).
_KNEE = 0.01


class Problem(NamedTuple):
    """What the rows of one model are to match, and how."""

    reference: Reference
    moments: Moments
    design: str
    rescale: Rescale

    @classmethod
    def of(cls, reference: Reference, design: str, rescale: Rescale = True) -> Problem:
        """Return the problem with its moments, which all levels share."""
        return cls(reference, Moments.of(reference, rescale), design, rescale)

    def solved(self, kappa: float | None, options: Any, shared: bool = True) -> Sparsified:
        """Return the certified model of the main job."""
        moments = self.moments if shared else None
        given = self.reference, [kappa], self.design, self.rescale, options
        return sparsify_path(*given, moments=moments)[0]


def plain_ball(problem: Problem, kappa: float) -> Sparsified:
    """Match the states inside the ball."""
    return problem.solved(kappa, PathOptions())


def lasso(problem: Problem, lam: float) -> Sparsified:
    """Minimise what loss "l1" does without a ball, Q(lam), by the row solver.

    `cimf.sparsify(loss="l1", kappa=None)` writes the same rows as cone programs: 1.4 s for one row
    of 784 inputs, where the row solver takes 0.6 s for all 112 rows. The rows are within the ball
    at 0.99 of themselves: the network is there, and fits.
    """
    rows = RowProblems.of(problem.reference, problem.design, problem.rescale, problem.moments)
    solution = solve_rows(rows.moments.gram, lam=lam, weights=rows.weights).raise_if_failed()
    return rows.sparsified(np.inf, solution, PathOptions())


def sensitivity(problem: Problem, kappa: float) -> Sparsified:
    """Bound the sensitivity by a share of the teacher's; C and D are sparse as well.

    D may use the inputs where the design has feedback: an implicit teacher's does.
    """
    options = SensitivityOptions(output_inputs=DESIGNS[problem.design].feedback, n_jobs=1)
    return problem.solved(kappa, options, shared=False)


def cone_loss(loss: str, problem: Problem, lam: float, **values: float) -> Sparsified:
    """Add a loss of `formulations` to the misfit, by a cone solver.

    In the ball in which the network itself is: with feedback it is needed, without it bounds what
    rounding of the moments can hide (gaps of 1e-6 with 784 inputs else).
    """
    return problem.solved(FEASIBLE_AT, LossOptions(loss=LOSSES[loss](**values), lam=lam))


class Objective(NamedTuple):
    """An objective, its level, and at which of its ends the models are sparse."""

    solve: Callable[[Problem, float], Sparsified]
    level: str

    @property
    def sign(self) -> int:
        """1 where a larger level is a sparser model."""
        return 1 if self.level == "lam" else -1


OBJECTIVES: dict[str, Objective] = {
    "plain ball": Objective(plain_ball, "kappa"),
    "l1": Objective(lasso, "lam"),
    "sensitivity": Objective(sensitivity, "kappa"),
    "perspective": Objective(partial(cone_loss, "perspective", l0=_KNEE / 2, l2=1 / _KNEE), "lam"),
    "row sums": Objective(partial(cone_loss, "row-sums"), "lam"),
    "group columns": Objective(partial(cone_loss, "column-group"), "lam"),
    # The Euclidean norm of every whole row.
    "group rows": Objective(partial(cone_loss, "robust"), "lam"),
}


def measured(found: Sparsified, **aside: Any) -> dict[str, Any]:
    """Return what the tables say of a model.

    Raises
    ------
    CertificateError
        A row failed its certificate.
    """
    found.report.solution.raise_if_failed()
    report = found.report.row()
    model = without_constant_states(found.model)
    parts = np.hstack([model.A, model.B]), np.hstack([model.C, model.D])
    taken = "accuracy", "output_error", "state_error", "emptied_rows", "certified", "rows"
    return {
        **aside,
        "nonzeros": sum(int(np.count_nonzero(part[:, :-1])) for part in parts),
        **{key: report[key] for key in taken},
        "worst_gap": report["worst_gap"],
    }
