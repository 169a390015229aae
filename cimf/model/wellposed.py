"""Well-posedness of X = phi(A X + B U): structure, Perron-Frobenius bounds, rescaling.

With L = diag(Lipschitz constants of the activations), x -> phi(A x + b) satisfies
|phi(A x + b) - phi(A y + b)| <= L |A| |x - y| entry by entry. So a unique equilibrium exists for
every b, and fixed-point iteration finds it, if the Perron-Frobenius eigenvalue of L |A| is below 1
(the paper's Theorem 7 with L = 1). ||L A||_inf < 1 is a special case; an acyclic A, whose
eigenvalue is 0, is another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.csgraph import connected_components

from cimf.errors import InputError
from formulations.columns import as_float64, as_mask

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Wellposedness:
    """Which sufficient condition for a unique equilibrium holds, and by how much.

    Attributes
    ----------
    row_norm : float
        max_i L_i sum_j |A_ij|.
    pf_lower, pf_upper : float
        Bounds of the Perron-Frobenius eigenvalue of diag(L) |A| (Collatz-Wielandt, so the upper one
        holds whether or not the iteration behind it converged). Both exactly 0 for an acyclic A.
    acyclic : bool
        Whether no state depends on itself, directly or through others.
    n_levels : int
        Steps of forward substitution for an acyclic A, 0 otherwise.
    condition : str
        The strongest condition that holds: "acyclic", "row-sum norm", "Perron-Frobenius" or "none".
    margin : float
        1 minus the value of that condition (1 for acyclic); for "none" 1 - pf_upper, <= 0.
    wellposed : bool
        Whether one of them holds. False means not proved, not ill-posed.
    """

    row_norm: float
    pf_lower: float
    pf_upper: float
    acyclic: bool
    n_levels: int
    condition: str
    margin: float

    @property
    def wellposed(self) -> bool:
        """Whether a unique equilibrium is proved for every input."""
        return self.condition != "none"

    def __str__(self) -> str:
        return (
            f"{'well-posed' if self.wellposed else 'not proved well-posed'} "
            f"(condition: {self.condition}, margin {self.margin:.3g}; Perron-Frobenius "
            f"eigenvalue {self.pf_upper:.4g}, row-sum norm {self.row_norm:.4g} in its own units)"
        )


def wellposedness(A: Any, lipschitz: Array) -> Wellposedness:
    """Return the report for A (n, n), dense or scipy.sparse, and L (n,)."""
    magnitude = _magnitude(A)
    scaled = (scipy.sparse.diags_array(lipschitz) @ magnitude).tocsr()
    row_norm = float(scaled.sum(axis=1).max(initial=0.0)) if scaled.shape[0] else 0.0
    order = levels(magnitude)
    if order is not None:
        return Wellposedness(row_norm, 0.0, 0.0, True, len(order), "acyclic", 1.0)
    lower, upper = perron_frobenius(scaled)
    if row_norm < 1.0:
        condition, margin = "row-sum norm", 1.0 - row_norm
    else:
        condition, margin = ("Perron-Frobenius" if upper < 1.0 else "none"), 1.0 - upper
    return Wellposedness(row_norm, lower, upper, False, 0, condition, margin)


def levels(A: Any) -> list[NDArray[np.intp]] | None:
    """Return the rows of A in the order of forward substitution, or None if A has a cycle.

    Level k holds the rows that need only rows of levels before k, sorted.
    """
    graph = _magnitude(A)
    n = graph.shape[0]
    column = graph.tocsc()
    waiting = np.diff(graph.indptr)
    ready = np.flatnonzero(waiting == 0)
    found: list[NDArray[np.intp]] = []
    done = 0
    while ready.size:
        found.append(ready)
        done += ready.size
        users = column[:, ready].indices
        np.subtract.at(waiting, users, 1)
        users = np.unique(users)
        ready = users[waiting[users] == 0]
    return found if done == n else None


def perron_frobenius(M: Any, rtol: float = 1e-10, max_iter: int = 100) -> tuple[float, float]:
    """Return bounds of the largest eigenvalue of a non-negative matrix M (n, n).

    Noda's inverse iteration on every strongly connected component: for v > 0 the eigenvalue lies
    between the smallest and the largest (M v)_i / v_i, and the bounds close quadratically.
    """
    matrix = scipy.sparse.csr_array(M)
    n_parts, label = connected_components(matrix, directed=True, connection="strong")
    lower = upper = float(matrix.diagonal().max(initial=0.0))
    size = np.bincount(label, minlength=n_parts)
    for part in np.flatnonzero(size > 1):
        index = np.flatnonzero(label == part)
        low, high = _noda(matrix[index][:, index], rtol, max_iter)
        lower, upper = max(lower, low), max(upper, high)
    return lower, upper


def _noda(block: Any, rtol: float, max_iter: int) -> tuple[float, float]:
    n = block.shape[0]
    dense = block.nnz > 0.1 * n * n
    work = block.toarray() if dense else block.tocsc()
    identity = np.eye(n) if dense else scipy.sparse.eye_array(n, format="csc")
    v = np.ones(n)
    low, high = 0.0, np.inf
    for _ in range(max_iter):
        ratio = (work @ v) / v
        low, high = max(low, float(ratio.min())), min(high, float(ratio.max()))
        if high - low <= rtol * high:
            break
        # Just above the bound the matrix is a nonsingular M-matrix: its inverse is positive.
        shifted = (high * (1.0 + 1e-14)) * identity - work
        try:
            v_new = (
                np.linalg.solve(shifted, v) if dense else scipy.sparse.linalg.splu(shifted).solve(v)
            )
        except (np.linalg.LinAlgError, RuntimeError):
            break  # singular to rounding: the bounds found so far stand
        if not (np.isfinite(v_new).all() and (v_new > 0).all()):
            break
        v = v_new / v_new.max()
    return low, high


def homogeneous_scales(A: Any, kappa: float) -> Array:
    """Return s > 0 with sum_j |A_ij| s_j / s_i < kappa for every row i: the scaling of Theorem 8.

    For an acyclic A, s_i = max(1, sum_j |A_ij| s_j / kappa) in the order of forward substitution;
    otherwise s solves s = |A| s / kappa + 1, so that every row sum becomes kappa (1 - 1 / s_i).

    Raises
    ------
    InputError
        If kappa is not above the Perron-Frobenius eigenvalue of |A|: no scaling can do it.
    """
    if not (np.isfinite(kappa) and kappa > 0):
        raise InputError(f"kappa must be a positive number, got {kappa}")
    magnitude = _magnitude(A)
    n = magnitude.shape[0]
    order = levels(magnitude)
    if order is not None:
        inside = kappa * (1.0 - 1e-12)  # so that rounding keeps the row sums below kappa
        s = np.ones(n)
        for rows in order[1:]:
            s[rows] = np.maximum(1.0, (magnitude[rows] @ s) / inside)
        return _finite_scale(s)
    lower, upper = perron_frobenius(magnitude)
    if upper < kappa * (1.0 - 1e-9):  # closer, the scales would exceed 1e9
        system = scipy.sparse.eye_array(n, format="csc") - magnitude.tocsc() / kappa
        s = scipy.sparse.linalg.splu(system).solve(np.ones(n))
        if (s > 0).all() and ((magnitude @ s) / s < kappa).all():
            return _finite_scale(s)
    raise InputError(
        f"no diagonal scaling brings the row sums of |A| below kappa = {kappa:g}: they stay at or "
        f"above its Perron-Frobenius eigenvalue, {lower:.6g}"
    )


def state_scales(
    A: Any,
    B: Any,
    kappa: float = 0.99,
    bounded_inputs: ArrayLike | None = None,
    scalable: ArrayLike | None = None,
) -> Array:
    """Return the state scales for which a network is itself a feasible point of its row problems.

    In the units x_i = s_i x~_i row i of the network's own (A, B) has the bounded l1 norm

        sum_j |A_ij| s_j / s_i + sum_{j bounded} |B_ij| / s_i,

    and s_i is chosen so that it equals kappa exactly: in the order of forward substitution, and by
    s = (|A| s + |B| 1) / kappa where A has feedback.

    Parameters
    ----------
    A : (n, n), B : (n, p)
        Dense or scipy.sparse.
    kappa : float
        Radius of the ball, > 0.
    bounded_inputs : (p,) bool, optional
        Inputs inside the ball; the bias column is usually False. Default: all.
    scalable : (n,) bool, optional
        Rows that may be scaled (a positively homogeneous activation); the others keep s_i = 1, and
        may stay infeasible. Default: all.

    Returns
    -------
    (n,)
        s > 0. A row without bounded weights (a dead unit) has s_i = 1.

    Raises
    ------
    InputError
        Wrong shapes; a scale overflows; A has feedback and a state that may not be scaled, or an
        eigenvalue of |A| that is not below kappa.
    """
    if not (np.isfinite(kappa) and kappa > 0):
        raise InputError(f"kappa must be a positive number, got {kappa}")
    magnitude, inputs = _magnitude(A), _magnitude(B)
    n, p = inputs.shape
    if magnitude.shape != (n, n):
        raise InputError(f"A {magnitude.shape} and B {inputs.shape} do not fit together")
    inside = _mask("bounded_inputs", bounded_inputs, p)
    allowed = _mask("scalable", scalable, n)
    order = levels(magnitude)
    from_inputs = inputs @ inside.astype(np.float64)
    if order is None:
        return _scales_with_feedback(magnitude, from_inputs, kappa, allowed)
    s = np.ones(n)
    for rows in order:
        norm = (magnitude[rows] @ s + from_inputs[rows]) / kappa
        s[rows] = np.where(allowed[rows] & (norm > 0), norm, 1.0)
    return _finite_scale(s)


def layer_scales(
    A: Any,
    B: Any,
    layers: Sequence[slice],
    kappa: float = 0.99,
    bounded_inputs: ArrayLike | None = None,
    scalable: ArrayLike | None = None,
) -> Array:
    """Return `state_scales` with one scale for all states of a layer: that of its largest row.

    Parameters
    ----------
    layers : sequence of slice
        Rows of every layer, each behind those that it reads.

    Raises
    ------
    InputError
        As `state_scales`; a layer that reads itself or a later one so much that no scale of its
        own brings its rows into the ball.
    """
    magnitude, inputs = _magnitude(A), _magnitude(B)
    n, p = inputs.shape
    from_inputs = inputs @ _mask("bounded_inputs", bounded_inputs, p).astype(np.float64)
    allowed = _mask("scalable", scalable, n)
    s = np.ones(n)
    for rows in layers:
        if allowed[rows].all():
            # Row sums (own s + others) / s <= kappa.
            own = np.asarray(magnitude[rows, rows].sum(axis=1))
            others = magnitude[rows] @ s + from_inputs[rows] - own * s[rows]
            room = kappa - own
            needed = np.divide(others, room, out=np.zeros_like(others), where=room > 0)
            s[rows] = needed.max(initial=0.0) or 1.0
    s = _finite_scale(s)
    sums = (magnitude @ s + from_inputs) / s
    if (sums[allowed] > kappa * (1.0 + 1e-9)).any():
        raise InputError(
            f"no scale per layer makes the model feasible at kappa = {kappa:g}: a layer has too "
            "much feedback; use rescale=True or False"
        )
    return s


def _scales_with_feedback(
    magnitude: Any, from_inputs: Array, kappa: float, allowed: NDArray[np.bool_]
) -> Array:
    """Return s = (|A| s + from_inputs) / kappa, > 0 where it can be."""
    if not allowed.all():
        raise InputError(
            "A has feedback and an activation is not positively homogeneous: its states cannot be "
            "rescaled; use rescale=False"
        )
    lower, upper = perron_frobenius(magnitude)
    if upper < kappa * (1.0 - 1e-9):  # closer, the scales would exceed 1e9
        system = (
            scipy.sparse.eye_array(magnitude.shape[0], format="csc") - magnitude.tocsc() / kappa
        )
        s = scipy.sparse.linalg.splu(system.tocsc()).solve(from_inputs / kappa)
        if (s >= 0).all():
            # A state that no input reaches is constant: any unit does.
            return _finite_scale(np.where(s > 0, s, 1.0))
    raise InputError(
        f"no scaling of the states makes the model feasible at kappa = {kappa:g}: the "
        f"Perron-Frobenius eigenvalue of |A| is {lower:.6g}; use rescale=False"
    )


def scale_rows(A: Any, B: Any, C: Any, scale: Array) -> tuple[Any, Any, Any]:
    """Return S^-1 A S, S^-1 B, C S: the matrices in the units x~ = x / s (Theorem 8)."""
    inverse = 1.0 / scale
    return _two_sided(inverse, A, scale), _two_sided(inverse, B, None), _two_sided(None, C, scale)


def _two_sided(left: Array | None, matrix: Any, right: Array | None) -> Any:
    out = matrix
    if left is not None:
        out = (
            scipy.sparse.diags_array(left) @ out
            if scipy.sparse.issparse(out)
            else left[:, None] * out
        )
    if right is not None:
        out = out @ scipy.sparse.diags_array(right) if scipy.sparse.issparse(out) else out * right
    return out


def _magnitude(matrix: Any) -> Any:
    """Return |matrix| as CSR without stored zeros."""
    out = abs(
        scipy.sparse.csr_array(
            matrix if scipy.sparse.issparse(matrix) else as_float64("matrix", matrix, 2)
        )
    )
    out.sum_duplicates()
    out.eliminate_zeros()
    return out


def _mask(name: str, value: ArrayLike | None, length: int) -> NDArray[np.bool_]:
    return np.ones(length, dtype=bool) if value is None else as_mask(name, value, length)


def _finite_scale(s: Array) -> Array:
    if not np.isfinite(s).all() or s.max(initial=1.0) > 1e150:
        raise InputError("the scales overflow: too many levels with weights this large")
    return s
