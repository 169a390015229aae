"""A loss of `formulations` in the main job: problem (3) of the paper, its rows of (A, B).

    minimise 1/2 sum_i ||z_i - A_i X - B_i U||^2 + lam l(A, B)   subject to   the ball, and sets

over the columns that the row design allows. The bias is free: it is outside the ball, and the loss
and the sets see 0 in its place. It is eliminated by least squares before a solver sees the rows, so
a large mean beside it certifies nothing. Rows that nothing couples are solved one by one. The data
are a factor of the moments; every certificate is taken from the moments themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import compress
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from cimf.errors import InputError
from cimf.judge import Solution
from cimf.judge.certificate import certify, certify_bounds
from cimf.methods.stacked.assemble import Sparsified
from cimf.methods.stacked.captured import Reference, Rescale
from cimf.methods.stacked.fit_rows import fit_models
from cimf.methods.stacked.found import FoundLoss
from cimf.methods.stacked.loss_options import LossOptions
from cimf.methods.stacked.moments import Moments
from cimf.methods.stacked.row_problems import RowProblems
from cimf.solve import solve_rows
from cimf.solve.conic.cvxpy_models import solve_model_record
from cimf.solve.conic.cvxpy_rows import GROUND_TRUTH
from cimf.statistics import Gram
from formulations.columns import Columns
from formulations.least_squares import LeastSquares
from formulations.matrix_rows import Rows
from formulations.state_rows import StateRows, StateRowsRecord

Array = NDArray[np.float64]

# A column or a target of which the bias leaves no more than this share of its square is constant:
# moments of equal values differ from that by their rounding, 6e-15 of it with 300 samples, 7e-14
# with 300,000.
_CONSTANT = 1e-12


def loss_models(
    reference: Reference,
    levels: list[float],
    wanted: Iterable[bool],
    design: str,
    rescale: Rescale,
    options: LossOptions,
    moments: Moments | None,
    progress: Callable[[int], None] | None,
) -> Iterator[Sparsified]:
    """Yield the model of every wanted kappa, infinity for no ball; else as `iter_path`."""
    if not options.squares:
        if moments is not None:
            raise InputError("a fit other than least squares needs the samples, not moments")
        yield from fit_models(reference, levels, wanted, design, rescale, options, progress)
        return
    problem = RowProblems.of(reference, design, rescale, moments)
    layout = reference.calibration.layout
    if (weight := _l1_weight(options, layout.n_states, layout.n_inputs)) > 0.0:
        for kappa in compress(levels, wanted):
            solution, found = _l1_rows(problem, kappa, weight, options, progress)
            yield problem.sparsified(kappa, solution, options, loss=found)
        return
    factored = _Factored.of(problem.moments.gram, layout.free_columns)
    record = StateRowsRecord.build(
        factored.fit, len(problem.allowed), problem.allowed & ~factored.free, None,
        options.lam * options.loss, options.sets, 0.5,
    )  # fmt: skip
    for kappa in compress(levels, wanted):
        record = replace(record, kappa=np.full(len(problem.allowed), kappa))
        solution, found = _solved(problem, factored, record, options, progress)
        yield problem.sparsified(kappa, solution, options, loss=found)


def _l1_weight(options: LossOptions, n_states: int, n_inputs: int) -> float:
    """Return mu where the loss is lam l = mu sum |W_ij| and nothing else is asked, else 0."""
    if options.sets or options.backend != "auto" or not options.lam:
        return 0.0
    rows = Rows(np.zeros((n_states, n_states + n_inputs)), np.arange(n_states), n_states)
    pair = options.loss.coordinates(rows)
    if pair is None or pair[1].any() or (pair[0] != pair[0][0, 0]).any():
        return 0.0
    options.loss.check(n_states, n_inputs, 0, cones=False).raise_if_failed()
    return options.lam * float(pair[0][0, 0])


def _l1_rows(
    problem: RowProblems,
    kappa: float,
    lam: float,
    options: LossOptions,
    progress: Callable[[int], None] | None,
) -> tuple[Solution, FoundLoss]:
    """Return the rows of Q(lam) in the ball by the exact path, milliseconds each.

    Where the solution of Q(lam) is outside the ball, the best point inside has norm kappa and is
    that of P(kappa). Its gap, g the gradient of h, is one for both problems:
    <g, a> + lam |a| + kappa (max|g| - lam) <= <g, a> + kappa max|g|, as |a| <= kappa.
    """
    gram, weights = problem.moments.gram, problem.weights
    how: dict[str, Any] = {"tol": options.tol, "n_jobs": options.n_jobs}
    mark = max(options.tol, GROUND_TRUTH)  # as for every loss
    solution = solve_rows(gram, lam=lam, weights=weights, progress=progress, **how)
    judged = certify(gram, solution.coef, lam=lam, weights=weights, tol=mark)
    solution = replace(solution, certificate=judged)
    outside = np.flatnonzero(solution.certificate.norm > kappa)
    if outside.size:
        own = weights if weights.ndim == 1 else weights[outside]
        part = gram.rows(outside)
        held = solve_rows(part, kappa=kappa, weights=own, **how)
        judged = certify(part, held.coef, kappa=kappa, weights=own, tol=mark)
        judged = replace(judged, objective=judged.objective + lam * judged.norm)
        held = replace(held, certificate=judged)
        solution = _with_rows(solution, outside, held)
    free = problem.reference.calibration.layout.free_columns
    slack = solution.certificate.norm < kappa * (1.0 - solution.certificate.tol)
    found = FoundLoss(
        name=options.name,
        value=lam / options.lam * float(np.abs(np.where(free, 0.0, solution.coef)).sum()),
        lam=options.lam,
        sets=(),
        inside=int(slack.sum()) if np.isfinite(kappa) else None,
        whole=False,
    )
    return replace(solution, why="the loss is the l1 norm: exact path"), found


def _with_rows(solution: Solution, index: NDArray[np.intp], other: Solution) -> Solution:
    """Return the solution with the rows `index` replaced by those of another."""
    certificate = {
        field.name: _placed(old, index, getattr(other.certificate, field.name))
        for field in fields(solution.certificate)
        if isinstance(old := getattr(solution.certificate, field.name), np.ndarray)
    }
    seconds = {
        name: value + other.seconds.get(name, 0.0) for name, value in solution.seconds.items()
    }
    return Solution(
        _placed(solution.coef, index, other.coef),
        replace(solution.certificate, **certificate),
        _placed(solution.method, index, other.method),
        _placed(solution.iterations, index, other.iterations),
        seconds,
    )


def _placed(old: Any, index: NDArray[np.intp], new: Any) -> Any:
    out = old.astype(np.result_type(old, new))
    out[index] = new
    return out


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
    pieces = [record.take(list(rows)) for rows in solved.parts]
    points = [
        _zero_if_best(options, piece, values[list(rows)])
        for piece, rows in zip(pieces, solved.parts, strict=True)
    ]
    for rows, at in zip(solved.parts, points, strict=True):
        values[list(rows)] = at
    coef = values.copy()
    coef[:, free] = factored.free_values(gram, values)
    losses = np.array(
        [options.loss.value(piece.rows(at)) for piece, at in zip(pieces, points, strict=True)]
    )
    # A multiplier of 0 leaves of a loss where it is finite.
    cost = options.lam * losses if options.lam else np.where(np.isfinite(losses), 0.0, losses)
    violation = [
        max(piece.violations(at).values()) for piece, at in zip(pieces, points, strict=True)
    ]
    shift = factored.shift(record, solved.radius)
    bounds = np.array(solved.bounds) - [shift[list(rows)].sum() for rows in solved.parts]
    if _is_nonneg(options, record):
        bounds = np.maximum(bounds, 0.0)
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


def _zero_if_best(options: LossOptions, piece: StateRowsRecord, values: Array) -> Array:
    """Return zeros where the target is zero (a state that never changes) and they cost no more.

    Nothing gives such a row a scale: a solver stops at its tolerance instead of at zero.
    """
    nothing = np.zeros_like(values)
    if piece.fit.target.any() or max(piece.violations(nothing).values()) > 0.0:
        return values
    better = options.loss.value(piece.rows(nothing)) <= options.loss.value(piece.rows(values))
    return nothing if better else values


def _is_nonneg(options: LossOptions, record: StateRowsRecord) -> bool:
    """Return whether the loss is nonnegative by the signs of its expression."""
    variable = cp.Variable((len(record.index), record.fit.n_features))
    expression, _ = options.loss.lifted(record.rows(variable))
    return bool(cp.sum(expression).is_nonneg())


@dataclass(frozen=True)
class _Factored:
    """The moments beside the bias as data (at most N samples), and what that left out.

    Attributes
    ----------
    fit : LeastSquares
        Design D and targets t_i, from the moments G, c_i that the bias at its best leaves.
    free : (N,) bool
        The bias column.
    units : (N,)
        ||M_j||, of a constant column with its mean.
    off_gram : float
        Largest entry of G - D'D, rows and columns over their units.
    off_corr, off_target : (n,)
        The same of c_i - D't_i; 1/2 |z_i|^2 less that of its factor.
    """

    fit: LeastSquares
    free: NDArray[np.bool_]
    units: Array
    off_gram: float
    off_corr: Array
    off_target: Array

    @classmethod
    def of(cls, gram: Gram, free: NDArray[np.bool_]) -> _Factored:
        """Eliminate the free columns and factor what is left."""
        cross, reached = gram.gram[free], gram.corr[:, free]
        inverse = scipy.linalg.pinvh(cross[:, free]) if free.any() else np.zeros((0, 0))
        g = gram.gram - cross.T @ inverse @ cross
        c = gram.corr - reached @ inverse @ cross
        t = np.maximum(gram.target_sq - np.einsum("ij,jk,ik->i", reached, inverse, reached), 0.0)
        # A column that is constant but for rounding is none: scaled up, its rounding would be data.
        square, before = np.diagonal(g), np.diagonal(gram.gram)
        varies = square > _CONSTANT * before
        kept = ~free & varies
        moving = t > _CONSTANT * gram.target_sq
        fit = LeastSquares.from_moments(
            np.where(np.outer(kept, kept), 0.5 * (g + g.T), 0.0),
            np.where(moving[:, None] & kept, c, 0.0), np.where(moving, t, 0.0), rounding=np.inf,
        )  # fmt: skip
        units = np.sqrt(np.where(varies, square, before))
        inverse_units = np.divide(1.0, units, out=np.zeros_like(units), where=~free & (units > 0))
        left = (g - fit.design.T @ fit.design) * inverse_units[:, None] * inverse_units
        missed = (c - fit.target.T @ fit.design) * inverse_units
        return cls(
            fit,
            free,
            units,
            float(np.abs(left).max()),
            np.abs(missed).max(axis=1),
            0.5 * np.abs(t - fit.target_sq),
        )

    def free_values(self, gram: Gram, values: Array) -> Array:
        """Return the best free columns beside values (n, N), shape (n, |F|)."""
        if not self.free.any():
            return np.zeros((len(values), 0))
        g = gram.gram[self.free]
        rest = gram.corr[:, self.free] - values @ g.T
        return np.asarray(rest @ scipy.linalg.pinvh(g[:, self.free]))

    def shift(self, record: StateRowsRecord, radius: float) -> Array:
        """Return by how much the bound of a row on the factor can exceed that on the moments, (n,).

        |h - h_factor| <= s max|c - D't| + s^2/2 max|G - D'D| + the difference of the ||z||^2, in
        units of the columns' norms, for every point with sum_j |a_j| ||M_j|| <= s. A small
        direction of G that the factor leaves out is then not certified away.
        """
        ball = record.kappa * np.where(record.allowed, self.units, 0.0).max(axis=1)
        within = radius * (record.allowed @ (record.unit * self.units))
        if record.separable:  # every row in units of its own
            own = np.sqrt(record.fit.target_sq)
            within *= np.where(own > 0, own, 1.0) / (own.max() or 1.0)
        size = np.minimum(ball, within)
        shift: Array = size * self.off_corr + 0.5 * np.square(size) * self.off_gram
        return shift + self.off_target
