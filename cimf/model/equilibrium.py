"""Solving X = phi(A X + B U), one independent problem per sample.

No arithmetic mixes samples: sparse products accumulate every column by itself in a fixed order, and
a sample is frozen the moment it converges. So a sample's equilibrium, its residual and its
iteration count are the same bits whatever batch it is solved in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from cimf.errors import InputError, UnknownNameError
from cimf.model.wellposed import levels
from cimf.network.state_blocks import Block, apply_blocks

Array = NDArray[np.float64]

METHODS = ("anderson", "auto", "picard", "substitution")

# Samples solved together, so that the states stay in cache: 1.7 to 4 times faster than 8,192 at
# once for n = 112 to 2,000, and Anderson's history stays small.
_CHUNK = 256
# Points kept by Anderson acceleration; 5 is the usual choice.
_MEMORY = 5
# Relative ridge of Anderson's least squares: near convergence the differences are rounding noise.
_RIDGE = 1e-14
# A residual at the rounding of A x + b itself is as small as it gets (8 units: n = 2,000).
_ROUNDING = 8 * np.finfo(np.float64).eps
# The rounding of a state may be this much of the input; beyond, x = x + 1 holds to rounding.
_RESOLVED = 1e-6
# Residual, in units of that at x = 0, from which an iteration has got nowhere.
_NO_CLOSER = 0.99


class ConvergenceWarning(UserWarning):
    """Some samples did not reach an equilibrium; what is returned for them is a last iterate."""


@dataclass(frozen=True)
class Equilibrium:
    """Equilibria of m samples and what is known about each.

    Attributes
    ----------
    X, Z : (n, m)
        The state, and the pre-activation A X + B U at that state. Where a sample did not converge:
        its last finite iterate.
    residual : (m,)
        max_i |x - phi(A x + B u)|_i relative to the input, max_i |phi(B u)_i|: 1 at x = 0 whatever
        the units. Infinite where the iteration overflowed, or ran to states so large (4.5e9 times
        the input) that their rounding hides the input: there x = x + 1 holds in float64.
    converged : (m,) bool
        residual <= tol, or at the rounding of the state itself where that is larger; substitution
        is exact, all finite states have converged.
    iterations : (m,) int
        Evaluations of phi(A x + B u); 1 for substitution.
    method : str
        "substitution", "picard" or "anderson".
    tol : float
    """

    X: Array
    Z: Array
    residual: Array
    converged: NDArray[np.bool_]
    iterations: NDArray[np.int64]
    method: str
    tol: float

    @property
    def status(self) -> NDArray[np.str_]:
        """What became of every sample, shape (m,).

        "converged"; "stopped" after max_iter evaluations, a larger one may help; "diverged": no
        closer to an equilibrium than x = 0 was, or overflowed.
        """
        lost = ~(self.residual < _NO_CLOSER)
        return np.where(self.converged, "converged", np.where(lost, "diverged", "stopped"))


def solve_equilibrium(
    A: Any,
    BU: Array,
    blocks: Sequence[Block],
    method: str = "auto",
    tol: float = 1e-12,
    max_iter: int = 2000,
    progress: Callable[[int], None] | None = None,
) -> Equilibrium:
    """Solve X = phi(A X + BU).

    Parameters
    ----------
    A : (n, n)
        Dense or scipy.sparse.
    BU : (n, m)
        B U.
    blocks : sequence of Block
        The activations by rows.
    method : {"auto", "substitution", "picard", "anderson"}
        "substitution" needs an acyclic A and is exact; "auto" takes it where it applies and
        "anderson" (Anderson acceleration, falling back to plain steps where it does not help)
        elsewhere; "picard" is x <- phi(A x + b) from x = 0.
    tol, max_iter
        Per sample: stop at this residual, or after this many evaluations.
    progress : callable, optional
        Called with the number of samples done so far.

    Raises
    ------
    InputError
        "substitution" for an A with a cycle; tol or max_iter not positive.
    UnknownNameError
        For another method.
    """
    if method not in METHODS:
        raise UnknownNameError("equilibrium method", method, METHODS)
    if not tol > 0 or max_iter < 1:
        raise InputError(f"tol > 0 and max_iter >= 1 needed, got {tol} and {max_iter}")
    matrix = scipy.sparse.csr_array(A)
    order = levels(matrix) if method in ("auto", "substitution") else None
    if method == "substitution" and order is None:
        raise InputError("A has a cycle: forward substitution does not apply; use 'anderson'")
    if method == "auto":
        method = "anderson" if order is None else "substitution"
    stages = [(rows, matrix[rows]) for rows in order or ()]
    n, m = BU.shape
    X, Z = np.empty((n, m)), np.empty((n, m))
    residual, converged = np.empty(m), np.empty(m, dtype=bool)
    iterations = np.ones(m, dtype=np.int64)
    for start in range(0, m, _CHUNK):
        part = slice(start, min(start + _CHUNK, m))
        with np.errstate(over="ignore", invalid="ignore"):
            system = _System(matrix, np.ascontiguousarray(BU[:, part]), blocks)
            if method == "substitution":
                X[:, part] = _substitute(system, stages)
            else:
                X[:, part], iterations[part] = _iterate(system, tol, max_iter, method == "anderson")
            Z[:, part], residual[part], converged[part] = system.judge(X[:, part], tol)
            if method == "substitution":
                converged[part] = np.isfinite(X[:, part]).all(axis=0)
        if progress is not None:
            progress(part.stop)
    return Equilibrium(X, Z, residual, converged, iterations, method, float(tol))


class _System:
    """g(x) = phi(A x + b) for the columns b of one chunk of samples."""

    def __init__(self, matrix: Any, b: Array, blocks: Sequence[Block]) -> None:
        self.matrix, self.b, self.blocks = matrix, b, blocks
        self.size = np.abs(apply_blocks(blocks, b)).max(axis=0, initial=0.0)

    def __call__(self, x: Array, active: NDArray[np.intp]) -> Array:
        return apply_blocks(self.blocks, self.matrix @ x + self.b[:, active])

    def judge(self, x: Array, tol: float) -> tuple[Array, Array, NDArray[np.bool_]]:
        """Return the pre-activation at x, the residual of every sample, and whether it is one."""
        z = self.matrix @ np.ascontiguousarray(x) + self.b
        residual = relative_residual(x, apply_blocks(self.blocks, z), self.size)
        return z, residual, _reached(residual, x, self.size, tol)


def relative_residual(x: Array, g: Array, size: Array) -> Array:
    """Return max_i |x - g|_i / size per column, size = max_i |phi(b)_i|; see `Equilibrium`."""
    out = _relative(np.abs(x - g).max(axis=0, initial=0.0), size)
    resolved = np.finfo(np.float64).eps * np.abs(x).max(axis=0, initial=0.0) <= _RESOLVED * size
    return np.where(np.isfinite(out) & resolved, out, np.inf)


def _reached(residual: Array, x: Array, size: Array, tol: float) -> NDArray[np.bool_]:
    rounding = _ROUNDING * _relative(np.abs(x).max(axis=0, initial=0.0), size)
    return np.isfinite(residual) & (residual <= np.fmax(tol, rounding))


def _relative(value: Array, size: Array) -> Array:
    """Return value / size, 0 where both are 0."""
    return np.divide(value, size, out=np.where(value == 0.0, 0.0, np.inf), where=size > 0.0)


def _substitute(system: _System, stages: list[tuple[NDArray[np.intp], Any]]) -> Array:
    x = np.zeros_like(system.b)
    activation_of = np.empty(x.shape[0], dtype=np.intp)
    for k, block in enumerate(system.blocks):
        activation_of[block.rows] = k
    for rows, matrix in stages:
        z = matrix @ x + system.b[rows]
        for k in np.unique(activation_of[rows]):
            chosen = activation_of[rows] == k
            x[rows[chosen]] = system.blocks[k].activation.numpy(z[chosen])
    return x


def _iterate(
    system: _System, tol: float, max_iter: int, accelerate: bool
) -> tuple[Array, NDArray[np.int64]]:
    """Return the states and evaluation counts; a column leaves the iteration once it converged."""
    n, m = system.b.shape
    solution, count = np.zeros((n, m)), np.full(m, max_iter, dtype=np.int64)
    active = np.arange(m)
    x = np.zeros((n, m))
    mixer = _Anderson(n, m) if accelerate else None
    for k in range(1, max_iter + 1):
        g = system(x, active)
        r = relative_residual(x, g, system.size[active])
        broken = ~np.isfinite(r)
        finite_x = np.isfinite(x).all(axis=0)
        solution[:, active[finite_x]] = x[:, finite_x]
        leave = _reached(r, x, system.size[active], tol) | (
            broken if mixer is None else mixer.hopeless(broken)
        )
        if leave.any():
            count[active[leave]] = k
            keep = ~leave
            active, x, g, r = active[keep], x[:, keep], g[:, keep], r[keep]
            if mixer is not None:
                mixer.keep(keep)
        if not active.size:
            break
        x = g if mixer is None else mixer.step(x, g, r)
    return solution, count


class _Anderson:
    """Anderson acceleration (type II) of every column by itself, with a safeguard.

    An accelerated point is kept only if its residual is no larger than at the point before;
    otherwise the plain step from that point is taken and the history is dropped. Plain steps are
    always kept, so the worst case is the plain iteration at half its speed.
    """

    def __init__(self, n: int, m: int) -> None:
        self.dx = np.zeros((m, _MEMORY, n))  # differences of x, newest first
        self.df = np.zeros((m, _MEMORY, n))  # differences of f = g - x
        self.filled = np.zeros(m, dtype=np.intp)
        self.x = self.f = np.zeros((m, n))  # last accepted point
        self.r = np.full(m, np.inf)
        self.mixed = np.zeros(m, dtype=bool)  # whether the current point is an accelerated one
        self.started = False

    def keep(self, mask: NDArray[np.bool_]) -> None:
        """Forget the columns that left."""
        for name in ("dx", "df", "filled", "x", "f", "r", "mixed"):
            setattr(self, name, getattr(self, name)[mask])

    def hopeless(self, broken: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Columns that overflowed in a plain step: nothing to fall back to."""
        return broken & ~self.mixed

    def step(self, x_columns: Array, g_columns: Array, r: Array) -> Array:
        """Return the next points (n, m) after evaluating g at x, with residuals r."""
        x, f = np.ascontiguousarray(x_columns.T), np.ascontiguousarray((g_columns - x_columns).T)
        reject = self.mixed & ~(r <= self.r)
        accept = ~reject
        if self.started:
            new = np.flatnonzero(accept)
            self.dx[new, 1:] = self.dx[new, :-1]
            self.df[new, 1:] = self.df[new, :-1]
            self.dx[new, 0], self.df[new, 0] = x[new] - self.x[new], f[new] - self.f[new]
            self.filled[new] = np.minimum(self.filled[new] + 1, _MEMORY)
        self.started = True
        for old in (self.dx, self.df):
            old[reject] = 0.0
        self.filled[reject] = 0
        self.x = np.where(accept[:, None], x, self.x)
        self.f = np.where(accept[:, None], f, self.f)
        self.r = np.where(accept, r, self.r)
        step = self.f - self._correction()
        usable = (self.filled > 0) & np.isfinite(step).all(axis=1)
        step = np.where(usable[:, None], step, self.f)
        self.mixed = usable
        return np.ascontiguousarray((self.x + step).T)

    def _correction(self) -> Array:
        """Return (dX + dF) gamma, gamma the least-squares coefficients of f on dF, per column."""
        # One small product per sample (matmul loops over the first axis): bits independent of m.
        normal = self.df @ self.df.transpose(0, 2, 1)
        size = np.diagonal(normal, axis1=1, axis2=2).max(axis=1)
        ridge = np.where(size > 0, _RIDGE * size, 1.0)
        normal += ridge[:, None, None] * np.eye(_MEMORY)
        right = self.df @ self.f[:, :, None]
        ok = np.isfinite(normal).all(axis=(1, 2)) & np.isfinite(right).all(axis=(1, 2))
        gamma = np.zeros_like(right)
        gamma[ok] = np.linalg.solve(normal[ok], right[ok])
        return ((self.dx + self.df).transpose(0, 2, 1) @ gamma)[:, :, 0]
