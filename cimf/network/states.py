"""The states of a network on calibration samples: all the data the row problems ever see."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cimf.errors import InputError
from cimf.network.state_blocks import Block, check_blocks, check_scale, homogeneous_rows
from formulations.columns import as_float64


@dataclass(frozen=True)
class Reconstruction:
    """How well the captured states reproduce the network: largest relative errors.

    Every error is a largest absolute difference divided by the largest absolute value of the
    quantity itself (by 1 where that is smaller).

    Attributes
    ----------
    activation : float
        Of X = phi(Z), the toolkit's phi against the network's own, over all blocks and samples.
    output : float
        Of Y against a plain call of the network.
    affinity : float
        Of f(t a + (1 - t) b) = t f(a) + (1 - t) f(b), f every operation between the
        nonlinearities, at random a and b that replace the states.
    independence : float
        Of one sample's values when the other samples of its batch change.
    """

    activation: float
    output: float
    affinity: float
    independence: float

    @property
    def worst(self) -> float:
        """The largest of the four."""
        return max(self.activation, self.output, self.affinity, self.independence)

    def merge(self, other: Reconstruction) -> Reconstruction:
        """Return the larger of every error."""
        return Reconstruction(
            max(self.activation, other.activation),
            max(self.output, other.output),
            max(self.affinity, other.affinity),
            max(self.independence, other.independence),
        )


@dataclass(frozen=True, repr=False)
class States:
    """States of a network, samples in columns as in the paper, float64.

    Attributes
    ----------
    U : (p, m)
        Inputs, flattened; where `bias`, the last row is ones: the paper's (u, 1).
    X, Z : (n, m)
        States after and before their activation, X = phi(Z), the last block on top.
    Y : (q, m)
        Outputs, flattened.
    blocks : tuple of Block
        Rows by activation, in row order.
    bias : bool
        Whether the last row of `U` is ones.
    reconstruction : Reconstruction
        What was checked before these states were handed out.
    output_predecessors : tuple of str
        Blocks (or ``"input"``) that Y depends on directly.
    """

    U: NDArray[np.float64]
    X: NDArray[np.float64]
    Z: NDArray[np.float64]
    Y: NDArray[np.float64]
    blocks: tuple[Block, ...]
    bias: bool
    reconstruction: Reconstruction
    output_predecessors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("U", "X", "Z", "Y"):
            object.__setattr__(self, name, as_float64(name, getattr(self, name), 2))
        counts = {getattr(self, name).shape[1] for name in ("U", "X", "Z", "Y")}
        if len(counts) != 1:
            raise InputError(f"U, X, Z and Y have different numbers of samples: {sorted(counts)}")
        if self.X.shape != self.Z.shape:
            raise InputError(f"X {self.X.shape} and Z {self.Z.shape} have different shapes")
        check_blocks(self.blocks, self.n_states)
        if self.bias and not (self.n_inputs and (self.U[-1] == 1.0).all()):
            raise InputError("bias=True, but the last row of U is not all ones")

    def __repr__(self) -> str:
        return (
            f"States({self.n_states} states in {len(self.blocks)} blocks, {len(self.U)} inputs, "
            f"{self.n_outputs} outputs, {self.n_samples} samples, bias={self.bias})"
        )

    @property
    def n_states(self) -> int:
        """Number of states n."""
        return self.X.shape[0]

    @property
    def n_inputs(self) -> int:
        """Number of inputs p, with the row of ones where there is one."""
        return self.U.shape[0]

    @property
    def n_outputs(self) -> int:
        """Number of outputs q."""
        return self.Y.shape[0]

    @property
    def n_samples(self) -> int:
        """Number of samples m."""
        return self.X.shape[1]

    @property
    def n_columns(self) -> int:
        """N = n + p, the columns of a row problem."""
        return self.n_states + self.n_inputs

    def design(self) -> NDArray[np.float64]:
        """Return M = (X^T, U^T), shape (m, N)."""
        return np.concatenate([self.X, self.U]).T

    @property
    def free_columns(self) -> NDArray[np.bool_]:
        """Columns of the design that stay outside the ball by default, the bias: (N,) bool."""
        free = np.zeros(self.n_columns, dtype=bool)
        if self.bias:
            free[-1] = True
        return free

    @property
    def scalable(self) -> NDArray[np.bool_]:
        """States with a positively homogeneous activation, which Theorem 8 may scale: (n,) bool."""
        return homogeneous_rows(self.blocks, self.n_states)

    def causal_mask(self) -> NDArray[np.bool_]:
        """Columns a row may use if only earlier blocks and the inputs are allowed: (n, N) bool."""
        mask = np.zeros((self.n_states, self.n_columns), dtype=bool)
        for block in self.blocks:
            mask[block.rows, block.stop :] = True
        return mask

    def scaled(self, scale: ArrayLike) -> States:
        """Return the states in the units x~ = x / s, z~ = z / s.

        Parameters
        ----------
        scale : (n,)
            s > 0, equal to 1 wherever the activation is not positively homogeneous; X~ = phi(Z~)
            then still holds. `ImplicitModel.unscaled` takes a model of the scaled states back.

        Raises
        ------
        InputError
            For any other scale.
        """
        s = check_scale(scale, self.scalable)
        return replace(self, X=self.X / s[:, None], Z=self.Z / s[:, None])

    @classmethod
    def concatenate(cls, parts: Iterable[States]) -> States:
        """Return the states of all samples of `parts`, which come from one network.

        Raises
        ------
        InputError
            If there are none, or they come from different networks.
        """
        found = list(parts)
        if not found:
            raise InputError("no states to concatenate")
        first = found[0]
        if any(part.blocks != first.blocks or part.bias != first.bias for part in found):
            raise InputError("these states come from different networks: their blocks differ")
        reconstruction = first.reconstruction
        for part in found[1:]:
            reconstruction = reconstruction.merge(part.reconstruction)
        return replace(
            first,
            U=np.concatenate([part.U for part in found], axis=1),
            X=np.concatenate([part.X for part in found], axis=1),
            Z=np.concatenate([part.Z for part in found], axis=1),
            Y=np.concatenate([part.Y for part in found], axis=1),
            reconstruction=reconstruction,
        )
