"""BLAS and LAPACK routines that compiled (numba) row kernels may call.

SciPy's own routines are registered as link-time symbols, so that kernels stay cacheable: a function
pointer taken through ctypes would be baked into the compiled code and forbids caching. All arrays are
C-contiguous; a row-major upper triangular U is the column-major lower triangular U' that the routines see.
"""

from __future__ import annotations

import llvmlite.binding
import numpy as np
from numba import njit, types
from numba.extending import get_cython_function_address

_INT = types.CPointer(types.int32)
_REAL = types.CPointer(types.float64)
_CHAR = types.CPointer(types.uint8)


def _external(module: str, name: str, *arguments: types.Type) -> types.ExternalFunction:
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



@njit(cache=True, nogil=True)
def solve_transposed(factor, k, x):  # type: ignore[no-untyped-def]
    """Overwrite x[:k] with (U')^{-1} x, U = factor[:k, :k]."""
    letters = np.array([76, 78], dtype=np.uint8)
    sizes = np.array([k, factor.shape[1], 1], dtype=np.int32)
    _dtrsv(
        letters.ctypes, letters[1:].ctypes, letters[1:].ctypes, sizes.ctypes,
        factor.ctypes, sizes[1:].ctypes, x.ctypes, sizes[2:].ctypes,
    )  # fmt: skip


@njit(cache=True, nogil=True)
def solve_upper(factor, k, x):  # type: ignore[no-untyped-def]
    """Overwrite x[:k] with U^{-1} x, U = factor[:k, :k]."""
    letters = np.array([76, 84, 78], dtype=np.uint8)
    sizes = np.array([k, factor.shape[1], 1], dtype=np.int32)
    _dtrsv(
        letters.ctypes, letters[1:].ctypes, letters[2:].ctypes, sizes.ctypes,
        factor.ctypes, sizes[1:].ctypes, x.ctypes, sizes[2:].ctypes,
    )  # fmt: skip


@njit(cache=True, nogil=True)
def solve_transposed_rows(factor, k, rows, q):  # type: ignore[no-untyped-def]
    """Overwrite each rows[r, :k], r < q, with (U')^{-1} rows[r]."""
    letters = np.array([76, 78], dtype=np.uint8)
    sizes = np.array([k, q, factor.shape[1], rows.shape[1]], dtype=np.int32)
    one = np.array([1.0])
    _dtrsm(
        letters.ctypes, letters.ctypes, letters[1:].ctypes, letters[1:].ctypes,
        sizes.ctypes, sizes[1:].ctypes, one.ctypes, factor.ctypes, sizes[2:].ctypes,
        rows.ctypes, sizes[3:].ctypes,
    )  # fmt: skip


@njit(cache=True, nogil=True)
def subtract_products(rows, q, k, block):  # type: ignore[no-untyped-def]
    """Subtract the inner products of rows[:q, :k] from the upper triangle of block[:q, :q]."""
    letters = np.array([76, 84], dtype=np.uint8)
    sizes = np.array([q, k, rows.shape[1], block.shape[1]], dtype=np.int32)
    factors = np.array([-1.0, 1.0])
    _dsyrk(
        letters.ctypes, letters[1:].ctypes, sizes.ctypes, sizes[1:].ctypes, factors.ctypes,
        rows.ctypes, sizes[2:].ctypes, factors[1:].ctypes, block.ctypes, sizes[3:].ctypes,
    )  # fmt: skip


@njit(cache=True, nogil=True)
def cholesky(block, q):  # type: ignore[no-untyped-def]
    """Overwrite the upper triangle of block[:q, :q] with its factor; return LAPACK's info."""
    letters = np.array([76], dtype=np.uint8)
    sizes = np.array([q, block.shape[1], 0], dtype=np.int32)
    _dpotrf(letters.ctypes, sizes.ctypes, block.ctypes, sizes[1:].ctypes, sizes[2:].ctypes)
    return sizes[2]
