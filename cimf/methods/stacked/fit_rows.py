"""Rows of (A, B) with another data fit than least squares, on the samples themselves.

    minimise 1/2 sum_ik phi(p_ik; z_ik) + lam l(A, B)   subject to   the ball, and sets

with p = A X + B U over the columns that the row design allows, phi of `formulations.fits`. The bias
is free, as in `loss_rows`: a variable that the ball, the loss and the sets do not see. The
certificate of a row is its objective, computed from the samples, less the bound of its problem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import compress
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from cimf.errors import InputError
from cimf.judge import Solution
from cimf.judge.certificate import Certificate
from cimf.methods.stacked.assemble import Sparsified
from cimf.methods.stacked.captured import Reference, Rescale
from cimf.methods.stacked.found import FoundLoss
from cimf.methods.stacked.loss_options import LossOptions
from cimf.methods.stacked.row_problems import RowProblems
from cimf.solve.conic.cvxpy_models import solve_model_record
from formulations.balls import L1Ball
from formulations.constraint_set import ConstraintSet
from formulations.fits import Misfit
from formulations.least_squares import LeastSquares
from formulations.loss import Loss
from formulations.matrix_rows import Rows
from formulations.state_rows import StateRows, StateRowsRecord

Array = NDArray[np.float64]

# Entries of states and targets that are held at once: 1 GB.
_LARGEST = 128_000_000


def fit_models(
    reference: Reference,
    levels: list[float],
    wanted: Iterable[bool],
    design: str,
    rescale: Rescale,
    options: LossOptions,
    progress: Callable[[int], None] | None,
) -> Iterator[Sparsified]:
    """Yield the model of every wanted kappa; else as `loss_rows.loss_models`.

    Raises
    ------
    InputError
        More samples than fit in memory.
    """
    problem = RowProblems.of(reference, design, rescale, None)
    free = reference.calibration.layout.free_columns
    data, misfit = _samples(problem), Misfit(options.fit, options.fit)
    loss = Hidden(options.lam * options.loss, free)
    for kappa in compress(levels, wanted):
        balls = [L1Ball(kappa)] if np.isfinite(kappa) else []
        sets = [HiddenSet(part, free) for part in (*options.sets, *balls)]
        allowed = problem.allowed | free
        record = StateRowsRecord.build(
            data, len(allowed), allowed, None, loss, sets, 0.5, misfit
        )  # fmt: skip
        solution, found = _solved(record, kappa, free, options, progress)
        yield problem.sparsified(kappa, solution, options, loss=found)


def _samples(problem: RowProblems) -> LeastSquares:
    """Return the states of all calibration samples, in the units of the problem."""
    samples = problem.reference.calibration
    entries = samples.n_samples * (samples.layout.n_columns + samples.layout.n_states)
    if entries > _LARGEST:
        raise InputError(
            f"a fit other than least squares holds the states of all samples: {samples.n_samples} "
            f"are {entries:.2g} numbers, {_LARGEST:.2g} at most; give fewer samples"
        )
    parts = [states.scaled(problem.moments.scale) for states in samples.chunks()]
    design = np.hstack([np.vstack([part.X, part.U]) for part in parts]).T
    return LeastSquares.from_arrays(design, np.hstack([part.Z for part in parts]).T)


def _solved(
    record: StateRowsRecord,
    kappa: float,
    free: NDArray[np.bool_],
    options: LossOptions,
    progress: Callable[[int], None] | None,
) -> tuple[Solution, FoundLoss]:
    """Return certified rows of (A, B), the bias included, and what the loss is there."""
    values, solved = solve_model_record(
        StateRows, record, options.backend, options.tol, progress, options.n_jobs
    )
    objective, gap, violation = (np.empty(len(values)) for _ in range(3))
    losses, counts = 0.0, np.empty(len(values), dtype=np.int64)
    names = np.empty(len(values), dtype="<U24")
    for k, part in enumerate(solved.parts):
        rows = list(part)
        piece, at = record.take(rows), values[rows]
        objective[rows] = piece.objective(at)
        # Beside what the bias alone leaves: a large mean of the targets certifies nothing.
        middle = np.broadcast_to(piece.fit.target.mean(axis=0), piece.fit.target.shape)
        unit = piece.matching(middle) or piece.scale
        gap[rows] = abs(objective[rows[0]] - solved.bounds[k]) / unit
        violation[rows] = max(piece.violations(at).values())
        losses += options.loss.value(piece.rows(np.where(free, 0.0, at)))
        counts[rows], names[rows] = solved.iterations[k], solved.backend[k].split()[0]
    gap = np.where(np.isnan(gap), np.inf, gap)
    norm = np.abs(np.where(free, 0.0, values)).sum(axis=1)
    passed = (gap <= solved.tol) & (violation <= solved.tol)
    certificate = Certificate(
        objective, gap, violation, np.zeros(len(values)), norm, solved.tol, passed,
        np.zeros(len(values), dtype=bool),
    )  # fmt: skip
    why = f"backend {options.backend!r}: the fit needs a cone solver"
    found = FoundLoss(
        name=options.name,
        value=losses,
        lam=options.lam,
        sets=tuple(options.set_names),
        inside=int((norm < kappa * (1.0 - solved.tol)).sum()) if np.isfinite(kappa) else None,
        whole=not record.separable,
        fit=repr(options.fit),
    )
    return Solution(values, certificate, names, counts, solved.seconds, why), found


@dataclass(frozen=True)
class _Hidden:
    """A part of a problem that sees 0 in the hidden columns, (N,) bool."""

    inner: Any
    hidden: NDArray[np.bool_]

    @property
    def separable(self) -> bool:
        """As the inner part."""
        return bool(self.inner.separable)

    @property
    def name(self) -> str:
        """Of the inner part."""
        return str(self.inner.name)

    def violation(self, rows: Rows) -> float:
        """Return the inner violation."""
        return float(self.inner.violation(_seen(rows, self.hidden)))


class Hidden(_Hidden, Loss):  # type: ignore[override]
    """A loss that sees 0 in the hidden columns."""

    def expression(self, rows: Rows) -> Any:
        """Return the inner expression."""
        return self.inner.expression(_seen(rows, self.hidden))

    def value(self, rows: Rows) -> float:
        """Return the inner value."""
        return float(self.inner.value(_seen(rows, self.hidden)))

    def coordinates(self, rows: Rows) -> tuple[Any, Any] | None:
        """Return those of the inner loss, 0 in the hidden columns."""
        found = self.inner.coordinates(rows)
        return None if found is None else (found[0] * ~self.hidden, found[1] * ~self.hidden)


class HiddenSet(_Hidden, ConstraintSet):  # type: ignore[override]
    """A set that sees 0 in the hidden columns."""

    def constraints(self, rows: Rows) -> list[cp.Constraint]:
        """Return the inner constraints."""
        found: list[cp.Constraint] = self.inner.constraints(_seen(rows, self.hidden))
        return found

    def nearest(self, rows: Rows) -> Array:
        """Return what is seen moved inside, and the hidden columns as they are."""
        return np.where(self.hidden, rows.values, self.inner.nearest(_seen(rows, self.hidden)))


def _seen(rows: Rows, hidden: NDArray[np.bool_]) -> Rows:
    if isinstance(rows.values, cp.Expression):
        values = rows.values @ scipy.sparse.diags_array(np.where(hidden, 0.0, 1.0))
    else:
        values = np.where(hidden, 0.0, rows.values)
    return Rows(values, rows.index, rows.n_states)
