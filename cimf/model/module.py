"""An implicit model as a torch module."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import scipy.sparse
import torch
from torch import nn

from cimf.errors import InputError, warn_outside
from cimf.model.equilibrium import ConvergenceWarning
from cimf.model.storage import ModelParts


class ImplicitModule(nn.Module):
    """A view of an `ImplicitModel` with samples in rows: (batch, p) in, (batch, q) out.

    Integers and booleans are converted to the dtype of the matrices.

    Parameters
    ----------
    model : ModelParts
        Its matrices become dense buffers A, B, C, D (float64; ``.to(dtype)`` moves them).
    n_levels : int
        Steps after which the iteration is exact; 0 where A has feedback.
    tol : float, optional
        Residual, relative to the input max_i |phi(B u)_i|, at which a sample stops; or at the
        rounding of the state where that is larger. Default: 1e-12, or ten times the rounding unit
        of the buffers' dtype where that is larger.
    max_iter : int
        Iterations at most, forward and backward.

    Notes
    -----
    For an acyclic A the iteration is exact after as many steps as A has levels, and gradients flow
    through those steps. Otherwise plain fixed-point iteration is used (no Anderson acceleration:
    `ImplicitModel.predict` is the reference), and gradients come from the implicit function theorem
    by iterating the adjoint equation; both converge at the rate of the Perron-Frobenius eigenvalue,
    so a model without a well-posedness margin may not converge, which is warned about. Second
    derivatives are only available for an acyclic A.
    """

    A: torch.Tensor
    B: torch.Tensor
    C: torch.Tensor
    D: torch.Tensor

    def __init__(
        self, model: ModelParts, n_levels: int, tol: float | None = None, max_iter: int = 2000
    ) -> None:
        super().__init__()
        for name in "ABCD":
            matrix = getattr(model, name)
            dense = matrix.toarray() if scipy.sparse.issparse(matrix) else matrix
            self.register_buffer(name, torch.tensor(dense))
        self.blocks, self.bias = model.blocks, model.bias
        self.n_levels = n_levels
        self.acyclic = n_levels > 0 or len(self.A) == 0
        self.tol, self.max_iter = tol, max_iter

    def extra_repr(self) -> str:
        """Return the sizes, for ``print(module)``."""
        return f"n={self.A.shape[0]}, p={self.B.shape[1]}, q={self.C.shape[0]}, bias={self.bias}"

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        """Return Y^T (batch, q) for inputs u (batch, p), or (batch, p - 1) where there is a bias.

        Raises
        ------
        InputError
            For another shape, complex numbers, a last column that is not ones where it is the bias.
        """
        p = self.B.shape[1]
        if u.is_complex():
            raise InputError(f"the input is complex ({u.dtype}): real numbers are needed")
        if not u.is_floating_point():
            u = u.to(self.B.dtype)
        if u.ndim == 2 and self.bias and u.shape[1] == p - 1:
            u = torch.cat([u, u.new_ones(u.shape[0], 1)], dim=1)
        if u.ndim != 2 or u.shape[1] != p:
            wanted = f"(batch, {p - 1}) or (batch, {p})" if self.bias else f"(batch, {p})"
            raise InputError(
                f"input of shape {tuple(u.shape)}; {wanted} needed: samples are rows in a module"
            )
        if self.bias and not bool((u[:, -1] == 1).all()):
            raise InputError("the last column must be ones (the bias); or leave it out")
        b = u @ self.B.T
        x = self._unrolled(b) if self.acyclic else self._implicit(b)
        return x @ self.C.T + u @ self.D.T

    def _step(self, x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        z = x @ self.A.T + b
        return torch.cat([block.activation.torch(z[:, block.rows]) for block in self.blocks], dim=1)

    def _unrolled(self, b: torch.Tensor) -> torch.Tensor:
        x = torch.zeros_like(b)
        for _ in range(self.n_levels):
            x = self._step(x, b)
        return x

    def _implicit(self, b: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            x = self._fixed_point(lambda x: self._step(x, b), torch.zeros_like(b), "forward")
        if not torch.is_grad_enabled():
            return x
        out = self._step(x, b)  # one differentiable step at the equilibrium
        if out.requires_grad:
            x = x.requires_grad_()
            again = self._step(x, b.detach())

            def adjoint(grad: torch.Tensor) -> torch.Tensor:
                def step(g: torch.Tensor) -> torch.Tensor:
                    return grad + torch.autograd.grad(again, x, g, retain_graph=True)[0]

                return self._fixed_point(step, torch.zeros_like(grad), "backward")

            out.register_hook(adjoint)
        return out

    def _fixed_point(
        self, step: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, name: str
    ) -> torch.Tensor:
        """Iterate x <- step(x) from x = 0, every row until it converged.

        As in `cimf.model.equilibrium`: relative to the first step, and never at a state so large
        that its rounding hides that step.
        """
        eps = torch.finfo(x.dtype).eps
        tol = self.tol if self.tol is not None else max(1e-12, 10 * eps)
        done: Any = torch.zeros(x.shape[0], 1, dtype=torch.bool, device=x.device)
        size = None
        for _ in range(self.max_iter):
            new = step(x)
            size = new.abs().amax(1, keepdim=True) if size is None else size
            rounding = eps * x.abs().amax(1, keepdim=True)
            close = (new - x).abs().amax(1, keepdim=True) <= (tol * size).maximum(8 * rounding)
            now = close & (rounding <= math.sqrt(eps) * size)
            x = torch.where(done | now, x, new)
            done = done | now
            if bool(done.all()):
                return x
        warn_outside(
            f"{int((~done).sum())} of {x.shape[0]} samples did not converge to {tol:g} in the "
            f"{name} iteration",
            ConvergenceWarning,
        )
        return x
