"""All rows at once on a GPU or the CPU (torch, float64): ADMM, then the exact segments, batched.

ADMM splits P(kappa) (or Q(lam)) into a least-squares step, one product of all rows with the inverse
of D G D + rho I, and a projection on the weighted l1 ball (soft thresholding), row by row. Its
iterates have exact zeros, so after each phase the support and the signs of every row are a guess of
its segment. The linear systems of all segments are padded to one size and solved together; columns
that violate the optimality conditions are exchanged, as in `cimf.solve.path.pivoting`, until none
does and the gap is below the tolerance. Rows that resist go to the exact method.

Columns are scaled to a unit diagonal: b = D^{-1} a, weights D w. Bits depend on the device and on
the rows that are solved together; the certificate does not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cimf.judge import energy
from cimf.solve.path import exact_rows as exact
from cimf.solve.path.point_gap import MARGIN
from cimf.solve.path.row_problem import RIDGE, ROUNDING, column_scale
from cimf.statistics import Gram
from formulations.columns import Columns, shrink
from formulations.level import Penalty, Radius

# ADMM iterations of each phase, after which every row left is tried on its segment.
_PHASES = (50, 100, 200, 400)
_OVER_RELAXATION = 1.6
# Shared by all rows; columns have unit diagonal. Rebalanced after each phase.
_RHO = 0.1
_MAX_EXCHANGES = 24
_REFINEMENTS = 3
# Bytes of padded systems that are factored at a time.
_MEMORY = 2**30


def solve_chunk(
    gram: Gram,
    columns: Columns,
    level: Radius | Penalty,
    tol: float,
    device: str | None = None,
) -> exact.SolvedRows:
    """Solve all rows for L levels each, counting iterations.

    As `cimf.solve.path.exact_rows.solve_chunk`.

    Parameters
    ----------
    gram, columns, level, tol
        As `cimf.solve.path.exact_rows.solve_chunk`.
    device : str, optional
        Of torch. Default: "cuda" if there is one, else "cpu".
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    levels, ball = level.values, isinstance(level, Radius)
    coef = np.zeros((*levels.shape, gram.n_features))
    lam, iterations = np.zeros(levels.shape), np.zeros(levels.shape, np.int64)
    method = np.full(levels.shape, "torch")
    if not levels.size:
        return exact.SolvedRows(coef, lam, iterations, method)
    problem = _Problem.build(gram, columns, ball, tol * MARGIN, torch.device(device))
    state = None
    for k in range(levels.shape[1]):
        aim = torch.as_tensor(levels[:, k].copy(), device=problem.gram.device)
        state, found, multiplier, count, solved = _solve_level(problem, aim, state)
        on_host = found.cpu().numpy() * column_scale(gram)
        coef[:, k] = shrink(on_host, columns.weights, levels[:, k]) if ball else on_host
        lam[:, k], iterations[:, k] = multiplier.cpu().numpy(), count.cpu().numpy()
        left = np.flatnonzero(~solved.cpu().numpy())
        if not left.size:
            continue
        part = columns if columns.shared else Columns(columns.weights[left], columns.signs)
        done = exact.solve_chunk(gram.rows(left), part, level.take((left, slice(k, k + 1))), tol)
        coef[left, k], lam[left, k] = done.coef[:, 0], done.lam[:, 0]
        method[left, k] = done.method[:, 0]
    return exact.SolvedRows(coef, lam, iterations, method)


@dataclass(frozen=True)
class _Problem:
    """All rows on the device, columns scaled.

    gram (N, N); corr, weights, signs (r, N); half_sq, goal (r,), the absolute gap aimed at.
    """

    gram: torch.Tensor
    corr: torch.Tensor
    weights: torch.Tensor
    signs: torch.Tensor
    half_sq: torch.Tensor
    goal: torch.Tensor
    ball: bool

    @classmethod
    def build(
        cls, gram: Gram, columns: Columns, ball: bool, goal: float, device: torch.device
    ) -> _Problem:
        def moved(array: NDArray[Any]) -> torch.Tensor:
            return torch.as_tensor(array, dtype=torch.float64, device=device)

        left, half_sq = energy(gram, columns), 0.5 * gram.target_sq
        # As `row_problem.absolute_goal`.
        aim = np.where(left > 10.0 * RIDGE * half_sq, goal * left, goal * half_sq)
        aim = np.where(left < half_sq, np.maximum(aim, ROUNDING * half_sq), aim)
        scale = column_scale(gram)
        matrix, d = moved(gram.gram), moved(scale)
        weights = np.where(scale > 0, columns.weights * np.where(scale > 0, scale, 1.0), np.inf)
        return cls(
            d[:, None] * matrix * d,
            moved(gram.corr) * d,
            moved(np.broadcast_to(weights, gram.corr.shape).copy()),
            moved(np.broadcast_to(columns.signs, gram.corr.shape).copy()),
            moved(0.5 * gram.target_sq),
            moved(aim),
            ball,
        )

    def rows(self, index: torch.Tensor) -> _Problem:
        """Return the problem of some rows."""
        names = ("corr", "weights", "signs", "half_sq", "goal")
        return replace(self, **{name: getattr(self, name)[index] for name in names})


