"""The implicit model of a network with layers, (A, B, C, D) as linear operators.

X = phi(A X + B U), Y = C X + D U with all nonlinearities of the network as states. A has far too
many entries to be stored for a convolutional network; it is applied instead: the network is cut
open at its nonlinearities and run once with the given states.
"""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn

from cimf.errors import CaptureError, CimfError, InputError
from cimf.model import ImplicitModel
from cimf.model.convert import random_samples
from cimf.model.explicit import read_matrices
from cimf.model.operator_norms import OperatorNorms, operator_norms
from cimf.network.cut import Network, find_cuts, run, trace_network
from cimf.network.fold import fold_norms
from cimf.network.graph import Graph
from cimf.network.probe import probe
from cimf.network.state_blocks import apply_blocks
from formulations.columns import as_float64

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Reached:
    """An equilibrium.

    Attributes
    ----------
    X : (n, m)
    Y : (q, m)
    iterations : int
        Applications of A and B.
    residual : float
        max |X - phi(A X + B U)|.
    """

    X: Array
    Y: Array
    iterations: int
    residual: float


def implicit_summary(net: nn.Module, inputs: Tensor) -> str:
    """Say whether a network is an implicit model, whether the two agree, and how well-posed it is.

    Parameters
    ----------
    net : nn.Module
    inputs : Tensor (b, ...)
        Some samples; at most eight are used.
    """
    u = inputs[:8].double()
    try:
        model = OperatorModel(net, tuple(u.shape[1:]))
    except CimfError as error:
        return f"no implicit model: {error}"
    reached = model.equilibrium(u.flatten(1).numpy().T)
    with torch.no_grad():
        expected = model.network.reference(u).numpy().T
    difference = np.abs(reached.Y - expected).max() / (np.abs(expected).max() or 1.0)
    text = (
        f"implicit model: {model.n_states:,} states; its equilibrium gives the network's output to "
        f"{difference:.0e} (relative, {len(u)} samples)"
    )
    try:
        return f"{text}\n{model.wellposedness()}"
    except CimfError as error:
        return f"{text}\nwell-posed for any weights; row norms after rescaling: {error}"


