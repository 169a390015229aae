"""The front door of the row solvers: `solve_rows` for one level, `solve_path` for several."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import joblib
import numpy as np
import threadpoolctl
from joblib.parallel import LokyBackend, get_active_backend
from numpy.typing import ArrayLike, NDArray

from cimf.errors import InputError, UnknownNameError
from cimf.judge import Solution, certify_columns
from cimf.solve.bisection import algorithms as bisection
from cimf.solve.path import exact_rows as exact
from cimf.solve.path.exact_rows import SolvedRows
from cimf.statistics import Gram, check_gram
from formulations.columns import Columns, as_float64, per_row

ChunkSolver = Callable[[Gram, Columns, NDArray[np.float64], bool, float], SolvedRows]


def _batched(
    gram: Gram, columns: Columns, levels: NDArray[np.float64], ball: bool, tol: float
) -> SolvedRows:
    """Solve all rows at once; torch takes seconds to load, so only where it is asked for."""
    from cimf.solve.batched import torch_rows as batched

    return batched.solve_chunk(gram, columns, levels, ball, tol)


METHODS: dict[str, ChunkSolver] = {
    "exact": exact.solve_chunk,
    "bisection": bisection.solve_chunk,
    "torch": _batched,
}
# Methods that take all rows in one call, not in chunks.
_WHOLE = {_batched}

# Seconds of work that are done before workers are called: starting two threads takes 8 ms.
_ALONE = 0.02

_BLAS = threadpoolctl.ThreadpoolController()


def solve_rows(
    gram: Gram,
    kappa: ArrayLike | None = None,
    *,
    lam: ArrayLike | None = None,
    bounded: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    signs: ArrayLike | None = None,
    method: str = "auto",
    tol: float = 1e-9,
    n_jobs: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Solution:
    """Solve P(kappa), or Q(lam), for every row of the statistics.

    P(kappa): min 1/2 ||M a - z_i||^2 subject to sum_j w_j |a_j| <= kappa over the bounded columns.
    Q(lam): min 1/2 ||M a - z_i||^2 + lam sum_j w_j |a_j|. There is no factor 1/m.

    Parameters
    ----------
    gram : Gram
        Statistics of the design M (m, N) and the targets z_1 .. z_r.
    kappa, lam : float or (r,)
        Exactly one. A kappa beyond the smallest l1 norm of a least-squares solution is valid: the
        ball is inactive and the multiplier 0, but for rounding.
    bounded : (N,) bool, optional
        Columns inside the ball; the others are free. Default: all.
    weights : (N,) or (r, N), optional
        w_j; 0: free column, infinity: excluded column. Default: ones.
    signs : (N,) of -1, 0, +1, optional
        Sign constraint per column.
    method : str
        A name in `METHODS` or "auto".
    tol : float
        Relative gap (of 1/2 ||z||^2) at which a row counts as solved.
    n_jobs : int, optional
        Rows are solved in parallel through joblib; default: what `joblib.parallel_config` says,
        else one thread per core. The bits of the answer do not depend on it.
    progress : callable, optional
        Called with the number of rows finished so far.

    Returns
    -------
    Solution
        A row that is not certified has another status than "optimal"; `Solution.raise_if_failed`
        turns that into an error.

    Raises
    ------
    InputError
        Neither or both of kappa and lam, NaN, negative values, wrong shapes, unknown method, no
        `Gram`, or one without samples.
    """
    if (kappa is None) == (lam is None):
        raise InputError("give exactly one of kappa (problem P) and lam (problem Q)")
    check_gram(gram)
    ball = kappa is not None
    level = per_row("kappa" if ball else "lam", kappa if ball else lam, gram.n_targets)  # type: ignore[arg-type]
    columns = Columns.build(gram.n_features, gram.n_targets, bounded, weights, signs)
    return _solve(gram, columns, level[:, None], ball, method, tol, n_jobs, progress)[0]


def solve_path(
    gram: Gram,
    kappas: Sequence[float],
    *,
    bounded: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    signs: ArrayLike | None = None,
    method: str = "auto",
    tol: float = 1e-9,
    n_jobs: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Solution, ...]:
    """Solve P(kappa) for several kappas in one pass along each row's solution path.

    Parameters
    ----------
    kappas : sequence of float
        Any order; repeated values are allowed.
    gram, bounded, weights, signs, method, tol, n_jobs, progress
        As `solve_rows`.

    Returns
    -------
    tuple of Solution
        One per kappa, in the order given.

    Raises
    ------
    InputError
        As `solve_rows`; no kappas.
    """
    check_gram(gram)
    values = np.atleast_1d(as_float64("kappas", kappas, (0, 1)))
    values = per_row("kappas", values, values.size)
    if not values.size:
        raise InputError("kappas is empty")
    columns = Columns.build(gram.n_features, gram.n_targets, bounded, weights, signs)
    ascending, place = np.unique(values, return_inverse=True)
    levels = np.tile(ascending, (gram.n_targets, 1))
    found = _solve(gram, columns, levels, True, method, tol, n_jobs, progress)
    return tuple(found[k] for k in place)


def _solve(
    gram: Gram,
    columns: Columns,
    levels: NDArray[np.float64],
    ball: bool,
    method: str,
    tol: float,
    n_jobs: int | None,
    progress: Callable[[int], None] | None,
) -> list[Solution]:
    """Solve rows in parallel chunks; levels (r, L). Returns one certified Solution per level."""
    check_limits(tol, n_jobs)
    name, why = _choose(method)
    with _BLAS.limit(limits=1, user_api="blas"):  # threads belong to the rows; and equal bits
        start = time.perf_counter()
        parts = _run(METHODS[name], gram, columns, levels, ball, tol, n_jobs, progress)
        solved = time.perf_counter()
        coef, iterations, methods = (
            np.concatenate([getattr(part, field) for part in parts])
            for field in ("coef", "iterations", "method")
        )
        out = []
        for k in range(levels.shape[1]):
            begin = time.perf_counter()
            level = levels[:, k]
            certificate = certify_columns(
                gram, coef[:, k], columns, level if ball else None, None if ball else level, tol
            )
            seconds = {"solve": solved - start, "certify": time.perf_counter() - begin}
            out.append(
                Solution(coef[:, k], certificate, methods[:, k], iterations[:, k], seconds, why)
            )
    return out


def check_limits(tol: float, n_jobs: int | None) -> None:
    """Refuse a tolerance or a number of workers that cannot be meant."""
    if not tol > 0:
        raise InputError(f"tol must be positive, got {tol}")
    if n_jobs == 0:
        raise InputError("n_jobs must not be 0: a number of workers, -1 for all cores, or None")


def _choose(method: str) -> tuple[str, str]:
    """Return the method's name and, for "auto", the reason."""
    if method == "auto":
        return "exact", "exact: on CPUs faster than torch at all sizes measured (benchmarks.sweep)"
    if method not in METHODS:
        raise UnknownNameError("method", method, ["auto", *METHODS])
    return method, ""