def _solve_level(
    problem: _Problem, level: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor] | None
) -> tuple[
    tuple[torch.Tensor, torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor
]:
    """Solve every row for one level: returns (z, u), b, lam, iterations, solved."""
    r = problem.corr.shape[0]
    z, u = state if state is not None else (torch.zeros_like(problem.corr),) * 2
    z, u = z.clone(), u.clone()
    coef, lam = torch.zeros_like(problem.corr), torch.zeros_like(level)
    count = torch.zeros(r, dtype=torch.int64, device=level.device)
    solved = torch.zeros(r, dtype=torch.bool, device=level.device)
    left = torch.nonzero(level > 0)[:, 0]
    rho = _RHO
    for length in _PHASES:
        if not left.numel():
            break
        part = problem.rows(left)
        z_left, u_left, guess, change = _admm(part, level[left], z[left], u[left], rho, length)
        z[left], u[left] = z_left, u_left
        count[left] += length
        found, multiplier, ok = _finish(part, level[left], z_left, guess)
        done = left[ok]
        coef[done], lam[done], solved[done] = found[ok], multiplier[ok], True
        left = left[~ok]
        if left.numel():
            ratio = float(change[~ok].median().clamp(0.1, 10.0))
            rho, u = rho * ratio, u / ratio
    # The next level starts with rho = _RHO.
    return (z, u * (rho / _RHO)), coef, lam, count, solved


def _admm(
    problem: _Problem,
    level: torch.Tensor,
    z: torch.Tensor,
    u: torch.Tensor,
    rho: float,
    iterations: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return z, u, lam (r,) and the factor (r,) by which rho would balance the residuals."""
    n = problem.gram.shape[0]
    eye = torch.eye(n, dtype=torch.float64, device=z.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(problem.gram + rho * eye))
    fixed = problem.corr @ inverse
    previous = z
    x, tau = z, level
    for _ in range(iterations):
        x = fixed + rho * ((z - u) @ inverse)
        previous = z
        mixed = _OVER_RELAXATION * x + (1.0 - _OVER_RELAXATION) * z + u
        tau = _threshold(problem, mixed, level) if problem.ball else level / rho
        z = _soft(problem, mixed, tau)
        u = mixed - z
    primal = torch.linalg.vector_norm(x - z, dim=1)
    dual = torch.linalg.vector_norm(z - previous, dim=1)
    tiny = torch.finfo(torch.float64).tiny
    return z, u, rho * tau, torch.sqrt((primal + tiny) / (dual + tiny))


def _soft(problem: _Problem, x: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
    """Return the proximal point of tau_i sum_j w_ij |x_ij| and of the signs, for every row i."""
    size = (x.abs() - tau[:, None] * problem.weights).nan_to_num(0.0).clamp(min=0.0)
    out = torch.copysign(size, x)
    allowed = (out * problem.signs >= 0) & torch.isfinite(problem.weights)
    return torch.where(allowed, out, 0.0)


def _threshold(problem: _Problem, x: torch.Tensor, kappa: torch.Tensor) -> torch.Tensor:
    """Return tau (r,) for which `_soft` is the projection on the ball of radius kappa_i.

    The norm is convex, decreasing and piecewise linear in tau: Newton's method from 0 is monotone
    and ends after finitely many steps.
    """
    usable = torch.isfinite(problem.weights) & (problem.weights > 0) & (x * problem.signs >= 0)
    size = torch.where(usable, x.abs(), 0.0)
    weights = torch.where(usable, problem.weights, 0.0)
    tau = torch.zeros_like(kappa)
    for _ in range(100):
        rest = size - tau[:, None] * weights
        active = (rest > 0) & usable
        excess = torch.where(active, weights * rest, 0.0).sum(dim=1) - kappa
        slope = torch.where(active, weights * weights, 0.0).sum(dim=1)
        step = torch.where((excess > 1e-14 * kappa) & (slope > 0), excess / slope, 0.0)
        if not bool((step > 0).any()):
            break
        tau = tau + step
    return tau


def _finish(
    problem: _Problem, level: torch.Tensor, guess: torch.Tensor, lam: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Solve every row from the signs of a guess; returns b, lam and whether it is certified."""
    r = level.shape[0]
    coef, multiplier = torch.zeros_like(guess), lam.clone()
    solved = torch.zeros(r, dtype=torch.bool, device=level.device)
    free = problem.weights == 0
    sign = torch.sign(torch.where(free, 0.0, guess))
    left = torch.arange(r, device=level.device)
    best = torch.full((r,), problem.gram.shape[0] + 1, device=level.device)
    since = torch.zeros(r, dtype=torch.int64, device=level.device)
    for _ in range(_MAX_EXCHANGES):
        if not left.numel():
            break
        part, s = problem.rows(left), sign[left]
        b, lam_left = _on_segments(part, level[left], lam[left], s, free[left])
        gradient = b @ problem.gram - part.corr
        noise = 4e-16 * (torch.sqrt(2.0 * part.half_sq) + b.abs().sum(dim=1))[:, None]
        bound = lam_left[:, None] * part.weights * (1.0 + 1e-12) + noise
        entering = torch.where(gradient > 0, -1.0, 1.0)
        off = (s == 0) & ~free[left] & torch.isfinite(part.weights)
        enters = off & (gradient.abs() > bound) & (entering * part.signs >= 0)
        leaves = b * s < 0
        wrong = (enters | leaves).sum(dim=1)
        usable = torch.isfinite(lam_left) & (lam_left > 0)
        stationary = usable & (wrong == 0)
        done = left[stationary]
        coef[done], multiplier[done] = b[stationary], lam_left[stationary]
        solved[done] = _gap(part, level[left], lam_left, b, gradient)[stationary]
        sign[left] = torch.where(enters, entering, torch.where(leaves, 0.0, s))
        since[left] = torch.where(wrong < best[left], 0, since[left] + 1)
        best[left] = torch.minimum(best[left], wrong)
        left = left[usable & (wrong > 0) & (since[left] <= 3)]
    return coef, multiplier, solved


def _gap(
    problem: _Problem,
    level: torch.Tensor,
    lam: torch.Tensor,
    coef: torch.Tensor,
    gradient: torch.Tensor,
) -> torch.Tensor:
    """Return whether the gap (as `cimf.judge.certificate`) is below the goal."""
    bounded = (problem.weights > 0) & torch.isfinite(problem.weights)
    inner = torch.where(bounded, gradient * coef, 0.0).sum(dim=1)
    allowed = bounded & (gradient * problem.signs <= 0)
    weights = torch.where(bounded, problem.weights, 1.0)
    steepest = torch.where(allowed, gradient.abs() / weights, 0.0).amax(dim=1)
    if problem.ball:
        gap = inner + level * steepest
    else:  # as `cimf.solve.path.point_gap.gap_at`
        norm = torch.where(bounded, problem.weights * coef.abs(), 0.0).sum(dim=1)
        shrunk = torch.where((steepest > lam) & (lam > 0), 1.0 - lam / steepest, 0.0)
        gap = inner + lam * norm + shrunk * (shrunk * problem.half_sq - inner)
    return gap <= problem.goal


def _on_segments(
    problem: _Problem,
    level: torch.Tensor,
    lam: torch.Tensor,
    sign: torch.Tensor,
    free: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Solve the linear system of every row's segment; returns b (r, N) and lam (r,).

    Rows are taken in the order of their supports' sizes, so that little is padded.
    """
    size = ((sign != 0) | free).sum(dim=1)
    order = torch.argsort(size)
    sizes = size[order].tolist()
    coef, multiplier = torch.zeros_like(sign), lam.clone()
    start = 0
    while start < len(sizes):
        stop = start + 1
        while stop < len(sizes) and (stop + 1 - start) * 16 * max(sizes[stop], 1) ** 2 <= _MEMORY:
            stop += 1
        rows = order[start:stop]
        coef[rows], multiplier[rows] = _padded(
            problem.rows(rows), level[rows], lam[rows], sign[rows], free[rows], sizes[stop - 1]
        )
        start = stop
    return coef, multiplier


def _padded(
    problem: _Problem,
    level: torch.Tensor,
    lam: torch.Tensor,
    sign: torch.Tensor,
    free: torch.Tensor,
    k: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Solve systems of size k at most; unused places hold the identity."""
    out = torch.zeros_like(sign)
    if k == 0:
        return out, lam
    inside = (sign != 0) | free
    index = torch.argsort(inside.to(torch.uint8), dim=1, descending=True, stable=True)[:, :k]
    used = torch.gather(inside, 1, index)
    block = problem.gram[index[:, :, None], index[:, None, :]]
    block = torch.where(used[:, :, None] & used[:, None, :], block, 0.0)
    diagonal = torch.where(used, RIDGE, 1.0)
    factor, info = torch.linalg.cholesky_ex(block + torch.diag_embed(diagonal))
    weights = torch.where(torch.isfinite(problem.weights), problem.weights, 0.0)
    push = torch.where(used, torch.gather(weights * sign, 1, index), 0.0)
    target = torch.where(used, torch.gather(problem.corr, 1, index), 0.0)
    along = torch.cholesky_solve(push[:, :, None], factor)[:, :, 0]
    curvature = (push * along).sum(dim=1)
    b = torch.zeros_like(target)
    # Each pass is a proximal step: it removes the ridge and the rounding of the one before.
    for _ in range(_REFINEMENTS):
        residual = target - lam[:, None] * push - (block @ b[:, :, None])[:, :, 0]
        b = b + torch.cholesky_solve(residual[:, :, None], factor)[:, :, 0]
        if problem.ball:
            change = ((push * b).sum(dim=1) - level) / curvature
            b, lam = b - change[:, None] * along, lam + change
    lam = torch.where(info == 0, lam, torch.nan)
    return out.scatter(1, index, torch.where(used, b, 0.0)), lam
