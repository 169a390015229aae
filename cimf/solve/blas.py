"""BLAS and LAPACK routines that compiled (numba) row kernels may call.

SciPy's own routines are registered as link-time symbols, so that kernels stay cacheable: a pointer
taken through ctypes would be baked into the compiled code and forbids caching. All arrays are
C-contiguous: a row-major upper triangular U is the column-major lower triangular U' that the
routines see.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
import numpy as np
from numba import types
from numba.extending import get_cython_function_address
from numpy.typing import NDArray

from cimf.solve.compiled import Array, kernel

_INT = types.CPointer(types.int32)
_REAL = types.CPointer(types.float64)
_CHAR = types.CPointer(types.uint8)


def _external(module: str, name: str, *arguments: types.Type) -> Any:
    symbol = f"cimf_{name}"
    llvmlite.binding.add_symbol(symbol, get_cython_function_address(f"scipy.linalg.{module}", name))
    return types.ExternalFunction(symbol, types.void(*arguments))


_dtrsv = _external("cython_blas", "dtrsv", _CHAR, _CHAR, _CHAR, _INT, _REAL, _INT, _REAL, _INT)
_dtrsm = _external(
    "cython_blas", "dtrsm",
    _CHAR, _CHAR, _CHAR, _CHAR, _INT, _INT, _REAL, _REAL, _INT, _REAL, _INT,
)  # fmt: skip
_dsyrk = _external(
    "cython_blas", "dsyrk", _CHAR, _CHAR, _INT, _INT, _REAL, _REAL, _INT, _REAL, _REAL, _INT
)
_dpotrf = _external("cython_lapack", "dpotrf", _CHAR, _INT, _REAL, _INT, _INT)

# The triangular solves below say "lower" and swap "transposed" with "not": see the module's text.
# Constants as arrays, because the routines take addresses.
_LOWER, _NO, _YES = (np.frombuffer(letter, dtype=np.uint8) for letter in (b"L", b"N", b"T"))
_ONE, _MINUS_ONE = np.array([1.0]), np.array([-1.0])


@kernel
def _sizes(a: int, b: int, c: int, d: int) -> NDArray[np.int32]:
    """Return four sizes as LAPACK integers (a list literal would take seconds to compile)."""
    out = np.empty(4, np.int32)
    out[0] = a
    out[1] = b
    out[2] = c
    out[3] = d
    return out


@kernel
def solve_transposed(factor: Array, k: int, x: Array) -> None:
    """Overwrite x[:k] with (U')^{-1} x, U = factor[:k, :k]."""
    sizes = _sizes(k, factor.shape[1], 1, 0)
    _dtrsv(
        _LOWER.ctypes, _NO.ctypes, _NO.ctypes, sizes.ctypes,
        factor.ctypes, sizes[1:].ctypes, x.ctypes, sizes[2:].ctypes,
    )  # fmt: skip


@kernel
def solve_upper(factor: Array, k: int, x: Array) -> None:
    """Overwrite x[:k] with U^{-1} x, U = factor[:k, :k]."""
    sizes = _sizes(k, factor.shape[1], 1, 0)
    _dtrsv(
        _LOWER.ctypes, _YES.ctypes, _NO.ctypes, sizes.ctypes,
        factor.ctypes, sizes[1:].ctypes, x.ctypes, sizes[2:].ctypes,
    )  # fmt: skip


@kernel
def solve_transposed_rows(factor: Array, k: int, rows: Array, q: int) -> None:
    """Overwrite each rows[r, :k], r < q, with (U')^{-1} rows[r]."""
    # Row-major rows are columns to BLAS: one triangular solve with q right sides from the left.
    sizes = _sizes(k, q, factor.shape[1], rows.shape[1])
    _dtrsm(
        _LOWER.ctypes, _LOWER.ctypes, _NO.ctypes, _NO.ctypes,
        sizes.ctypes, sizes[1:].ctypes, _ONE.ctypes, factor.ctypes, sizes[2:].ctypes,
        rows.ctypes, sizes[3:].ctypes,
    )  # fmt: skip


@kernel
def subtract_products(rows: Array, q: int, k: int, block: Array) -> None:
    """Subtract the inner products of rows[:q, :k] from the upper triangle of block[:q, :q]."""
    sizes = _sizes(q, k, rows.shape[1], block.shape[1])
    _dsyrk(
        _LOWER.ctypes, _YES.ctypes, sizes.ctypes, sizes[1:].ctypes, _MINUS_ONE.ctypes,
        rows.ctypes, sizes[2:].ctypes, _ONE.ctypes, block.ctypes, sizes[3:].ctypes,
    )  # fmt: skip


@kernel
def cholesky(block: Array, q: int) -> int:
    """Overwrite the upper triangle of block[:q, :q] with its factor; return LAPACK's info."""
    sizes = _sizes(q, block.shape[1], 0, 0)
    _dpotrf(_LOWER.ctypes, sizes.ctypes, block.ctypes, sizes[1:].ctypes, sizes[2:].ctypes)
    return int(sizes[2])  # > 0: the order of the first minor that is not positive
