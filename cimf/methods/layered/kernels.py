"""Compiled kernels on the inverse of a row's Gram matrix: elimination and exchange of columns.

With A = (G_SS)^-1 on a support S and w = A c_S, dropping column j raises the least-squares loss
1/2 ||M w - z||^2 by 1/2 w_j^2 / A_jj (Hassibi and Stork 1993, "Optimal Brain Surgeon"; for layer
outputs Frantar and Alistarh 2022, "Optimal Brain Compression"), and adding a column t lowers it by
1/2 rho_t^2 / s_t with rho = c - G w and s_t the Schur complement of G_tt.
"""

from __future__ import annotations

import numba
import numpy as np

# Reordering of sums only: infinities and NaN keep their meaning.
_FAST = {"reassoc", "contract", "arcp", "nsz"}


@numba.njit(nogil=True, cache=True, fastmath=_FAST)
def eliminate(inverse, coef, group, room, n_keep):  # pragma: no cover - compiled
    """Drop columns one by one, each time the one whose loss increase is smallest.

    Parameters
    ----------
    inverse : (N, N)
        G^-1; only the lower triangle is read. Overwritten.
    coef : (N,)
        The least-squares coefficients. Overwritten.
    group : (N,) int64
        Of each column.
    room : (groups,) int64
        How many columns of each group may be dropped. Overwritten.
    n_keep : int
        Columns that are left at the end.

    Returns
    -------
    order : (N - n_keep,) int64
        Columns in the order in which they were dropped.
    increase : (N - n_keep,)
        w_j^2 / A_jj at that moment: the increase of ||M w - z||^2.
    """
    n = coef.shape[0]
    steps = n - n_keep
    order = np.empty(steps, np.int64)
    increase = np.empty(steps)
    label = np.arange(n)
    column = np.empty(n)
    for step in range(steps):  # columns in places step, step + 1, ... are still there
        j, cost = -1, np.inf
        for k in range(step, n):
            if room[group[label[k]]] == 0:
                continue
            value = coef[k] * coef[k] / inverse[k, k]
            if value < cost:
                j, cost = k, value
        order[step], increase[step] = label[j], cost
        room[group[label[j]]] -= 1
        for k in range(step, j + 1):
            column[k] = inverse[j, k]
        for k in range(j + 1, n):
            column[k] = inverse[k, j]
        pivot = column[j]
        ratio = coef[j] / pivot
        for k in range(step, n):
            coef[k] -= ratio * column[k]
            factor = column[k] / pivot
            for i in range(step, k + 1):
                inverse[k, i] -= factor * column[i]
        # The first remaining column moves to the place that fell vacant.
        label[j], coef[j] = label[step], coef[step]
        for k in range(step + 1, j):
            inverse[j, k] = inverse[k, step]
        for k in range(j + 1, n):
            inverse[k, j] = inverse[k, step]
        inverse[j, j] = inverse[step, step]
    return order, increase


@numba.njit(nogil=True, cache=True, fastmath=_FAST)
def exchange(table, coef, rho, inside, group, n_free, least, most):  # pragma: no cover - compiled
    """Exchange one column of the support for one outside it, the best pair first, while that helps.

    Parameters
    ----------
    table : (N, N)
        Symmetric: A on (S, S), A G_S. on (S, not S), the Schur complement on (not S, not S).
        Overwritten.
    coef, rho : (N,)
        w on S and 0 elsewhere; c - G w outside S. Overwritten.
    inside : (N,) bool
        The support S. Overwritten.
    group : (N,) int64
        A column is exchanged for one of its own group.
    n_free : int
        The last so many columns are never exchanged.
    least : (N,)
        Schur complements below this count as linear dependence: such a column is not added.
    most : int
        Limit on the number of exchanges.

    Returns
    -------
    int
        Exchanges made; ||M w - z||^2 fell at each.
    """
    n = coef.shape[0]
    m = n - n_free
    done = 0
    while done < most:
        out, into, best = -1, -1, 0.0
        for j in range(m):
            if not inside[j]:
                continue
            cost = coef[j] * coef[j] / table[j, j]
            shift = coef[j] / table[j, j]
            for t in range(m):
                if inside[t] or group[t] != group[j]:
                    continue
                b = table[j, t]
                schur = table[t, t] + b * b / table[j, j]
                if schur > least[t]:
                    r = rho[t] + b * shift
                    change = r * r / schur - cost
                    # Gains below 1e-9 of what the column costs are rounding, and would cycle.
                    if change > best and change > 1e-9 * cost:
                        out, into, best = j, t, change
        if out < 0:
            break
        _sweep(table, coef, rho, inside, out)
        _sweep(table, coef, rho, inside, into)
        done += 1
    return done


