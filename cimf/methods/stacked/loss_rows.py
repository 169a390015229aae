"""A loss of `formulations` in the main job: problem (3) of the paper, its rows of (A, B).

    minimise 1/2 sum_i ||z_i - A_i X - B_i U||^2 + lam l(A, B)   subject to   the ball, and sets

over the columns that the row design allows. The bias is free: it is outside the ball, and the loss
and the sets see 0 in its place. It is eliminated by least squares before a solver sees the rows, so
a large mean beside it certifies nothing. Rows that nothing couples are solved one by one. The data
are a factor of the moments; every certificate is taken from the moments themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from cimf.judge import ModelSolution, Solution
from cimf.judge.certificate import certify_bounds
from cimf.methods.stacked.assemble import Sparsified
from cimf.methods.stacked.captured import Reference
from cimf.methods.stacked.found import FoundLoss
from cimf.methods.stacked.loss_options import LossOptions
from cimf.methods.stacked.moments import Moments
from cimf.methods.stacked.row_problems import RowProblems
from cimf.solve.conic.cvxpy_models import solve_model_record
from cimf.statistics import Gram
from formulations.columns import Columns
from formulations.least_squares import LeastSquares
from formulations.state_rows import StateRows, StateRowsRecord

Array = NDArray[np.float64]


def loss_models(
    reference: Reference,
    levels: list[float],
    design: str,
    rescale: bool,
    options: LossOptions,
    moments: Moments | None,
    progress: Callable[[int], None] | None,
) -> Iterator[Sparsified]:
    """Yield the model of every kappa, infinity for no ball; else as `sparsify_path`."""
    problem = RowProblems.of(reference, design, rescale, moments)
    factored = _Factored.of(problem)
    record = StateRowsRecord.build(
        factored.fit, len(problem.allowed), problem.allowed & ~factored.free, None,
        options.lam * options.loss, options.sets, 0.5,
    )  # fmt: skip
    for kappa in levels:
        record = replace(record, kappa=np.full(len(problem.allowed), kappa))
        solution, found = _solved(problem, factored, record, options, progress)
        yield problem.sparsified(kappa, solution, options, loss=found)


def _solved(
    problem: RowProblems,
    factored: _Factored,
    record: StateRowsRecord,
    options: LossOptions,
    progress: Callable[[int], None] | None,
) -> tuple[Solution, FoundLoss]:
    """Return certified rows of (A, B), the bias included, and what the loss is there."""
    gram, free = problem.moments.gram, factored.free
    values, solved = solve_model_record(
        StateRows, record, options.backend, options.tol, progress, options.n_jobs
    )
    coef = values.copy()
    coef[:, free] = factored.free_values(gram, values)
    pieces = [record.take(list(rows)) for rows in solved.parts]
    points = [values[list(rows)] for rows in solved.parts]
    losses = np.array(
        [options.loss.value(piece.rows(at)) for piece, at in zip(pieces, points, strict=True)]
    )
    # A multiplier of 0 leaves of a loss where it is finite.
    cost = options.lam * losses if options.lam else np.where(np.isfinite(losses), 0.0, losses)
    violation = [
        max(piece.violations(at).values()) for piece, at in zip(pieces, points, strict=True)
    ]
    shift = factored.shift(gram, record, solved)
    bounds = np.array(solved.bounds) - [shift[list(rows)].sum() for rows in solved.parts]
    signs = np.zeros(gram.n_features, dtype=np.int8)
    certificate = certify_bounds(
        gram, coef, Columns(problem.weights, signs), cost, bounds, np.array(violation),
        solved.parts, solved.tol,
    )  # fmt: skip
    of_row = np.empty(len(coef), dtype=np.intp)
    for k, rows in enumerate(solved.parts):
        of_row[list(rows)] = k
    solution = Solution(
        coef,
        certificate,
        np.array([name.split()[0] for name in solved.backend])[of_row],
        np.array(solved.iterations)[of_row],
        solved.seconds,
        f"backend {options.backend!r}: the loss needs a cone solver",
    )
    slack = certificate.norm < record.kappa * (1.0 - solved.tol)
    found = FoundLoss(
        name=options.name,
        value=float(losses.sum()),
        lam=options.lam,
        sets=tuple(options.set_names),
        inside=int(slack.sum()) if np.isfinite(record.kappa).all() else None,
        whole=not record.separable,
    )
    return solution, found


@dataclass(frozen=True)
class _Factored:
    """The moments as data (at most N samples) with the bias eliminated, and what that left out.

    Attributes
    ----------
    fit : LeastSquares
    free : (N,) bool
        The bias column.
    off_gram : float
        Largest entry of G - D'D, D the factor, in units of the norms of its columns.
    off_corr, off_target : (n,)
        The same of c_i - D't_i, and what 1/2 ||z_i||^2 falls short of that of its factor.
    """

    fit: LeastSquares
    free: NDArray[np.bool_]
    off_gram: float
    off_corr: Array
    off_target: Array

    @classmethod
    def of(cls, problem: RowProblems) -> _Factored:
        gram = problem.moments.gram
        whole = LeastSquares.from_moments(gram.gram, gram.corr, gram.target_sq)
        norms = np.sqrt(np.diagonal(gram.gram))
        unit = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
        left = gram.gram - whole.design.T @ whole.design
        missed = (gram.corr - whole.target.T @ whole.design) * unit
        free = problem.reference.calibration.layout.free_columns
        return cls(
            whole.beside(free),
            free,
            float(np.abs(left * unit[:, None] * unit).max()),
            np.abs(missed).max(axis=1),
            0.5 * np.abs(gram.target_sq - whole.target_sq),
        )

    def free_values(self, gram: Gram, values: Array) -> Array:
        """Return the best free columns beside values (n, N), shape (n, |F|)."""
        g = gram.gram[self.free]
        rest = gram.corr[:, self.free] - values @ g.T
        return np.asarray(rest @ scipy.linalg.pinvh(g[:, self.free]))

    def shift(self, gram: Gram, record: StateRowsRecord, solved: ModelSolution) -> Array:
        """Return by how much the bound of a row on the factor can exceed that on the moments, (n,).

        |h - h_factor| <= s max|c - D't| + s^2/2 max|G - D'D| + what ||z||^2 lost, columns in units
        of their norms, for every point with sum_j |a_j| ||M_j|| <= s, the bias at its best. A small
        direction of G that the factor leaves out is then not certified away.
        """
        norms = np.sqrt(np.diagonal(gram.gram))
        ball = record.kappa * np.where(record.allowed, norms, 0.0).max(axis=1)
        within = solved.radius * (record.allowed @ (record.unit * norms))
        if record.separable:  # every row in units of its own
            own = np.sqrt(record.fit.target_sq)
            within *= np.where(own > 0, own, 1.0) / (own.max() or 1.0)
        size = 2.0 * np.minimum(ball, within) + np.sqrt(gram.target_sq)
        shift: Array = size * self.off_corr + 0.5 * np.square(size) * self.off_gram
        return shift + self.off_target
