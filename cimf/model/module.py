"""An implicit model as a torch module, to be run or trained."""

from __future__ import annotations

from typing import Any

import scipy.sparse
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cimf.errors import InputError, warn_outside
from cimf.model.equilibrium import ConvergenceWarning
from cimf.model.fixed_point import fixed_point
from cimf.model.storage import ModelParts
from cimf.model.wellposed import levels


class ImplicitModule(nn.Module):
    """An implicit model with samples in rows: (batch, p) in, (batch, q) out.

    Integers and booleans are converted to the dtype of the matrices.

    Parameters
    ----------
    model : ModelParts
        Its matrices become the dense parameters A, B, C, D (float64; ``.to(dtype)`` moves them),
        frozen: ``module.requires_grad_()`` makes them trainable.
    tol : float, optional
        Residual, relative to the input max_i |phi(B u)_i|, at which a sample stops; or at the
        rounding of the state where that is larger. Default: 1e-12, or ten times the rounding unit
        of the parameters' dtype where that is larger.
    max_iter : int
        Iterations at most, forward and backward.

    Notes
    -----
    For an acyclic A the iteration is exact after as many steps as A has levels, and gradients flow
    through those steps. Otherwise the equilibrium is found by Anderson acceleration, and gradients
    come from the implicit function theorem: with s = phi'(z) at the equilibrium, lambda =
    s (A' lambda + dL/dx) is solved in the same way, and dL/dA = lambda x', dL/d(B u) = lambda. A
    model without a well-posedness margin may not converge in either, which is warned about. Second
    derivatives are only available for an acyclic A.

    Zeros are kept in training by `cimf.keep_zeros`. A change of A to a pattern with feedback, or
    back, is noticed.
    """

    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    _pattern: Tensor

    def __init__(self, model: ModelParts, tol: float | None = None, max_iter: int = 2000) -> None:
        super().__init__()
        for name in "ABCD":
            matrix = getattr(model, name)
            dense = matrix.toarray() if scipy.sparse.issparse(matrix) else matrix
            self.register_parameter(name, nn.Parameter(torch.tensor(dense), requires_grad=False))
        self.blocks, self.bias = model.blocks, model.bias
        self.tol, self.max_iter = tol, max_iter
        self.register_buffer("_pattern", torch.zeros_like(self.A, dtype=torch.bool), False)
        self._n_levels: int | None = 1  # of the pattern without any entry

    def extra_repr(self) -> str:
        """Return the sizes, for ``print(module)``."""
        return f"n={self.A.shape[0]}, p={self.B.shape[1]}, q={self.C.shape[0]}, bias={self.bias}"

    def parts(self) -> ModelParts:
        """Return the matrices as they are now, for `ImplicitModel.from_module`."""
        A, B, C, D = (getattr(self, name).detach().cpu().double().numpy() for name in "ABCD")
        return ModelParts(A, B, C, D, self.blocks, self.bias)

    def forward(self, u: Tensor) -> Tensor:
        """Return Y^T (batch, q) for inputs u (batch, p), or (batch, p - 1) where there is a bias.

        Raises
        ------
        InputError
            For another shape, complex numbers, a last column that is not ones where it is the bias.
        """
        A, B, C, D = self.A, self.B, self.C, self.D
        p = B.shape[1]
        if u.is_complex():
            raise InputError(f"the input is complex ({u.dtype}): real numbers are needed")
        if not u.is_floating_point():
            u = u.to(B.dtype)
        if u.ndim == 2 and self.bias and u.shape[1] == p - 1:
            u = torch.cat([u, u.new_ones(u.shape[0], 1)], dim=1)
        if u.ndim != 2 or u.shape[1] != p:
            wanted = f"(batch, {p - 1}) or (batch, {p})" if self.bias else f"(batch, {p})"
            raise InputError(
                f"input of shape {tuple(u.shape)}; {wanted} needed: samples are rows in a module"
            )
        if self.bias and not bool((u[:, -1] == 1).all()):
            raise InputError("the last column must be ones (the bias); or leave it out")
        b = u @ B.T
        n_levels = self._levels(A)
        if n_levels is None:
            x = _Equilibrium.apply(A, b, self)
        else:
            x = torch.zeros_like(b)
            for _ in range(n_levels):
                x = self.activate(x @ A.T + b)
        return x @ C.T + u @ D.T

    def activate(self, z: Tensor) -> Tensor:
        """Return phi(z) (batch, n), block by block."""
        return torch.cat([block.activation.torch(z[:, block.rows]) for block in self.blocks], dim=1)

    def _levels(self, A: Tensor) -> int | None:
        """Return the steps after which the iteration is exact, None with feedback.

        What holds for a pattern holds for fewer entries: only a new entry asks for a new answer.
        """
        pattern = A.detach() != 0
        if bool((pattern & ~self._pattern).any()):
            order = levels(scipy.sparse.csr_array(pattern.cpu().double().numpy()))
            self._pattern, self._n_levels = pattern, None if order is None else len(order)
        return self._n_levels

    def solve(self, step: Any, start: Tensor, name: str) -> Tensor:
        """Return the fixed point of `step` from zeros; warn where it was not reached."""
        eps = torch.finfo(start.dtype).eps
        tol = self.tol if self.tol is not None else max(1e-12, 10 * eps)
        x, done = fixed_point(step, start, tol, self.max_iter)
        if not bool(done.all()):
            warn_outside(
                f"{int((~done).sum())} of {len(done)} samples did not converge to {tol:g} in the "
                f"{name} iteration",
                ConvergenceWarning,
            )
        return x


class _Equilibrium(torch.autograd.Function):
    """x = phi(A x + b), rows b (batch, n); differentiated by the implicit function theorem."""

    @staticmethod
    def forward(ctx: Any, A: Tensor, b: Tensor, module: ImplicitModule) -> Tensor:
        x = module.solve(lambda x: module.activate(x @ A.T + b), torch.zeros_like(b), "forward")
        ctx.save_for_backward(A, b, x)
        ctx.module = module
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
        A, b, x = ctx.saved_tensors
        with torch.enable_grad():
            z = (x @ A.T + b).requires_grad_()
            slope = torch.autograd.grad(ctx.module.activate(z).sum(), z)[0]
        adjoint = ctx.module.solve(
            lambda v: slope * (grad + v @ A), torch.zeros_like(grad), "backward"
        )
        return adjoint.T @ x if ctx.needs_input_grad[0] else None, adjoint, None
