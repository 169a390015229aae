"""A point of a row's solution path, and the arrays that hold it (numba).

A point is a support with its signs, the factor of that support, and lam; its coefficients and its
gradient stand in the `Work` that one row after another uses. A kernel that changes the support
returns the new `Point`, because its size, and with it perhaps the factor, is another.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cimf.solve.compiled import Array, Bools, Ints, kernel
from cimf.solve.path.row_problem import Problem


class Point(NamedTuple):
    """A support, its signs, and where on the path it is.

    Attributes
    ----------
    support : (N,) int
        The first k entries: columns on the support, free columns first.
    sign : (N,)
        By column; 0 off the support and for free columns.
    k : int
    factor : (c, c), c >= k
        Of D_S G_SS D_S + ridge I, upper triangle.
    lam : float
    on_sphere : bool
        The norm is kappa, and lam what makes it so.
    """

    support: Ints
    sign: Array
    k: int
    factor: Array
    lam: float
    on_sphere: bool


class Work(NamedTuple):
    """Arrays (N,) that one row after another uses.

    Attributes
    ----------
    centre, tilt
        Proximal centre, and ridge * centre / scale^2: the proximal term's gradient off the support.
    a, v
        The first k entries: coefficients on the support and v = -da/dlam.
    grad, slope
        G a - c and G v on all columns.
    open_up, open_down
        `Problem.up` and `down`, 0 on the support.
    drop, new, new_sign, steps
        An exchange: positions that leave, columns that join and their signs; breakpoints.
    """

    centre: Array
    tilt: Array
    a: Array
    v: Array
    grad: Array
    slope: Array
    open_up: Array
    open_down: Array
    drop: Bools
    new: Ints
    new_sign: Array
    steps: Array


@kernel
def workspace(n: int) -> Work:
    """Return a `Work` for n columns."""
    return Work(
        np.empty(n), np.empty(n), np.empty(n), np.empty(n), np.empty(n), np.empty(n), np.empty(n),
        np.empty(n), np.empty(n, np.bool_), np.empty(n, np.int64), np.empty(n), np.empty(n),
    )  # fmt: skip


@kernel
def new_point(n: int, capacity: int) -> Point:
    """Return storage for a point: n columns, a factor of `capacity`."""
    return Point(
        np.empty(n, np.int64), np.empty(n), 0, np.empty((capacity, capacity)), 0.0, False
    )  # fmt: skip


@kernel
def at(point: Point, lam: float, on_sphere: bool) -> Point:
    """Return the point with another lam."""
    return Point(point.support, point.sign, point.k, point.factor, lam, on_sphere)


@kernel
def grown(factor: Array, size: int) -> Array:
    """Return a factor with capacity for `size` columns, keeping its content."""
    if factor.shape[0] >= size:
        return factor
    capacity = max(size, 2 * factor.shape[0])  # doubling: a path copies its factor log k times
    larger = np.empty((capacity, capacity))
    k = factor.shape[0]
    for i in range(k):
        larger[i, i:k] = factor[i, i:]
    return larger


@kernel
def copy_upper(source: Array, k: int, out: Array) -> Array:
    """Copy the upper triangle of source[:k, :k] into out, grown where needed; returns out."""
    out = grown(out, k)
    for i in range(k):
        out[i, i:k] = source[i, i:k]
    return out


@kernel
def begin(problem: Problem, point: Point, work: Work) -> Point:
    """Reset the work arrays and the storage `point` to a support of the free columns, lam = 0."""
    work.centre[:] = 0.0
    work.tilt[:] = 0.0
    point.sign[:] = 0.0
    work.open_up[:] = problem.up
    work.open_down[:] = problem.down
    # Solved at lam = 0 these are the least squares on the free columns alone; the steepest gradient
    # there is the lam at which the path begins.
    f = problem.free.shape[0]
    point.support[:f] = problem.free
    factor = copy_upper(problem.free_factor, f, grown(point.factor, f + 1))
    return Point(point.support, point.sign, f, factor, 0.0, False)


@kernel
def save(point: Point, storage: Point) -> Point:
    """Copy a point into the arrays of another; returns it. Its coefficients are not kept.

    Cheap: with 800 columns a hundredth of the time of a new factor.
    """
    # Without the coefficients: one system gives them back where a step fails.
    k = point.k
    storage.support[:k] = point.support[:k]
    storage.sign[:] = point.sign
    factor = copy_upper(point.factor, k, storage.factor)
    return Point(storage.support, storage.sign, k, factor, point.lam, False)


@kernel
def recentre(problem: Problem, point: Point, work: Work) -> None:
    """Move the proximal centre to the present point."""
    # A column that leaves the support later keeps its centre: the proximal term then has the
    # gradient -tilt there, which every comparison of g_j with lam subtracts.
    work.centre[:] = 0.0
    work.tilt[:] = 0.0
    for i in range(point.k):
        j = point.support[i]
        work.centre[j] = work.a[i]
        work.tilt[j] = problem.ridge * work.a[i] / (problem.scale[j] * problem.scale[j])


@kernel
def write(problem: Problem, point: Point, kappa: float, work: Work, out: Array) -> None:
    """Write the coefficients, shrunk into the ball where rounding left them outside."""
    support, k = point.support, point.k
    norm = 0.0
    for i in range(k):
        norm += problem.weights[support[i]] * abs(work.a[i])
    # The gap is a bound at feasible points only, and the sphere is met to rounding: shrinking costs
    # a gap of the size of that rounding. Free columns are no part of the norm.
    shrink = kappa / norm if norm > kappa else 1.0
    out[:] = 0.0
    for i in range(k):
        j = support[i]
        out[j] = work.a[i] * (shrink if problem.weights[j] > 0.0 else 1.0)
