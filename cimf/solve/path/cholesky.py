"""Upper Cholesky factor of a growing and shrinking principal block of a Gram matrix (numba).

The factor U (row-major, U' U = K) belongs to K = D_S G_SS D_S + ridge I, where D scales the
diagonal of G to about one. Columns are appended and removed in blocks. Everything is compiled
and runs without the interpreter lock.
"""

from __future__ import annotations

import numpy as np

from cimf.solve.blas import (
    cholesky,
    solve_transposed,
    solve_transposed_rows,
    solve_upper,
    subtract_products,
)
from cimf.solve.compiled import Array, Bools, Ints, kernel


@kernel
def append(
    gram: Array, scale: Array, ridge: float, support: Ints, k: int, new: Ints, q: int, factor: Array
) -> int:
    """Append the columns new[:q] to a factor of size k.

    gram (N, N), scale (N,) = diagonal of D; support[:k + q] and factor[:k + q, :k + q] are updated
    (the caller guarantees their capacity). Returns k + q.
    """
    rows = np.empty((q, max(k, 1)))
    block = np.empty((q, q))
    for r in range(q):
        g = gram[new[r]]
        d = scale[new[r]]
        for i in range(k):
            rows[r, i] = g[support[i]] * (scale[support[i]] * d)
        for t in range(r, q):
            block[r, t] = g[new[t]] * (scale[new[t]] * d)
        block[r, r] += ridge
    # With U the factor so far, the new columns are R = U^{-T} K_S,new, and their block that of the
    # Schur complement K_new,new - R'R: level-3 BLAS, whatever the number of new columns.
    if k > 0:
        solve_transposed_rows(factor, k, rows, q)
        subtract_products(rows, q, k, block)
        for i in range(k):
            u = factor[i]
            for r in range(q):
                u[k + r] = rows[r, i]
    kept = block.copy()
    if cholesky(block, q) != 0:
        # Rounding pushed a pivot below the ridge that it contains; the exact one never is.
        block = kept
        for r in range(q):
            pivot = np.sqrt(max(block[r, r], ridge))
            block[r, r] = pivot
            for t in range(r + 1, q):
                block[r, t] /= pivot
            for t in range(r + 1, q):
                for c in range(t, q):
                    block[t, c] -= block[r, t] * block[r, c]
    for r in range(q):
        support[k + r] = new[r]
        for t in range(r, q):
            factor[k + r, k + t] = block[r, t]
    return k + q


@kernel
def remove(
    gram: Array, scale: Array, ridge: float, support: Ints, k: int, drop: Bools, factor: Array
) -> int:
    """Remove the positions i < k with drop[i] from a factor of size k. Returns the new size."""
    first = 0
    while first < k and not drop[first]:
        first += 1
    n_drop = 0
    for i in range(first, k):
        if drop[i]:
            n_drop += 1
    if n_drop == 0:
        return k
    tail = k - first - n_drop
    # Rotations cost about 14 us per removal at k = 400, refactoring the columns behind the first
    # removal 610 us: even at about a tenth of the columns.
    if 10 * n_drop > tail + 20:
        new = np.empty(max(tail, 1), np.int64)
        t = 0
        for i in range(first, k):
            if not drop[i]:
                new[t] = support[i]
                t += 1
        if tail == 0:
            return first
        return append(gram, scale, ridge, support, first, new, tail, factor)
    return _rotate_out(support, k, drop, first, n_drop, factor)


@kernel
def _rotate_out(support: Ints, k: int, drop: Bools, first: int, n_drop: int, factor: Array) -> int:
    """Remove positions by Givens rotations; `first` of the n_drop removed positions is the lowest.

    A removed row of U updates the rows below it.
    """
    rotated = np.empty((n_drop, k))
    keep = np.empty(k, np.int64)  # old position of each new one
    kept = 0
    for i in range(k):
        if not drop[i]:
            keep[kept] = i
            kept += 1
    size = 0
    active = 0
    for i in range(k):
        u = factor[i]
        out = rotated[active] if drop[i] else factor[size]
        for t in range(max(size, first), kept):
            out[t] = u[keep[t]]
        if drop[i]:
            active += 1
            continue
        for a in range(active):
            x = rotated[a]
            pivot = np.sqrt(out[size] * out[size] + x[size] * x[size])
            cosine = out[size] / pivot
            sine = x[size] / pivot
            out[size] = pivot
            for t in range(size + 1, kept):
                value = out[t]
                out[t] = cosine * value + sine * x[t]
                x[t] = cosine * x[t] - sine * value
        support[size] = support[i]
        size += 1
    return size


@kernel
def solve(factor: Array, k: int, x: Array) -> None:
    """Overwrite x[:k] with K^{-1} x."""
    solve_transposed(factor, k, x)
    solve_upper(factor, k, x)


@kernel
def add_columns(gram: Array, support: Ints, k: int, x: Array, out: Array) -> None:
    """Add G[:, S] x[:k] to out (N,), four rows of G at a time."""
    n = gram.shape[0]
    i = 0
    while i + 3 < k:
        g0, g1 = gram[support[i]], gram[support[i + 1]]
        g2, g3 = gram[support[i + 2]], gram[support[i + 3]]
        x0, x1, x2, x3 = x[i], x[i + 1], x[i + 2], x[i + 3]
        for j in range(n):
            out[j] += x0 * g0[j] + x1 * g1[j] + x2 * g2[j] + x3 * g3[j]
        i += 4
    while i < k:
        g0, x0 = gram[support[i]], x[i]
        for j in range(n):
            out[j] += x0 * g0[j]
        i += 1
