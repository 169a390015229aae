"""Row problems P(kappa) and Q(lam) by a backend: reduced, normalised, polished, certified."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cimf.errors import BackendError
from cimf.judge import Solution, certify_columns
from cimf.judge.certificate import Certificate
from cimf.solve.conic.backends import Outcome, candidates, solve
from cimf.solve.polish import polished_points
from cimf.statistics import Gram
from formulations.constrained import Constrained, RowProblem
from formulations.least_squares import LeastSquares
from formulations.problem import RowRecord

Array = NDArray[np.float64]
Progress = Callable[[int], None]

# The pass mark of a CVXPY solution as ground truth. Its polished rows reach 1e-12 and better, the
# bound of a whole model 1e-8 to 1e-10 at solver tolerance 1e-9.
GROUND_TRUTH = 1e-7


@dataclass(frozen=True, repr=False)
class CvxpySolution(Solution):
    """A `Solution` of row problems that also says what the backend itself returned.

    Attributes
    ----------
    raw : Certificate or None
        Certificate of the backend's point moved inside the constraints, before the polish.
    backend : (r,) str
        Name and version.
    backend_status : (r,) str
        The backend's own word: 'optimal', 'inaccurate', or 'failed' (the row is then zero, and its
        certificate fails unless that is the solution).
    """

    raw: Certificate | None = None
    backend: NDArray[np.str_] = field(default_factory=lambda: np.zeros(0, dtype=str))
    backend_status: NDArray[np.str_] = field(default_factory=lambda: np.zeros(0, dtype=str))


def solve_path_cvxpy(
    gram: Gram,
    kappas: Iterable[ArrayLike],
    *,
    bounded: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    signs: ArrayLike | None = None,
    backend: str = "auto",
    tol: float = 1e-9,
    progress: Progress | None = None,
) -> tuple[CvxpySolution, ...]:
    """Solve P(kappa) on the moments of a `Gram`, one solution per kappa in the order given.

    The slow reference for `cimf.solve_path`, with the same arguments; `backend`, `tol` and the
    errors as `cimf.solve_cvxpy`. The Gram is factored once.
    """
    fit = LeastSquares.from_moments(gram.gram, gram.corr, gram.target_sq)
    records = [
        RowRecord.build(fit, kappa=kappa, bounded=bounded, weights=weights, signs=signs)
        for kappa in kappas
    ]
    return tuple(solve_record(Constrained, r, backend, tol, progress) for r in records)


def solve_record(
    kind: type[RowProblem], record: RowRecord, backend: str, tol: float, progress: Progress | None
) -> CvxpySolution:
    """Solve every row of P or Q on its own, polish, and certify on the data as given.

    Parameters
    ----------
    kind : `Constrained` or `Lasso`
    record : RowRecord
    backend, tol, progress
        As `cimf.solve_cvxpy`.
    """
    start = time.perf_counter()
    work, factor = record.reduced().normalised()
    candidates(backend)
    outcomes: list[Outcome | None] = []
    written = 0.0
    coef = np.empty((record.fit.n_targets, record.fit.n_features))
    for i in range(coef.shape[0]):
        began = time.perf_counter()
        row = kind.from_record(work.row(i))
        written += time.perf_counter() - began
        try:
            outcomes.append(solve(row, backend, tol))
            coef[i] = factor[i] * row.coefficients[0]
        except BackendError:
            # One bad row does not end the run: zero is feasible, and its certificate fails.
            outcomes.append(None)
            coef[i] = 0.0
        if progress is not None:
            progress(i + 1)
    solved = time.perf_counter()
    gram = _gram(record)
    mark = max(tol, GROUND_TRUTH)
    coef = record.feasible(coef)
    raw = certify_columns(gram, coef, record.columns, record.level, mark)
    polished = np.array([_polish(gram, record, coef[i], i, mark) for i in range(coef.shape[0])])
    certificate = certify_columns(gram, polished, record.columns, record.level, mark)
    changed = (polished != coef).any(axis=1)
    names = np.array([o.backend if o else "none" for o in outcomes])
    build = written + sum(o.build for o in outcomes if o)
    seconds = {
        "build": build,
        "solve": solved - start - build,
        "certify": time.perf_counter() - solved,
    }
    return CvxpySolution(
        polished,
        certificate,
        np.where(changed, np.char.add(names, "+polish"), names),
        np.array([o.iterations if o else 0 for o in outcomes]),
        seconds,
        f"backend {backend!r}",
        raw,
        np.array([f"{o.backend} {o.version}" if o else "none" for o in outcomes]),
        np.array([o.status if o else "failed" for o in outcomes]),
    )


def _gram(record: RowRecord) -> Gram:
    """Return the moments of the data as given, which certificates are computed from."""
    if record.fit.moments is not None:
        return Gram.from_moments(*record.fit.moments, n_samples=0)
    return Gram.from_arrays(record.fit.design, record.fit.target)


def _polish(gram: Gram, record: RowRecord, coef: Array, i: int, mark: float) -> Array:
    """Return the candidate with the smallest certified gap, `coef` itself among them."""
    row = record.row(i)
    weights = row.columns.weights
    found = polished_points(gram.gram, gram.corr[i], weights, row.columns.signs, coef, row.level)
    points = np.vstack([coef[None, :], found])
    same = [0] * len(points)
    copies = RowRecord(row.fit, row.columns, row.level.take(same))
    points = copies.feasible(points)
    judged = certify_columns(
        gram.rows([i] * len(points)), points, copies.columns, copies.level, mark
    )
    # Among equally good points the sparsest: rounding decides below 1e-15.
    gap = np.where(judged.violation == 0.0, np.maximum(judged.gap, 1e-15), np.inf)
    best: Array = points[np.lexsort(((points != 0).sum(axis=1), gap))[0]]
    return best
