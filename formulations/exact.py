"""Exact matching, problem (2) of the paper, with a preflight and a tolerance form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from formulations.columns import per_row
from formulations.errors import FormulationError
from formulations.least_squares import LeastSquares
from formulations.problem import ExactRecord
from formulations.registry import known_names
from formulations.relaxed import ModelProblem, checked, states_and_targets

# ||z - M w|| / ||z|| at a least-squares solution that still counts as matched exactly. States
# captured in float64 leave 1e-15, states rounded to float32 leave 3e-8.
_EXACT = 1e-11


@dataclass(frozen=True)
class Preflight:
    """What least squares says about exact matching before any solver runs.

    Attributes
    ----------
    rank : int
        Numerical rank of (X; U).
    shape : (N, m)
        Its shape.
    residual : (r,)
        Smallest ||z_i - M w|| / ||z_i|| over all w, for the rows of Z, then of Y.
    """

    rank: int
    shape: tuple[int, int]
    residual: NDArray[np.float64]


class Exact(ModelProblem):
    r"""(2): min l(A,B,C,D) subject to Z = A X + B U, Y = C X + D U, ||A||_inf <= kappa, and C.

    A CVXPY problem with variables "A", "B", "C", "D" and `record`. The equations are handed to the
    solver on an orthonormal basis of the range of M, so there are as many as its rank: m > N
    equations in N unknowns are consistent only up to rounding.

    Parameters
    ----------
    X, U, Z, Y, kappa, loss, sets, sample_weight
        As `Relaxed`. Weights matter where there is a tolerance, and where they are 0.
    tolerance : float
        Each row may miss its target by tolerance * ||z_i||. 0: exact.

    Attributes
    ----------
    preflight : Preflight

    Raises
    ------
    FormulationError
        "infeasible because ...": no W matches some row, whatever the loss and the ball.
    InputError, FormulationError
        As `Relaxed`.
    """

    record: ExactRecord
    preflight: Preflight

    @known_names
    def __init__(
        self,
        X: ArrayLike,
        U: ArrayLike,
        Z: ArrayLike,
        Y: ArrayLike,
        *,
        kappa: ArrayLike | None = 0.99,
        loss: Any = "l1",
        sets: Any = (),
        tolerance: float = 0.0,
        sample_weight: ArrayLike | None = None,
    ) -> None:
        fit, n, index = states_and_targets(X, U, Z, Y)
        if sample_weight is not None:
            fit = LeastSquares.from_arrays(fit.design, fit.target, sample_weight)
        tolerance = float(per_row("tolerance", tolerance, 1)[0])
        self.preflight = preflight(fit)
        _refuse_unmatched(self.preflight, n, tolerance)
        self._build(ExactRecord(*checked(fit, n, index, kappa, loss, sets), tolerance))

    def _matching(self, values: cp.Expression, scale: float) -> tuple[Any, list[cp.Constraint]]:
        record: ExactRecord = self.record
        size = np.sqrt(record.fit.target_sq.max(initial=0.0)) or 1.0
        u, s, vt, _ = _range(record.fit)
        target = u.T @ record.fit.target
        if record.tolerance == 0.0:
            return 0.0, [(s[:, None] * vt / size) @ values.T == target / size]
        reach = np.square(record.tolerance) * record.fit.target_sq
        slack = np.sqrt(np.maximum(reach - record.fit.target_sq + np.square(target).sum(axis=0), 0))
        norm = np.sqrt(record.fit.target_sq)
        norm = np.where(norm > 0, norm, 1.0)
        missed = ((s[:, None] * vt) @ values.T - target) @ np.diag(1.0 / norm)
        return 0.0, [cp.norm(missed, 2, axis=0) <= slack / norm]


def preflight(fit: LeastSquares) -> Preflight:
    """Return rank and least-squares residuals of the matching equations."""
    u, s, _, shape = _range(fit)
    rest = fit.target - u @ (u.T @ fit.target)
    norm = np.sqrt(fit.target_sq)
    missed = np.sqrt(np.square(rest).sum(axis=0) + fit.remainder)
    return Preflight(s.size, shape, missed / np.where(norm > 0, norm, 1.0))


def _range(fit: LeastSquares) -> tuple[Any, Any, Any, tuple[int, int]]:
    """Return the thin SVD of M cut at its numerical rank, and the shape of (X; U)."""
    u, s, vt = scipy.linalg.svd(fit.design, full_matrices=False)
    rank = int((s > np.finfo(np.float64).eps * max(fit.design.shape) * s[0]).sum())
    m, n = fit.design.shape
    return u[:, :rank], s[:rank], vt[:rank], (n, m)


def _refuse_unmatched(found: Preflight, n_states: int, tolerance: float) -> None:
    limit = max(tolerance, _EXACT)
    bad = np.flatnonzero(found.residual > limit)
    if not bad.size:
        return
    worst = int(bad[np.argmax(found.residual[bad])])
    name = f"row {worst} of Z" if worst < n_states else f"row {worst - n_states} of Y"
    rows, samples = found.shape
    raise FormulationError(
        f"infeasible because {name} is no linear combination of the rows of (X; U): its "
        f"least-squares residual is {found.residual[worst]:.2g} of its norm, {limit:.0e} allowed "
        f"({bad.size} such rows; (X; U) has {rows} rows of rank {found.rank}, {samples} samples). "
        "Capture the states in float64 (float32 rounding alone leaves 3e-8), give a tolerance "
        f"above {found.residual.max():.2g}, or use 'relaxed'"
    )
