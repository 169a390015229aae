"""One row problem as the compiled kernels see it: what all rows share, and what is a row's own.

Columns are scaled to a unit diagonal inside every factor: D = diag(scale), and a proximal term
``ridge / 2 * ||D^{-1} (a - centre)||^2`` makes each linear system positive definite.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cimf.solve.blas import solve_transposed
from cimf.solve.compiled import Array, Ints, kernel
from cimf.solve.path.cholesky import append
from cimf.statistics import Gram
from formulations.columns import Columns

# Proximal weight on unit-diagonal columns: 10 times the rounding of a factor with 1,000 columns.
RIDGE = 1e-12
# Gaps below this, in units of 1/2 ||z||^2, are rounding where free columns leave less than that.
ROUNDING = 1e-15


class Rows(NamedTuple):
    """Statistics of r rows and their columns.

    Attributes
    ----------
    gram : (N, N)
    corr : (r, N)
    target_sq : (r,)
    weights : (1, N) or (r, N)
    signs : (N,) int8
    scale : (N,)
        Diagonal of D, see `column_scale`.
    ridge : float
    n_samples : int
        The rank of the design is at most this.
    """

    gram: Array
    corr: Array
    target_sq: Array
    weights: Array
    signs: NDArray[np.int8]
    scale: Array
    ridge: float
    n_samples: int

    @classmethod
    def of(cls, gram: Gram, columns: Columns) -> Rows:
        """Return the rows of a `Gram`."""
        # A copy: a read-only view would be another type to the compiler, and 10 s of compilation.
        weights = np.array(np.atleast_2d(columns.weights), order="C")
        return cls(
            gram.gram, gram.corr, gram.target_sq, weights, columns.signs, column_scale(gram), RIDGE,
            gram.n_samples,
        )  # fmt: skip


class Usable(NamedTuple):
    """What the weights and signs of a row make of the columns.

    Attributes
    ----------
    n_usable : int
        Columns that may be used at all: neither excluded nor zero.
    free : (f,) int
        Columns of weight 0.
    free_factor : (f, f)
        Factor of their block.
    up, down : (N,)
        1 / weight of the columns that may become positive, negative; else 0, as for free,
        excluded and zero columns.
    fuzz : (N,)
        1 / (weight * scale), 0 where up and down are: turns rounding into units of lam.
    """

    n_usable: int
    free: Ints
    free_factor: Array
    up: Array
    down: Array
    fuzz: Array


class Problem(NamedTuple):
    """One row: its own part of `Rows`, its `Usable` columns, and when it is solved.

    Attributes
    ----------
    gram : (N, N)
    corr, weights, scale : (N,)
    ridge : float
    root : float
        ||z||.
    rank : int
        That of the design is at most this.
    n_usable, free, free_factor, up, down, fuzz
        As `Usable`.
    goal : float
        Absolute gap at which a point that is not exact is good enough.
    """

    gram: Array
    corr: Array
    weights: Array
    scale: Array
    ridge: float
    root: float
    rank: int
    n_usable: int
    free: Ints
    free_factor: Array
    up: Array
    down: Array
    fuzz: Array
    goal: float


def column_scale(gram: Gram) -> NDArray[np.float64]:
    """Return D (N,): powers of two near 1 / ||M_j|| (no rounding), 0 for zero columns."""
    diagonal = np.diagonal(gram.gram)
    exponent = np.frexp(diagonal)[1]
    return np.where(diagonal > 0, np.ldexp(1.0, -(exponent // 2)), 0.0)


@kernel
def usable_columns(rows: Rows, i: int) -> Usable:
    """Return the `Usable` of row i of the weights."""
    weights, signs, scale = rows.weights[i], rows.signs, rows.scale
    n = weights.shape[0]
    up, down, fuzz = np.zeros(n), np.zeros(n), np.zeros(n)
    free = np.empty(n, np.int64)
    f = 0
    for j in range(n):
        w = weights[j]
        if scale[j] == 0.0 or w == np.inf:
            continue
        if w == 0.0:
            free[f] = j
            f += 1
            continue
        # Reciprocals, 0 where a direction is closed: |g_j| > lam w_j becomes a product without a
        # branch in the loops over all columns.
        up[j] = 1.0 / w if signs[j] >= 0 else 0.0
        down[j] = 1.0 / w if signs[j] <= 0 else 0.0
        fuzz[j] = 1.0 / (w * scale[j])
    factor = np.zeros((f, f))
    if f > 0:
        append(rows.gram, scale, rows.ridge, np.empty_like(free), 0, free, f, factor)
    count = f
    for j in range(n):
        count += up[j] + down[j] > 0.0
    return Usable(count, free[:f], factor, up, down, fuzz)


@kernel
def absolute_goal(rows: Rows, i: int, usable: Usable, goal: float) -> float:
    """Return a relative goal times the unit of the certificate, `cimf.judge.energy`.

    Not below the rounding of the moments; and where the free columns leave no more than the ridge
    of their factor does, of 1/2 ||z||^2: a constant target beside a free bias got coefficients of
    1e-13 on every column.
    """
    half_sq: float = 0.5 * rows.target_sq[i]
    f = usable.free.shape[0]
    if f == 0:
        return goal * half_sq
    # half = U^{-T} D c_F: its squares sum up to c_F' (G_FF)^{-1} c_F, what the free columns
    # explain of ||z||^2.
    half = np.empty(f)
    for k in range(f):
        half[k] = rows.scale[usable.free[k]] * rows.corr[i, usable.free[k]]
    solve_transposed(usable.free_factor, f, half)
    left = half_sq
    for k in range(f):
        left -= 0.5 * half[k] * half[k]
    if left <= 10.0 * RIDGE * half_sq:
        return goal * half_sq
    return max(goal * left, ROUNDING * half_sq)


@kernel
def row_problem(rows: Rows, i: int, usable: Usable, goal: float) -> Problem:
    """Return the `Problem` of row i; goal is relative to what the free columns leave."""
    own = i if rows.weights.shape[0] > 1 else 0
    return Problem(
        rows.gram, rows.corr[i], rows.weights[own], rows.scale, rows.ridge,
        np.sqrt(rows.target_sq[i]), rows.n_samples, usable.n_usable, usable.free,
        usable.free_factor, usable.up, usable.down, usable.fuzz,
        absolute_goal(rows, i, usable, goal),
    )  # fmt: skip