def _run(
    solver: ChunkSolver,
    gram: Gram,
    columns: Columns,
    levels: NDArray[np.float64],
    ball: bool,
    tol: float,
    n_jobs: int | None,
    progress: Callable[[int], None] | None,
) -> list[SolvedRows]:
    """Run the solver on chunks of rows through joblib, in order.

    Where no backend was chosen the first ones are done here: short work needs no threads.
    """
    rows = gram.n_targets
    backend, jobs = get_active_backend()
    ours = jobs is None and isinstance(backend, LokyBackend)  # as without joblib.parallel_config
    if n_jobs is None and jobs is None:
        n_jobs = -1
    # Small chunks level out rows of very different cost (two threads at kappa = 5 on 112 rows: 1.58
    # times faster with 16 chunks, 1.77 with 56); their number does not change the answer.
    size = max(1, rows if solver in _WHOLE else min(16, -(-rows // 64)))
    slices = [slice(start, min(start + size, rows)) for start in range(0, max(rows, 1), size)]
    gram.gram  # noqa: B018 - completes the symmetric matrix before threads share it

    def arguments(part: slice) -> tuple[Any, ...]:
        own = columns if columns.shared else Columns(columns.weights[part], columns.signs)
        # In a tuple: joblib's Dask backend keeps a bare array on one worker, to die with it.
        return solver, gram, part, own, (levels[part],), ball, tol, os.getpid()

    done: list[SolvedRows] = []
    start = time.perf_counter()
    while ours and len(done) < len(slices) and time.perf_counter() - start < _ALONE:
        part = slices[len(done)]
        done.append(_solve_slice(*arguments(part)))
        if progress is not None:
            progress(part.stop)
    if len(done) == len(slices):
        return done
    slices = slices[len(done) :]
    tasks = (joblib.delayed(_solve_slice)(*arguments(part)) for part in slices)
    # Copy-on-write: kernels compiled for writable arrays would be compiled anew for read-only ones.
    pool = joblib.Parallel(n_jobs=n_jobs, prefer="threads", mmap_mode="c", return_as="generator")
    for part, result in zip(slices, pool(tasks), strict=True):
        done.append(result)
        if progress is not None:
            progress(part.stop)
    return done


def _solve_slice(
    solver: ChunkSolver,
    gram: Gram,
    part: slice,
    columns: Columns,
    levels: tuple[NDArray[np.float64]],
    ball: bool,
    tol: float,
    parent: int,
) -> SolvedRows:
    """Solve one chunk; a worker process caps its own BLAS, threads share the caller's cap."""
    if os.getpid() == parent:
        return solver(gram.rows(part), columns, *levels, ball, tol)
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        return solver(gram.rows(part), columns, *levels, ball, tol)
