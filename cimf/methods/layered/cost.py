"""What the rows of a layer cost: which rule chooses its supports, and an estimate before the work.

Seconds of one core, from measurements (AVX-512, OpenBLAS, numpy 2; best of three); they decide
which rule is used, so they are constants: the same network gives the same rows on any machine.
"""

from __future__ import annotations

from collections.abc import Iterable

import joblib

# Exact elimination with exchanges, of a row: the call, and per N^3. Measured over the model at
# (rows, columns) (16, 27): 1.3, (64, 64): 1.1, (32, 144): 1.2, (64, 256): 1.0, (64, 576): .9.
_ROW, _EXACT = 3e-4, 3e-10
# ADMM: the calls of a layer, its inverses per N^3, its products and its selections per row.
# Measured over the model at (64, 256): 1.6, (64, 576): 1.0, (512, 512): 1.0.
_CALLS, _INVERSES, _PRODUCTS, _SELECTIONS = 4e-3, 4e-10, 1.6e-9, 7.5e-8
# Elimination in blocks, of the survey, has this many times ADMM's products, without its inverses.
_BLOCKS = 2.7
# Least squares of a row on k columns by Cholesky, per k^3 and k^2.
_FACTOR, _GATHER = 1.8e-11, 5e-9
# A step of conjugate gradients, per N^2 and row.
_STEP = 8e-11
# Exact elimination stays where it takes so long: nobody waits for it, and on narrow layers it is
# up to 1 % better (excess at 90 % zeros over that of ADMM: 27 columns .992, 64 .998, 100 .996, 144
# .999; from 256 columns on 1.001).
_UNNOTICED = 0.05


def exact_seconds(n_rows: int, n_columns: int) -> float:
    """Seconds of exact elimination and exchanges for all rows of a layer."""
    return n_rows * (_ROW + _EXACT * n_columns**3)


def admm_seconds(n_rows: int, n_columns: int) -> float:
    """Seconds of `admm` for all rows of a layer."""
    products = n_rows * n_columns * (_PRODUCTS * n_columns + _SELECTIONS)
    return _CALLS + _INVERSES * n_columns**3 + products


def exact_is_affordable(n_rows: int, n_columns: int) -> bool:
    """Whether exact elimination of a layer is cheaper than ADMM, or so cheap that it is kept."""
    exact = exact_seconds(n_rows, n_columns)
    return exact <= max(_UNNOTICED, admm_seconds(n_rows, n_columns))


def cholesky_seconds(n_kept: float) -> float:
    """Seconds of one row's least squares on so many columns, by a factorisation of its own."""
    return _ROW / 2 + n_kept**2 * (_GATHER + _FACTOR * n_kept)


def affordable_steps(n_columns: int, n_kept: float) -> int:
    """Return how many steps of conjugate gradients on a row cost as much as `cholesky_seconds`."""
    return int(cholesky_seconds(n_kept) / (_STEP * n_columns**2))


def layer_seconds(n_rows: int, n_columns: int, density: float, surveyed: bool) -> float:
    """Seconds of one layer's rows: supports, coefficients, and loss curves if they are needed."""
    exact = exact_is_affordable(n_rows, n_columns)
    fit = n_rows * cholesky_seconds(density * n_columns)
    seconds = fit + (exact_seconds if exact else admm_seconds)(n_rows, n_columns)
    if surveyed:  # its scales fit every row once more
        products = _BLOCKS * _PRODUCTS * n_rows * n_columns**2
        seconds += fit + (exact_seconds(n_rows, n_columns) if exact else products)
    return seconds


def estimated_seconds(
    sizes: Iterable[tuple[int, int]], density: float, surveyed: bool, n_jobs: int | None = None
) -> float:
    """Seconds for the rows of layers (rows, columns) on `n_jobs` cores, statistics left out."""
    jobs = joblib.effective_n_jobs(-1 if n_jobs is None else n_jobs)
    return sum(layer_seconds(r, n, density, surveyed) for r, n in sizes) / jobs
