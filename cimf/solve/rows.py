"""The front door of the row solvers: `solve_rows` for one level, `solve_path` for several."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import joblib
import numpy as np
import threadpoolctl
from joblib.parallel import LokyBackend, get_active_backend
from numpy.typing import ArrayLike

from cimf.errors import InputError, UnknownNameError
from cimf.judge import Solution, certify_columns
from cimf.solve.bisection import algorithms as bisection
from cimf.solve.path import exact_rows as exact
from cimf.solve.path.exact_rows import SolvedRows
from cimf.statistics import Gram, check_gram
from formulations.columns import Columns, as_float64, per_row
from formulations.level import Penalty, Radius, stated

# Statistics of r targets, columns, levels (r, L), tolerance.
ChunkSolver = Callable[[Gram, Columns, Radius | Penalty, float], SolvedRows]


def _batched(gram: Gram, columns: Columns, level: Radius | Penalty, tol: float) -> SolvedRows:
    """Solve all rows at once; torch takes seconds to load, so only where it is asked for."""
    from cimf.solve.batched import torch_rows as batched

    return batched.solve_chunk(gram, columns, level, tol)


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
    check_gram(gram)
    level = stated(kappa, lam, gram.n_targets).take((slice(None), None))
    columns = Columns.build(gram.n_features, gram.n_targets, bounded, weights, signs)
    return _solve(gram, columns, level, _How(method, tol, n_jobs, progress))[0]


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
    level = Radius(np.tile(ascending, (gram.n_targets, 1)))
    found = _solve(gram, columns, level, _How(method, tol, n_jobs, progress))
    return tuple(found[k] for k in place)


def check_limits(tol: float, n_jobs: int | None) -> None:
    """Refuse a tolerance or a number of workers that cannot be meant."""
    if not tol > 0:
        raise InputError(f"tol must be positive, got {tol}")
    if n_jobs == 0:
        raise InputError("n_jobs must not be 0: a number of workers, -1 for all cores, or None")


@dataclass(frozen=True)
class _How:
    """By which method, to what tolerance and with how many workers; checked when it is made."""

    method: str
    tol: float
    n_jobs: int | None
    progress: Callable[[int], None] | None

    def __post_init__(self) -> None:
        check_limits(self.tol, self.n_jobs)
        if self.method != "auto" and self.method not in METHODS:
            raise UnknownNameError("method", self.method, ["auto", *METHODS])

    @property
    def solver(self) -> ChunkSolver:
        return METHODS["exact" if self.method == "auto" else self.method]

    @property
    def why(self) -> str:
        """The reason for the method that "auto" takes; empty where one was named."""
        if self.method != "auto":
            return ""
        return "exact: on CPUs faster than torch at all sizes measured (benchmarks.sweep)"


def _solve(gram: Gram, columns: Columns, level: Radius | Penalty, how: _How) -> list[Solution]:
    """Solve rows in parallel chunks for levels (r, L); returns L certified solutions."""
    with _BLAS.limit(limits=1, user_api="blas"):  # threads belong to the rows; and equal bits
        start = time.perf_counter()
        parts = _run(gram, columns, level, how)
        solved = time.perf_counter()
        coef, iterations, methods = (
            np.concatenate([getattr(part, field) for part in parts])
            for field in ("coef", "iterations", "method")
        )
        out = []
        for k in range(level.values.shape[1]):
            begin = time.perf_counter()
            certificate = certify_columns(
                gram, coef[:, k], columns, level.take((slice(None), k)), how.tol
            )
            seconds = {"solve": solved - start, "certify": time.perf_counter() - begin}
            out.append(
                Solution(coef[:, k], certificate, methods[:, k], iterations[:, k], seconds, how.why)
            )
    return out


@dataclass(frozen=True)
class _Chunk:
    """Some rows to be solved, by a thread or in another process (whose id is not `parent`).

    An object that holds arrays, never a bare array among the arguments of a task: joblib's Dask
    backend keeps those on one worker, to die with it. The statistics stand beside it: `scatter`
    of that backend finds them among the arguments only.
    """

    rows: slice
    columns: Columns
    level: Radius | Penalty
    solver: ChunkSolver
    tol: float
    parent: int

    def solve(self, gram: Gram) -> SolvedRows:
        """Solve; a worker process caps its own BLAS, threads share the caller's cap."""
        if os.getpid() == self.parent:
            return self._solve(gram)
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            return self._solve(gram)

    def _solve(self, gram: Gram) -> SolvedRows:
        return self.solver(gram.rows(self.rows), self.columns, self.level, self.tol)


def _run(gram: Gram, columns: Columns, level: Radius | Penalty, how: _How) -> list[SolvedRows]:
    """Run the solver on chunks of rows through joblib, in order.

    Where no backend was chosen the first ones are done here: short work needs no threads.
    """
    rows = gram.n_targets
    backend, jobs = get_active_backend()
    ours = jobs is None and isinstance(backend, LokyBackend)  # as without joblib.parallel_config
    n_jobs = -1 if how.n_jobs is None and jobs is None else how.n_jobs
    # Small chunks level out rows of very different cost (two threads at kappa = 5 on 112 rows: 1.58
    # times faster with 16 chunks, 1.77 with 56); their number does not change the answer.
    size = max(1, rows if how.solver in _WHOLE else min(16, -(-rows // 64)))
    gram.gram  # noqa: B018 - completes the symmetric matrix before threads share it
    chunks = []
    for start in range(0, max(rows, 1), size):
        part = slice(start, min(start + size, rows))
        own = columns if columns.shared else Columns(columns.weights[part], columns.signs)
        chunks.append(_Chunk(part, own, level.take(part), how.solver, how.tol, os.getpid()))
    done: list[SolvedRows] = []

    def count(result: SolvedRows) -> None:
        done.append(result)
        if how.progress is not None:
            how.progress(chunks[len(done) - 1].rows.stop)

    began = time.perf_counter()
    while ours and len(done) < len(chunks) and time.perf_counter() - began < _ALONE:
        count(chunks[len(done)].solve(gram))
    if len(done) < len(chunks):
        # Copy-on-write: kernels compiled for writable arrays would be compiled anew for read-only.
        pool = joblib.Parallel(
            n_jobs=n_jobs, prefer="threads", mmap_mode="c", return_as="generator"
        )
        for result in pool(
            joblib.delayed(_Chunk.solve)(chunk, gram) for chunk in chunks[len(done) :]
        ):
            count(result)
    return done