@numba.njit(nogil=True, cache=True, fastmath=_FAST)
def _sweep(table, coef, rho, inside, p):  # pragma: no cover - compiled
    """Move column p into the support or out of it, and all other quantities with it."""
    n = coef.shape[0]
    pivot = table[p, p]
    column = table[p].copy()
    entering = not inside[p]
    step = (rho[p] if entering else coef[p]) / pivot
    signed = np.empty(n)
    for k in range(n):
        signed[k] = column[k] if inside[k] == entering else -column[k]
        if inside[k]:
            coef[k] -= step * column[k]
        elif entering:
            rho[k] -= step * column[k]
        else:
            rho[k] += step * column[k]
    for k in range(n):
        if k == p:
            continue
        factor = column[k] / pivot
        if inside[k] == entering:
            for i in range(n):
                table[k, i] += factor * signed[i]
        else:
            for i in range(n):
                table[k, i] -= factor * column[i]
    for k in range(n):
        value = column[k] / pivot
        table[p, k] = -value if inside[k] else value
        table[k, p] = table[p, k]
    table[p, p] = 1.0 / pivot
    coef[p], rho[p] = (step, 0.0) if entering else (0.0, step)
    inside[p] = entering


@numba.njit(nogil=True, cache=True)
def keep_largest(point, sparse, dual, inside, counts, least):  # pragma: no cover - compiled
    """Split every row of point + dual into its largest entries and the rest, the next dual.

    Parameters
    ----------
    point : (r, N)
        Finite. Overwritten.
    sparse, dual : (r, N)
        The largest entries, zeros elsewhere; the rest. Of equal ones those in front are kept.
        Overwritten.
    inside : (r, N) bool
        Which entries are kept. Overwritten.
    counts : (r,) int64
        How many entries every row keeps.
    least : (r,)
        The size of the smallest entry that is kept, from the call before: where it is about the
        same, only entries of about that size are sorted. Overwritten.

    Returns
    -------
    int
        Entries of `inside` that are not what they were.
    """
    r, n = point.shape
    changed = 0
    size, near = np.empty(n, point.dtype), np.empty(n, point.dtype)
    before = np.empty(n, np.bool_)
    for i in range(r):
        for j in range(n):
            point[i, j] += dual[i, j]
            size[j] = abs(point[i, j])
        low, high = 0.8 * least[i], 1.25 * least[i]
        above, between = 0, 0
        for j in range(n):
            above += size[j] > high
            near[between] = size[j]
            between += low <= size[j] <= high
            if between == n:
                break
        if counts[i] == 0:
            least[i] = np.inf
        elif above < counts[i] <= above + between:
            least[i] = _nth_largest(near[:between], counts[i] - above)
        else:
            near[:] = size
            least[i] = _nth_largest(near, counts[i])
        kept = 0
        for j in range(n):
            before[j] = inside[i, j]
            inside[i, j] = size[j] >= least[i]
            kept += inside[i, j]
        for j in range(n - 1, -1, -1):
            if kept <= counts[i]:
                break
            if size[j] == least[i]:  # equal sizes
                inside[i, j], kept = False, kept - 1
        for j in range(n):
            changed += inside[i, j] != before[j]
            value = point[i, j]
            sparse[i, j] = value if inside[i, j] else 0.0
            dual[i, j] = value - sparse[i, j]
    return changed


@numba.njit(nogil=True, cache=True)
def _nth_largest(values, n):  # pragma: no cover - compiled
    """Return the n-th largest value (n from 1), by quickselect; reorders the values."""
    low, high = 0, values.shape[0] - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i, j = i + 1, j - 1
        if n - 1 <= j:
            high = j
        elif n - 1 >= i:
            low = i
        else:
            break
    return values[n - 1]
