"""Row problems whose data are uncertain: the worst case of the residual, as a second-order cone."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from formulations.columns import as_float64, per_row
from formulations.errors import InputError, UnknownNameError
from formulations.least_squares import sample_weights
from formulations.registry import known_names

Array = NDArray[np.float64]

ERRORS = ("matrix", "columns", "samples")


class RobustRow(cp.Problem):
    r"""min over a of the worst ||(M + E) a - z||_2 over errors E, ||a||_1 <= kappa.

    What the errors may be, and what the worst case then is:

    ========== ========================= ============================================
    `errors`   E                         worst case
    ========== ========================= ============================================
    "matrix"   ||E||_2 <= rho            ||M a - z||_2 + rho ||a||_2
    "columns"  ||E e_j||_2 <= rho_j      ||M a - z||_2 + sum_j rho_j |a_j|
    "samples"  ||E' e_k||_2 <= rho_k     sqrt(sum_k (|m_k' a - z_k| + rho_k ||a||_2)^2)
    ========== ========================= ============================================

    A CVXPY problem with the variable "a" (N,); `cimf.solve_cvxpy` certifies it by the dual bound of
    the cone program. `worst_error` gives errors that attain the worst case.

    Parameters
    ----------
    design : (m, N)
        M = (X', U').
    target : (m,)
        z.
    rho : float; (N,) for "columns", (m,) for "samples"
        >= 0, in the units of M.
    errors : str
        As above.
    kappa : float, optional
        None: no ball.
    bounded : (N,) bool, optional
        Columns inside the ball. Default: all.
    certain : (N,) bool, optional
        Columns without errors, such as the bias. Default: none.
    sample_weight : (m,), optional
        s_k >= 0: the norm of the residual is sqrt(sum_k s_k r_k^2). Integers are repeated samples,
        whose errors are bounded together ("matrix", "columns") or each ("samples"). Samples of
        weight 0 are left out: `design`, `target`, `rho` and errors are those of the others.

    Raises
    ------
    InputError, UnknownNameError
        Wrong shapes, NaN, negative rho or kappa, unknown `errors`.

    References
    ----------
    El Ghaoui and Lebret, Robust solutions to least-squares problems with uncertain data (1997), for
    "matrix"; Xu, Caramanis and Mannor, Robust regression and Lasso (2010), for "columns".
    """

    @known_names
    def __init__(
        self,
        design: ArrayLike,
        target: ArrayLike,
        rho: ArrayLike,
        *,
        errors: str = "columns",
        kappa: float | None = None,
        bounded: ArrayLike | None = None,
        certain: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> None:
        m, z = as_float64("design", design, 2), as_float64("target", target, 1)
        if z.shape != m.shape[:1] or not m.size:
            raise InputError(f"design {m.shape} and target {z.shape}: (m, N) and (m,) needed")
        if errors not in ERRORS:
            raise UnknownNameError("errors", errors, ERRORS)
        self.design, self.target, self.errors = m, z, errors
        length = {"matrix": 1, "columns": m.shape[1], "samples": m.shape[0]}[errors]
        self.rho = per_row("rho", rho, length)
        self.root = np.ones(len(z))
        if sample_weight is not None:
            weight, kept = sample_weights(sample_weight, len(z))
            m, z, self.root = m[kept], z[kept], np.sqrt(weight)
            self.rho = self.rho[kept] if errors == "samples" else self.rho
            self.design, self.target = m, z
        self.certain = _mask("certain", certain, m.shape[1], False)
        inside = _mask("bounded", bounded, m.shape[1], True)
        a = cp.Variable(m.shape[1], name="a")
        root = self.root
        residual, moved = (root[:, None] * m) @ a - root * z, a[np.flatnonzero(~self.certain)]
        norm = cp.norm2(moved) if moved.size else cp.Constant(0.0)
        if errors == "matrix":
            worst = cp.norm2(residual) + float(self.rho[0]) * norm
        elif errors == "columns":
            worst = cp.norm2(residual) + cp.abs(a) @ np.where(self.certain, 0.0, self.rho)
        else:
            worst = cp.norm2(cp.abs(residual) + norm * (root * self.rho))
        constraints: list[cp.Constraint] = []
        if kappa is not None:
            radius = float(per_row("kappa", kappa, 1)[0])
            ball = a[np.flatnonzero(inside)]
            if ball.size:  # a ball of radius zero has no interior
                constraints = [ball == 0] if radius == 0 else [cp.norm1(ball) <= radius]
        super().__init__(cp.Minimize(worst), constraints)

    def worst_case(self, coef: ArrayLike) -> float:
        """Return the worst ||(M + E) a - z||_2 at a = coef (N,)."""
        a = as_float64("coef", coef, 1)
        residual, moved = self.design @ a - self.target, np.where(self.certain, 0.0, a)
        if self.errors == "samples":
            each = np.abs(residual) + self.rho * np.linalg.norm(moved)
            return float(np.linalg.norm(self.root * each))
        size = (
            self.rho[0] * np.linalg.norm(moved)
            if self.errors == "matrix"
            else self.rho @ np.abs(moved)
        )
        return float(np.linalg.norm(self.root * residual) + size)

    def worst_error(self, coef: ArrayLike) -> Array:
        """Return errors E (m, N) that attain the worst case at a = coef (N,)."""
        a = as_float64("coef", coef, 1)
        residual, moved = self.design @ a - self.target, np.where(self.certain, 0.0, a)
        if self.errors == "samples":
            signs = np.where(residual < 0, -1.0, 1.0)
            return _outer(signs * self.rho, moved / (np.linalg.norm(moved) or 1.0))
        along = residual if residual.any() else np.eye(len(residual))[0]
        along = along / np.linalg.norm(self.root * along)
        if self.errors == "matrix":
            return _outer(self.rho[0] * along, moved / (np.linalg.norm(moved) or 1.0))
        return _outer(along, self.rho * np.sign(moved))


def _outer(left: Array, right: Array) -> Array:
    product: Array = np.outer(left, right)
    return product


def _mask(name: str, value: Any, length: int, default: bool) -> NDArray[np.bool_]:
    if value is None:
        return np.full(length, default)
    found = np.asarray(value)
    if found.shape != (length,) or found.dtype != bool:
        raise InputError(f"{name} must be {length} booleans, got shape {found.shape}")
    return found