class OperatorModel:
    """An implicit model whose matrices are applied, not stored.

    Parameters
    ----------
    net : nn.Module
        Every nonlinearity elementwise and known (`cimf.ACTIVATIONS`).
    shape : tuple of int
        Of one input sample.

    Attributes
    ----------
    blocks : tuple of Block
        The last nonlinearity on top, so that A is strictly block upper triangular.
    A, B, C, D : scipy.sparse.linalg.LinearOperator
        Of shapes (n, n), (n, p), (q, n), (q, p). The last input is the constant 1.

    Raises
    ------
    CaptureError
        The network is no implicit model: the message names the layer.
    """

    def __init__(self, net: nn.Module, shape: tuple[int, ...]) -> None:
        sample = random_samples(shape)
        self.network = trace_network(net, sample=sample)
        graph = self.network.graph
        fold_norms(graph, graph.shapes(sample))
        found = probe(self.network, torch.Size(shape))
        self.blocks, self.shape = found.blocks, tuple(shape)
        self.n_states = max((block.stop for block in self.blocks), default=0)
        self.n_inputs = math.prod(shape) + 1
        zero = np.zeros((self.n_states, 1)), np.zeros((self.n_inputs - 1, 1))
        self._offset = self._open(self.network, *zero)
        self.n_outputs = len(self._offset[1])
        n, p, q = self.n_states, self.n_inputs, self.n_outputs
        self.A = self._operator((n, n), lambda v: self._linear(v, self._no_input(v))[0])
        self.C = self._operator((q, n), lambda v: self._linear(v, self._no_input(v))[1])
        self.B = self._operator((n, p), lambda v: self._of_input(v)[0])
        self.D = self._operator((q, p), lambda v: self._of_input(v)[1])

    def equilibrium(self, U: ArrayLike) -> Reached:
        """Return the equilibrium for inputs U (p, m), the last row ones, or (p - 1, m) without it.

        A is strictly block triangular, so the iteration X <- phi(A X + B U) from 0 is exact after
        as many steps as there are blocks on the longest path.

        Raises
        ------
        InputError
            U has another number of rows, holds NaN or no real numbers, or a last row that is not
            ones.
        """
        u = as_float64("U", U, 2)
        if len(u) not in (self.n_inputs, self.n_inputs - 1):
            raise InputError(f"U has shape {u.shape}; ({self.n_inputs}, m) needed")
        if not (u[self.n_inputs - 1 :] == 1.0).all():
            raise InputError("the last row of U must be ones (the bias); or leave it out")
        u = u[: self.n_inputs - 1]
        X = np.zeros((self.n_states, u.shape[1]))
        for step in itertools.count(1):
            Z, Y = self._open(self.network, X, u)
            new = apply_blocks(self.blocks, Z)
            residual = float(np.abs(new - X).max(initial=0.0))
            if residual == 0.0 or step > len(self.blocks):
                break
            X = new
        return Reached(X, Y, step, residual)

    def to_sparse(self, memory_limit: float = 4e9) -> ImplicitModel:
        """Return the same model with its matrices stored as scipy.sparse CSR.

        Parameters
        ----------
        memory_limit : float
            Bytes that A, B, C and D may take, checked by an estimate before anything is built;
            building takes about four times as much. ResNet-20 (188,416 states) with 80 % of its
            weights zero has 7.4 million non-zeros in A, 0.09 GB, read in a few minutes.

        Raises
        ------
        CaptureError
            The matrices would be larger, or they differ from the operators.
        """
        matrices = read_matrices(
            self.network, self.blocks, self.shape, np.concatenate(self._offset), memory_limit
        )
        out = ImplicitModel(*matrices, activation=self.blocks, bias=True)
        rng = np.random.default_rng(0)
        X, U = rng.standard_normal((self.n_states, 2)), rng.standard_normal((self.n_inputs - 1, 2))
        Z, Y = self._open(self.network, X, U)
        ones = np.vstack([U, np.ones(2)])
        for found, expected in (
            (out.A @ X + out.B @ ones, Z),
            (out.C @ X + out.D @ ones, Y),
        ):
            error = np.abs(found - expected).max(initial=0.0)
            if not error <= 1e-10 * max(1.0, np.abs(expected).max(initial=0.0)):
                raise CaptureError(f"the stored matrices differ from the operators by {error:.1e}")
        return out

    def row_norms(self) -> Array:
        """Return sum_j |A_ij| for every state, shape (n,).

        Computed by running the network with the absolute values of its weights on states of one.
        Where two additive paths join the same pair of states (an identity shortcut beside the
        centre of a kernel) the sum of the absolute values is returned, an upper bound.

        Raises
        ------
        CaptureError
            A batch norm could not be folded, so that weights are hidden in it; or the network
            subtracts activations or multiplies them by negative constants.
        """
        return self._magnitude(np.ones(self.n_states))

    def wellposedness(self, kappa: float = 0.99) -> OperatorNorms:
        """Return the row norms block by block, and what it takes to bring them to kappa.

        Raises
        ------
        CaptureError
            As `row_norms`.
        InputError
            kappa is not positive; or an activation is not positively homogeneous (as ReLU is), so
            that its states cannot be rescaled. The model is well-posed all the same.
        """
        return operator_norms(self._magnitude, self.blocks, kappa)

    def _magnitude(self, s: Array) -> Array:
        """Return |A| s for s (n,) >= 0."""
        none = np.zeros((self.n_inputs - 1, 1))
        return self._open(self._absolute, s[:, None], none)[0][:, 0]

    @cached_property
    def _absolute(self) -> Network:
        """The network with the absolute values of its weights and without biases."""
        graph = Graph(copy.deepcopy(self.network.graph.module), torch.float64)
        for node in graph.nodes:
            called = graph.called(node)
            if called is None:
                continue
            if isinstance(called, nn.BatchNorm1d | nn.BatchNorm2d):
                raise CaptureError(f"layer {node.target!r}: a batch norm without a layer before it")
            for name, parameter in called.named_parameters(recurse=False):
                parameter.copy_(parameter.abs() if name != "bias" else 0 * parameter)
        absolute = Network(self.network.reference, graph, find_cuts(graph))
        # |A x| <= |A| |x| for random signs x: fails where a sign is in no weight.
        signs = np.sign(np.random.default_rng(0).standard_normal((self.n_states, 8)))
        none = np.zeros((self.n_inputs - 1, 8))
        bound = self._open(absolute, np.abs(signs), none)[0]
        if (np.abs(self._linear(signs, none)[0]) > bound * (1 + 1e-9) + 1e-9).any():
            raise CaptureError(
                "the network subtracts activations or multiplies them by negative constants "
                "outside its layers: its row norms cannot be read off; use to_sparse()"
            )
        return absolute

    def _open(self, network: Network, X: Array, u: Array) -> tuple[Array, Array]:
        """Return (Z, Y) of a network with its states replaced by X (n, m), inputs u (p - 1, m)."""
        m = X.shape[1]
        states = [
            torch.from_numpy(np.ascontiguousarray(X[block.rows].T)).reshape(m, *block.shape)
            for block in reversed(self.blocks)
        ]
        opened = run(
            network, torch.from_numpy(np.ascontiguousarray(u.T)).reshape(m, *self.shape), states
        )
        none = np.zeros((0, m))  # a linear network has no states
        Z = np.concatenate([none, *(z.reshape(m, -1).numpy().T for z in reversed(opened.z))])
        return Z, opened.y.reshape(m, -1).numpy().T

    def _linear(self, X: Array, u: Array) -> tuple[Array, Array]:
        Z, Y = self._open(self.network, X, u)
        return Z - self._offset[0], Y - self._offset[1]

    def _no_input(self, X: Array) -> Array:
        return np.zeros((self.n_inputs - 1, X.shape[1]))

    def _of_input(self, U: Array) -> tuple[Array, Array]:
        """Return (B U, D U); the constant input multiplies the offsets."""
        linear = self._linear(np.zeros((self.n_states, U.shape[1])), U[:-1])
        return linear[0] + self._offset[0] * U[-1], linear[1] + self._offset[1] * U[-1]

    @staticmethod
    def _operator(shape: tuple[int, int], matmat: Any) -> LinearOperator:
        return LinearOperator(
            shape,
            dtype=np.float64,
            matmat=matmat,
            matvec=lambda v: matmat(np.reshape(v, (-1, 1)))[:, 0],
        )
