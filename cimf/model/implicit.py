"""The implicit model X = phi(A X + B U), Y = C X + D U."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray

from cimf.errors import InputError, RunError, warn_outside
from cimf.model.equilibrium import ConvergenceWarning, Equilibrium, solve_equilibrium
from cimf.model.wellposed import Wellposedness, homogeneous_scales, scale_rows, wellposedness
from cimf.network.activations import Activation, as_activation
from cimf.network.state_blocks import (
    Block,
    check_blocks,
    check_scale,
    homogeneous_rows,
    lipschitz_rows,
)
from formulations.columns import as_float64

if TYPE_CHECKING:
    import torch

    from cimf.model.module import ImplicitModule
    from cimf.model.storage import ModelParts

Array = NDArray[np.float64]


class ImplicitModel:
    """An implicit model; samples are columns: U (p, m), X (n, m), Y (q, m).

    Parameters
    ----------
    A : (n, n), B : (n, p), C : (q, n), D : (q, p)
        Dense or scipy.sparse, kept as given in float64 (copies, read-only). n = 0 is allowed: the
        linear model Y = D U.
    activation : str, Activation, or sequence of Block
        phi for all states, or block by block (``states.blocks`` of a captured network).
    bias : bool
        Whether the last input is the constant 1. Then `predict` also takes (p - 1, m).

    Raises
    ------
    InputError
        Shapes that do not fit, NaN or infinity, float16, unknown activations.
    """

    def __init__(
        self,
        A: Any,
        B: Any,
        C: Any,
        D: Any,
        activation: str | Activation | Sequence[Block] = "relu",
        bias: bool = False,
    ) -> None:
        self.A, self.B, self.C, self.D = (
            _matrix(name, value) for name, value in zip("ABCD", (A, B, C, D), strict=True)
        )
        n, p, q = self.A.shape[0], self.B.shape[1], self.C.shape[0]
        wanted = {"A": (n, n), "B": (n, p), "C": (q, n), "D": (q, p)}
        found = {name: getattr(self, name).shape for name in wanted}
        if found != wanted:
            raise InputError(
                f"the shapes {found} do not fit together: A (n, n), B (n, p), C (q, n) and "
                "D (q, p) needed"
            )
        if p < 1:
            raise InputError("a model needs at least one input column in B and D")
        if isinstance(activation, str | Activation):
            activation = (Block("states", 0, n, as_activation(activation)),)
        self.blocks = check_blocks(activation, n)
        self.bias = bool(bias)

    @classmethod
    def from_network(
        cls,
        net: torch.nn.Module,
        input_shape: Sequence[int] | None = None,
        *,
        sparse: bool = False,
        memory_limit: float = 4e9,
        activations: Mapping[type[torch.nn.Module], Activation | str] | None = None,
    ) -> ImplicitModel:
        """Return the implicit model that equals a layered network, biases included.

        The example of the paper's section 2.1 for any network `cimf.capture_states` accepts: the
        network is cut at its nonlinearities and the affine pieces are read off with unit vectors.
        States are in the order of `cimf.States`; the last input is the constant 1.

        Parameters
        ----------
        net : torch.nn.Module
            Left as it is; a float64 copy in eval mode is read.
        input_shape : sequence of int, optional
            Shape of one sample. Default: ``(in_features,)`` where the first layer is `nn.Linear`.
        sparse : bool
            Return scipy.sparse CSR matrices (convolutions are mostly zeros).
        memory_limit : float
            Bytes that A, B, C and D may take.
        activations : mapping of module type to activation, optional
            As `cimf.capture_states`.

        Raises
        ------
        CaptureError
            The network cannot be represented, or would exceed `memory_limit`.
        """
        from cimf.model.convert import convert_network

        (A, B, C, D), blocks = convert_network(
            net, input_shape, sparse=sparse, memory_limit=memory_limit, activations=activations
        )
        return cls(A, B, C, D, activation=blocks, bias=True)

    @property
    def n_states(self) -> int:
        """Number of states n."""
        return self.A.shape[0]

    @property
    def n_inputs(self) -> int:
        """Number of inputs p, with the constant one where there is one."""
        return self.B.shape[1]

    @property
    def n_outputs(self) -> int:
        """Number of outputs q."""
        return self.C.shape[0]

    def __repr__(self) -> str:
        kinds = ", ".join(dict.fromkeys(str(block.activation) for block in self.blocks))
        return (
            f"ImplicitModel(n={self.n_states}, p={self.n_inputs}, q={self.n_outputs}, "
            f"activation={kinds}, bias={self.bias})"
        )

    def inputs(self, U: ArrayLike) -> Array:
        """Return U as a float64 array (p, m), the row of ones appended where it is missing.

        Raises
        ------
        InputError
            Wrong shape (a transposed U is named as such), NaN, a last row that is not ones.
        """
        u = as_float64("U", U, 2)
        p = self.n_inputs
        if self.bias and u.shape[0] == p - 1:
            return np.concatenate([u, np.ones((1, u.shape[1]))])
        if u.shape[0] == p:
            if self.bias and not (u[-1] == 1.0).all():
                raise InputError("the last row of U must be ones (the bias); or leave it out")
            return u
        accepted = (
            f"({p - 1}, m), or ({p}, m) with a last row of ones," if self.bias else f"({p}, m)"
        )
        hint = ""
        if u.shape[1] == p or (self.bias and u.shape[1] == p - 1):
            hint = "; it looks transposed: samples are columns here, so pass U.T"
        raise InputError(f"U has shape {u.shape}; {accepted} needed{hint}")

    def equilibrium(
        self,
        U: Any,
        method: str = "auto",
        tol: float = 1e-12,
        max_iter: int = 2000,
        progress: Callable[[int], None] | None = None,
    ) -> Equilibrium:
        """Return X = phi(A X + B U) for every sample, with residual and convergence of each.

        Parameters
        ----------
        U : (p, m), or (p - 1, m) where `bias`
            numpy array or torch tensor.
        method, tol, max_iter, progress
            As `cimf.model.equilibrium.solve_equilibrium`.

        Raises
        ------
        InputError, UnknownNameError
            As `inputs` and `solve_equilibrium`.
        """
        u = self.inputs(_to_double(U))
        return solve_equilibrium(
            self.A, _columnwise(self.B, u), self.blocks, method, tol, max_iter, progress
        )

    def predict(self, U: Any, **options: Any) -> Any:
        """Return Y = C X + D U (q, m), X the equilibrium.

        Parameters
        ----------
        U : (p, m), or (p - 1, m) where `bias`
            A torch tensor is answered by a tensor on its device, of its dtype where that is a
            floating one and float64 where it is not; the computation is the same float64 one, and
            gradients do not flow (see `to_module`).
        **options
            As `equilibrium`.

        Warns
        -----
        ConvergenceWarning
            If samples did not converge; their Y comes from the last iterate.
        """
        u = self.inputs(_to_double(U))
        found = self.equilibrium(u, **options)
        missed = int((~found.converged).sum())
        if missed:
            diverged = int((found.status == "diverged").sum())
            warn_outside(
                f"{missed} of {found.converged.size} samples did not reach an equilibrium to "
                f"{found.tol:g} ({diverged} diverged, {missed - diverged} stopped at max_iter): "
                "their outputs come from a last iterate; see equilibrium(U).status",
                ConvergenceWarning,
            )
        Y = self.output(found.X, u)
        if type(U).__module__.partition(".")[0] == "torch":
            import torch

            dtype = U.dtype if U.is_floating_point() else torch.float64
            return torch.from_numpy(Y).to(device=U.device, dtype=dtype)
        return Y

    def output(self, X: ArrayLike, U: ArrayLike) -> Array:
        """Return C X + D U (q, m) for states X (n, m) that are already known.

        Raises
        ------
        InputError
            As `inputs`; X has another shape.
        """
        x, u = as_float64("X", X, 2), self.inputs(U)
        if x.shape != (self.n_states, u.shape[1]):
            raise InputError(f"X has shape {x.shape}; ({self.n_states}, {u.shape[1]}) needed")
        return _columnwise(self.C, x) + _columnwise(self.D, u)

    def wellposedness(self) -> Wellposedness:
        """Return which sufficient condition for a unique equilibrium holds, and its margin."""
        return wellposedness(self.A, lipschitz_rows(self.blocks, self.n_states))

    def sensitivity(self) -> Array:
        """Return S (q, p), an upper bound in spite of rounding: |dY| <= S |dU| entry by entry.

        S = |C| (I - L |A|)^{-1} L |B| + |D|, L the Lipschitz constants of the activations. The
        column of the constant input, which does not move, is 0.

        Raises
        ------
        InputError
            The model is not proved well-posed, or an activation has no Lipschitz constant.
        """
        from cimf.model.perturbation import sensitivity

        return sensitivity((self.A, self.B, self.C, self.D), self.blocks, self.bias)

    def rescale(self, kappa: float = 0.99) -> tuple[ImplicitModel, Array]:
        """Return an equivalent model with ||A'||_inf < kappa, and the scale s (n,) (Theorem 8).

        A' = S^-1 A S, B' = S^-1 B, C' = C S, D' = D give the same outputs for every input, with
        states x' = x / s.

        Raises
        ------
        InputError
            If an activation is not positively homogeneous, or kappa is not above the
            Perron-Frobenius eigenvalue of |A| (then no scaling can reach it).
        """
        for block in self.blocks:
            if not block.activation.positively_homogeneous and block.stop > block.start:
                raise InputError(
                    f"block {block.name!r} has activation {block.activation}, which is not "
                    "positively homogeneous (as ReLU is): its states cannot be rescaled"
                )
        scale = homogeneous_scales(self.A, kappa)
        return self.scaled(scale), scale

    def scaled(self, scale: ArrayLike) -> ImplicitModel:
        """Return the same model in the units x~ = x / s: S^-1 A S, S^-1 B, C S, D.

        Raises
        ------
        InputError
            If s is not positive, or not 1 where an activation is not positively homogeneous.
        """
        s = check_scale(scale, homogeneous_rows(self.blocks, self.n_states))
        A, B, C = scale_rows(self.A, self.B, self.C, s)
        return ImplicitModel(A, B, C, self.D, self.blocks, self.bias)

    def unscaled(self, scale: ArrayLike) -> ImplicitModel:
        """Return the same model in the units x = s x~: the inverse of `scaled`."""
        return self.scaled(1.0 / as_float64("scale", scale, 1))

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically: matrices, and a JSON record in its header."""
        from cimf.model.storage import save_parts

        save_parts(self._parts, path)

    @classmethod
    def load(cls, path: str | Path) -> ImplicitModel:
        """Read a file written by `save`.

        Raises
        ------
        RunError
            If it is missing, truncated, altered, or of an unknown format.
        """
        from cimf.model.storage import load_parts

        parts = load_parts(path)
        try:
            return cls(*parts[:4], activation=parts.blocks, bias=parts.bias)
        except InputError as error:
            raise RunError(f"{path} holds an inconsistent model: {error}") from error

    @property
    def _parts(self) -> ModelParts:
        from cimf.model.storage import ModelParts

        return ModelParts(self.A, self.B, self.C, self.D, self.blocks, self.bias)

    def to_module(self, **options: Any) -> ImplicitModule:
        """Return an `nn.Module`: (batch, p) or (batch, p - 1) in, (batch, q) out.

        Its parameters are A, B, C, D; see `cimf.model.module.ImplicitModule`.
        """
        from cimf.model.module import ImplicitModule

        return ImplicitModule(self._parts, **options)

    @classmethod
    def from_module(cls, module: ImplicitModule) -> ImplicitModel:
        """Return the model of a module as it is now, trained or not: the inverse of `to_module`."""
        parts = module.parts()
        return cls(*parts[:4], activation=parts.blocks, bias=parts.bias)


def _matrix(name: str, value: Any) -> Any:
    """Return a read-only float64 copy, CSR where `value` is sparse."""
    if scipy.sparse.issparse(value):
        out = scipy.sparse.csr_array(value, copy=True)
        out.sum_duplicates()
        out.data = as_float64(name, out.data, 1)
        for part in (out.data, out.indices, out.indptr):
            part.setflags(write=False)
        return out
    dense = np.array(as_float64(name, value, 2), order="C")
    dense.setflags(write=False)
    return dense


def _to_double(U: Any) -> Any:
    """Return a floating torch tensor in float64 (networks are run in half precision too)."""
    if type(U).__module__.partition(".")[0] == "torch" and U.is_floating_point():
        return U.double()
    return U


def _columnwise(matrix: Any, x: Array) -> Array:
    """Return matrix @ x with bits that do not depend on the other columns of x."""
    return scipy.sparse.csr_array(matrix) @ np.ascontiguousarray(x)
