"""Row problems of one layer: which columns a row keeps, and their coefficients.

Every function works on the statistics of one design M (m, N') shared by r rows with targets z_i
and takes the last `n_free` columns (the bias) as always kept. Counts leave the free columns out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import joblib
import numpy as np
import scipy.linalg
import threadpoolctl
from numpy.typing import NDArray

from cimf.methods.layered.kernels import eliminate, exchange
from cimf.statistics import Gram

Matrix = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Groups(NamedTuple):
    """Columns that share a budget.

    Attributes
    ----------
    members : (groups, M) int64
        The bounded columns, each in one group.
    most : int
        So many of each group are kept.
    """

    members: NDArray[np.int64]
    most: int

    def of(self, n_columns: int) -> NDArray[np.int64]:
        """Return the group of each of `n_columns` columns; one of their own for those in none."""
        count = len(self.members)
        group = np.full(n_columns, count)
        group[self.members] = np.arange(count)[:, None]
        return group


# A column whose squared part outside the span of the support is below this share of its squared
# norm is taken as linearly dependent. Damped statistics stay above the damping, 1e-4 by default.
_DEPENDENT = 1e-9
# What dropping a column that is zero in all samples costs, as a share of the row's energy: less
# than the rounding error of any other cost, so that such columns go first.
_DEAD = np.finfo(np.float64).eps


def damped(gram: Gram, dense: Matrix, damping: float, n_free: int) -> Gram:
    """Return statistics with a pull to the dense rows: ||M a - z||^2 + sum_j p_j (a_j - dense_j)^2.

    p_j is `damping` times the squared norm of column j, so that no column's unit matters. A column
    that is zero in all samples has none: its p_j only says that its coefficients stay as they are.

    Parameters
    ----------
    dense : (r, N')
        The rows of the network; where the samples do not determine a row it stays as it is.
    damping : float
        p_j over the squared norm of column j; free columns have p_j = 0.
    """
    G = gram.gram.copy()
    bounded = len(G) - n_free
    pull = damping * np.diagonal(G)
    pull[bounded:] = 0.0
    dead = np.flatnonzero(np.diagonal(G)[:bounded] == 0.0)
    if dead.size:
        energy = np.where(gram.target_sq > 0, gram.target_sq, gram.target_sq.max() or 1.0)
        share = (dense[:, dead] ** 2 / energy[:, None]).max(axis=0)
        pull[dead] = _DEAD / np.where(share > 0, share, 1.0)
    G[np.diag_indices_from(G)] += pull
    return Gram.from_moments(
        G,
        gram.corr + pull * dense,
        gram.target_sq + (pull * dense**2).sum(axis=1),
        gram.n_samples,
    )


def elimination(
    gram: Gram, n_free: int, n_jobs: int | None = None, groups: Groups | None = None
) -> tuple[NDArray[np.int64], Matrix]:
    """Drop the columns of every row one by one, exact Optimal Brain Surgeon.

    Parameters
    ----------
    groups : Groups, optional
        A group that has no more columns than it keeps is left alone. Default: all are dropped.

    Returns
    -------
    order : (r, dropped) int64
        Columns of each row, the one dropped first in front.
    increase : (r, dropped)
        By how much ||M a - z||^2 rose at each drop, the other columns refitted.
    """
    table = inverse(gram.gram)
    start = gram.corr @ table
    n = len(table)
    if groups is None:
        groups = Groups(np.arange(n - n_free)[None], 0)
    count, size = groups.members.shape
    room = np.append(np.full(count, size - groups.most), 0)  # the free columns have none
    group, keep = groups.of(n), n - int(room.sum())

    def row(i: int) -> tuple[NDArray[np.int64], Matrix]:
        return eliminate(table.copy(), start[i].copy(), group, room.copy(), keep)

    found = per_row(row, gram.n_targets, n_jobs)
    return np.stack([f[0] for f in found]), np.stack([f[1] for f in found])


def last_columns(order: NDArray[np.int64], counts: NDArray[np.int64], n_free: int) -> Mask:
    """Return the columns that an order of dropping leaves, shape (r, N + n_free)."""
    r, n = order.shape
    mask = np.ones((r, n + n_free), dtype=bool)
    for i in range(r):
        mask[i, order[i, : n - counts[i]]] = False
    return mask


def without(order: NDArray[np.int64], n_columns: int) -> Mask:
    """Return the columns that are not in an order of dropping, shape (r, n_columns)."""
    mask = np.ones((len(order), n_columns), dtype=bool)
    np.put_along_axis(mask, order, False, axis=1)
    return mask


def largest_of_groups(score: NDArray[Any], groups: Groups, n_free: int) -> Mask:
    """Return the columns with the largest score in each group of each row; arrays as `largest`."""
    ranked = np.argsort(score[:, groups.members], axis=2, kind="stable")
    smallest = ranked[:, :, : groups.members.shape[1] - groups.most]
    dropped = np.take_along_axis(groups.members[None], smallest, axis=2)
    return without(dropped.reshape(len(score), -1), score.shape[1] + n_free)


def largest(score: NDArray[Any], counts: NDArray[np.int64], n_free: int) -> Mask:
    """Return the columns with the largest score in each row: score (r, N), mask (r, N + n_free)."""
    return last_columns(np.argsort(score, axis=1, kind="stable"), counts, n_free)


def swapped(
    gram: Gram,
    mask: Mask,
    n_free: int,
    limit: int = 1000,
    n_jobs: int | None = None,
    groups: Groups | None = None,
) -> tuple[Mask, NDArray[np.int64]]:
    """Improve supports by exact exchanges of one column for another, until none helps.

    Each step takes, of all pairs, the one that lowers ||M a - z||^2 most with everything refitted.

    Parameters
    ----------
    groups : Groups, optional
        Both columns of a pair are of one group. Default: any two.

    Returns
    -------
    mask : (r, N')
    exchanges : (r,) int64
    """
    G = gram.gram
    least = _DEPENDENT * np.diagonal(G)
    group = np.zeros(len(G), np.int64) if groups is None else groups.of(len(G))

    def row(i: int) -> tuple[Mask, int]:
        inside = mask[i].copy()
        if inside.all() or not inside[: len(G) - n_free].any():
            return inside, 0
        out = ~inside
        # G with its support pivoted, the tableau of the sweep operator: an exchange is two sweeps
        # of rank one, N^2 operations each, and every pair's gain can be read from it.
        A = inverse(G[np.ix_(inside, inside)])
        B = A @ G[np.ix_(inside, out)]
        table = np.empty_like(G)
        table[np.ix_(inside, inside)] = A
        table[np.ix_(inside, out)] = B
        table[np.ix_(out, inside)] = B.T
        table[np.ix_(out, out)] = G[np.ix_(out, out)] - G[np.ix_(out, inside)] @ B
        coef, rho = np.zeros(len(G)), np.zeros(len(G))
        coef[inside] = A @ gram.corr[i, inside]
        rho[out] = gram.corr[i, out] - G[np.ix_(out, inside)] @ coef[inside]
        steps = exchange(table, coef, rho, inside, group, n_free, least, limit)
        return inside, steps

    found = per_row(row, gram.n_targets, n_jobs)
    return np.stack([f[0] for f in found]), np.array([f[1] for f in found])


def polished(
    gram: Gram, mask: Mask, n_jobs: int | None = None
) -> tuple[Matrix, NDArray[np.float64]]:
    """Solve least squares on given supports.

    Returns
    -------
    coef : (r, N')
    gap : (r,)
        Excess of ||M a - z||^2 over its least value on the support, relative to ||z||^2,
        recomputed from the gradient g = G a - c: g_S' (G_SS)^-1 g_S.
    """
    G = gram.gram

    def row(i: int) -> tuple[Matrix, float]:
        coef = np.zeros(len(G))
        inside = np.flatnonzero(mask[i])
        if not inside.size:
            return coef, 0.0
        block, target = G[np.ix_(inside, inside)], gram.corr[i, inside]
        solve = _solver(block)
        coef[inside] = solve(target)
        # The loss is quadratic: its Newton decrement at this point is its excess, and holds
        # whatever the factorisation did to the coefficients.
        gradient = block @ coef[inside] - target
        return coef, float(abs(gradient @ solve(gradient)) / max(gram.target_sq[i], 1e-300))

    found = per_row(row, gram.n_targets, n_jobs)
    return np.stack([f[0] for f in found]), np.array([f[1] for f in found])


def losses(gram: Gram, coef: Matrix) -> NDArray[np.float64]:
    """Return ||M a_i - z_i||^2 per row, shape (r,)."""
    return np.maximum(
        ((coef @ gram.gram) * coef).sum(axis=1)
        - 2 * (coef * gram.corr).sum(axis=1)
        + gram.target_sq,
        0.0,
    )


def _solver(G: Matrix) -> Callable[[Matrix], Matrix]:
    """Return b -> G^-1 b, by Cholesky where G is numerically positive definite.

    Otherwise the pseudo-inverse of G in units in which its diagonal is about 1: its threshold is
    relative to the largest eigenvalue.
    """
    try:
        factor = scipy.linalg.cho_factor(G, lower=True)
        return lambda b: scipy.linalg.cho_solve(factor, b)
    except np.linalg.LinAlgError:
        size = np.diagonal(G)
        unit = np.exp2(-np.round(np.log2(np.where(size > 0, size, 1.0)) / 2))
        units = np.outer(unit, unit)
        pseudo = np.linalg.pinv(G * units, hermitian=True) * units
        return lambda b: pseudo @ b


def inverse(G: Matrix) -> Matrix:
    """Return G^-1, or the pseudo-inverse of a matrix that is not positive definite."""
    return _solver(G)(np.eye(len(G)))


def per_row(row: Callable[[int], Any], n_rows: int, n_jobs: int | None) -> list[Any]:
    """Run a function of the row index on threads; the kernels and LAPACK release the GIL."""
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        return joblib.Parallel(n_jobs=-1 if n_jobs is None else n_jobs, prefer="threads")(
            joblib.delayed(row)(i) for i in range(n_rows)
        )
