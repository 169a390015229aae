"""x = g(x) for a batch of independent rows in torch, by Anderson acceleration with a safeguard."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

# Points kept and relative ridge of the least squares, as in `cimf.model.equilibrium`; the ridge is
# this many rounding units of the dtype (1e-14 in float64).
_MEMORY = 5
_RIDGE_UNITS = 50


def fixed_point(
    step: Callable[[Tensor], Tensor], start: Tensor, tol: float, max_iter: int
) -> tuple[Tensor, Tensor]:
    """Solve x = step(x) from x = 0, every row until it converged.

    The rules are those of `cimf.model.equilibrium.solve_equilibrium`: a residual relative to the
    first step, never at a state so large that its rounding hides that step; an accelerated point
    is kept only if its residual is no larger than at the point before, else the plain step from
    there is taken and the history dropped.

    Parameters
    ----------
    step : (batch, n) -> (batch, n)
        Row by row.
    start : (batch, n)
        Zeros: shape, dtype and device.
    tol, max_iter

    Returns
    -------
    (batch, n), (batch,) bool
        The last iterates, and which of them converged.
    """
    eps = torch.finfo(start.dtype).eps
    x, size = start, None
    accepted = f_accepted = torch.zeros_like(start)
    best = start.new_full(start.shape[:1], torch.inf)
    mixed = torch.zeros_like(best, dtype=torch.bool)
    done = mixed.clone()
    dx, df = (start.new_zeros(len(start), _MEMORY, start.shape[1]) for _ in range(2))
    for count in range(max_iter):
        f = step(x) - x
        residual = f.abs().amax(1)
        size = residual if size is None else size
        rounding = eps * x.abs().amax(1)
        done = done | (
            (residual <= torch.maximum(tol * size, 8 * rounding))
            & (rounding <= math.sqrt(eps) * size)
        )
        if bool(done.all()):
            break
        reject = mixed & ~(residual <= best)
        if count:
            new = (~reject)[:, None]
            dx = torch.cat([(x - accepted)[:, None], dx[:, :-1]], 1).where(new[:, None], 0.0)
            df = torch.cat([(f - f_accepted)[:, None], df[:, :-1]], 1).where(new[:, None], 0.0)
        keep = reject[:, None]
        accepted, f_accepted = torch.where(keep, accepted, x), torch.where(keep, f_accepted, f)
        best = torch.where(reject, best, residual)
        move = f_accepted - _correction(dx, df, f_accepted)
        mixed = df.flatten(1).any(1) & torch.isfinite(move).all(1)
        move = torch.where(mixed[:, None], move, f_accepted)
        x = torch.where(done[:, None], x, accepted + move)
    return x, done


def _correction(dx: Tensor, df: Tensor, f: Tensor) -> Tensor:
    """Return (dX + dF) gamma, gamma the least-squares coefficients of f on dF, per row."""
    normal = df @ df.mT
    largest = normal.diagonal(dim1=1, dim2=2).amax(1)
    ridge = _RIDGE_UNITS * torch.finfo(f.dtype).eps * largest
    ridge = torch.where(largest > 0, ridge, 1.0)
    normal = normal + ridge[:, None, None] * torch.eye(_MEMORY, dtype=f.dtype, device=f.device)
    gamma, _ = torch.linalg.solve_ex(normal, df @ f[:, :, None])
    return ((dx + df).mT @ gamma)[:, :, 0]
